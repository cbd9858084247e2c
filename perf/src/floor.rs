//! The floor: what bare TCP between two pinned, spinning threads does with the same byte counts.
//!
//! It knows no protocol, only sizes: a request of `request_bytes` is answered with `reply_bytes`; for
//! solicited writes a grant goes back first and the data follows. It batches as well as a program
//! can: one read takes all that has come, one write answers all of it. Both sides touch each cache
//! line of the payload. Socket flags are those of the gateway and its initiator (TCP_NODELAY, the
//! kernel's buffer sizes).

use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes read or written by one call at the most.
const IO_BYTES: usize = 256 << 10;
/// Messages that one write gathers at the most.
const SLICES: usize = 256;
const CACHE_LINE: usize = 64;

/// The sizes of one exchange, in bytes, as NVMe/TCP has them for one command without digests.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Client to server: the command capsule with its in-capsule data.
    pub request_bytes: usize,
    /// Server to client, then `data_bytes` back, before the reply; zero if there is no grant.
    pub grant_bytes: usize,
    /// Client to server after a grant.
    pub data_bytes: usize,
    /// Server to client.
    pub reply_bytes: usize,
}

impl Exchange {
    /// A read of `payload` bytes: a 72-byte capsule; one C2HData PDU with the SUCCESS flag.
    pub fn read(payload: usize) -> Self {
        Self { request_bytes: 72, grant_bytes: 0, data_bytes: 0, reply_bytes: 24 + payload }
    }

    /// A write of `payload` bytes: in the capsule up to 8 KiB, else by R2T and H2CData.
    pub fn write(payload: usize) -> Self {
        match payload <= 8192 {
            true => Self { request_bytes: 72 + payload, grant_bytes: 0, data_bytes: 0, reply_bytes: 24 },
            false => Self { request_bytes: 72, grant_bytes: 24, data_bytes: 24 + payload, reply_bytes: 24 },
        }
    }
}

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Exchanges per second.
    pub per_s: f64,
}

/// Runs `exchange` for `time` over `connections` with `depth` outstanding in all, server on
/// `cpus.0`, client on `cpus.1`.
///
/// # Errors
/// What the sockets say; or a depth that the connections can't share.
pub fn run(
    exchange: Exchange,
    connections: usize,
    depth: usize,
    cpus: (usize, usize),
    time: Duration,
) -> Result<Rate> {
    if connections == 0 || depth < connections {
        bail!("a depth of {depth} can't be shared by {connections} connections");
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let server = std::thread::spawn(move || -> Result<()> {
        pin(cpus.0)?;
        let mut peers = Vec::new();
        for _ in 0..connections {
            peers.push(Pipe::new(listener.accept()?.0, exchange, depth)?);
        }
        while !peers.is_empty() {
            let mut failed = Ok(());
            peers.retain_mut(|peer| {
                serve(peer, exchange).unwrap_or_else(|error| {
                    failed = Err(error);
                    false
                })
            });
            failed?;
        }
        Ok(())
    });
    let client = std::thread::spawn(move || -> Result<Rate> {
        pin(cpus.1)?;
        let mut links = Vec::new();
        for i in 0..connections {
            let share = depth / connections + usize::from(i < depth % connections);
            let mut link = Pipe::new(TcpStream::connect(to)?, exchange, share)?;
            link.queue.extend(std::iter::repeat_n(Kind::Request, share));
            links.push(link);
        }
        let mut turns = |until: Duration| -> Result<f64> {
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < until {
                for link in &mut links {
                    done += ask(link)?;
                }
            }
            Ok(done as f64 / start.elapsed().as_secs_f64())
        };
        turns(time / 5)?;
        Ok(Rate { per_s: turns(time)? })
    });
    let rate = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
    // The client's sockets are closed now, so the server has ended or will.
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    rate
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

fn touch_out(payload: &mut [u8], stamp: u8) {
    payload.iter_mut().step_by(CACHE_LINE).for_each(|b| *b = stamp);
}

fn touch_in(payload: &[u8]) {
    std::hint::black_box(payload.iter().step_by(CACHE_LINE).fold(0u8, |sum, b| sum ^ b));
}

/// The kinds of message; the first byte of each says which it is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Kind {
    Request,
    Data,
    Grant,
    Reply,
}

/// One connection's end: walks what comes in message by message and sends templates.
struct Pipe {
    socket: TcpStream,
    inbox: Vec<u8>,
    /// One whole message of each kind.
    templates: [Vec<u8>; 4],
    /// Bytes of the message under way that have not come.
    rest: usize,
    under_way: Kind,
    /// Kinds to send, in order; the first is sent up to `sent`.
    queue: VecDeque<Kind>,
    sent: usize,
}

impl Pipe {
    fn new(socket: TcpStream, x: Exchange, depth: usize) -> Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let sizes = [x.request_bytes, x.data_bytes, x.grant_bytes, x.reply_bytes];
        let mut templates = sizes.map(|size| vec![0; size]);
        for (kind, template) in templates.iter_mut().enumerate() {
            template.iter_mut().take(1).for_each(|b| *b = kind as u8);
        }
        let queue = VecDeque::with_capacity(2 * depth);
        Ok(Self {
            socket,
            inbox: vec![0; IO_BYTES],
            templates,
            rest: 0,
            under_way: Kind::Reply,
            queue,
            sent: 0,
        })
    }

    /// Reads once and calls `each` for every message that is now whole; false at the end of the stream.
    fn read(&mut self, mut each: impl FnMut(Kind, &mut VecDeque<Kind>)) -> Result<bool> {
        let n = match self.socket.read(&mut self.inbox) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(e) => return Err(e).context("floor: read"),
        };
        touch_in(&self.inbox[..n]);
        let mut at = 0;
        while at < n {
            if self.rest == 0 {
                self.under_way = match self.inbox[at] {
                    0 => Kind::Request,
                    1 => Kind::Data,
                    2 => Kind::Grant,
                    3 => Kind::Reply,
                    other => bail!("floor: a message of kind {other}"),
                };
                self.rest = self.templates[self.under_way as usize].len();
            }
            let step = self.rest.min(n - at);
            self.rest -= step;
            at += step;
            if self.rest == 0 {
                each(self.under_way, &mut self.queue);
            }
        }
        Ok(true)
    }

    /// Sends what is queued, as much as the socket takes.
    fn write(&mut self) -> Result<()> {
        while !self.queue.is_empty() {
            let n = self.queue.len().min(SLICES);
            for kind in self.queue.iter().take(n) {
                touch_out(&mut self.templates[*kind as usize], *kind as u8);
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            for (slice, kind) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(&self.templates[*kind as usize]);
            }
            slices[0] = IoSlice::new(&self.templates[self.queue[0] as usize][self.sent..]);
            match self.socket.write_vectored(&slices[..n]) {
                Ok(written) => self.sent += written,
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ) =>
                {
                    break;
                }
                Err(e) => return Err(e).context("floor: write"),
            }
            while let Some(kind) = self.queue.front() {
                let len = self.templates[*kind as usize].len();
                if self.sent < len {
                    break;
                }
                self.sent -= len;
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

/// The server's end. A turn answers all that came; false once the client has gone.
fn serve(pipe: &mut Pipe, x: Exchange) -> Result<bool> {
    let open = pipe.read(|kind, out| match kind {
        Kind::Request if x.grant_bytes > 0 => out.push_back(Kind::Grant),
        _ => out.push_back(Kind::Reply),
    })?;
    pipe.write()?;
    Ok(open)
}

/// The client's end. A turn asks anew for each reply that came; returns how many came.
fn ask(pipe: &mut Pipe) -> Result<u64> {
    let mut done = 0;
    let open = pipe.read(|kind, out| match kind {
        Kind::Grant => out.push_back(Kind::Data),
        _ => {
            done += 1;
            out.push_back(Kind::Request);
        }
    })?;
    if !open {
        bail!("floor: the server closed");
    }
    pipe.write()?;
    Ok(done)
}
