//! Tests of the work that attached backends cause in a turn. They count work and measure no time.

use super::*;
use crate::backend::nvme_tcp::NvmeTcpConfig;
use crate::initiator::testing::{TestIo, address, arena, identity};
use crate::initiator::{ControllerConfig, FenceRule, Purpose, QueueEntries};
use std::time::Duration;
use trefoil_poll::{Arena, SockEvent};

struct Core {
    io: TestIo,
    arena: Arena,
    requests: VecDeque<Request>,
    done: VecDeque<Completed>,
    luns: Luns<TestIo>,
    socks: Vec<(SockId, BackendId)>,
}

impl Core {
    fn with<T>(&mut self, run: impl FnOnce(&mut Luns<TestIo>, &mut Cx<'_, TestIo>) -> T) -> T {
        let Self { io, arena, requests, done, luns, .. } = self;
        run(luns, &mut Cx { io, arena, requests, done, luns: None })
    }

    /// Runs one turn. Returns how many channels the turn called.
    fn turn(&mut self) -> usize {
        self.luns.asked = 0;
        self.with(|luns, cx| luns.on_turn(cx));
        self.socks.extend(std::iter::from_fn(|| self.luns.take_new_sock()));
        self.luns.asked
    }
}

/// Makes an array whose connection attempt times out after `connect_ms`.
fn array(id: u32, connect_ms: u64) -> Box<Attach<()>> {
    let config = NvmeTcpConfig {
        controller: ControllerConfig {
            addrs: vec![address()],
            identity: identity(),
            purpose: Purpose::Nvm { nsid: 1 },
            digests: (false, false),
            kato_ms: 5000,
            io_queues: 1,
            entries: QueueEntries::new(3),
            reconnect: (Duration::from_secs(1), Duration::from_secs(5)),
            connect_timeout: Duration::from_millis(connect_ms),
            admin_timeout: Duration::from_secs(30),
            loss_timeout: Duration::from_secs(60),
            fence: FenceRule::KeepAliveBound,
            discovery_entries: 0,
        },
        command_timeout: Duration::from_secs(30),
        requests: 2,
    };
    let channel = NvmeTcpChannel::new(BackendId(id), CoreId(0), 1, &config);
    let kind = AttachKind::NvmeTcp(Box::new(channel));
    Box::new(Attach { len_bytes: 0, block_bytes: 512, kind, id: BackendId(id) })
}

#[test]
fn idle_arrays_cost_an_idle_core_nothing() {
    let all = MAX_BACKENDS as u32;
    let mut core = Core {
        io: TestIo { cores: 1, ..TestIo::default() },
        arena: arena(170, 4),
        requests: VecDeque::new(),
        done: VecDeque::new(),
        luns: Luns::new(CoreId(0), 64),
        socks: Vec::new(),
    };
    for id in 0..all {
        let connect_ms = 5000 + 10 * u64::from(id);
        core.with(|luns, cx| luns.attach(cx, BackendId(id), array(id, connect_ms)));
    }
    assert_eq!(core.turn(), MAX_BACKENDS, "all start");
    while core.turn() > 0 {}
    assert_eq!(core.socks.len(), MAX_BACKENDS);
    // Nothing happens, so the turns call no channel.
    let asked: usize = (0..1000).map(|_| core.turn()).sum();
    assert_eq!(asked, 0, "channels asked in 1000 turns");
    // An event of one array wakes only that array's channel. The array's deadline does the same.
    core.with(|luns, cx| luns.initiator(cx, BackendId(7), |_, _| ()));
    assert_eq!((core.turn(), core.turn()), (1, 0));
    for id in 0..all {
        let due = core.luns.next_deadline().expect("a connection to be given up");
        assert!(due > core.io.now, "array {id}");
        core.io.now = due;
        assert_eq!((core.turn(), core.turn()), (1, 0), "the deadline of array {id}");
    }
    for id in 0..all {
        core.with(|luns, cx| luns.detach(cx, BackendId(id)));
    }
    for (sock, id) in std::mem::take(&mut core.socks) {
        core.with(|luns, cx| {
            luns.initiator(cx, id, |channel, cx| channel.on_sock(cx, sock, SockEvent::Closed))
        });
    }
    core.turn();
    let detached = core.io.control.iter().filter(|msg| matches!(msg, Msg::Detached(_, Some(_)))).count();
    assert_eq!(detached, MAX_BACKENDS);
    assert_eq!(core.turn(), 0);
}
