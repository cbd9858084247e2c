//! The mailboxes of one gateway: between every two cores, and between each core and the control
//! thread.
//!
//! What it is: [`mesh`] makes all mailboxes at start-up. A core holds its [`Ports`]; the control thread holds one
//! [`ControlSender`] per core and one [`ControlReceiver`]. Every ring that a core sends into has a preallocated
//! overflow queue in front of it. So a core's send never fails, and allocates nothing up to the declared bound. A
//! message past that bound is a bug. A debug build then panics. A release build grows the queue, because the loss of a
//! message or of the core would cost more than the allocation.
//!
//! Memory: cores² × (ring + overflow) messages; 16 cores × 16 × (256 + 4096) × 64 bytes are 68 MiB.

use crate::io::CoreId;
use crate::mailbox::{Bell, Doze, Receiver, Sender, channel};
use crate::ram;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Bounds on the messages in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshBounds {
    /// Messages in each ring, rounded up to a power of two.
    pub ring: usize,
    /// Messages in the overflow queue of each ring that a core sends into, and in a core's queue to itself.
    pub overflow: usize,
}

impl Default for MeshBounds {
    fn default() -> Self {
        Self { ring: 256, overflow: 4096 }
    }
}

/// The sending side from a core to one receiver.
struct Outbox<M> {
    sender: Sender<M>,
    overflow: VecDeque<M>,
    bell: Bell,
    /// Set if a message was pushed since the last flush.
    pushed: bool,
}

/// The mailboxes of one core.
pub struct Ports<M> {
    core: CoreId,
    bound: usize,
    /// The rings into this core, each with its sender; `None` is the control thread. There is no ring from this core to
    /// itself.
    inbox: Vec<(Option<CoreId>, Receiver<M>)>,
    /// The outboxes: one to each core by number (`None` for this core), then one to the control thread.
    outbox: Vec<Option<Outbox<M>>>,
    to_self: VecDeque<M>,
    pub(crate) bell: Bell,
}

/// The sending side from the control thread to one core.
pub struct ControlSender<M> {
    sender: Sender<M>,
    bell: Bell,
}

/// The control thread's inbox, with the messages of all cores. After [`announce`](Self::announce), its descriptor
/// becomes readable when a message arrives. The descriptor suits tokio's `AsyncFd`.
pub struct ControlReceiver<M> {
    inbox: Vec<Receiver<M>>,
    next: usize,
    bell: Bell,
}

/// Both ends of all mailboxes of one gateway.
pub struct Mesh<M> {
    /// One per core, in order.
    pub ports: Vec<Ports<M>>,
    /// One per core, in order.
    pub to_cores: Vec<ControlSender<M>>,
    /// The inbox for messages of all cores.
    pub from_cores: ControlReceiver<M>,
}

/// Makes the mailboxes for `cores` cores.
///
/// # Errors
/// The error of eventfd(2).
pub fn mesh<M: Send>(cores: u16, bounds: MeshBounds) -> io::Result<Mesh<M>> {
    let bells = (0..cores).map(|_| Bell::new()).collect::<io::Result<Vec<_>>>()?;
    let control_bell = Bell::new()?;
    let mut ports: Vec<_> = (0..cores)
        .map(|core| Ports {
            core: CoreId(core),
            bound: bounds.overflow,
            inbox: Vec::new(),
            outbox: Vec::new(),
            to_self: VecDeque::with_capacity(bounds.overflow),
            bell: bells[usize::from(core)].clone(),
        })
        .collect();
    let outbox = |sender, bell: &Bell| Outbox {
        sender,
        overflow: VecDeque::with_capacity(bounds.overflow),
        bell: bell.clone(),
        pushed: false,
    };
    for from in 0..cores {
        for to in 0..cores {
            let out = (from != to).then(|| {
                let (sender, receiver) = channel(bounds.ring);
                ports[usize::from(to)].inbox.push((Some(CoreId(from)), receiver));
                outbox(sender, &bells[usize::from(to)])
            });
            ports[usize::from(from)].outbox.push(out);
        }
    }
    let (mut to_cores, mut from_cores) = (Vec::new(), Vec::new());
    for (port, bell) in ports.iter_mut().zip(&bells) {
        let (sender, receiver) = channel(bounds.ring);
        port.inbox.push((None, receiver));
        to_cores.push(ControlSender { sender, bell: bell.clone() });
        let (sender, receiver) = channel(bounds.ring);
        port.outbox.push(Some(outbox(sender, &control_bell)));
        from_cores.push(receiver);
    }
    let from_cores = ControlReceiver { inbox: from_cores, next: 0, bell: control_bell };
    Ok(Mesh { ports, to_cores, from_cores })
}

impl<M: Send> Ports<M> {
    /// Returns this core's number.
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// Returns the number of cores in this gateway.
    pub fn cores(&self) -> u16 {
        (self.outbox.len() - 1) as u16
    }

    /// Sends a message to a core. A message to this core arrives in its next turn.
    ///
    /// # Panics
    /// Panics if there is no such core; in a debug build also if more than ring + overflow messages are in
    /// flight to the core.
    pub(crate) fn post(&mut self, to: CoreId, message: M) {
        if to == self.core {
            debug_assert!(
                self.to_self.len() < self.bound,
                "over {} messages of {to:?} to itself",
                self.bound
            );
            self.to_self.push_back(message);
        } else {
            assert!(to.0 < self.cores(), "no {to:?} among {}", self.cores());
            self.post_at(usize::from(to.0), message);
        }
    }

    /// Sends a message to the control thread.
    ///
    /// # Panics
    /// Panics in a debug build if more than ring + overflow messages are in flight to the control thread.
    pub(crate) fn post_control(&mut self, message: M) {
        self.post_at(self.outbox.len() - 1, message);
    }

    fn post_at(&mut self, index: usize, message: M) {
        let Some(out) = &mut self.outbox[index] else { return };
        // The receiver must see this core's writes to lent or handed-over memory before the message that
        // announces them.
        ram::publish();
        out.pushed = true;
        let message = match out.overflow.is_empty() {
            true => match out.sender.push(message) {
                Ok(()) => return,
                Err(message) => message,
            },
            false => message,
        };
        debug_assert!(
            out.overflow.len() < self.bound,
            "{:?} has over {} messages (the mesh's overflow bound) under way to outbox {index}",
            self.core,
            self.bound
        );
        out.overflow.push_back(message);
    }

    /// Moves overflow into the rings and wakes sleeping receivers. Runs once per turn. Returns whether overflow is
    /// left.
    pub(crate) fn flush(&mut self) -> bool {
        let mut left = false;
        let mut pushed = false;
        for out in self.outbox.iter_mut().flatten() {
            while let Some(message) = out.overflow.pop_front() {
                out.pushed = true;
                if let Err(message) = out.sender.push(message) {
                    out.overflow.push_front(message);
                    left = true;
                    break;
                }
            }
            pushed |= out.pushed;
        }
        if pushed {
            Doze::order();
            for out in self.outbox.iter_mut().flatten().filter(|out| out.pushed) {
                out.pushed = false;
                out.bell.wake_if_asleep();
            }
        }
        left
    }

    /// Returns the number of inboxes. The last inbox holds this core's messages to itself.
    pub(crate) fn inboxes(&self) -> usize {
        self.inbox.len() + 1
    }

    /// Returns the number of messages that wait in inbox `index`. One turn takes no more than this number.
    pub(crate) fn ready(&mut self, index: usize) -> usize {
        self.inbox.get_mut(index).map_or(self.to_self.len(), |(_, receiver)| receiver.ready())
    }

    /// Takes the next message of inbox `index`, with its sender.
    pub(crate) fn pop(&mut self, index: usize) -> Option<(Option<CoreId>, M)> {
        match self.inbox.get_mut(index) {
            Some((from, receiver)) => Some((*from, receiver.pop()?)),
            None => Some((Some(self.core), self.to_self.pop_front()?)),
        }
    }

    /// Returns whether a message waits in any inbox.
    pub(crate) fn any_ready(&mut self) -> bool {
        (0..self.inboxes()).any(|index| self.ready(index) > 0)
    }
}

impl<M: Send> ControlSender<M> {
    /// Sends a message to the core and wakes the core.
    ///
    /// # Errors
    /// Returns the message if the ring is full, because the core is slower than its senders. The caller tries again
    /// later.
    pub fn send(&mut self, message: M) -> Result<(), M> {
        self.sender.push(message)?;
        Doze::order();
        self.bell.wake_if_asleep();
        Ok(())
    }
}

impl<M: Send> ControlReceiver<M> {
    /// Takes the next message, with the core that sent it. Takes from the cores' rings in turn.
    pub fn pop(&mut self) -> Option<(CoreId, M)> {
        for _ in 0..self.inbox.len() {
            let core = self.next;
            self.next = (core + 1) % self.inbox.len();
            if let Some(message) = self.inbox[core].pop() {
                return Some((CoreId(core as u16), message));
            }
        }
        None
    }

    /// Prepares to wait for the descriptor. The caller calls this function after [`pop`](Self::pop) returned
    /// nothing. Returns `true` if no message waits: the next message then makes the descriptor readable.
    /// Returns `false` if the caller must pop again.
    pub fn announce(&mut self) -> bool {
        self.bell.clear();
        self.bell.announce();
        let empty = self.inbox.iter_mut().all(|receiver| receiver.ready() == 0);
        if !empty {
            self.bell.retract();
        }
        empty
    }
}

impl<M> AsFd for ControlReceiver<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn drain(ports: &mut Ports<u32>) -> Vec<(Option<u16>, u32)> {
        let mut got = Vec::new();
        for index in 0..ports.inboxes() {
            while let Some((from, message)) = ports.pop(index) {
                got.push((from.map(|c| c.0), message));
            }
        }
        got
    }

    #[test]
    fn overflow_keeps_order_and_everyone_hears_everyone() {
        let mut mesh = mesh::<u32>(3, MeshBounds { ring: 2, overflow: 8 }).expect("mailboxes");
        (0..8).for_each(|i| mesh.ports[0].post(CoreId(2), i));
        mesh.ports[1].post(CoreId(2), 100);
        mesh.ports[2].post(CoreId(2), 200);
        mesh.to_cores[2].send(300).expect("room");
        mesh.ports[1].flush();
        let mut got = Vec::new();
        while mesh.ports[0].flush() {
            got.extend(drain(&mut mesh.ports[2]));
        }
        got.extend(drain(&mut mesh.ports[2]));
        let from = |who| got.iter().filter(|(f, _)| *f == who).map(|(_, m)| *m).collect::<Vec<_>>();
        assert_eq!(from(Some(0)), (0..8).collect::<Vec<_>>());
        assert_eq!((from(Some(1)), from(Some(2)), from(None)), (vec![100], vec![200], vec![300]));
        assert!(!mesh.ports[2].any_ready());
        mesh.ports[2].post_control(7);
        mesh.ports[2].flush();
        assert_eq!(mesh.from_cores.pop(), Some((CoreId(2), 7)));
        assert_eq!(mesh.from_cores.pop(), None);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "overflow bound")]
    fn past_the_bound_is_a_bug() {
        let mut mesh = mesh::<u32>(2, MeshBounds { ring: 2, overflow: 1 }).expect("mailboxes");
        (0..4).for_each(|i| mesh.ports[0].post(CoreId(1), i));
    }
}
