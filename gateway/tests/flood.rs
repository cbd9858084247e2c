//! Unlisted hosts open as many connections as they can, and send as slowly as they want. A listed host must be able to connect
//! nevertheless.
#![forbid(unsafe_code)]

mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::daemon::{Daemon, own_addr};
use support::raw::{Raw, Who, ic_req};
use trefoil_wire::fabrics::{Connect, ConnectAttributes, FabricsCommand};
use trefoil_wire::nvme::Sgl;
use trefoil_wire::tcp::CapsuleCmd;

const SUBSYSTEM: &str = "nqn.2026-01.org.example:s";
const LISTED: &str = "nqn.2026-01.org.example:listed";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
const DOCUMENT: &str = r#"
[gateway]
memory_per_core = "48MiB"
max_hosts = 8
max_qpairs = 64
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "ram"
type = "memory"
size = "1MiB"

[[lun]]
name = "a"
backend = "ram"

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
hosts = ["nqn.2026-01.org.example:listed"]
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "a" }]
"#;

/// The way in which each connection of a flood behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// The connection sends nothing.
    Silent,
    /// The connection closes its sending side at once.
    HalfClosed,
    /// The connection sends its ICReq byte by byte.
    Slow,
    /// The connection sends its ICReq, and no Connect.
    Initialized,
    /// The connection sends a Connect whose data the controller must request, and never sends the data.
    NoData,
    /// The connection has a discovery controller with this Keep Alive Timeout in milliseconds, and sends nothing more.
    Discovery(u32),
    /// The connection sends Connects for a subsystem repeatedly, under the name of a host that isn't listed.
    Refused,
}

const FLOODS: [Flood; 8] = [
    Flood::Silent,
    Flood::HalfClosed,
    Flood::Slow,
    Flood::Initialized,
    Flood::NoData,
    Flood::Discovery(0),
    Flood::Discovery(120_000),
    Flood::Refused,
];

/// One connection of a flood.
struct FloodConn {
    stream: TcpStream,
    /// The number of bytes that the connection has sent, and the number that it has received.
    sent: usize,
    got: usize,
    asked: bool,
}

impl Flood {
    /// Does the next step of a connection. Returns `false` after the end of the connection.
    fn step(self, it: &mut FloodConn, number: usize) -> bool {
        let mut bytes = [0; 512];
        match it.stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(n) => it.got += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
            Err(_) => return false,
        }
        let ic = ic_req(false, false);
        match self {
            Self::Silent => return true,
            Self::HalfClosed => return it.stream.shutdown(Shutdown::Write).is_ok(),
            Self::Slow => {
                let byte = ic.get(it.sent..it.sent + 1).unwrap_or_default();
                it.sent += it.stream.write(byte).unwrap_or(0);
                return true;
            }
            Self::Initialized | Self::NoData | Self::Discovery(_) | Self::Refused if it.sent == 0 => {
                it.sent = it.stream.write(&ic).unwrap_or(0);
                return true;
            }
            Self::Initialized => return true,
            Self::NoData | Self::Discovery(_) | Self::Refused => {}
        }
        // The controller sends ICResp, then one response for each Connect.
        let answered = it.got >= 128 && (it.got - 128).is_multiple_of(24);
        if answered && (!it.asked || self == Self::Refused) {
            it.asked = true;
            it.got = 128 + 1;
            let capsule = self.connect(number);
            return it.stream.write(&capsule).is_ok_and(|n| n == capsule.len());
        }
        if it.asked && it.got == 128 + 1 + 24 {
            it.got = 128;
        }
        true
    }

    fn connect(self, number: usize) -> Vec<u8> {
        let (subsystem, kato_ms) = match self {
            Self::Discovery(kato_ms) => (DISCOVERY, kato_ms),
            _ => (SUBSYSTEM, 0),
        };
        let who = Who::admin(&format!("nqn.2026-01.org.example:unlisted{number}"), subsystem);
        let data = who.data().to_vec();
        let connect =
            Connect { recfmt: 0, qid: 0, sqsize: 31, attributes: ConnectAttributes::default(), kato_ms };
        let (sgl, data) = match self {
            Self::NoData => (Sgl::Transport { len_bytes: data.len() as u32 }, Vec::new()),
            _ => (Sgl::InCapsule { offset_bytes: 0, len_bytes: data.len() as u32 }, data),
        };
        let sqe = FabricsCommand::Connect(connect).sqe(1, sgl);
        let mut bytes = vec![0; CapsuleCmd::LEN];
        CapsuleCmd { sqe }.emit(false, false, 4, data.len() as u32, first(&mut bytes));
        bytes.extend(data);
        bytes
    }
}

fn first(bytes: &mut [u8]) -> &mut [u8; CapsuleCmd::LEN] {
    bytes.first_chunk_mut().expect("as long as it was made")
}

/// Starts to connect from `from` to `to`.
fn open(from: Ipv4Addr, to: SocketAddr) -> Option<TcpStream> {
    let SocketAddr::V4(to) = to else { return None };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).ok()?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0))).ok()?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Some(TcpStream::from(fd)),
        Err(_) => None,
    }
}

/// Keeps `count` connections open until `stop`. The connections come from `addresses` addresses, or from the listed host's own
/// address if `addresses` is 0. Opens closed connections again. `rounds` counts the rounds over all connections, and `opened`
/// counts the opened connections.
fn keep_up(flood: Flood, count: usize, addresses: usize, to: SocketAddr, seen: &Seen) {
    let from = |n: usize| match addresses {
        // This is the listed host's own address.
        0 => Ipv4Addr::LOCALHOST,
        _ => Ipv4Addr::new(127, 1, 0, (n % addresses) as u8),
    };
    let mut conns: Vec<Option<FloodConn>> = (0..count).map(|_| None).collect();
    while !seen.stop.load(Ordering::Relaxed) {
        for (number, place) in conns.iter_mut().enumerate() {
            match place {
                Some(conn) => {
                    if !flood.step(conn, number) {
                        *place = None;
                    }
                }
                None => {
                    let new = |stream| FloodConn { stream, sent: 0, got: 0, asked: false };
                    *place = open(from(number), to).map(new);
                    seen.opened.fetch_add(usize::from(place.is_some()), Ordering::Relaxed);
                }
            }
        }
        seen.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    rounds: AtomicUsize,
    opened: AtomicUsize,
}

/// The drop of this value ends the flood.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects `times` times as the listed host during each flood. Passes the duration of each connect to `check`. Panics if the
/// listed host is refused, or if its connection is closed.
fn under_floods(count: usize, addresses: &[usize], times: usize, check: impl Fn(&str, Duration)) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(most > count as u64 + 100, "{count} connections need more descriptors than {most}");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many as may be had");
    for flood in FLOODS {
        for &addresses in addresses {
            // Each flood has its own gateway, so that connections of the previous flood have no effect.
            let gateway = Daemon::start(DOCUMENT);
            let to = gateway.addr;
            let seen = Seen::default();
            std::thread::scope(|scope| {
                // Ends the flood even if the code below panics. Otherwise the scope would wait for the flood without end.
                let _end = End(&seen.stop);
                let attack = scope.spawn(|| keep_up(flood, count, addresses, to, &seen));
                while seen.rounds.load(Ordering::Relaxed) < 3 && !attack.is_finished() {
                    std::thread::yield_now();
                }
                let what = match addresses {
                    0 => format!("{flood:?} from its own address"),
                    _ => format!("{flood:?} from {addresses}"),
                };
                for _ in 0..times {
                    let begun = Instant::now();
                    let who = Who::admin(LISTED, SUBSYSTEM);
                    let (admin, cntlid) = Raw::admin(to, &who);
                    let io = Raw::queue(to, &who.queue(cntlid, 1, 31), (false, false));
                    check(&what, begun.elapsed());
                    drop((admin, io));
                }
            });
            assert!(seen.opened.load(Ordering::Relaxed) >= count, "the flood was none");
        }
    }
}

/// Reads `len` bytes, or fewer if the stream ends first.
fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    let mut bytes = Vec::new();
    match stream.take(len as u64).read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e} after {bytes:?}"),
    }
    bytes
}

#[test]
fn an_opening_may_come_in_any_pieces() {
    let gateway = Daemon::start(DOCUMENT);
    let (request, connect) = (ic_req(false, false), Flood::Refused.connect(0));
    for piece in [1, 7, 100, 127, 4096] {
        let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        let send = |stream: &mut TcpStream, bytes: &[u8]| {
            bytes.chunks(piece).for_each(|piece| stream.write_all(piece).expect("sent"));
        };
        send(&mut stream, &request);
        assert_eq!(read(&mut stream, 128).len(), 128, "no ICResp for pieces of {piece}");
        send(&mut stream, &connect);
        assert_eq!(read(&mut stream, 24).len(), 24, "no answer to Connect for pieces of {piece}");
        // The host sends its Connect without waiting for the ICResp.
        let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
        send(&mut stream, &[&request[..], &connect].concat());
        assert_eq!(read(&mut stream, 152).len(), 152, "both at once, in pieces of {piece}");
    }
}

#[test]
fn what_is_no_opening_gets_its_answer_at_once() {
    let gateway = Daemon::start(DOCUMENT);
    let request = ic_req(false, false);
    let mut version = request;
    version[8] = 1;
    let second = [&request[..], &request].concat();
    let unknown = [0xFF, 0, 8, 0, 8, 0, 0, 0];
    for (said, before) in [(&unknown[..], 0), (&version[..], 0), (&second, 128)] {
        let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
        stream.write_all(said).expect("sent");
        let told = read(&mut stream, before + 24);
        assert_eq!(told.get(before), Some(&3), "no terminate request to {said:?}, but {told:?}");
    }
}

/// If data is behind urgent data, the kernel reports the data as readable, but a peek doesn't return it.
#[test]
fn an_opening_with_urgent_data_goes_to_a_core() {
    use nix::sys::socket::{MsgFlags, send};
    let gateway = Daemon::start(DOCUMENT);
    let request = ic_req(false, false);
    let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
    for (bytes, flags) in
        [(&request[..3], MsgFlags::empty()), (&[9], MsgFlags::MSG_OOB), (&request[3..], MsgFlags::empty())]
    {
        assert_eq!(send(stream.as_raw_fd(), bytes, flags), Ok(bytes.len()));
    }
    assert_eq!(read(&mut stream, 128).len(), 128, "the byte out of band is not of the stream");
}

#[test]
fn who_waits_at_a_listener_that_goes_is_sent_away() {
    let gateway = Daemon::start(DOCUMENT);
    let other = own_addr();
    gateway.ok(&["subsystem", "add-listener", SUBSYSTEM, &other.to_string()]);
    let mut silent = TcpStream::connect(other).expect("a connection");
    let mut begun = TcpStream::connect(other).expect("a connection");
    begun.write_all(&ic_req(false, false)).expect("sent");
    assert_eq!(read(&mut begun, 128).len(), 128);
    let mut elsewhere = TcpStream::connect(gateway.addr).expect("a connection");
    gateway.ok(&["subsystem", "remove-listener", SUBSYSTEM, &other.to_string()]);
    assert_eq!((read(&mut silent, 1), read(&mut begun, 1)), (vec![], vec![]));
    elsewhere.write_all(&ic_req(false, false)).expect("sent");
    assert_eq!(read(&mut elsewhere, 128).len(), 128);
}

/// The flood has more connections than a core has room for.
#[test]
fn a_listed_host_connects_during_each_flood() {
    under_floods(1_500, &[0, 256], 5, |_, _| ());
}

/// A measurement, for an idle machine: `cargo test --release -p trefoil-gateway --test flood -- --ignored --nocapture`. A host
/// must not wait longer than a second. If a host shares its address with the flood, the test only reports the host's time. Such
/// a host waits behind all earlier connections from this address.
#[test]
#[ignore = "it is a measurement"]
fn a_listed_host_connects_within_a_second_under_ten_thousand_sockets() {
    let all = std::cell::RefCell::new(std::collections::BTreeMap::<String, Vec<Duration>>::new());
    under_floods(10_000, &[0, 1, 256], 100, |what, took| {
        let mut all = all.borrow_mut();
        let those = all.entry(what.to_owned()).or_default();
        those.push(took);
        if those.len() == 100 {
            println!("{what}: 100 times, the longest {:?}", those.iter().max().unwrap_or(&took));
        }
    });
    let late = |times: &[Duration]| times.iter().filter(|took| **took > Duration::from_secs(1)).count();
    for (what, times) in all.take() {
        let beside = !what.ends_with("its own address");
        assert!(!beside || late(&times) == 0, "{what}: {} of 100 took more than a second", late(&times));
    }
}
