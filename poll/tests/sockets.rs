//! The io_uring driver against the kernel's own sockets.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;
use support::*;
use trefoil_poll::*;

fn config(faults: Option<Faults>) -> CoreConfig {
    CoreConfig {
        uring: UringConfig { max_sockets: 64, max_file_ops: 8, faults, ..UringConfig::default() },
        ..CoreConfig::default()
    }
}

/// Both transfer methods: direct where possible, and through the ring only.
fn both_ways(faults: Option<Faults>) -> [CoreConfig; 2] {
    [true, false].map(|direct| {
        let mut config = config(faults);
        config.uring.direct = direct;
        config
    })
}

const LENGTHS: [usize; 9] = [1, 7, 511, 4096, 4097, 65_535, 128 << 10, 300_001, MAX_FRAME];

#[test]
fn every_size_comes_back_in_every_mode() {
    for config in both_ways(None) {
        let mut rig = Rig::new(1, config, 0);
        let mut client = rig.client(0);
        for (seed, len) in LENGTHS.into_iter().enumerate() {
            for mode in [BUF, BUF_SPLIT, STREAM] {
                exchange(&mut client, len, mode, seed as u64);
            }
        }
        drop(client);
        assert!(matches!(rig.next(), (CoreId(0), Msg::Closed)));
        rig.finish();
    }
}

#[test]
fn every_size_comes_back_with_short_transfers_and_cancellations() {
    for seed in 0..4 {
        let faults = Faults { seed, short_per_mille: 400, cancel_per_mille: 200 };
        let config = both_ways(Some(faults))[seed as usize % 2];
        let mut rig = Rig::new(1, config, 2);
        let mut clients: Vec<_> = (0..4).map(|_| rig.client(0)).collect();
        for round in 0..20 {
            for (i, client) in clients.iter_mut().enumerate() {
                let len = LENGTHS[(round + i) % LENGTHS.len()];
                exchange(client, len, (round % 3) as u32, seed * 1000 + round as u64);
            }
        }
        rig.finish();
    }
}

#[test]
fn many_sockets_share_one_small_receive_buffer() {
    let [_, mut config] = both_ways(None);
    (config.uring.recv_buffers, config.uring.recv_buffer_bytes) = (1, 4096);
    let mut rig = Rig::new(1, config, 4);
    let threads: Vec<_> = (0..16)
        .map(|i| {
            let mut client = rig.client(0);
            std::thread::spawn(move || {
                (0..20).for_each(|n| exchange(&mut client, 30_000, STREAM, i * 100 + n))
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("a client ended well"));
    assert_eq!(rig.finish()[0].closed, 16);
}

/// Receives of both kinds, and a send that the peer does not take, are outstanding.
#[test]
fn closing_gives_everything_back_once() {
    for config in both_ways(None) {
        let mut rig = Rig::new(1, config, 6);
        let mut clients: Vec<_> = (0..12).map(|_| rig.client(0)).collect();
        for (i, client) in clients.iter_mut().enumerate() {
            match i % 3 {
                0 => exchange(client, 10, STREAM, 1),
                1 => client.write_all(&[100, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]).expect("half a frame"),
                _ => {
                    // The peer reads nothing: the reply soon fills the socket's buffers.
                    let frame = [(MAX_FRAME as u32).to_le_bytes(), BUF.to_le_bytes()].concat();
                    client.write_all(&frame).expect("sent");
                    client.write_all(&vec![9; MAX_FRAME]).expect("sent");
                }
            }
        }
        rig.to_cores[0].send(Msg::CloseAll).expect("room");
        for _ in 0..clients.len() {
            assert!(matches!(rig.next(), (_, Msg::Closed)));
        }
        for client in &mut clients {
            // The socket is closed at once: the client gets the remaining bytes, if any, and then the end or a reset.
            let mut rest = Vec::new();
            let _ = client.read_to_end(&mut rest);
        }
        let echo = rig.finish();
        assert_eq!(echo[0].closed, 12);
    }
}

#[test]
fn stopping_ends_what_is_outstanding() {
    let faults = Faults { seed: 1, short_per_mille: 0, cancel_per_mille: 500 };
    let mut rig = Rig::new(2, config(Some(faults)), 8);
    let mut clients: Vec<_> = (0..20).map(|i| rig.client(i % 2)).collect();
    clients.iter_mut().for_each(|client| exchange(client, 5000, BUF, 3));
    assert_eq!(rig.finish().iter().map(|echo| echo.closed).sum::<usize>(), 20);
}

#[test]
fn connects_succeed_fail_and_are_abandoned() {
    let mut rig = Rig::new(1, config(None), 10);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let open = listener.local_addr().expect("bound");
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    for _ in 0..3 {
        rig.to_cores[0].send(Msg::Connect(open)).expect("room");
        assert!(matches!(rig.next().1, Msg::Connected(Ok(()))));
        assert!(matches!(rig.next().1, Msg::Closed));
        rig.to_cores[0].send(Msg::Connect(closed)).expect("room");
        assert!(matches!(rig.next().1, Msg::Connected(Err(libc::ECONNREFUSED))));
        assert!(matches!(rig.next().1, Msg::Closed));
        // TEST-NET-1 answers nothing, or the machine has no route. Either connect ends at once.
        for nobody in ["192.0.2.1:9", "[::1]:1", "127.0.0.1:1"] {
            rig.to_cores[0].send(Msg::ConnectAndClose(nobody.parse().expect("an address"))).expect("room");
            assert!(matches!(rig.next().1, Msg::Connected(Err(_))));
            assert!(matches!(rig.next().1, Msg::Closed));
        }
    }
    rig.finish();
}

#[test]
fn messages_wake_sleeping_cores() {
    let mut config = config(None);
    config.idle = Idle::Adaptive { spin_us: 0 };
    let mut rig = Rig::new(2, config, 12);
    for number in 0..500 {
        let (first, via) = ((number % 2) as usize, CoreId((number / 2 % 2) as u16));
        let ping = Msg::Ping { via, back: CoreId(first as u16), number };
        rig.to_cores[first].send(ping).expect("room");
        match rig.next().1 {
            Msg::Pong(answer) => assert_eq!(answer, number),
            other => panic!("{other:?}"),
        }
    }
    let sleeps: u64 = rig.cores.iter().map(|core| core.metrics().sample().sleeps).sum();
    assert!(sleeps > 0, "nobody ever slept");
    rig.finish();
}

#[test]
fn an_idle_core_does_not_turn() {
    let mut rig = Rig::new(1, config(None), 14);
    let mut client = rig.client(0);
    exchange(&mut client, 100, BUF, 1);
    std::thread::sleep(Duration::from_millis(50));
    let before = rig.cores[0].metrics().sample();
    std::thread::sleep(Duration::from_millis(200));
    let after = rig.cores[0].metrics().sample();
    assert!(after.turns - before.turns < 10, "{before:?} {after:?}");
    exchange(&mut client, 100, BUF, 1);
    rig.finish();
}

#[test]
fn a_deadline_wakes_a_sleeping_core_and_never_early() {
    let mut rig = Rig::new(1, config(None), 16);
    for ms in [1, 3, 20] {
        let after = Duration::from_millis(ms);
        rig.to_cores[0].send(Msg::Timer(after)).expect("room");
        match rig.next().1 {
            Msg::Fired(took) => assert!(took >= after, "{took:?} is before {after:?}"),
            other => panic!("{other:?}"),
        }
    }
    rig.finish();
}

#[test]
fn a_spinning_core_stops_too() {
    let mut config = config(None);
    config.idle = Idle::Spin;
    let mut rig = Rig::new(1, config, 18);
    let mut client = rig.client(0);
    exchange(&mut client, 4096, BUF, 1);
    let echo = rig.finish();
    assert_eq!(echo[0].closed, 1);
}
