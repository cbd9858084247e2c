//! TCP sockets with the options that a storage connection wants.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, setsockopt, socket,
    sockopt,
};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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
pub struct SockAddr(SockaddrStorage, u32);

impl From<SocketAddr> for SockAddr {
    fn from(addr: SocketAddr) -> Self {
        let len = match addr {
            SocketAddr::V4(_) => size_of::<libc::sockaddr_in>(),
            SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>(),
        };
        Self(addr.into(), len as u32)
    }
}

impl SockAddr {
    /// Where it is, for connect(2). Valid while it is neither moved nor dropped.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        self.0.as_ptr()
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> u32 {
        self.1
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
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    let backlog = Backlog::new(backlog)?;
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

/// Receives what is there into `into`, without waiting. No bytes mean that the peer closed its side.
///
/// # Errors
/// The errno of recv(2); `EAGAIN` if nothing is there.
pub fn recv_now(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, i32> {
    // SAFETY: `into` is writable for its length.
    let n = unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| last_errno())
}

/// Sends what the socket takes of `pieces`, without waiting and without SIGPIPE.
///
/// # Errors
/// The errno of sendmsg(2); `EAGAIN` if it takes nothing.
///
/// # Safety
/// Every piece must be readable for its length.
pub unsafe fn send_now(fd: BorrowedFd<'_>, pieces: &mut [libc::iovec]) -> Result<usize, i32> {
    // SAFETY: all zeros is an empty message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    // SAFETY: the header lives through the call; the caller answers for what the pieces point to.
    let n = unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| last_errno())
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
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
