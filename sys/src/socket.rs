//! TCP sockets with the options that a storage connection wants.

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, setsockopt, socket, sockopt,
};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

/// Sizes of the kernel's buffers; `None` leaves the kernel's own tuning on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// SO_SNDBUF, in bytes; the kernel doubles it for its own overhead.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF, in bytes; likewise.
    pub recv_buffer_bytes: Option<usize>,
}

/// An address in the kernel's form.
#[derive(Clone, Copy, Debug)]
pub struct SockAddr(SockaddrStorage);

impl From<SocketAddr> for SockAddr {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.into())
    }
}

impl SockAddr {
    /// Where it is, for connect(2). Valid while it is neither moved nor dropped.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        self.0.as_ptr()
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> u32 {
        self.0.len()
    }
}

/// A non-blocking listener on `addr` with SO_REUSEADDR, whose accepted sockets inherit the buffer
/// sizes.
///
/// # Errors
/// What socket(2), bind(2) and listen(2) say.
pub fn listen(addr: SocketAddr, backlog: i32, options: Options) -> io::Result<TcpListener> {
    let fd = tcp_socket(addr)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    set_buffers(&fd, options)?;
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(addr))?;
    let backlog = nix::sys::socket::Backlog::new(backlog)?;
    nix::sys::socket::listen(&fd, backlog)?;
    Ok(TcpListener::from(fd))
}

/// A non-blocking, unconnected socket for reaching `addr`, with TCP_NODELAY.
///
/// # Errors
/// What socket(2) and setsockopt(2) say.
pub fn for_connect(addr: SocketAddr, options: Options) -> io::Result<OwnedFd> {
    let fd = tcp_socket(addr)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    set_buffers(&fd, options)?;
    Ok(fd)
}

/// Makes an accepted socket ready for a core: non-blocking, TCP_NODELAY.
///
/// # Errors
/// What fcntl(2) and setsockopt(2) say.
pub fn prepare_accepted(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(setsockopt(fd, sockopt::TcpNoDelay, &true)?)
}

fn tcp_socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

fn set_buffers(fd: &OwnedFd, options: Options) -> io::Result<()> {
    if let Some(bytes) = options.send_buffer_bytes {
        setsockopt(fd, sockopt::SndBuf, &bytes)?;
    }
    if let Some(bytes) = options.recv_buffer_bytes {
        setsockopt(fd, sockopt::RcvBuf, &bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn accepted_sockets_are_ready() {
        let options = Options { send_buffer_bytes: Some(1 << 16), recv_buffer_bytes: Some(1 << 16) };
        let listener = listen(([127, 0, 0, 1], 0).into(), 8, options).expect("listens");
        assert_eq!(listener.accept().expect_err("nobody yet").kind(), io::ErrorKind::WouldBlock);
        let addr = listener.local_addr().expect("bound");
        let _client = TcpStream::connect(addr).expect("connects");
        let accepted = loop {
            match listener.accept() {
                Ok((socket, _)) => break socket,
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        };
        prepare_accepted(&accepted).expect("options");
        assert!(accepted.nodelay().expect("an option"));
        assert!(listen(addr, 8, options).is_err(), "the port is taken");
        let v6: SockAddr = "[::1]:80".parse::<SocketAddr>().expect("an address").into();
        assert_eq!(v6.len_bytes(), 28);
    }
}
