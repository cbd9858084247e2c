//! The floor of a relay. Client and server share one CPU and sleep when they have no work. A thread on the other CPU spins, and
//! relays bytes between them as the bytes arrive.

use super::pipe::{IO_BYTES, Waiter};
use super::{Floor, ask_all, joined, pin, serve_all};
use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Measures exchanges per second, with the relay on `cpus.0`, and server and client on `cpus.1`.
///
/// # Errors
/// An error of the sockets, or a depth that the connections can't share.
pub fn run(floor: &Floor, cpus: (usize, usize)) -> Result<f64> {
    floor.check()?;
    let (front, back) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (to_relay, to_server) = (front.local_addr()?, back.local_addr()?);
    let (server_waiter, client_waiter) = (Waiter::new()?, Waiter::new()?);
    let (mine, other, connections) = (floor.clone(), floor.clone(), floor.connections);
    let server = std::thread::spawn(move || serve_all(&mine, &back, cpus.1, Some(server_waiter)));
    let relay = std::thread::spawn(move || pass_all(&front, to_server, connections, cpus.0));
    let client = std::thread::spawn(move || ask_all(&other, to_relay, cpus.1, Some(client_waiter)));
    let rate = joined(client);
    // The client's sockets are closed now. The relay ends because of that, and then the server ends.
    joined(relay)?;
    joined(server)?;
    rate
}

/// Bytes that the relay has read from one side and not yet written to the other side.
struct Way {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Way {
    fn new() -> Self {
        Self { bytes: vec![0; IO_BYTES], start: 0, end: 0 }
    }

    /// Relays the bytes that have arrived. Returns `false` at the end of the stream.
    fn pass(&mut self, mut from: &TcpStream, mut to: &TcpStream) -> Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = match from.read(&mut self.bytes) {
                Ok(0) => return Ok(false),
                Ok(n) => (0, n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(e) => return Err(e).context("relay: the read failed"),
            };
        }
        match to.write(&self.bytes[self.start..self.end]) {
            Ok(n) => self.start += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(false);
            }
            Err(e) => return Err(e).context("relay: the write failed"),
        }
        Ok(true)
    }
}

fn pass_all(front: &TcpListener, to: SocketAddr, connections: usize, cpu: usize) -> Result<()> {
    pin(cpu)?;
    let mut pairs = Vec::new();
    for _ in 0..connections {
        let (here, there) = (front.accept()?.0, TcpStream::connect(to)?);
        for socket in [&here, &there] {
            crate::proc::prepare(socket)?;
        }
        pairs.push((here, there, Way::new(), Way::new()));
    }
    while !pairs.is_empty() {
        let mut failed = Ok(());
        pairs.retain_mut(|(here, there, forth, back)| {
            let open = forth.pass(here, there).and_then(|open| Ok(open && back.pass(there, here)?));
            open.unwrap_or_else(|error| {
                failed = Err(error);
                false
            })
        });
        failed?;
    }
    Ok(())
}
