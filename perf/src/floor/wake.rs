//! The floor of a wake-up: the time until the first answer of a bare thread that sleeps in recv(2).

use super::{joined, pin};
use crate::proc;
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes of a message: the size of a command capsule.
const MESSAGE_BYTES: usize = 72;
/// The deadline for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures round trips, in microseconds, from a spinning thread on `cpus.1` to a thread on `cpus.0`. The thread on `cpus.0`
/// sleeps for `pause` before each round trip.
///
/// # Errors
/// An error of the sockets, or of a thread that doesn't answer.
pub fn run(count: usize, pause: Duration, cpus: (usize, usize)) -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let server = std::thread::spawn(move || answer(&listener, cpus.0));
    let client = std::thread::spawn(move || -> Result<Vec<f64>> {
        pin(cpus.1)?;
        let socket = TcpStream::connect(to)?;
        proc::prepare(&socket)?;
        (0..count).map(|_| ask(&socket, pause)).collect()
    });
    let times = joined(client);
    joined(server)?;
    times
}

fn answer(listener: &TcpListener, cpu: usize) -> Result<()> {
    pin(cpu)?;
    let mut socket = listener.accept()?.0;
    socket.set_nodelay(true)?;
    let mut message = [0; MESSAGE_BYTES];
    loop {
        match socket.read_exact(&mut message) {
            Ok(()) => socket.write_all(&message)?,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e).context("wake: the read failed"),
        }
    }
}

fn ask(mut socket: &TcpStream, pause: Duration) -> Result<f64> {
    let mut message = [0; MESSAGE_BYTES];
    let quiet = Instant::now();
    while quiet.elapsed() < pause {
        std::hint::spin_loop();
    }
    let begun = Instant::now();
    socket.write_all(&message)?;
    let mut come = 0;
    while come < MESSAGE_BYTES {
        match socket.read(&mut message) {
            Ok(0) => bail!("wake: the server closed the connection"),
            Ok(n) => come += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {}
            Err(e) => return Err(e).context("wake: the server sent no answer"),
        }
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_is_answered() {
        let times = run(3, Duration::from_millis(1), (0, 0)).unwrap();
        assert!(times.len() == 3 && times.iter().all(|&us| us > 0.0), "{times:?}");
    }
}
