//! io_uring: the kernel's features, and one ring.
//!
//! What it is: [`Features`] is probed, not assumed (Linux 6.1 must suffice); [`Ring`] submits a turn's entries and
//! fetches completions with one io_uring_enter(2), or without a call if there is no work. The entries are types of the
//! `io-uring` crate.
//!
//! What it is not: it doesn't own the memory that entries point to; the caller keeps that memory.

pub use io_uring::squeue::{Entry, Flags};
pub use io_uring::{cqueue, opcode, types};

use crate::bufring::{self, BufRing};
use io_uring::{IoUring, Probe};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Wait for completions, and run deferred task work (io_uring_enter(2)).
const ENTER_GETEVENTS: u32 = 1 << 0;
/// The argument is an `io_uring_getevents_arg`.
const ENTER_EXT_ARG: u32 = 1 << 3;

/// Operations that the driver needs, by name.
const NEEDED: [(&str, u8); 13] = [
    ("NOP", opcode::Nop::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel2::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
];

/// The features of this kernel's io_uring, for the choice of flags and for the output of a preflight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Only the creating thread submits (6.0).
    pub single_issuer: bool,
    /// Completions are processed when the thread asks, without interrupting it (6.1).
    pub defer_taskrun: bool,
    /// Completions don't interrupt the thread (5.19).
    pub coop_taskrun: bool,
    /// A bad entry does not stop the rest of a batch (5.18).
    pub submit_all: bool,
    /// A wait can have a timeout without an entry for the timeout (5.11).
    pub ext_arg: bool,
    /// Completions are never dropped (5.5).
    pub nodrop: bool,
    /// The kernel takes receive buffers from a shared ring (5.19).
    pub buffer_ring: bool,
    /// Needed operations that this kernel lacks.
    pub missing: Vec<&'static str>,
}

impl Features {
    /// Probes the kernel's features.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` if io_uring is missing or not allowed (by a sysctl or a seccomp profile).
    pub fn probe() -> io::Result<Self> {
        let plain = IoUring::new(4)?;
        let with = |set: fn(&mut io_uring::Builder) -> &mut io_uring::Builder| {
            let mut builder = IoUring::builder();
            set(&mut builder);
            builder.build(4).is_ok()
        };
        let mut probe = Probe::new();
        plain.submitter().register_probe(&mut probe)?;
        let params = plain.params();
        Ok(Self {
            single_issuer: with(|b| b.setup_single_issuer()),
            defer_taskrun: with(|b| b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()),
            coop_taskrun: with(|b| b.setup_coop_taskrun().setup_taskrun_flag()),
            submit_all: with(|b| b.setup_submit_all()),
            ext_arg: params.is_feature_ext_arg(),
            nodrop: params.is_feature_nodrop(),
            buffer_ring: bufring::supported(&plain),
            missing: NEEDED
                .iter()
                .filter(|(_, op)| !probe.is_supported(*op))
                .map(|(name, _)| *name)
                .collect(),
        })
    }

    /// Returns whether the driver can run here. The other features only make it faster.
    pub fn suffices(&self) -> bool {
        self.missing.is_empty() && self.ext_arg && self.nodrop && self.buffer_ring
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("single_issuer", self.single_issuer),
            ("defer_taskrun", self.defer_taskrun),
            ("coop_taskrun", self.coop_taskrun),
            ("submit_all", self.submit_all),
            ("ext_arg", self.ext_arg),
            ("nodrop", self.nodrop),
            ("buffer_ring", self.buffer_ring),
        ];
        let words = all.map(|(name, there)| format!("{}{name}", if there { '+' } else { '-' }));
        write!(f, "{}", words.join(" "))?;
        if !self.missing.is_empty() {
            write!(f, "; missing operations: {}", self.missing.join(", "))?;
        }
        Ok(())
    }
}

/// A ring of the thread that made it.
pub struct Ring {
    ring: IoUring,
    taskrun_flag: bool,
}

impl Ring {
    /// Creates a ring for `sq_entries` entries per submission and `cq_entries` unread completions, with the
    /// best flags of `features`.
    ///
    /// # Errors
    /// An error of io_uring_setup(2); [`Unsupported`](io::ErrorKind::Unsupported), with the features in its text, if
    /// the features don't suffice.
    pub fn new(features: &Features, sq_entries: u32, cq_entries: u32) -> io::Result<Self> {
        if !features.suffices() {
            let what = format!("this kernel's io_uring lacks features: {features}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let mut builder = IoUring::builder();
        builder.setup_cqsize(cq_entries).setup_clamp().dontfork();
        if features.submit_all {
            builder.setup_submit_all();
        }
        if features.single_issuer {
            builder.setup_single_issuer();
        }
        let taskrun_flag = features.defer_taskrun || features.coop_taskrun;
        if features.defer_taskrun {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        } else if features.coop_taskrun {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        Ok(Self { ring: builder.build(sq_entries)?, taskrun_flag })
    }

    /// Registers `count` receive buffers (a power of two, at most 32768) of `buf_bytes` as `group` of this ring.
    ///
    /// # Errors
    /// An error of mmap(2) or io_uring_register(2).
    pub fn buf_ring(&self, group: u16, count: u16, buf_bytes: u32) -> io::Result<BufRing> {
        BufRing::new(&self.ring, group, count, buf_bytes)
    }

    /// Returns the ring of the `io-uring` crate, for registrations.
    pub fn inner(&self) -> &IoUring {
        &self.ring
    }

    /// Queues an entry for the next [`enter`](Self::enter). Returns `false` if the submission queue is full.
    ///
    /// # Safety
    /// The memory that the entry points to must stay valid until the entry's completion. Where the kernel writes,
    /// nobody else may touch the memory until then.
    pub unsafe fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Submits queued entries and lets the kernel post ready completions, without waiting. Enters the kernel
    /// only if there is work.
    ///
    /// # Errors
    /// An error of io_uring_enter(2), except a signal or a full completion queue. After these two, the caller fetches
    /// completions and calls again anyway.
    pub fn enter(&mut self) -> io::Result<()> {
        let sq = self.ring.submission();
        let queued = sq.len() as u32;
        let work = queued > 0 || !self.taskrun_flag || sq.taskrun() || sq.cq_overflow();
        drop(sq);
        if !work {
            return Ok(());
        }
        // SAFETY: no argument is passed.
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None) };
        tolerate(entered)
    }

    /// Submits queued entries and waits for a completion, at most `timeout` (`None`: without limit).
    ///
    /// # Errors
    /// The errors of [`enter`](Self::enter).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let queued = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        let timespec = timeout.map(types::Timespec::from);
        let entered = match &timespec {
            None => {
                // SAFETY: no argument is passed.
                unsafe { submitter.enter::<libc::sigset_t>(queued, 1, ENTER_GETEVENTS, None) }
            }
            Some(timespec) => {
                let args = types::SubmitArgs::new().timespec(timespec);
                // SAFETY: `args` and the time that it points to outlive the call.
                unsafe { submitter.enter(queued, 1, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&args)) }
            }
        };
        tolerate(entered)
    }

    /// Fetches completions into `into`, and returns the fetched completions.
    pub fn completions<'a>(&mut self, into: &'a mut [MaybeUninit<cqueue::Entry>]) -> &'a mut [cqueue::Entry] {
        self.ring.completion().fill(into)
    }

    /// Registers `spans` (address, length in bytes) as fixed buffers 0, 1, ... A span is at most 1 GiB.
    ///
    /// # Errors
    /// An error of io_uring_register(2): `ENOMEM` if RLIMIT_MEMLOCK is too low.
    ///
    /// # Safety
    /// The memory must stay mapped while the ring lives.
    pub unsafe fn register_spans(&self, spans: &[(*mut u8, usize)]) -> io::Result<()> {
        let spans: Vec<_> =
            spans.iter().map(|&(base, len)| libc::iovec { iov_base: base.cast(), iov_len: len }).collect();
        // SAFETY: the caller's promise.
        unsafe { self.ring.submitter().register_buffers(&spans) }
    }

    /// Returns the descriptor, for log messages.
    pub fn fd(&self) -> i32 {
        self.ring.as_raw_fd()
    }
}

fn tolerate(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(e)
            if !matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)) =>
        {
            Err(e)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_answers_and_a_wait_ends() {
        let features = Features::probe().expect("io_uring is there");
        assert!(features.suffices(), "{features}");
        let mut ring = Ring::new(&features, 8, 16).expect("a ring");
        // SAFETY: a NOP points to nothing.
        assert!(unsafe { ring.push(&opcode::Nop::new().build().user_data(7)) });
        ring.wait(None).expect("entered");
        let mut room = [const { MaybeUninit::uninit() }; 4];
        assert_eq!(ring.completions(&mut room).iter().map(|c| c.user_data()).collect::<Vec<_>>(), [7]);
        ring.wait(Some(Duration::from_millis(1))).expect("the timeout is no error");
        assert!(ring.completions(&mut room).is_empty());
    }

    #[test]
    fn only_what_is_missing_is_called_so() {
        let mut features = Features::probe().expect("io_uring is there");
        features.missing.clear();
        let text = features.to_string();
        assert!(text.ends_with("buffer_ring") && !text.contains("missing"), "{text}");
        features.missing = vec!["recv", "send"];
        assert_eq!(features.to_string(), text + "; missing operations: recv, send");
    }
}
