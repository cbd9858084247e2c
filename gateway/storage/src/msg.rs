//! What cores and the control thread say to each other.

use crate::backend::Attach;
use crate::initiator::{InitiatorMsg, NamespaceIdentity};
use crate::request::{Completed, Request, Stream};
use crate::stats::LunSurvey;
use crate::topology::{Access, BackendId, LunId, PortalId, Topology};
use crate::warm::WarmHost;
use std::net::SocketAddr;
use std::sync::Arc;
use trefoil_poll::{Io, SockId};
use trefoil_wire::fabrics::Nqn;

/// The drivers that the storage path runs on.
pub trait StorageIo: Io<Msg = Msg<<Self as Io>::Socket, <Self as Io>::File>> + Sized {}

impl<I> StorageIo for I where I: Io<Msg = Msg<<I as Io>::Socket, <I as Io>::File>> {}

/// A message in a mailbox. `S` and `F` are the driver's detached socket and file.
#[derive(Debug)]
pub enum Msg<S, F> {
    /// Control → core: a host connected to `portal`; the connection is this core's from now on.
    Adopt {
        /// The connection.
        socket: S,
        /// Which portal it came to.
        portal: PortalId,
        /// The local address that the host used (for its discovery log).
        local: SocketAddr,
        /// The host's address.
        peer: SocketAddr,
        /// The ICReq, with which the stream begins, has got its [`ic_resp`](crate::target::ic_resp) already.
        initialized: bool,
    },
    /// Core → control: so many connections of [`Msg::Adopt`] no longer wait for a place. Of those that do, a core takes
    /// [`NEWCOMERS`](crate::core::NEWCOMERS).
    Adopted(u32),
    /// Control → core: ask yourself for something over this connection every so often, so that requests after idle find
    /// you warm. Its other end is adopted with [`PortalId::OWN`].
    KeepWarm {
        /// Your side as a host.
        socket: S,
        /// The address of your other side.
        to: SocketAddr,
        /// Who asks.
        host: Box<WarmHost>,
    },
    /// Control → core: present this from now on. Answered by [`Msg::TopologyDone`].
    Topology(Arc<Topology>),
    /// Core → control: the snapshot of this epoch is in force, and all who are connected have been told; here is the one
    /// before.
    TopologyDone {
        /// The epoch in force.
        epoch: u64,
        /// To be dropped on the control thread.
        old: Option<Arc<Topology>>,
    },
    /// Control → core: here is a backend's channel. Answered by [`Msg::Attached`].
    Attach(BackendId, Box<Attach<F>>),
    /// Core → control: the channel is in place.
    Attached(BackendId),
    /// Control → core: let the channel go; what is on its way is completed first. No topology names
    /// the backend any more. Answered by [`Msg::Detached`].
    Detach(BackendId),
    /// Core → control: the channel is gone; its memory is dropped on the control thread.
    Detached(BackendId, Option<Box<Attach<F>>>),
    /// Control → core: I/O of control's own, straight to a backend (offset and len are the
    /// backend's). Comes back as [`Msg::Completed`] with [`crate::Owner::Control`].
    BackendIo(BackendId, Request),
    /// Core → core: a request for a channel that only the receiver has (already mapped to the backend).
    Submit(BackendId, Request),
    /// Core → core or → control: a request on its way home.
    Completed(Completed),
    /// Core → core: the queue whose requests these are is gone; end those that you have (at one backend, or at all), as
    /// soon as they can't take effect any more. Comes after the requests themselves.
    Cancel(Option<BackendId>, Stream),
    /// Core → core: about a controller that we present; see the target.
    Ctrlr(CtrlrMsg),
    /// Core → core: about an array's controller that a backend uses; see [`crate::backend::nvme_tcp`].
    Initiator(BackendId, InitiatorMsg),

    /// Core → core: a request was dropped that the receiver counts as this backend's (see [`trefoil_poll::lost`]).
    Lost(BackendId),
    /// Control → core: list what is connected; comes back filled.
    Survey(Box<Survey>),
    /// Control → core: say what hosts did with LUNs; comes back filled.
    LunSurvey(Box<LunSurvey>),
    /// Control → core: say how many requests of your hosts' for this LUN are under way; comes back with the number. A core
    /// that has not looked at all its slots in one turn goes on by sending it to itself.
    UnderWay {
        /// The LUN, which no topology presents any more.
        lun: LunId,
        /// Requests that were found.
        requests: usize,
        /// The slot to go on with.
        from: u32,
    },
    /// Core → control: something that an operator or a table wants to know.
    Event(Event),
    /// Core → control: a Connect was refused. Control → core: it has been told of, and here is its place for another. A
    /// core has some few places, so that hosts that are refused often make it neither allocate nor send much.
    Refused(Box<Refused>),
    /// Control → core: end all connections of hosts that may no longer connect, or of all if `all`,
    /// as part of an orderly stop.
    CloseHosts {
        /// Every connection.
        all: bool,
    },
}

/// Between the core of a controller's admin queue (its owner) and the cores of its I/O queues.
/// Every core can look the owner up ([`Capacity::owner`](crate::target::Capacity::owner)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CtrlrMsg {
    /// I/O queue's core → owner: a Connect for queue `qid` of `cntlid` came in on `sock`.
    Join {
        /// The controller.
        cntlid: u16,
        /// The queue, from 1.
        qid: u16,
        /// Its connection, on the sender's core.
        sock: SockId,
        /// Guards against a reused `sock`.
        generation: u32,
        /// The Connect's subsystem (index into the topology is not stable; the NQN's hash is).
        subnqn_hash: u64,
        /// Likewise for the host, as [`HostName::of`] names it.
        host_hash: u64,
        /// The Connect's host identifier.
        hostid: [u8; 16],
    },
    /// Owner → I/O queue's core: the answer to `Join`: an NVMe status (0 is success).
    Joined {
        /// As in `Join`.
        sock: SockId,
        /// As in `Join`.
        generation: u32,
        /// Status field without phase: SCT << 8 | SC; bit 14 is Do Not Retry.
        status: u16,
    },
    /// I/O queue's core → owner: the queue's connection is gone, and each request of its has completed.
    Left {
        /// The controller.
        cntlid: u16,
        /// The queue.
        qid: u16,
        /// As in `Join`, so that only the queue itself is let go.
        sock: SockId,
        /// As in `Join`.
        generation: u32,
    },
    /// New controller's owner → every core: does any controller of this host that has ended still have a queue that has
    /// not left?
    Settle {
        /// The new controller.
        cntlid: u16,
        /// Of its admin queue, since an identifier may be reused.
        generation: u32,
        /// The host, as in `Join`.
        host_hash: u64,
    },
    /// The answer to `Settle`.
    Settled {
        /// As in `Settle`.
        cntlid: u16,
        /// As in `Settle`.
        generation: u32,
        /// None has.
        settled: bool,
    },
    /// Owner → I/O queue's core: close this queue's connection (reset, shutdown, keep-alive timeout).
    Close {
        /// Its connection.
        sock: SockId,
        /// Guards against a reused `sock`.
        generation: u32,
    },
    /// Owner → I/O queue's core: abort the command if it is still waiting; answered by `AbortDone`.
    Abort {
        /// The queue's connection.
        sock: SockId,
        /// Guards against a reused `sock`.
        generation: u32,
        /// The command to abort.
        cid: u16,
        /// Given back in the answer: the owner's slot of the Abort command.
        slot: u32,
    },
    /// I/O queue's core → owner.
    AbortDone {
        /// As in `Abort`.
        slot: u32,
        /// Whether it was aborted.
        aborted: bool,
    },
}

/// An NQN inline, so that telling it allocates nothing: all of it, or its first `N` bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HostName<const N: usize = 223> {
    len: u8,
    bytes: [u8; N],
}

/// As much of an NQN as fits into a message without making it larger; all of the UUID form (68 bytes), which Linux has.
pub type ShortName = HostName<72>;

impl<const N: usize> HostName<N> {
    /// The first `N` bytes of `nqn`, or somewhat fewer where that would cut a character. An NQN has at most 223 (NVMe base
    /// 2.0 §4.5).
    pub fn new(nqn: &str) -> Self {
        let mut bytes = [0; N];
        let len = nqn.floor_char_boundary(N);
        bytes[..len].copy_from_slice(&nqn.as_bytes()[..len]);
        Self { len: len as u8, bytes }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl HostName {
    /// Which host a Connect's HOSTNQN and HOSTID are, wherever hosts are told apart: the NQN, or for a host without a name
    /// `hostid:` and its HOSTID as a UUID is written.
    pub fn of(hostnqn: &Nqn, hostid: &[u8; 16]) -> Self {
        let mut name = Self::new(hostnqn.as_str());
        if hostnqn.is_empty() {
            "hostid:".chars().for_each(|c| name.push(c));
            for (at, byte) in hostid.iter().enumerate() {
                if matches!(at, 4 | 6 | 8 | 10) {
                    name.push('-');
                }
                for digit in [byte >> 4, byte & 0xF] {
                    name.push(char::from_digit(digit.into(), 16).unwrap_or_default());
                }
            }
        }
        name
    }

    /// What can be shown of a field that should hold a name: up to its NUL, with U+FFFD for each control character and for
    /// what is not UTF-8.
    pub fn lossy(field: &[u8]) -> Self {
        let mut name = Self::new("");
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        for chunk in text.utf8_chunks() {
            let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
            chunk.valid().chars().for_each(|c| name.push(shown(c)));
            if !chunk.invalid().is_empty() {
                name.push(char::REPLACEMENT_CHARACTER);
            }
        }
        name
    }

    /// Appends, as long as there is room.
    fn push(&mut self, c: char) {
        let at = usize::from(self.len);
        if let Some(to) = self.bytes.get_mut(at..at + c.len_utf8()) {
            c.encode_utf8(to);
            self.len += c.len_utf8() as u8;
        }
    }
}

impl<const N: usize> std::fmt::Debug for HostName<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What is connected to one core. Control makes it with room for what it wants to see, and the core
/// fills the room, so that the core allocates nothing.
#[derive(Debug, Default)]
pub struct Survey {
    /// Rows; the core adds no more than the vector's capacity.
    pub qpairs: Vec<QpairRow>,
    /// Where to go on: a core that has not looked at all its queues in one turn sends it to itself.
    pub next: Option<u32>,
    /// Queue pairs in all, also those for which there was no room.
    pub total: usize,
    /// Connects that were refused since the core started, by [`ConnectRefusal`]'s order.
    pub refused: [u64; ConnectRefusal::ALL.len()],
}

/// A Connect that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The host, as [`HostName::of`] or [`HostName::lossy`] says; empty if its Connect's data never came.
    pub host_nqn: HostName,
    /// The subsystem that it asked for, likewise.
    pub subsystem_nqn: HostName,
    /// The host's address.
    pub peer: SocketAddr,
    /// Our address as the host used it.
    pub local: SocketAddr,
    /// Why.
    pub why: ConnectRefusal,
}

/// Why a Connect was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefusal {
    /// The host is not on the subsystem's list.
    Host,
    /// There is no such subsystem.
    Subsystem,
    /// The subsystem isn't offered where the host came in.
    Listener,
    /// HOSTNQN isn't a name that a host may have.
    HostNqn,
    /// HOSTID is zero.
    HostId,
    /// SQSIZE is 0, or more than a queue may have.
    SqSize,
    /// RECFMT isn't 0.
    RecFmt,
    /// CNTLID isn't FFFFh on an admin queue, or there is no such controller.
    CntlId,
    /// QID is one that the controller has not granted, or has already.
    Qid,
    /// The controller is another host's.
    OtherHost,
    /// There is no place for a controller, or no controller ID.
    Full,
    /// The queue is connected already, or its controller isn't ready.
    Sequence,
    /// Something else, such as the length of the data.
    Other,
}

impl ConnectRefusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Host,
        Self::Subsystem,
        Self::Listener,
        Self::HostNqn,
        Self::HostId,
        Self::SqSize,
        Self::RecFmt,
        Self::CntlId,
        Self::Qid,
        Self::OtherHost,
        Self::Full,
        Self::Sequence,
        Self::Other,
    ];
}

/// One queue pair of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpairRow {
    /// The core's socket.
    pub sock: SockId,
    /// Controller.
    pub cntlid: u16,
    /// Queue, 0 for admin.
    pub qid: u16,
    /// Queue depth (SQSIZE + 1).
    pub depth: u16,
    /// Commands that it has under way.
    pub outstanding: u16,
    /// The host, as [`HostName::of`] names it.
    pub host_nqn: HostName,
    /// The subsystem.
    pub subsystem_nqn: HostName,
    /// The host's address.
    pub peer: SocketAddr,
    /// The portal that it came to.
    pub portal: PortalId,
    /// Header and data digest.
    pub digests: (bool, bool),
    /// Commands completed since the queue came up.
    pub commands: u64,
    /// Payload bytes moved since then.
    pub payload_bytes: u64,
    /// Time from command to response, summed over those commands, in nanoseconds.
    pub latency_ns: u64,
}

/// Something worth a table row or a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host's queue pair came up.
    QpairUp {
        /// Controller.
        cntlid: u16,
        /// Queue, 0 for admin.
        qid: u16,
        /// The host, as [`HostName::of`] names it.
        host: ShortName,
        /// The host's address.
        peer: SocketAddr,
    },
    /// It went down.
    QpairDown {
        /// Controller.
        cntlid: u16,
        /// Queue, 0 for admin.
        qid: u16,
        /// The host, as [`HostName::of`] names it.
        host: ShortName,
        /// The host's address.
        peer: SocketAddr,
        /// Why, for the log.
        why: &'static str,
    },
    /// A backend's path came up or was lost.
    BackendState {
        /// The backend.
        backend: BackendId,
        /// Whether I/O can go on.
        usable: bool,
        /// Why, for the log.
        why: &'static str,
        /// It said itself that trying again is useless, as long as nobody changes anything. It is tried all the same.
        is_final: bool,
    },
    /// What a backend is, as it says itself; told each time that it is reached.
    BackendInfo {
        /// The backend.
        backend: BackendId,
        /// Size in bytes.
        len_bytes: u64,
        /// Which namespace answered.
        namespace: NamespaceIdentity,
        /// TRIM is passed on to it: it takes Deallocate, and promises that what it deallocates reads as zeros.
        deallocates: bool,
    },
    /// Another namespace answers as a backend than before, and isn't taken.
    BackendReplaced {
        /// The backend.
        backend: BackendId,
        /// The namespace that it has been.
        was: NamespaceIdentity,
        /// The one that answers now.
        is: NamespaceIdentity,
    },
    /// What a backend lets its users do is this now; at first everything.
    BackendAccess {
        /// The backend.
        backend: BackendId,
        /// What it lets them do.
        access: Access,
    },
    /// A backend's size changed, in bytes.
    BackendResized {
        /// The backend.
        backend: BackendId,
        /// Its size now.
        len_bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_name_is_its_hostid() {
        let hostid = *b"\x01\x23\x45\x67\x89\xab\xcd\xef0123456\xff";
        let of = |name: &str| HostName::of(&Nqn::new(name).expect("a name"), &hostid);
        assert_eq!(of("hostnqn1").as_str(), "hostnqn1");
        assert_eq!(of("").as_str(), "hostid:01234567-89ab-cdef-3031-3233343536ff");
    }

    #[test]
    fn what_is_no_name_is_shown_without_control_characters() {
        let shown = |field: &[u8]| HostName::lossy(field).as_str().to_owned();
        assert_eq!(shown(b"a\nb\xffc\0d"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(shown("größe".as_bytes()), "größe");
        assert_eq!(shown(&[b'x'; 256]), "x".repeat(223));
        assert_eq!(shown(&[0x80; 256]), "\u{fffd}".repeat(74), "three bytes each");
    }
}
