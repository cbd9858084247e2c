//! Messages between cores, and between cores and the control thread.

use crate::initiator::{InitiatorMsg, NamespaceIdentity};
use crate::request::{Completed, Request, Stream};
use crate::stats::LunSurvey;
use crate::topology::{Access, BackendId, LunId, PortalId, Topology};
use crate::warm::WarmHost;
use std::net::SocketAddr;
use std::sync::Arc;
use trefoil_poll::{Io, SockId};
use trefoil_wire::fabrics::Nqn;

/// A driver that the storage path can run on.
pub trait StorageIo: Io<Msg = Msg<<Self as Io>::Socket, Self::Attach>> + Sized {
    /// The form in which control sends a backend to a core: [`crate::backend::Attach`].
    type Attach;
}

impl<I, A> StorageIo for I
where
    I: Io<Msg = Msg<<I as Io>::Socket, A>>,
{
    type Attach = A;
}

/// A message in a mailbox. `S` is the driver's detached socket, and `A` is the form in which control sends a backend to
/// a core.
#[derive(Debug)]
pub enum Msg<S, A> {
    /// Control → core: a host connected to `portal`. The connection belongs to this core from now on.
    Adopt {
        /// The connection.
        socket: S,
        /// The portal to which the host connected.
        portal: PortalId,
        /// The local address that the host used, for the host's discovery log.
        local: SocketAddr,
        /// The host's address.
        peer: SocketAddr,
        /// True if the answer to the stream's first PDU, an ICReq, has already been sent
        /// ([`ic_resp`](crate::frontend::ic_resp)).
        initialized: bool,
    },
    /// Core → control: this many connections of [`Msg::Adopt`] no longer wait for a slot. At most
    /// [`MAX_WAITING_CONNS`](crate::core::MAX_WAITING_CONNS) connections wait on one core.
    Adopted(u32),
    /// Control → core: query yourself over this connection at intervals. The queries keep you warm for the first
    /// request after idle time. The connection's other end is adopted with [`PortalId::OWN`].
    KeepWarm {
        /// Your end as a host.
        socket: S,
        /// The host that sends the queries.
        to: SocketAddr,
        /// The host that asks.
        host: Box<WarmHost>,
    },
    /// Control → core: present this topology from now on. The answer is [`Msg::TopologyDone`].
    Topology(Arc<Topology>),
    /// Core → control: the snapshot of this epoch is in force, and all connected hosts know of it. The message returns
    /// the previous snapshot.
    TopologyDone {
        /// The epoch in force.
        epoch: u64,
        /// The previous snapshot, to be dropped on the control thread.
        old: Option<Arc<Topology>>,
    },
    /// Control → core: attach this backend's channel. The answer is [`Msg::Attached`].
    Attach(BackendId, Box<A>),
    /// Core → control: the channel is attached.
    Attached(BackendId),
    /// Control → core: detach the channel once its requests in flight have completed. The current topology no longer
    /// names the backend. The answer is [`Msg::Detached`].
    Detach(BackendId),
    /// Core → control: the channel is gone. The control thread drops its memory.
    Detached(BackendId, Option<Box<A>>),
    /// Control → core: a request that control itself makes to a backend. `offset` and `len` are a range of the backend,
    /// not of a LUN. The request comes back as [`Msg::Completed`] with [`crate::Owner::Control`].
    BackendIo(BackendId, Request),
    /// Core → core: a request for a channel that only the receiver has, already mapped to the backend.
    Submit(BackendId, Request),
    /// Core → core or control: a completed request, on its way to its origin.
    Completed(Completed),
    /// Core → core: the queue that made these requests is gone. Complete the requests of this stream that you have at
    /// this backend, or at all backends for `None`, as soon as they can't take effect any more. This message arrives
    /// after the requests.
    Cancel(Option<BackendId>, Stream),
    /// Core → core: a message about a controller that the gateway presents; see the target.
    Ctrlr(CtrlrMsg),
    /// Core → core: a message about an array's controller that a backend uses; see [`crate::backend::nvme_tcp`].
    Initiator(BackendId, InitiatorMsg),

    /// Core → core: a request was dropped that you count as this backend's; subtract it (see [`trefoil_poll::lost`]).
    Lost(BackendId),
    /// Control → core: list the connected queue pairs. The survey comes back filled.
    Survey(Box<Survey>),
    /// Control → core: report the statistics of LUNs. The survey comes back filled.
    LunSurvey(Box<LunSurvey>),
    /// Control → core: count the requests in flight that your hosts made for this LUN. The message comes back with the
    /// number. A core that has not examined all its slots in one turn sends the message to itself and continues.
    UnderWay {
        /// The LUN, which no topology presents any more.
        lun: LunId,
        /// Requests found so far.
        requests: usize,
        /// The slot to continue with.
        from: u32,
    },
    /// Core → control: an event for the operator's log or for a table.
    Event(Event),
    /// Core → control: report this refused Connect. Control → core: the refusal is reported, and you may use the box
    /// again. A core has few of these boxes, so frequent refusals cost no allocation and few messages.
    Refused(Box<Refused>),
    /// Control → core: close the connections of hosts that may no longer connect. With `all`, close every connection, as
    /// part of an orderly stop.
    CloseHosts {
        /// True to close every connection.
        all: bool,
    },
}

/// A message between the core of a controller's admin queue (its owner) and the cores of its I/O queues. Every core can
/// look up the owner ([`Capacity::owner`](crate::frontend::Capacity::owner)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CtrlrMsg {
    /// I/O queue's core → owner: `sock` received a Connect for queue `qid` of `cntlid`.
    Join {
        /// The controller.
        cntlid: u16,
        /// The queue, from 1.
        qid: u16,
        /// Its connection, on the sender's core.
        sock: SockId,
        /// Guards against a reused `sock`.
        generation: u32,
        /// Hash of the NQN of the Connect's subsystem. (An index into the topology is not stable.)
        subnqn_hash: u64,
        /// Hash of the host's name, as [`HostName::of`] gives it.
        host_hash: u64,
        /// The Connect's host identifier.
        hostid: [u8; 16],
    },
    /// Owner → I/O queue's core: the answer to `Join`, an NVMe status. 0 is success.
    Joined {
        /// As in `Join`.
        sock: SockId,
        /// As in `Join`.
        generation: u32,
        /// Status field without phase: SCT << 8 | SC; bit 14 is Do Not Retry.
        status: u16,
    },
    /// I/O queue's core → owner: the queue's connection is gone, and all the queue's requests have completed.
    Left {
        /// The controller.
        cntlid: u16,
        /// The queue.
        qid: u16,
        /// As in `Join`, so that the owner releases exactly this queue.
        sock: SockId,
        /// As in `Join`.
        generation: u32,
    },
    /// New controller's owner → every core: do you have an ended controller of this host with a queue that has not
    /// left?
    Settle {
        /// The new controller.
        cntlid: u16,
        /// The generation of its admin queue, since a CNTLID may be reused.
        generation: u32,
        /// The host, as in `Join`.
        host_hash: u64,
    },
    /// Answer to `Settle`.
    Settled {
        /// As in `Settle`.
        cntlid: u16,
        /// As in `Settle`.
        generation: u32,
        /// True if the core has no such controller.
        settled: bool,
    },
    /// Owner → I/O queue's core: close this queue's connection (reset, shutdown, keep-alive timeout).
    Close {
        /// Its connection.
        sock: SockId,
        /// Guards against a reused `sock`.
        generation: u32,
    },
    /// Owner → I/O queue's core: abort the command if it has not started. The answer is `AbortDone`.
    Abort {
        /// The queue's connection.
        sock: SockId,
        /// Guards against a reused `sock`.
        generation: u32,
        /// The command to abort.
        cid: u16,
        /// The owner's slot of the Abort command, returned in the answer.
        slot: u32,
    },
    /// I/O queue's core → owner: the answer to `Abort`.
    AbortDone {
        /// As in `Abort`.
        slot: u32,
        /// True if the command was aborted.
        aborted: bool,
    },
}

/// An NQN stored inline: the whole NQN, or its first `N` bytes. Sending it allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HostName<const N: usize = 223> {
    len: u8,
    bytes: [u8; N],
}

/// The first bytes of an NQN: as many as fit into a message without a larger message type. The UUID form (68 bytes),
/// which Linux uses, fits completely.
pub type ShortName = HostName<72>;

impl<const N: usize> HostName<N> {
    /// Keeps at most the first `N` bytes of `nqn`, and never a part of a character. An NQN has at most 223 bytes (NVMe
    /// base 2.0 §4.5).
    pub fn new(nqn: &str) -> Self {
        let mut bytes = [0; N];
        let len = nqn.floor_char_boundary(N);
        bytes[..len].copy_from_slice(&nqn.as_bytes()[..len]);
        Self { len: len as u8, bytes }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl HostName {
    /// Returns the name by which all parts of the gateway distinguish hosts: the HOSTNQN of the Connect. If HOSTNQN is
    /// empty, returns `hostid:` and the HOSTID in UUID form.
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

    /// Returns a printable form of a field that should hold a name: the text up to the first NUL. Each control
    /// character and each invalid UTF-8 sequence becomes U+FFFD.
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

    /// Appends `c` if there is room.
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

/// One core's connected queue pairs. Control allocates the room for the rows that it wants, so the core fills the
/// survey without allocating.
#[derive(Debug, Default)]
pub struct Survey {
    /// Rows; the core adds no more than the vector's capacity.
    pub qpairs: Vec<QpairRow>,
    /// The queue to continue with. A core that has not examined all its queues in one turn sends the survey to itself.
    pub next: Option<u32>,
    /// The number of all queue pairs, including queue pairs for which `qpairs` has no room.
    pub total: usize,
    /// Connects refused since the core started, in the order of [`ConnectRefusal`].
    pub refused: [u64; ConnectRefusal::ALL.len()],
}

/// A refused Connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The host, as [`HostName::of`] or [`HostName::lossy`] gives it. Empty if the Connect's data never came.
    pub host_nqn: HostName,
    /// The subsystem that the host asked for, as [`HostName::lossy`] gives it. Empty if the Connect's data never came.
    pub subsystem_nqn: HostName,
    /// The host's address.
    pub peer: SocketAddr,
    /// The gateway's address to which the host connected.
    pub local: SocketAddr,
    /// The reason.
    pub why: ConnectRefusal,
}

/// The reason for refusing a Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefusal {
    /// The host is not on the subsystem's list.
    Host,
    /// There is no such subsystem.
    Subsystem,
    /// The subsystem isn't offered on the portal that the host used.
    Listener,
    /// HOSTNQN isn't a name that a host may have.
    HostNqn,
    /// HOSTID is zero.
    HostId,
    /// SQSIZE is 0, or larger than a queue may be.
    SqSize,
    /// RECFMT isn't 0.
    RecFmt,
    /// CNTLID isn't FFFFh on an admin queue, or there is no such controller.
    CntlId,
    /// The controller has not granted this QID, or already has a queue with this QID.
    Qid,
    /// The controller belongs to another host.
    OtherHost,
    /// There is no free slot for a controller, or no free controller ID.
    Full,
    /// The queue is connected already, or its controller isn't ready.
    Sequence,
    /// Another reason, such as the length of the data.
    Other,
}

impl ConnectRefusal {
    /// All reasons, in the order of their numbers.
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
    /// Its socket on the core.
    pub sock: SockId,
    /// Controller.
    pub cntlid: u16,
    /// Queue, 0 for admin.
    pub qid: u16,
    /// Queue depth (SQSIZE + 1).
    pub depth: u16,
    /// Commands in flight.
    pub outstanding: u16,
    /// The host, as [`HostName::of`] gives it.
    pub host_nqn: HostName,
    /// The subsystem.
    pub subsystem_nqn: HostName,
    /// The host's address.
    pub peer: SocketAddr,
    /// The portal to which the host connected.
    pub portal: PortalId,
    /// Use of header and data digests.
    pub digests: (bool, bool),
    /// Commands completed since the queue pair came up.
    pub commands: u64,
    /// Payload bytes moved since the queue pair came up.
    pub payload_bytes: u64,
    /// Sum of the times from command to response of all these commands, in nanoseconds.
    pub latency_ns: u64,
}

/// An event for a table or the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host's queue pair came up.
    QpairUp {
        /// Controller.
        cntlid: u16,
        /// Queue, 0 for admin.
        qid: u16,
        /// The host, as [`HostName::of`] gives it.
        host: ShortName,
        /// The host's address.
        peer: SocketAddr,
    },
    /// A host's queue pair went down.
    QpairDown {
        /// Controller.
        cntlid: u16,
        /// Queue, 0 for admin.
        qid: u16,
        /// The host, as [`HostName::of`] gives it.
        host: ShortName,
        /// The host's address.
        peer: SocketAddr,
        /// The reason, for the log.
        why: &'static str,
    },
    /// A backend's path came up or was lost.
    BackendState {
        /// The backend.
        backend: BackendId,
        /// True if I/O can proceed.
        usable: bool,
        /// The reason, for the log.
        why: &'static str,
        /// True if the backend itself reported that retries are useless until somebody changes something. The gateway
        /// retries nevertheless.
        is_final: bool,
    },
    /// A backend's own description, sent each time the gateway reaches the backend.
    BackendInfo {
        /// The backend.
        backend: BackendId,
        /// Size in bytes.
        len_bytes: u64,
        /// The namespace that answered.
        namespace: NamespaceIdentity,
        /// True if TRIM goes to this backend: it supports Deallocate, and promises that deallocated blocks read as
        /// zeros.
        deallocates: bool,
    },
    /// A namespace other than the known one answers as this backend. The gateway refuses that namespace.
    BackendReplaced {
        /// The backend.
        backend: BackendId,
        /// The known namespace.
        was: NamespaceIdentity,
        /// The namespace that answers now.
        is: NamespaceIdentity,
    },
    /// A backend's access changed. A new backend gives full access until the first such event.
    BackendAccess {
        /// The backend.
        backend: BackendId,
        /// The new access.
        access: Access,
    },
    /// A backend's size changed.
    BackendResized {
        /// The backend.
        backend: BackendId,
        /// The new size in bytes.
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
