//! Queues for the reports of tokens that were dropped although they must not be.
//!
//! A buffer that is not given back, or a request that is not completed, is a bug in this code. In tests, the drop
//! panics at once. In a release build, one bug must not take a thousand servers down. So the drop puts the token's
//! identity into its core's queue. The core then frees the buffer, or completes the request with Internal Error.

use crossbeam_queue::ArrayQueue;
use std::sync::OnceLock;

/// The maximum number of cores with their own queue, in all gateways of one process together.
pub const MAX_HOMES: usize = 256;

/// The largest number of tokens in a home's queue before its core reads the queue. Further tokens stay lost.
const QUEUE_LEN: usize = 1024;

/// The identity of a dropped token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A buffer: arena, offset in bytes, order.
    Buf {
        /// The buffer's arena.
        arena: u16,
        /// The buffer's start, in bytes from the arena's start.
        offset: u64,
        /// The buffer's size, as a power of two of the arena's smallest block.
        order: u8,
    },
    /// A request.
    Request {
        /// The request's identity, in its owner's encoding.
        identity: u64,
        /// The last holder of the request, in the encoding of the code that carries requests.
        holder: u64,
    },
}

static HOMES: [OnceLock<ArrayQueue<Lost>>; MAX_HOMES] = [const { OnceLock::new() }; MAX_HOMES];

/// Makes the queue of home `home`, so that losing a token never allocates.
///
/// # Panics
/// Panics if `home` is not below [`MAX_HOMES`].
pub fn open(home: u16) {
    HOMES[usize::from(home)].get_or_init(|| ArrayQueue::new(QUEUE_LEN));
}

/// Reports a dropped token. Panics in a build with debug assertions, unless already panicking.
pub fn report(home: u16, lost: Lost) {
    if cfg!(debug_assertions) && !std::thread::panicking() {
        panic!("a token was dropped instead of being given back: {lost:?}");
    }
    if let Some(queue) = HOMES.get(usize::from(home)).and_then(OnceLock::get) {
        // If the queue is full, more than `QUEUE_LEN` tokens were lost in one turn. Further tokens stay lost.
        let _ = queue.push(lost);
    }
}

/// Takes the next lost token of `home`, for its core to repair.
pub fn take(home: u16) -> Option<Lost> {
    HOMES.get(usize::from(home)).and_then(OnceLock::get).and_then(ArrayQueue::pop)
}
