//! No core allocates or frees after its start-up: a guarding allocator counts the calls from running cores.

mod support;

use std::net::TcpListener;
use support::*;
use trefoil_poll::guard::Guard;
use trefoil_poll::*;

#[global_allocator]
static GUARD: Guard = Guard::new();

#[test]
fn turning_cores_do_not_allocate() {
    let faults = Faults { seed: 3, short_per_mille: 100, cancel_per_mille: 50 };
    let mut config = CoreConfig {
        uring: UringConfig {
            max_sockets: 64,
            max_file_ops: 8,
            faults: Some(faults),
            ..UringConfig::default()
        },
        ..CoreConfig::default()
    };
    (config.uring.recv_buffers, config.uring.recv_buffer_bytes) = (2, 4096);
    let mut rig = Rig::new(2, config, 20);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let open = listener.local_addr().expect("bound");
    for round in 0..5 {
        let mut clients: Vec<_> = (0..16).map(|i| rig.client(i % 2)).collect();
        for (i, client) in clients.iter_mut().enumerate() {
            exchange(client, 1 + 5000 * i, (i % 3) as u32, round);
        }
        for core in 0..2 {
            rig.to_cores[core].send(Msg::Connect(open)).expect("room");
            rig.to_cores[core]
                .send(Msg::ConnectAndClose("192.0.2.1:9".parse().expect("an address")))
                .expect("room");
            let ping = Msg::Ping { via: CoreId(1 - core as u16), back: CoreId(core as u16), number: 1 };
            rig.to_cores[core].send(ping).expect("room");
        }
        // Each core sends Connected and Closed for two connects, and one pong.
        for _ in 0..10 {
            rig.next();
        }
        if round % 2 == 0 {
            drop(clients);
        } else {
            (0..2).for_each(|core| rig.to_cores[core].send(Msg::CloseAll).expect("room"));
        }
        for _ in 0..16 {
            assert!(matches!(rig.next().1, Msg::Closed));
        }
    }
    let closed: usize = rig.finish().iter().map(|echo| echo.closed).sum();
    assert_eq!(closed, 5 * (16 + 4));
    GUARD.assert_clean();
}
