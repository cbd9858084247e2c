//! The listener for scrapes. It limits the number of connections, and the bytes and the lifetime of each connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// The limits for the connections of clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most connections at a time. Further connections wait in the kernel's backlog.
    pub connections: usize,
    /// Most bytes that a client may send on a connection.
    pub request_bytes: usize,
    /// Time limit of a connection, which includes the sending of the answer.
    pub lifetime: Duration,
}

/// The limits in force.
pub(super) const LIMITS: Limits =
    Limits { connections: 8, request_bytes: 16 << 10, lifetime: Duration::from_secs(10) };

/// A listener that accepts at most [`Limits::connections`] connections at a time, and applies the limits to each connection.
pub(super) struct MetricsListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
    limits: Limits,
}

impl MetricsListener {
    /// Takes over a bound listener.
    pub fn new(listener: TcpListener, limits: Limits) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(limits.connections)), limits }
    }
}

impl axum::serve::Listener for MetricsListener {
    type Io = Bounded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Bounded, SocketAddr) {
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, peer) = axum::serve::Listener::accept(&mut self.listener).await;
        let until = Box::pin(tokio::time::sleep(self.limits.lifetime));
        (Bounded { stream, until, left_bytes: self.limits.request_bytes, _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when it exceeds the limit on its bytes or its lifetime.
pub(super) struct Bounded {
    stream: TcpStream,
    until: Pin<Box<Sleep>>,
    left_bytes: usize,
    _place: Option<OwnedSemaphorePermit>,
}

impl Bounded {
    fn check_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.until.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_time(cx)?;
        let before = to.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, to))?;
        let left_bytes = self.left_bytes.checked_sub(to.filled().len() - before);
        self.left_bytes = left_bytes.ok_or(io::ErrorKind::InvalidData)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.check_time(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_accepted_than_may_be() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let at = listener.local_addr().expect("its address");
            let mut listener = MetricsListener::new(listener, Limits { connections: 1, ..LIMITS });
            let _peers =
                [TcpStream::connect(at).await, TcpStream::connect(at).await].map(|p| p.expect("a peer"));
            let (first, _) = axum::serve::Listener::accept(&mut listener).await;
            assert_eq!(listener.places.available_permits(), 0);
            let wait = Duration::from_millis(50);
            let second = tokio::time::timeout(wait, axum::serve::Listener::accept(&mut listener)).await;
            assert!(second.is_err(), "it waits for the first one's end");
            drop(first);
            axum::serve::Listener::accept(&mut listener).await;
        });
    }
}
