//! TCP sockets with the options of a storage connection.

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, setsockopt,
    socket, sockopt,
};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The time without data from the peer after which the kernel sends the first probe (TCP_KEEPIDLE), in seconds.
pub const KEEP_ALIVE_IDLE_S: u32 = 30;
/// The time from an unanswered probe to the next probe (TCP_KEEPINTVL), in seconds.
pub const KEEP_ALIVE_INTERVAL_S: u32 = 5;
/// Unanswered probes after which the connection ends with ETIMEDOUT (TCP_KEEPCNT).
pub const KEEP_ALIVE_PROBES: u32 = 6;

/// Buffer sizes and congestion control of a connection; with `None`, the kernel chooses and tunes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// SO_SNDBUF, in bytes; the kernel doubles it for its own overhead.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF, in bytes; the kernel doubles it for its own overhead.
    pub recv_buffer_bytes: Option<usize>,
    /// TCP_CONGESTION.
    pub congestion_control: Option<CongestionControl>,
}

/// The name of one of the kernel's congestion control algorithms (`cubic`, `dctcp`, ...), as described in
/// tcp(7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CongestionControl([u8; Self::MAX_LEN]);

impl CongestionControl {
    /// The longest name is one byte shorter (the kernel's TCP_CA_NAME_MAX).
    const MAX_LEN: usize = 16;

    /// Returns the name, or `None` if no algorithm can have this name.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; Self::MAX_LEN];
        let fits = !name.is_empty() && name.len() < Self::MAX_LEN && !name.contains('\0');
        bytes.get_mut(..name.len()).filter(|_| fits)?.copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    /// Sets the algorithm for `socket`, or for later accepted sockets of a listener.
    ///
    /// # Errors
    /// `ENOENT` if the kernel doesn't have the algorithm, `EPERM` if only root may choose it.
    pub fn set(&self, socket: &impl AsFd) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        let len = self.name().len() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of the name, which lives through the call.
        let done = unsafe {
            libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, self.0.as_ptr().cast(), len)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns the algorithm's name.
    pub fn name(&self) -> &str {
        let len = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(self.0.get(..len).unwrap_or_default()).unwrap_or_default()
    }
}

impl std::fmt::Debug for CongestionControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
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
    /// Returns a pointer to the address, for connect(2). The pointer is valid while this value is neither
    /// moved nor dropped.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        self.0.as_ptr()
    }

    /// Returns the address's length in bytes.
    pub fn len_bytes(&self) -> u32 {
        self.1
    }
}

/// Opens a non-blocking listener on `addr` with SO_REUSEADDR. Accepted sockets inherit `options` and TCP keep-alive. On
/// the IPv6 wildcard address, the listener accepts IPv4 too, unless `v6_only` is set. The system's `bindv6only` has no
/// effect.
///
/// # Errors
/// An error of socket(2), bind(2) or listen(2).
pub fn listen(addr: SocketAddr, v6_only: bool, backlog: i32, options: Options) -> io::Result<TcpListener> {
    let fd = bound(addr, v6_only, options)?;
    let backlog = Backlog::new(backlog)?;
    nix::sys::socket::listen(&fd, backlog)?;
    Ok(TcpListener::from(fd))
}

/// Checks that [`listen`] could use `addr` now. The check accepts no connection and disturbs no connection.
///
/// # Errors
/// An error of socket(2) or bind(2).
pub fn may_listen(addr: SocketAddr, v6_only: bool) -> io::Result<()> {
    bound(addr, v6_only, Options::default()).map(drop)
}

fn bound(addr: SocketAddr, v6_only: bool, options: Options) -> io::Result<OwnedFd> {
    let fd = tcp_socket(addr)?;
    keep_alive(&fd)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if addr.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6_only)?;
    }
    set(&fd, options)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(fd)
}

/// Returns the number of the network interface `name`.
///
/// # Errors
/// `ENODEV` if there is no such interface.
pub fn interface_index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Opens a non-blocking, unconnected socket for connecting to `addr`, with TCP_NODELAY and TCP keep-alive.
///
/// # Errors
/// An error of socket(2) or setsockopt(2).
pub fn for_connect(addr: SocketAddr, options: Options) -> io::Result<OwnedFd> {
    let fd = tcp_socket(addr)?;
    keep_alive(&fd)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    set(&fd, options)?;
    Ok(fd)
}

/// Makes an accepted socket ready for a core: non-blocking, TCP_NODELAY.
///
/// # Errors
/// An error of fcntl(2) or setsockopt(2).
pub fn prepare_accepted(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(setsockopt(fd, sockopt::TcpNoDelay, &true)?)
}

/// Makes `fd` readable only when `bytes` bytes have arrived, or the peer has closed its side (SO_RCVLOWAT).
///
/// # Errors
/// An error of setsockopt(2).
pub fn set_low_water(fd: &impl AsFd, bytes: u32) -> io::Result<()> {
    let (fd, value, len) = (fd.as_fd().as_raw_fd(), bytes as libc::c_int, size_of::<libc::c_int>());
    // SAFETY: the kernel reads an int, which lives through the call.
    let done = unsafe {
        let from = (&raw const value).cast();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, from, len as libc::socklen_t)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Copies received bytes into `into` without waiting, and leaves them in the socket for a later receive.
///
/// # Errors
/// An error of recv(2); `EAGAIN` if no byte has arrived.
pub fn peek_now(fd: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::recv(fd.as_fd().as_raw_fd(), into, flags)?)
}

/// Sends as many of `bytes` as the socket takes, without waiting and without SIGPIPE. Returns the number of
/// bytes sent.
///
/// # Errors
/// An error of send(2); `EAGAIN` if the socket takes nothing.
pub fn send_bytes_now(fd: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(nix::sys::socket::send(fd.as_fd().as_raw_fd(), bytes, flags)?)
}

/// Receives available bytes into `into`, without waiting. Zero bytes mean that the peer closed its side.
///
/// # Errors
/// The errno of recv(2); `EAGAIN` if no byte has arrived.
pub fn recv_now(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, i32> {
    // SAFETY: `into` is writable for its length.
    let n = unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| last_errno())
}

/// Sends as much of `pieces` as the socket takes, without waiting and without SIGPIPE.
///
/// # Errors
/// The errno of sendmsg(2); `EAGAIN` if the socket takes nothing.
///
/// # Safety
/// Every piece must be readable for its length.
pub unsafe fn send_now(fd: BorrowedFd<'_>, pieces: &mut [libc::iovec]) -> Result<usize, i32> {
    // SAFETY: all zeros is an empty message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    // SAFETY: the header lives through the call, and the caller promises that the pieces are readable.
    let n = unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| last_errno())
}

/// Returns the bytes that the peer has acknowledged since the connection came up (TCP_INFO, Linux 4.1), or 0 if the
/// kernel doesn't report the number.
pub fn bytes_acked(fd: BorrowedFd<'_>) -> u64 {
    // `tcpi_bytes_acked` ends here in struct tcp_info (include/uapi/linux/tcp.h).
    tcp_info::<128>(fd)
}

/// Returns the bytes that have arrived from the peer since the connection came up, read or not (TCP_INFO, Linux 4.1),
/// or 0 if the kernel doesn't report the number.
pub fn bytes_received(fd: BorrowedFd<'_>) -> u64 {
    // `tcpi_bytes_received` is the next field.
    tcp_info::<136>(fd)
}

/// Returns the 64-bit field of struct tcp_info that ends at byte `END`.
fn tcp_info<const END: usize>(fd: BorrowedFd<'_>) -> u64 {
    let mut info = [0u8; END];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: `info` is writable for `len` bytes; the kernel writes no more bytes.
    let result = unsafe {
        let to = info.as_mut_ptr().cast();
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len)
    };
    match info.last_chunk() {
        Some(bytes) if result == 0 && len as usize == info.len() => u64::from_ne_bytes(*bytes),
        _ => 0,
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn tcp_socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// Lets the kernel detect a peer that vanished (power failure, cut network) on an idle connection. For sent and
/// unacknowledged bytes the sender has its own deadlines.
fn keep_alive(fd: &OwnedFd) -> io::Result<()> {
    setsockopt(fd, sockopt::KeepAlive, &true)?;
    setsockopt(fd, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_S)?;
    setsockopt(fd, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL_S)?;
    Ok(setsockopt(fd, sockopt::TcpKeepCount, &KEEP_ALIVE_PROBES)?)
}

fn set(fd: &OwnedFd, options: Options) -> io::Result<()> {
    if let Some(bytes) = options.send_buffer_bytes {
        setsockopt(fd, sockopt::SndBuf, &bytes)?;
    }
    if let Some(bytes) = options.recv_buffer_bytes {
        setsockopt(fd, sockopt::RcvBuf, &bytes)?;
    }
    if let Some(algorithm) = options.congestion_control {
        algorithm.set(fd)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn what_a_peer_takes_is_counted() {
        use std::io::{Read, Write};
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
        let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (mut reader, _) = listener.accept().expect("a connection");
        // The sender sends until the buffers on both sides are full.
        sender.set_nonblocking(true).expect("an option");
        let fill = |sender: &mut TcpStream| {
            let mut sent = 0;
            while let Ok(n) = sender.write(&[7; 65536]) {
                sent += n;
            }
            sent
        };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let mut sent = fill(&mut sender);
        let stuck = bytes_acked(sender.as_fd());
        assert!(stuck < sent as u64, "{stuck} of {sent} bytes");
        let mut into = vec![0; 1 << 20];
        while bytes_acked(sender.as_fd()) < stuck + (1 << 20) {
            assert!(std::time::Instant::now() < until, "it took {sent} bytes and none is acknowledged");
            reader.read_exact(&mut into[..65536]).expect("bytes");
            sent += fill(&mut sender);
        }
        let came = bytes_received(reader.as_fd());
        assert!((stuck + (1 << 20)..=sent as u64).contains(&came), "{came} of {sent} bytes");
    }

    /// Returns a socket's keep-alive options, read back from the kernel.
    fn keep_alive_of(fd: &impl AsFd) -> (bool, u32, u32, u32) {
        use nix::sys::socket::getsockopt;
        let seconds = |value: nix::Result<u32>| value.expect("an option");
        (
            getsockopt(fd, sockopt::KeepAlive).expect("an option"),
            seconds(getsockopt(fd, sockopt::TcpKeepIdle)),
            seconds(getsockopt(fd, sockopt::TcpKeepInterval)),
            seconds(getsockopt(fd, sockopt::TcpKeepCount)),
        )
    }

    #[test]
    fn a_dead_peer_is_found_on_connections_from_hosts_and_to_arrays() {
        let listener = listen(([127, 0, 0, 1], 0).into(), false, 8, Options::default()).expect("listens");
        let addr = listener.local_addr().expect("bound");
        listener.set_nonblocking(false).expect("an option");
        let _client = TcpStream::connect(addr).expect("connects");
        let (accepted, _) = listener.accept().expect("a connection");
        let wanted = (true, KEEP_ALIVE_IDLE_S, KEEP_ALIVE_INTERVAL_S, KEEP_ALIVE_PROBES);
        assert_eq!(keep_alive_of(&accepted), wanted, "a host's");
        let array = for_connect(addr, Options::default()).expect("a socket");
        assert_eq!(keep_alive_of(&array), wanted, "an array's");
    }

    #[test]
    fn accepted_sockets_are_ready() {
        let options = Options {
            send_buffer_bytes: Some(1 << 16),
            recv_buffer_bytes: Some(1 << 16),
            // Every kernel has `reno`, and every user may choose it.
            congestion_control: CongestionControl::new("reno"),
        };
        let listener = listen(([127, 0, 0, 1], 0).into(), false, 8, options).expect("listens");
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
        assert!(listen(addr, false, 8, options).is_err(), "the port is taken");
        assert_eq!(may_listen(addr, false).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        drop((listener, accepted));
        may_listen(addr, false).expect("nobody listens there any more");
        listen(addr, false, 8, options).expect("and it is free");
        let v6: SockAddr = "[::1]:80".parse::<SocketAddr>().expect("an address").into();
        assert_eq!(v6.len_bytes(), 28);
    }

    #[test]
    fn both_wildcards_listen_at_once() {
        let options = Options::default();
        let v4 = listen("0.0.0.0:0".parse().expect("an address"), false, 8, options).expect("listens");
        let port = v4.local_addr().expect("bound").port();
        let any: SocketAddr = format!("[::]:{port}").parse().expect("an address");
        assert_eq!(may_listen(any, false).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        let v6 = listen(any, true, 8, options).expect("IPv6 alone");
        drop(v4);
        let to_v4 = SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(
            TcpStream::connect(to_v4).expect_err("IPv6 alone").kind(),
            io::ErrorKind::ConnectionRefused
        );
        drop(v6);
        let _both = listen(any, false, 8, options).expect("both families");
        TcpStream::connect(to_v4).expect("both families");
    }

    #[test]
    fn interfaces_have_numbers() {
        assert!(interface_index("lo").is_ok_and(|index| index > 0));
        assert_eq!(interface_index("nosuch0").expect_err("none").raw_os_error(), Some(libc::ENODEV));
    }
}
