//! A mailbox between two threads of one process: a bounded ring with one sender and one receiver, and a flag for waking
//! a sleeping receiver.
//!
//! What it is: [`channel`] makes a ring that is preallocated and never blocks. Each side caches the other's index, so
//! that a batch costs one cache miss per side. [`Doze`] answers one question without losing a wake-up: must the sender
//! wake the receiver? [`Bell`] combines a [`Doze`] with an eventfd.
//!
//! What it is not: it keeps no order between different senders, and its size is bounded. The runtime's
//! [`mesh`](mod@crate::mesh) puts an overflow queue in front of each ring.

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell, fence};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use trefoil_sys::eventfd::EventFd;

/// A value that has its own cache line. The neighbouring line, which the prefetcher loads too, holds no other value
/// either.
#[repr(align(128))]
struct Padded<T>(T);

struct Ring<T> {
    /// The next slot to read, written by the receiver.
    head: Padded<AtomicUsize>,
    /// The next slot to write, written by the sender.
    tail: Padded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: the sender touches a slot only outside `head..tail`, and the receiver only inside. The indices hand
// a slot over with release and acquire. There is one sender and one receiver.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: as above; the values themselves move between threads, which `T: Send` allows.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // The length is a power of two, so indices may wrap around.
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let (mut head, tail) = (self.head.0.load(Ordering::Relaxed), self.tail.0.load(Ordering::Relaxed));
        while head != tail {
            // SAFETY: both sides are gone, and slots in `head..tail` hold values that nobody took.
            self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The sending side of [`channel`].
pub struct Sender<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    head_seen: usize,
}

/// The receiving side of [`channel`].
pub struct Receiver<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    tail_seen: usize,
}

/// Creates a ring for `capacity` messages, rounded up to a power of two.
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let slots = (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let ring = Arc::new(Ring { head: Padded(AtomicUsize::new(0)), tail: Padded(AtomicUsize::new(0)), slots });
    (Sender { ring: ring.clone(), tail: 0, head_seen: 0 }, Receiver { ring, head: 0, tail_seen: 0 })
}

impl<T: Send> Sender<T> {
    /// Puts a message into the ring.
    ///
    /// # Errors
    /// Returns the message if the ring is full.
    pub fn push(&mut self, message: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_seen) == self.ring.slots.len() {
            self.head_seen = self.ring.head.0.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == self.ring.slots.len() {
                return Err(message);
            }
        }
        // SAFETY: the slot is outside `head..tail`, so the receiver leaves it alone.
        self.ring.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(message) });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl<T: Send> Receiver<T> {
    /// Returns how many messages can be taken now. A caller bounds its batch by this number.
    pub fn ready(&mut self) -> usize {
        self.tail_seen = self.ring.tail.0.load(Ordering::Acquire);
        self.tail_seen.wrapping_sub(self.head)
    }

    /// Takes the next message.
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen && self.ready() == 0 {
            return None;
        }
        // SAFETY: the slot is inside `head..tail`, so it holds a value and the sender leaves it alone;
        // it is read once, as `head` moves on.
        let message = self.ring.slot(self.head).with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(message)
    }
}

/// The flag of a sleeping receiver. The two fences guarantee that at least one side notices the other: the
/// sender sees the announcement, or the receiver sees the message in the check after the announcement.
#[derive(Debug)]
pub struct Doze(AtomicBool);

impl Default for Doze {
    fn default() -> Self {
        Self::new()
    }
}

impl Doze {
    /// Creates the flag of a receiver that is awake.
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Announces that the receiver is about to sleep. The receiver then checks all its mailboxes once more, and sleeps
    /// only if all of them are empty.
    pub fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Notes that the receiver is awake again.
    pub fn retract(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Returns whether the caller must wake the receiver. The sender calls [`order`](Self::order) between its
    /// push and this call. Only one of several senders gets `true`.
    pub fn must_wake(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }

    /// Orders pushes before the [`must_wake`](Self::must_wake) calls that follow. One call is enough for a batch of
    /// pushes.
    pub fn order() {
        fence(Ordering::SeqCst);
    }
}

/// An eventfd that wakes a receiver if the receiver sleeps.
#[derive(Clone)]
pub struct Bell(Arc<(Doze, EventFd)>);

impl Bell {
    /// Creates a bell whose receiver is awake.
    ///
    /// # Errors
    /// The error of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new((Doze::new(), EventFd::new()?))))
    }

    /// See [`Doze::announce`].
    pub fn announce(&self) {
        self.0.0.announce();
    }

    /// See [`Doze::retract`].
    pub fn retract(&self) {
        self.0.0.retract();
    }

    /// Wakes the receiver if it announced its sleep. The caller calls [`Doze::order`] first.
    pub fn wake_if_asleep(&self) -> bool {
        let asleep = self.0.0.must_wake();
        if asleep {
            self.0.1.signal();
        }
        asleep
    }

    /// Clears the eventfd's signal.
    pub fn clear(&self) {
        self.0.1.clear();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_a_full_ring_gives_back() {
        let (mut tx, mut rx) = channel(3);
        for round in 0..10 {
            for i in 0..4 {
                assert_eq!(tx.push(Box::new(round * 4 + i)), Ok(()));
            }
            assert!(tx.push(Box::new(99)).is_err());
            assert_eq!(rx.ready(), 4);
            for i in 0..4 {
                assert_eq!(rx.pop().as_deref(), Some(&(round * 4 + i)));
            }
            assert_eq!(rx.pop(), None);
        }
    }

    #[test]
    fn what_nobody_took_is_dropped() {
        let counted = Arc::new(());
        let (mut tx, mut rx) = channel(4);
        for _ in 0..3 {
            tx.push(counted.clone()).expect("room");
        }
        drop(rx.pop());
        drop((tx, rx));
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn two_threads_pass_everything_in_order() {
        let count = if cfg!(miri) { 200 } else { 200_000 };
        let (mut tx, mut rx) = channel(16);
        let sender = std::thread::spawn(move || {
            for i in 0..count {
                let mut message = Box::new(i);
                while let Err(back) = tx.push(message) {
                    message = back;
                    std::thread::yield_now();
                }
            }
        });
        for i in 0..count {
            loop {
                match rx.pop() {
                    Some(got) => break assert_eq!(*got, i),
                    None => std::thread::yield_now(),
                }
            }
        }
        sender.join().expect("the sender ended");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    #[test]
    fn loom_messages_arrive_whole_and_in_order() {
        loom::model(|| {
            let (mut tx, mut rx) = channel(2);
            let sender = thread::spawn(move || {
                let mut sent = 0;
                for i in 0..3 {
                    match tx.push(Box::new(i)) {
                        Ok(()) => sent += 1,
                        Err(_) => break,
                    }
                }
                sent
            });
            let mut got = 0;
            for _ in 0..3 {
                if let Some(message) = rx.pop() {
                    assert_eq!(*message, got);
                    got += 1;
                }
            }
            let sent = sender.join().expect("the sender ended");
            while let Some(message) = rx.pop() {
                assert_eq!(*message, got);
                got += 1;
            }
            assert_eq!(got, sent);
        });
    }

    /// The receiver sleeps only if a wake-up is certain: `signal` stands for the eventfd.
    #[test]
    fn loom_no_wake_up_is_lost() {
        loom::model(|| {
            let doze = Arc::new(Doze::new());
            let signal = Arc::new(AtomicBool::new(false));
            let (mut tx, mut rx) = channel(2);
            let sender = {
                let (doze, signal) = (doze.clone(), signal.clone());
                thread::spawn(move || {
                    tx.push(1).expect("room");
                    Doze::order();
                    if doze.must_wake() {
                        signal.store(true, Ordering::Release);
                    }
                })
            };
            doze.announce();
            let seen = rx.pop().is_some();
            if seen {
                doze.retract();
            }
            sender.join().expect("the sender ended");
            assert!(seen || signal.load(Ordering::Acquire), "asleep with mail, and nobody rang");
        });
    }

    /// The same check with two senders: at least one rings, and the receiver then finds both messages.
    #[test]
    fn loom_two_senders_wake_one_receiver() {
        loom::model(|| {
            let doze = Arc::new(Doze::new());
            let signal = Arc::new(AtomicUsize::new(0));
            let mut inbox = Vec::new();
            let senders: Vec<_> = (0..2)
                .map(|i| {
                    let (mut tx, rx) = channel(1);
                    inbox.push(rx);
                    let (doze, signal) = (doze.clone(), signal.clone());
                    thread::spawn(move || {
                        tx.push(i).expect("room");
                        Doze::order();
                        if doze.must_wake() {
                            signal.fetch_add(1, Ordering::Release);
                        }
                    })
                })
                .collect();
            doze.announce();
            let seen = inbox.iter_mut().filter_map(Receiver::pop).count();
            senders.into_iter().for_each(|s| s.join().expect("a sender ended"));
            let rung = signal.load(Ordering::Acquire);
            assert!(seen == 2 || rung == 1, "{seen} seen, rung {rung} times");
        });
    }
}
