//! Backlogs of requests that wait for their backend: one for each backend, and one table for all of them.

use crate::backend::Slab;
use crate::request::Request;

const NIL: u32 = u32::MAX;

/// An entry in the table of waiting requests: about 136 bytes, touched only when used.
pub(super) struct Waiter {
    request: Request,
    next: u32,
}

/// One backend's backlog, oldest first, linked by [`Waiter::next`].
pub(super) struct Line {
    first: u32,
    last: u32,
}

impl Default for Line {
    fn default() -> Self {
        Self { first: NIL, last: NIL }
    }
}

impl Line {
    /// Returns whether no request waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.first == NIL
    }

    /// Returns the oldest request.
    pub fn first<'a>(&self, all: &'a mut Slab<Waiter>) -> Option<&'a Request> {
        all.get_mut(self.first).map(|waiter| &waiter.request)
    }

    /// Appends `request` to the backlog.
    ///
    /// # Errors
    /// Returns the request if the table is full.
    #[allow(clippy::result_large_err)] // the request must come back, and boxing it would allocate
    pub fn push(&mut self, all: &mut Slab<Waiter>, request: Request) -> Result<(), Request> {
        let at = all.insert(Waiter { request, next: NIL }).map_err(|waiter| waiter.request)?;
        match all.get_mut(self.last) {
            Some(last) => last.next = at,
            None => self.first = at,
        }
        self.last = at;
        Ok(())
    }

    /// Removes and returns the oldest request.
    pub fn pop(&mut self, all: &mut Slab<Waiter>) -> Option<Request> {
        let Waiter { request, next } = all.remove(self.first)?;
        *self = if next == NIL { Self::default() } else { Self { first: next, last: self.last } };
        Some(request)
    }
}
