//! Where a token that must not be dropped says that it was.
//!
//! A buffer that is not given back, or a request that is not completed, is a bug of ours. In tests
//! it panics on the spot. In a release build one bug must not take a thousand servers down: the
//! token leaves its identity in its core's queue here, and the core repairs what it can (it frees
//! the buffer; it completes the request with Internal Error).

use crossbeam_queue::ArrayQueue;
use std::sync::OnceLock;

/// How many cores, over all gateways of one process, can have a queue of their own.
pub const MAX_HOMES: usize = 256;

/// Tokens that one home can lose before it looks; more are only counted by the log line.
const QUEUE_LEN: usize = 1024;

/// What was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A buffer: arena, offset in bytes, order.
    Buf {
        /// The arena that it is from.
        arena: u16,
        /// Where it starts, in bytes from the arena's start.
        offset: u64,
        /// Its size as a power of two of the arena's smallest block.
        order: u8,
    },
    /// A request.
    Request {
        /// Which, as its owner says it.
        identity: u64,
        /// Who had it, as those say it who carry it.
        holder: u64,
    },
}

static HOMES: [OnceLock<ArrayQueue<Lost>>; MAX_HOMES] = [const { OnceLock::new() }; MAX_HOMES];

/// Makes the queue of home `home`, so that losing a token never allocates.
///
/// # Panics
/// If `home` is not below [`MAX_HOMES`].
pub fn open(home: u16) {
    HOMES[usize::from(home)].get_or_init(|| ArrayQueue::new(QUEUE_LEN));
}

/// Reports a dropped token. Panics in a build with debug assertions, unless already panicking.
pub fn report(home: u16, lost: Lost) {
    if cfg!(debug_assertions) && !std::thread::panicking() {
        panic!("a token was dropped instead of being given back: {lost:?}");
    }
    if let Some(queue) = HOMES.get(usize::from(home)).and_then(OnceLock::get) {
        // A full queue means that thousands of tokens were lost in one turn; the rest stay lost.
        let _ = queue.push(lost);
    }
}

/// The next lost token of `home`, for its core to repair.
pub fn take(home: u16) -> Option<Lost> {
    HOMES.get(usize::from(home)).and_then(OnceLock::get).and_then(ArrayQueue::pop)
}
