//! The floor: the rate of bare TCP between two pinned threads that exchange the same numbers of bytes as NVMe/TCP.
//!
//! The floor has no protocol, only sizes: a request of `request_bytes` gets a reply of `reply_bytes`. For a solicited write, the
//! server first sends a grant, and the client then sends the data. The floor batches as much as a program can: one read takes all
//! bytes that have arrived, and one write sends all answers to them. The floor reads long data from the socket directly into the
//! store. Both sides touch each cache line of the payload, at least through the copy from or to the store. The sockets have the
//! options of the gateway's and its initiator's sockets (TCP_NODELAY, the kernel's buffer sizes).
//!
//! The server may have a [`Store`]. The server then sends from the store and receives into it, like a disk in memory. Without a
//! store, every exchange uses the same bytes, which stay in the cache.

mod pipe;
mod relay;
mod store;
mod wake;

use anyhow::{Result, bail};
use pipe::{Kind, Pipe, Waiter};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub use relay::run as run_relay;
use store::Store;
pub use wake::run as run_wake;

/// The sizes of one exchange, in bytes: the sizes that NVMe/TCP uses for one command without digests.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Client to server: the command capsule with its in-capsule data.
    pub request_bytes: usize,
    /// The grant, server to client. After the grant, the client sends `data_bytes`, and then the server replies. Zero if there is
    /// no grant.
    pub grant_bytes: usize,
    /// The data, client to server, after a grant.
    pub data_bytes: usize,
    /// The reply, server to client.
    pub reply_bytes: usize,
    /// Bytes at the end of the reply that the server takes from its store.
    pub fetched_bytes: usize,
    /// Bytes at the end of the request (or of the data if there is a grant) that the server puts into its
    /// store.
    pub stored_bytes: usize,
}

impl Exchange {
    /// Returns the sizes of a read of `payload` bytes: a 72-byte capsule, and one C2HData PDU with the
    /// SUCCESS flag.
    pub fn read(payload: usize) -> Self {
        Self {
            request_bytes: 72,
            grant_bytes: 0,
            data_bytes: 0,
            reply_bytes: 24 + payload,
            fetched_bytes: payload,
            stored_bytes: 0,
        }
    }

    /// Returns the sizes of a write of `payload` bytes. Up to 8 KiB, the data is in the capsule. Larger writes use R2T and
    /// H2CData.
    pub fn write(payload: usize) -> Self {
        let bare = Self {
            request_bytes: 72,
            grant_bytes: 0,
            data_bytes: 0,
            reply_bytes: 24,
            fetched_bytes: 0,
            stored_bytes: payload,
        };
        match payload <= 8192 {
            true => Self { request_bytes: 72 + payload, ..bare },
            false => Self { grant_bytes: 24, data_bytes: 24 + payload, ..bare },
        }
    }
}

/// One floor to measure.
#[derive(Clone, Debug)]
pub struct Floor {
    /// The sizes of one exchange.
    pub exchange: Exchange,
    /// TCP connections.
    pub connections: usize,
    /// Exchanges in flight, over all connections.
    pub depth: usize,
    /// The measured time. A warm-up precedes it and takes a fifth of this time.
    pub time: Duration,
    /// Size of the server's store. Each exchange uses a random aligned place in the store. Zero if the server has no store.
    pub store_bytes: usize,
}

impl Floor {
    fn share(&self, connection: usize) -> usize {
        self.depth / self.connections + usize::from(connection < self.depth % self.connections)
    }

    fn check(&self) -> Result<()> {
        let (connections, depth) = (self.connections, self.depth);
        if connections == 0 || depth < connections {
            bail!("{connections} connections can't share a depth of {depth}: use a multiple");
        }
        Ok(())
    }
}

/// Measures exchanges per second, with a spinning server on `cpus.0` and a spinning client on `cpus.1`.
///
/// # Errors
/// An error of the sockets, or a depth that the connections can't share.
pub fn run(floor: &Floor, cpus: (usize, usize)) -> Result<f64> {
    floor.check()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let (mine, other) = (floor.clone(), floor.clone());
    let server = std::thread::spawn(move || serve_all(&mine, &listener, cpus.0, None));
    let client = std::thread::spawn(move || ask_all(&other, to, cpus.1, None));
    let rate = joined(client);
    // The client's sockets are closed now, so the server ends.
    joined(server)?;
    rate
}

fn joined<T>(thread: std::thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Pins the calling thread.
///
/// # Errors
/// If the machine has no such CPU or forbids it.
pub fn pin(cpu: usize) -> Result<()> {
    match core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        true => Ok(()),
        false => bail!("can't pin a thread to CPU {cpu}"),
    }
}

/// Runs the server until the clients have disconnected. A server with a waiter sleeps when it has no work.
fn serve_all(floor: &Floor, listener: &TcpListener, cpu: usize, mut waiter: Option<Waiter>) -> Result<()> {
    pin(cpu)?;
    let mut store = Store::new(floor.store_bytes, floor.exchange)?;
    let mut peers = Vec::new();
    for i in 0..floor.connections {
        let socket = listener.accept()?.0;
        if let Some(waiter) = &waiter {
            waiter.watch(&socket)?;
        }
        peers.push(Pipe::new(socket, floor.exchange, floor.share(i))?);
    }
    while !peers.is_empty() {
        if let Some(waiter) = &mut waiter {
            waiter.wait()?;
        }
        let mut failed = Ok(());
        peers.retain_mut(|peer| {
            serve(peer, floor.exchange, &mut store).unwrap_or_else(|error| {
                failed = Err(error);
                false
            })
        });
        failed?;
    }
    Ok(())
}

/// Runs the client for the floor's time.
fn ask_all(floor: &Floor, to: SocketAddr, cpu: usize, mut waiter: Option<Waiter>) -> Result<f64> {
    pin(cpu)?;
    let mut none = Store::none();
    let mut links = Vec::new();
    for i in 0..floor.connections {
        let socket = TcpStream::connect(to)?;
        if let Some(waiter) = &waiter {
            waiter.watch(&socket)?;
        }
        let mut link = Pipe::new(socket, floor.exchange, floor.share(i))?;
        (0..floor.share(i)).for_each(|_| link.push(Kind::Request, &mut none));
        link.write(&none)?;
        links.push(link);
    }
    let mut turns = |until: Duration| -> Result<f64> {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < until {
            if let Some(waiter) = &mut waiter {
                waiter.wait()?;
            }
            for link in &mut links {
                done += ask(link, &mut none)?;
            }
        }
        Ok(done as f64 / start.elapsed().as_secs_f64())
    };
    turns(floor.time / 5)?;
    turns(floor.time)
}

/// Runs one turn of the server's end: answers all requests that have arrived. Returns `false` once the client
/// has disconnected.
fn serve(pipe: &mut Pipe, x: Exchange, store: &mut Store) -> Result<bool> {
    let open = pipe.read(store, |kind| match kind {
        Kind::Request if x.grant_bytes > 0 => Kind::Grant,
        _ => Kind::Reply,
    })?;
    pipe.write(store)?;
    Ok(open)
}

/// Runs one turn of the client's end: sends a new request for each reply that has arrived. Returns the number
/// of replies.
fn ask(pipe: &mut Pipe, none: &mut Store) -> Result<u64> {
    let mut done = 0;
    let open = pipe.read(none, |kind| match kind {
        Kind::Grant => Kind::Data,
        _ => {
            done += 1;
            Kind::Request
        }
    })?;
    if !open {
        bail!("floor: the server closed the connection");
    }
    pipe.write(none)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(exchange: Exchange, connections: usize, depth: usize) -> Floor {
        Floor { exchange, connections, depth, time: Duration::ZERO, store_bytes: 2 << 20 }
    }

    /// Returns true if an exchange completes. A short time is enough if no other program wants the CPU.
    fn comes_through(floor: &Floor, run: fn(&Floor, (usize, usize)) -> Result<f64>) -> bool {
        let try_for = |ms| run(&Floor { time: Duration::from_millis(ms), ..*floor }, (0, 0)).unwrap() > 0.0;
        [20, 500, 10_000].into_iter().any(try_for)
    }

    #[test]
    fn every_shape_goes_round() {
        for exchange in [
            Exchange::read(4096),
            Exchange::write(4096),
            Exchange::read(128 << 10),
            Exchange::write(128 << 10),
        ] {
            let stored = floor(exchange, 2, 16);
            assert!(comes_through(&stored, run), "{exchange:?}");
            assert!(comes_through(&Floor { store_bytes: 0, ..stored }, run), "{exchange:?}, hot");
        }
    }

    #[test]
    fn through_a_relay_too() {
        assert!(comes_through(&floor(Exchange::read(4096), 2, 8), run_relay));
    }

    #[test]
    fn a_depth_that_cannot_be_shared_is_refused() {
        assert!(run(&floor(Exchange::read(4096), 3, 2), (0, 0)).is_err());
    }
}
