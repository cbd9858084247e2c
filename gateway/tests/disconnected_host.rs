//! Tests of a host that disconnects while its writes to an array are under way. After the host has reconnected, it sends a new
//! write. None of the old writes may land after the new write.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::fleet::controller_config;
use support::raw::{Raw, Who};
use support::*;
use trefoil_storage::backend::nvme_tcp::NvmeTcpConfig;
use trefoil_storage::initiator::FenceRule;
use trefoil_storage::msg::Event;
use trefoil_storage::topology::{Allow, BackendId};
use trefoil_wire::nvme::{BlockRange, IoCommand, Sgl, Status};

/// The Keep Alive Timeout of the connection to the array. The fence of a lost write ends after twice this time.
const KATO: Duration = Duration::from_secs(1);
const OLD: u8 = 0x11;
const NEW: u8 = 0x22;
const BLOCK: usize = 4096;

/// The wire passes bytes in both directions.
const OPEN: u8 = 0;
/// The wire drops bytes that the gateway sends.
const MUTE: u8 = 1;
/// The wire drops bytes that the gateway sends, and closes new connections at once.
const AWAY: u8 = 2;

/// The network between a gateway and its array.
struct Wire {
    shared: Arc<Shared>,
    addr: SocketAddr,
    door: JoinHandle<()>,
}

struct Shared {
    to: SocketAddr,
    mode: AtomicU8,
    ended: AtomicBool,
    swallowed: AtomicUsize,
    /// `true` once 512 consecutive bytes of [`OLD`] have reached the array.
    old_passed: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Wire {
    fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let addr = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            to,
            mode: AtomicU8::new(OPEN),
            ended: AtomicBool::new(false),
            swallowed: AtomicUsize::new(0),
            old_passed: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        });
        let keeper = shared.clone();
        let door = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for gateway in listener.incoming().map_while(Result::ok) {
                if keeper.ended.load(Ordering::SeqCst) {
                    break;
                }
                if keeper.mode.load(Ordering::SeqCst) != AWAY {
                    threads.extend(pass_both_ways(&keeper, gateway));
                }
            }
            threads.into_iter().for_each(|thread| thread.join().expect("a way ended well"));
        });
        Self { shared, addr, door }
    }

    fn set(&self, mode: u8) {
        self.shared.mode.store(mode, Ordering::SeqCst);
    }

    /// Closes every connection.
    fn cut(&self) {
        for stream in self.shared.open.lock().expect("no thread panicked with it").drain(..) {
            // The other side may have closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn old_passed(&self) -> bool {
        self.shared.old_passed.load(Ordering::SeqCst)
    }

    fn end(self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        drop(TcpStream::connect(self.addr).expect("it still listens"));
        self.door.join().expect("the door ended well");
    }
}

fn pass_both_ways(shared: &Arc<Shared>, gateway: TcpStream) -> Vec<JoinHandle<()>> {
    let Ok(array) = TcpStream::connect(shared.to) else { return Vec::new() };
    let twin = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    gateway.set_nodelay(true).expect("an option");
    array.set_nodelay(true).expect("an option");
    shared.open.lock().expect("no thread panicked with it").extend([twin(&gateway), twin(&array)]);
    let ways = [(twin(&gateway), twin(&array), Some(shared.clone())), (array, gateway, None)];
    ways.map(|(from, to, judge)| std::thread::spawn(move || pass(from, to, judge.as_deref()))).into()
}

/// Forwards bytes until either side closes. `judge` decides whether bytes to the array are forwarded.
fn pass(mut from: TcpStream, mut to: TcpStream, judge: Option<&Shared>) {
    let mut bytes = [0; 65536];
    let mut run = 0;
    while let Ok(got @ 1..) = from.read(&mut bytes) {
        let bytes = &bytes[..got];
        if let Some(shared) = judge {
            if shared.mode.load(Ordering::SeqCst) != OPEN {
                shared.swallowed.fetch_add(got, Ordering::SeqCst);
                continue;
            }
            for &byte in bytes {
                run = if byte == OLD { run + 1 } else { 0 };
                if run == 512 {
                    shared.old_passed.store(true, Ordering::SeqCst);
                }
            }
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

struct Story {
    array: Gateway,
    wire: Wire,
    gateway: Gateway,
}

impl Story {
    /// Starts a gateway with two cores that has `queues` I/O queues to its array.
    fn new(queues: u16) -> Self {
        let array = Gateway::with_memory_lun(Shape::new(1), 16);
        let wire = Wire::to(array.addr());
        let mut gateway = Gateway::start(Shape::new(2));
        let mut controller = controller_config(wire.addr, &host_nqn(100), SUBSYSTEM, 1, queues, true);
        controller.kato_ms = KATO.as_millis() as u32;
        controller.fence = FenceRule::KeepAliveBound;
        let config = NvmeTcpConfig { controller, command_timeout: Duration::from_secs(10), requests: 8192 };
        gateway.attach_array(BackendId(0), &config, 16 << 20);
        gateway.present(Allow::Any, vec![gateway.lun("relayed", 0, 0, 16 << 20)]);
        gateway.wait_event("the array", |event| matches!(event, Event::BackendState { usable: true, .. }));
        Self { array, wire, gateway }
    }

    /// Connects the host. The host's I/O queue is on core 1.
    fn host(&self) -> (Raw, Raw) {
        let who = Who::admin(&host_nqn(1), SUBSYSTEM);
        self.gateway.place_next(0);
        let (admin, cntlid) = Raw::admin(self.gateway.addr(), &who);
        self.gateway.place_next(1);
        (admin, Raw::queue(self.gateway.addr(), &who.queue(cntlid, 1, 31), (false, false)))
    }

    /// Checks that the data of the new write can be read. Repeats the check until no part of the old write can still be under
    /// way.
    fn end(self, mut host: (Raw, Raw)) {
        let until = Instant::now() + 3 * KATO;
        while Instant::now() < until {
            let (status, got) = host.1.read(1, 0, BLOCK);
            assert!(status.is_ok(), "{status}");
            assert!(got == [NEW; BLOCK], "an acknowledged write was lost to an older one");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!self.wire.old_passed(), "the disconnected host's write was sent to the array");
        drop(host);
        self.gateway.finish();
        self.wire.end();
        self.array.finish();
    }
}

fn begin_write(io: &mut Raw, fill: u8) {
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: BLOCK as u32 };
    let sqe = IoCommand::Write(BlockRange::new(0, (BLOCK / 512) as u32)).sqe(900, 1, sgl);
    io.capsule(sqe, &[fill; BLOCK]);
}

#[test]
fn a_write_that_an_array_never_answered_is_not_sent_again_for_a_host_that_left() {
    // Core 0 has the only queue, so the write goes to core 0 through the mailbox.
    let mut story = Story::new(1);
    let (admin, mut io) = story.host();
    story.wire.set(MUTE);
    begin_write(&mut io, OLD);
    let patience = Patience::new("the write to be on its way to the array");
    while story.wire.shared.swallowed.load(Ordering::SeqCst) < BLOCK {
        patience.pause();
    }
    // The path is lost and returns at once. The fence of the write has not ended yet.
    story.wire.set(AWAY);
    story.wire.cut();
    story.wire.set(OPEN);
    let lost = |event: &Event| matches!(event, Event::BackendState { usable: false, .. });
    story.gateway.wait_event("the path to be lost", lost);
    drop((admin, io));
    let mut host = story.host();
    assert_eq!(host.1.write(1, 0, &[NEW; BLOCK]), Status::SUCCESS);
    story.end(host);
}

#[test]
fn a_write_that_waits_for_an_array_ends_with_its_host() {
    let mut story = Story::new(2);
    let (admin, mut io) = story.host();
    story.wire.set(AWAY);
    story.wire.cut();
    let lost = |event: &Event| matches!(event, Event::BackendState { usable: false, .. });
    story.gateway.wait_event("the path to be lost", lost);
    begin_write(&mut io, OLD);
    story.gateway.wait_survey("the write to be under way", |rows| {
        rows.iter().any(|(_, row)| row.qid == 1 && row.outstanding == 1)
    });
    drop((admin, io));
    // The array is still unreachable. A write that was never sent needs no fence.
    let mut host = story.host();
    begin_write(&mut host.1, NEW);
    story.wire.set(OPEN);
    let (cqe, _) = host.1.finish(900, &[]);
    assert_eq!(cqe.status, Status::SUCCESS);
    story.end(host);
}

#[test]
fn a_write_that_comes_with_the_end_of_its_queue_ends_too() {
    // Core 1 sends the write to core 0. The cancel must not overtake the write.
    let mut story = Story::new(1);
    let (mut admin, mut io) = story.host();
    story.wire.set(AWAY);
    story.wire.cut();
    let lost = |event: &Event| matches!(event, Event::BackendState { usable: false, .. });
    story.gateway.wait_event("the path to be lost", lost);
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: BLOCK as u32 };
    let sqe = IoCommand::Write(BlockRange::new(0, (BLOCK / 512) as u32)).sqe(900, 1, sgl);
    let mut bytes = io.capsule_bytes(sqe, &[OLD; BLOCK]);
    // H2CTermReq: 24 bytes, FES 1.
    bytes.extend([2, 0, 24, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    io.send(&bytes);
    io.wait_closed("the host terminated");
    // A reset is complete only when the write has ended.
    admin.enable(false);
    drop((admin, io));
    story.wire.set(OPEN);
    let mut host = story.host();
    assert_eq!(host.1.write(1, 0, &[NEW; BLOCK]), Status::SUCCESS);
    story.end(host);
}
