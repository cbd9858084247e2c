//! Listeners: they accept hosts' connections and give each connection to the core with the fewest connections.
//!
//! A connection goes to a core when its whole Connect has arrived and the core has room. Until then the connection waits in the
//! backlog, where it takes only a descriptor. So silent and slow connections take no slot of a core. Two kinds of connection go
//! to a core without a whole Connect, because only a core can answer them: a connection that sends an unexpected PDU, and a
//! connection whose Connect data the core must request.
//!
//! Ready connections go to cores in a round robin over their addresses ([`FairSet`]). When the backlog is full, a new
//! connection takes the place of the oldest connection of the address that has the most connections there.

use super::cores::Cores;
use super::opening::{MAX_OPENING_BYTES, Opening};
use crate::address::resolve;
use crate::error::{Refusal, device};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use trefoil_config::Address;
use trefoil_poll::CoreId;
use trefoil_storage::Msg;
use trefoil_storage::fair::{FairQueue, FairSet};
use trefoil_storage::topology::PortalId;
use trefoil_sys::socket;
use trefoil_wire::tcp::{CommonHeader, IcReq, IcResp};

/// The kernel's backlog of a listener, in connections, if net.core.somaxconn allows as many. If this backlog is full, a host
/// tries again after a second.
const BACKLOG: i32 = 4096;
/// Shortest time between two log lines about connections that a full backlog closed.
const SENT_AWAY_EVERY: Duration = Duration::from_secs(10);
/// Connections that a listener accepts before it yields to other tasks.
const ACCEPTED_AT_A_TIME: u64 = 512;
/// Maximum age of the counts of the cores' connections when a core is chosen for a new connection.
const COUNT_AGE: Duration = Duration::from_millis(50);
/// Time limit for a host's Connect to arrive. The wait for a core, which follows, has no time limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection in the backlog.
enum BacklogConn {
    /// The Connect has not arrived yet, and a task waits for the Connect.
    Opening(PortalId, AbortHandle),
    /// The connection waits for a core.
    Ready(AcceptedConn),
}

struct Backlog {
    conns: FairQueue<BacklogConn>,
    /// The connections that wait for a core, in the order in which they get one.
    ready: FairSet,
}

/// The placement of connections on cores.
pub struct Placement {
    cores: Rc<Cores>,
    options: socket::Options,
    backlog: RefCell<Backlog>,
    /// The open portals.
    portals: RefCell<BTreeSet<PortalId>>,
    /// Notified when a connection is ready.
    is_ready: Notify,
    /// The number of connections that the full backlog closed since the last log line about such connections, and the time of
    /// that line.
    sent_away: Cell<(u64, Option<Instant>)>,
}

impl Placement {
    /// Starts with an empty backlog. Listeners and accepted connections have `options`. The backlog has room for `conns`
    /// connections. Needs a tokio runtime.
    pub fn new(cores: Rc<Cores>, options: socket::Options, conns: usize) -> Rc<Self> {
        let backlog = Backlog { conns: FairQueue::new(conns), ready: FairSet::new(conns.max(1)) };
        let placement = Rc::new(Self {
            cores,
            options,
            backlog: backlog.into(),
            portals: RefCell::default(),
            is_ready: Notify::new(),
            sent_away: Cell::default(),
        });
        tokio::task::spawn_local(placement.clone().serve());
        placement
    }

    /// Closes the connections of a removed portal in the backlog, because another portal may get the removed portal's number
    /// soon.
    fn close_backlog_of(&self, portal: PortalId) {
        self.portals.borrow_mut().remove(&portal);
        let backlog = &mut *self.backlog.borrow_mut();
        for number in backlog.conns.numbers(|conn| conn.portal() == portal) {
            backlog.ready.remove(number);
            backlog.conns.take(number).into_iter().for_each(BacklogConn::leave);
        }
    }

    /// Puts a connection into the backlog, where it waits for its Connect and for a core.
    fn accept_into_backlog(self: &Rc<Self>, accepted: AcceptedConn) {
        let (placement, portal, peer) = (self.clone(), accepted.portal, accepted.peer);
        // The task first runs after this function has returned. By then the number is set.
        let number = Rc::new(Cell::new(0));
        let its_number = number.clone();
        let task = tokio::task::spawn_local(async move {
            let opened = tokio::time::timeout(CONNECT_TIMEOUT, opening(&accepted.stream)).await;
            placement.opened(its_number.get(), accepted, opened);
        });
        let backlog = &mut *self.backlog.borrow_mut();
        let (place, lost) = backlog.conns.push(peer, BacklogConn::Opening(portal, task.abort_handle()));
        number.set(place);
        if let Some(lost) = lost {
            backlog.ready.remove(place);
            lost.leave();
            self.tell_sent_away();
        }
    }

    /// Counts a connection that the full backlog closed. Logs at most one line in [`SENT_AWAY_EVERY`].
    fn tell_sent_away(&self) {
        let (count, told) = self.sent_away.get();
        if told.is_some_and(|at| at.elapsed() < SENT_AWAY_EVERY) {
            return self.sent_away.set((count + 1, told));
        }
        tracing::warn!(
            connections = count + 1,
            "too many unauthenticated connections: the gateway closed the oldest ones of the addresses with the most"
        );
        self.sent_away.set((0, Some(Instant::now())));
    }

    /// Handles the result of [`opening`].
    fn opened(
        &self,
        number: u32,
        accepted: AcceptedConn,
        opened: Result<io::Result<Option<bool>>, tokio::time::error::Elapsed>,
    ) {
        let peer = accepted.peer;
        let backlog = &mut *self.backlog.borrow_mut();
        match opened {
            Ok(Ok(Some(initialized))) => {
                if let Some(conn) = backlog.conns.get_mut(number) {
                    *conn = BacklogConn::Ready(AcceptedConn { initialized, ..accepted });
                    backlog.ready.add(number, peer);
                    self.is_ready.notify_one();
                }
                return;
            }
            Ok(Ok(None)) => tracing::debug!(%peer, "an unauthenticated connection ended"),
            Ok(Err(error)) => tracing::debug!(%peer, %error, "an unauthenticated connection ended"),
            Err(_) => {
                tracing::debug!(%peer, "an unauthenticated connection sent no Connect before its deadline")
            }
        }
        backlog.conns.take(number);
    }

    /// Gives ready connections to cores, in a round robin over the connections' addresses, for as long as the runtime lives.
    async fn serve(self: Rc<Self>) {
        let mut loads = Loads { counted: None, counts: vec![0; usize::from(self.cores.count())] };
        loop {
            let next = self.next_ready();
            let Some(accepted) = next else {
                self.is_ready.notified().await;
                continue;
            };
            let peer = accepted.peer;
            if let Err(error) = self.place(accepted, &mut loads).await {
                tracing::error!(%error, %peer, "a connection can't be given to a core");
            }
        }
    }

    fn next_ready(&self) -> Option<AcceptedConn> {
        let backlog = &mut *self.backlog.borrow_mut();
        let number = backlog.ready.take_next()?;
        match backlog.conns.take(number)? {
            BacklogConn::Ready(accepted) => Some(accepted),
            // `ready` never has the number of such a connection.
            BacklogConn::Opening(..) => None,
        }
    }

    async fn place(&self, accepted: AcceptedConn, loads: &mut Loads) -> Result<(), Refusal> {
        let AcceptedConn { stream, portal, local, peer, initialized } = accepted;
        let socket = stream.into_std().and_then(|stream| {
            socket::set_low_water(&stream, 1)?;
            socket::prepare_accepted(&stream)?;
            Ok(stream.into())
        });
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                // The host has already closed the connection.
                tracing::debug!(%error, %peer, "a connection was closed before it was accepted");
                return Ok(());
            }
        };
        let core = loads.choose(&self.cores).await?;
        // The portal may have been removed meanwhile.
        if !self.portals.borrow().contains(&portal) {
            return Ok(());
        }
        self.cores.send(core, Msg::Adopt { socket, portal, local, peer, initialized }).await
    }
}

impl BacklogConn {
    /// Returns the portal that accepted the connection.
    fn portal(&self) -> PortalId {
        match self {
            Self::Opening(portal, _) => *portal,
            Self::Ready(accepted) => accepted.portal,
        }
    }

    /// Closes the connection.
    fn leave(self) {
        match self {
            Self::Opening(_, task) => task.abort(),
            Self::Ready(accepted) => drop(accepted),
        }
    }
}

/// The number of connections on each core: the last count, plus the connections that were given to the core since that count.
struct Loads {
    counted: Option<Instant>,
    counts: Vec<usize>,
}

impl Loads {
    /// Chooses the core for the next connection, and counts the connection there.
    async fn choose(&mut self, cores: &Cores) -> Result<CoreId, Refusal> {
        if self.counted.is_none_or(|at| at.elapsed() > COUNT_AGE) {
            for (core, count) in cores.all().zip(&mut self.counts) {
                *count = cores.survey(core, 0).await?.total;
            }
            self.counted = Some(Instant::now());
        }
        loop {
            let with_room = cores.all().zip(&mut self.counts).filter(|(core, _)| cores.has_room(*core));
            if let Some((core, count)) = with_room.min_by_key(|(_, count)| **count) {
                *count += 1;
                return Ok(core);
            }
            cores.room().await;
        }
    }
}

/// A listener. The drop closes the listening socket, so the address is free at once. Connections that a core already has stay
/// open.
pub struct Portal {
    id: PortalId,
    placement: Rc<Placement>,
    v6_only: bool,
    /// Shared with the task, which may still exist after the drop of the portal.
    listener: Rc<RefCell<Option<TcpListener>>>,
    /// `None` until the portal accepts. Until then, hosts wait in the kernel's backlog.
    task: Option<JoinHandle<()>>,
}

impl Portal {
    /// Listens on `listen`, and accepts no connection yet. Without `v6_only`, an IPv6 wildcard also accepts IPv4.
    ///
    /// # Errors
    /// The kernel refuses the address.
    pub fn open(
        listen: Address,
        v6_only: bool,
        id: PortalId,
        placement: &Rc<Placement>,
    ) -> Result<Self, Refusal> {
        let fail = |e: &std::io::Error| device(format!("listener {listen}"), e);
        let at = resolve(listen).map_err(|e| fail(&e))?;
        let listener = socket::listen(at, v6_only, BACKLOG, placement.options).map_err(|e| fail(&e))?;
        let listener = TcpListener::from_std(listener).map_err(|e| fail(&e))?;
        placement.portals.borrow_mut().insert(id);
        let listener = Rc::new(RefCell::new(Some(listener)));
        Ok(Self { id, placement: placement.clone(), v6_only, listener, task: None })
    }

    /// Returns whether the listener was opened for IPv6 alone.
    pub fn v6_only(&self) -> bool {
        self.v6_only
    }

    /// Begins to accept connections, if the portal doesn't accept yet. Before this call, the cores must know the subsystems of
    /// this listener. Otherwise a core tells a host, with DNR, that its subsystem doesn't exist, and a Linux host then does not
    /// reconnect by itself.
    pub fn accept(&mut self) {
        self.task.get_or_insert_with(|| {
            let accepting = accept(self.listener.clone(), self.id, self.placement.clone());
            tokio::task::spawn_local(tokio::task::unconstrained(accepting))
        });
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
        self.listener.take();
        self.placement.close_backlog_of(self.id);
    }
}

/// Returns an address of a connection in the form that the gateway logs, counts and compares. A dual-stack socket reports an
/// IPv4 host as an IPv4-mapped IPv6 address; this function returns the IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // An IPv6 address keeps its scope.
        IpAddr::V6(_) => address,
    }
}

/// A connection that a listener has accepted.
struct AcceptedConn {
    stream: TcpStream,
    portal: PortalId,
    local: SocketAddr,
    peer: SocketAddr,
    /// `true` if the ICReq has been answered.
    initialized: bool,
}

/// Answers the ICReq and waits for the Connect. The wait also ends at any other message, which the core then answers as the
/// spec requires. Returns whether an ICResp was sent. Returns `None` if the peer closes its side first.
async fn opening(stream: &TcpStream) -> io::Result<Option<bool>> {
    let mut initialized = false;
    let (mut low_water, mut wanted) = (0, CommonHeader::LEN);
    loop {
        if low_water != wanted {
            // First clear the readiness, then set the low-water mark. In this order, no wake-up is lost, and no readiness
            // remains from before the new mark.
            let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            socket::set_low_water(stream, wanted as u32)?;
            low_water = wanted;
        }
        let ready = stream.ready(Interest::READABLE).await?;
        let looked = stream.try_io(Interest::READABLE, || {
            let mut bytes = [0; MAX_OPENING_BYTES];
            let come = socket::peek_now(stream, &mut bytes)?;
            Ok(bytes.get(..come).map_or(Opening::Over, |bytes| Opening::look(bytes, initialized)))
        });
        match looked {
            Ok(Opening::Wants(_)) if ready.is_read_closed() => return Ok(None),
            // The socket is readable although the peek returns too few bytes. Either the missing bytes are behind urgent data,
            // or the kernel has no memory to wait for the rest.
            Ok(Opening::Wants(more)) if more == wanted => return Ok(Some(initialized)),
            Ok(Opening::Wants(more)) => wanted = more,
            Ok(Opening::Answer(response)) => {
                let mut bytes = [0; IcResp::LEN];
                response.emit(&mut bytes);
                // No bytes were sent before, so the answer fits into the send buffer.
                if socket::send_bytes_now(stream, &bytes)? != bytes.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                (initialized, wanted) = (true, IcReq::LEN + CommonHeader::LEN);
            }
            Ok(Opening::Over) => return Ok(Some(initialized)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

async fn accept(listener: Rc<RefCell<Option<TcpListener>>>, portal: PortalId, placement: Rc<Placement>) {
    for count in 1u64.. {
        // The task accepts many connections at a time. If it accepted few, the connections of a flood would keep this thread
        // busy, and the kernel's backlog would fill meanwhile.
        if count.is_multiple_of(ACCEPTED_AT_A_TIME) {
            tokio::task::yield_now().await;
        }
        let accepted = poll_fn(|cx| match &*listener.borrow() {
            Some(listener) => listener.poll_accept(cx),
            None => Poll::Pending,
        });
        let (stream, peer) = match accepted.await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely the process has no free descriptor. New connections stay in the kernel's backlog meanwhile.
                tracing::warn!(%error, "a listener can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = canonical(peer);
        match stream.local_addr().map(canonical) {
            Ok(local) => placement.accept_into_backlog(AcceptedConn {
                stream,
                portal,
                local,
                peer,
                initialized: false,
            }),
            // The host has already closed the connection.
            Err(error) => tracing::debug!(%error, %peer, "a connection was closed before it was accepted"),
        }
    }
}
