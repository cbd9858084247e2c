//! Reports the gateway's state to systemd by datagrams to `$NOTIFY_SOCKET` (sd_notify(3), sd_watchdog_enabled(3)).

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// The socket to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(OwnedFd, UnixAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Makes a notifier from the environment. Without `$NOTIFY_SOCKET`, every call does nothing.
    pub fn from_env() -> Self {
        let usec = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let pid = std::env::var("WATCHDOG_PID").ok().and_then(|text| text.parse::<u32>().ok());
        let ours = pid.is_none_or(|pid| pid == std::process::id());
        Self { to: open(), watchdog: usec.filter(|_| ours).map(Duration::from_micros) }
    }

    /// Returns the interval between two watchdog messages: half of the watchdog's timeout.
    pub fn watchdog(&self) -> Option<Duration> {
        self.to.as_ref().and(self.watchdog).map(|timeout| timeout / 2)
    }

    /// Sends a state, such as `READY=1`. A failure is only logged: the gateway runs on without a service manager.
    pub fn tell(&self, state: &str) {
        let Some((fd, address)) = &self.to else { return };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let Err(error) = sendto(fd.as_raw_fd(), state.as_bytes(), address, flags) {
            tracing::warn!(%error, state, "the service manager can't be notified");
        }
    }
}

fn open() -> Option<(OwnedFd, UnixAddr)> {
    let path = std::env::var_os("NOTIFY_SOCKET")?;
    // A leading `@` means that the address is in the abstract namespace.
    let address = match path.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name),
        name => UnixAddr::new(name),
    };
    let fd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    match (address, fd) {
        (Ok(address), Ok(fd)) => Some((fd, address)),
        (address, fd) => {
            tracing::warn!(?address, ?fd, "$NOTIFY_SOCKET can't be used");
            None
        }
    }
}
