//! Listeners: accepting hosts' connections and giving each to the core with the fewest.

use super::cores::{Cores, device};
use crate::address::resolve;
use crate::error::Refusal;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use trefoil_config::Address;
use trefoil_poll::CoreId;
use trefoil_storage::Msg;
use trefoil_storage::topology::PortalId;
use trefoil_sys::socket;

/// Connections that the kernel keeps for us, if net.core.somaxconn allows as many. A host that finds the backlog full tries
/// again after a second.
const BACKLOG: i32 = 4096;
/// How old the count of a core's connections may be when a new one is placed.
const COUNT_AGE: Duration = Duration::from_millis(50);

/// How many connections each core has: the last count, and what was given to it since.
pub struct Placement {
    cores: Rc<Cores>,
    options: socket::Options,
    loads: RefCell<(Option<Instant>, Vec<usize>)>,
}

impl Placement {
    /// Nothing is connected yet. Listeners and what they accept have `options`.
    pub fn new(cores: Rc<Cores>, options: socket::Options) -> Rc<Self> {
        let loads = vec![0; usize::from(cores.count())];
        Rc::new(Self { cores, options, loads: RefCell::new((None, loads)) })
    }

    /// The core for the next connection, which counts as placed there.
    async fn choose(&self) -> Result<CoreId, Refusal> {
        let stale = self.loads.borrow().0.is_none_or(|at| at.elapsed() > COUNT_AGE);
        if stale {
            let mut counts = Vec::with_capacity(usize::from(self.cores.count()));
            for core in self.cores.all() {
                counts.push(self.cores.survey(core, 0).await?.total);
            }
            *self.loads.borrow_mut() = (Some(Instant::now()), counts);
        }
        let (_, loads) = &mut *self.loads.borrow_mut();
        let (at, load) = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load).unzip();
        load.into_iter().for_each(|load| *load += 1);
        Ok(CoreId(at.unwrap_or(0) as u16))
    }
}

/// A listener; dropping it closes it, so that its address can be had at once. Connections that came through it stay.
#[derive(Debug)]
pub struct Portal {
    id: PortalId,
    v6_only: bool,
    /// Shared with the task, which ends later than this is dropped.
    listener: Rc<RefCell<Option<TcpListener>>>,
    /// None until it accepts; meanwhile hosts wait in the kernel's queue.
    task: Option<JoinHandle<()>>,
}

impl Portal {
    /// Listens on `listen`, and accepts nobody yet. An IPv6 wildcard accepts IPv4 too unless `v6_only`.
    ///
    /// # Errors
    /// What the kernel says about the address.
    pub fn open(
        listen: Address,
        v6_only: bool,
        id: PortalId,
        placement: &Placement,
    ) -> Result<Self, Refusal> {
        let fail = |e: &std::io::Error| device(format!("listener {listen}"), e);
        let at = resolve(listen).map_err(|e| fail(&e))?;
        let listener = socket::listen(at, v6_only, BACKLOG, placement.options).map_err(|e| fail(&e))?;
        let listener = TcpListener::from_std(listener).map_err(|e| fail(&e))?;
        Ok(Self { id, v6_only, listener: Rc::new(RefCell::new(Some(listener))), task: None })
    }

    /// Returns whether the listener was opened for IPv6 alone.
    pub fn v6_only(&self) -> bool {
        self.v6_only
    }

    /// Begins to place who connects, if it hasn't. The cores must know by now what is offered here: a Linux host that
    /// is told that its subsystem isn't there (with DNR) does not come back by itself.
    pub fn accept(&mut self, placement: &Rc<Placement>) {
        self.task.get_or_insert_with(|| {
            tokio::task::spawn_local(accept(self.listener.clone(), self.id, placement.clone()))
        });
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
        self.listener.take();
    }
}

/// An address of a connection in the one form that the gateway logs, counts and compares: a dual-stack socket tells of an IPv4
/// host by a mapped address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // With its scope.
        IpAddr::V6(_) => address,
    }
}

async fn accept(listener: Rc<RefCell<Option<TcpListener>>>, portal: PortalId, placement: Rc<Placement>) {
    loop {
        let accepted = poll_fn(|cx| match &*listener.borrow() {
            Some(listener) => listener.poll_accept(cx),
            None => Poll::Pending,
        });
        let (stream, peer) = match accepted.await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely; those who wait stay in the backlog meanwhile.
                tracing::warn!(%error, "a listener can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = canonical(peer);
        let taken = stream.local_addr().map(canonical).and_then(|local| {
            let stream = stream.into_std()?;
            socket::prepare_accepted(&stream)?;
            Ok((local, stream))
        });
        let (local, stream) = match taken {
            Ok(taken) => taken,
            // The host is gone again.
            Err(error) => {
                tracing::debug!(%error, %peer, "a connection ended before it began");
                continue;
            }
        };
        let placed = async {
            let core = placement.choose().await?;
            placement.cores.send(core, Msg::Adopt { socket: stream.into(), portal, local, peer }).await
        };
        if let Err(error) = placed.await {
            tracing::error!(%error, %peer, "a connection can't be placed");
        }
    }
}
