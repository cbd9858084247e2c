//! Linked lists of numbers. The links are in a table of the owner, which has one entry for each number.
//!
//! A number is on at most one list of a table at a time. Each call takes constant time and allocates nothing.

/// The number that no entry has.
pub const NIL: u32 = u32::MAX;

/// The neighbours of an entry that is on a [`List`].
#[derive(Clone, Copy, Debug)]
pub struct Links {
    prev: u32,
    /// The next entry, or [`NIL`]. While the entry is on no list, the table may use this field for its own purposes.
    pub(crate) next: u32,
}

impl Links {
    /// The links of an entry that is on no list, or alone on its list.
    pub const NONE: Self = Self { prev: NIL, next: NIL };
}

/// A table whose entries can be on lists.
pub trait LinkTable {
    /// Returns the links of entry `at`; `None` if the table has no such entry, as for [`NIL`].
    fn links(&self, at: u32) -> Option<&Links>;
    /// As [`links`](Self::links).
    fn links_mut(&mut self, at: u32) -> Option<&mut Links>;
}

impl<T: AsRef<[Links]> + AsMut<[Links]>> LinkTable for T {
    #[inline]
    fn links(&self, at: u32) -> Option<&Links> {
        self.as_ref().get(at as usize)
    }

    #[inline]
    fn links_mut(&mut self, at: u32) -> Option<&mut Links> {
        self.as_mut().get_mut(at as usize)
    }
}

/// A list of numbers in the order in which they were pushed. All calls of a list must pass the same table.
#[derive(Clone, Copy, Debug)]
pub struct List {
    head: u32,
    tail: u32,
}

impl Default for List {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl List {
    /// A list without numbers.
    pub const EMPTY: Self = Self { head: NIL, tail: NIL };

    /// Returns whether the list is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Returns the number that was pushed first.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// Iterates over the numbers from the first.
    pub fn iter<'a, T: LinkTable>(&self, table: &'a T) -> impl Iterator<Item = u32> + use<'a, T> {
        std::iter::successors(self.first(), |&at| {
            table.links(at).map(|links| links.next).filter(|&next| next != NIL)
        })
    }

    /// Appends `at`, which must have an entry in `table` and be on no list.
    #[inline]
    pub fn push(&mut self, table: &mut impl LinkTable, at: u32) {
        let Some(links) = table.links_mut(at) else { return debug_assert!(false, "no entry {at} to link") };
        *links = Links { prev: self.tail, next: NIL };
        match table.links_mut(self.tail) {
            Some(last) => last.next = at,
            None => self.head = at,
        }
        self.tail = at;
    }

    /// Removes and returns the first number.
    #[inline]
    pub fn pop(&mut self, table: &mut impl LinkTable) -> Option<u32> {
        let at = self.first()?;
        self.unlink(table, at);
        Some(at)
    }

    /// Removes `at`, which must be on this list.
    #[inline]
    pub fn unlink(&mut self, table: &mut impl LinkTable, at: u32) {
        let Some(&Links { prev, next }) = table.links(at) else { return };
        match table.links_mut(prev) {
            Some(prev) => prev.next = next,
            None => self.head = next,
        }
        match table.links_mut(next) {
            Some(next) => next.prev = prev,
            None => self.tail = prev,
        }
    }
}

/// An entry of a table whose entries a [`Fifo`] links.
pub trait Linked {
    /// Returns the field that links to the next entry.
    fn link(&mut self) -> &mut u32;
}

/// Numbers of a table's entries, first in, first out. This queue is cheaper than a [`List`], but can't remove a number
/// from the middle.
#[derive(Clone, Copy, Debug)]
pub struct Fifo {
    head: u32,
    tail: u32,
}

impl Fifo {
    /// A queue without numbers.
    pub const EMPTY: Self = Self { head: NIL, tail: NIL };

    /// Returns whether the queue has no number.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Returns the first number.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// Appends `at`, which must be in no queue.
    #[inline]
    pub fn push<T: Linked>(&mut self, table: &mut [T], at: u32) {
        *table[at as usize].link() = NIL;
        match table.get_mut(self.tail as usize) {
            Some(last) => *last.link() = at,
            None => self.head = at,
        }
        self.tail = at;
    }

    /// Removes and returns the first number.
    #[inline]
    pub fn pop<T: Linked>(&mut self, table: &mut [T]) -> Option<u32> {
        let at = self.head;
        self.head = *table.get_mut(at as usize)?.link();
        if self.head == NIL {
            self.tail = NIL;
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Box<[Links]> {
        [Links::NONE; 4].into()
    }

    #[test]
    fn numbers_leave_in_the_order_in_which_they_came() {
        let (mut list, mut table) = (List::EMPTY, table());
        assert_eq!((list.pop(&mut table), list.first(), list.is_empty()), (None, None, true));
        [2, 0, 3].into_iter().for_each(|at| list.push(&mut table, at));
        assert!(list.iter(&table).eq([2, 0, 3]));
        assert_eq!((list.first(), list.pop(&mut table), list.is_empty()), (Some(2), Some(2), false));
        list.push(&mut table, 2);
        let left: Vec<_> = std::iter::from_fn(|| list.pop(&mut table)).collect();
        assert_eq!((left, list.is_empty()), (vec![0, 3, 2], true));
    }

    #[test]
    fn any_place_can_be_unlinked() {
        for (at, left) in [(0, [1, 2, 3]), (1, [0, 2, 3]), (3, [0, 1, 2])] {
            let (mut list, mut table) = (List::EMPTY, table());
            (0..4).for_each(|at| list.push(&mut table, at));
            list.unlink(&mut table, at);
            assert!(list.iter(&table).eq(left), "without {at}");
            list.push(&mut table, at);
            assert!(list.iter(&table).eq(left.into_iter().chain([at])), "{at} at the end");
        }
    }

    impl Linked for u32 {
        fn link(&mut self) -> &mut u32 {
            self
        }
    }

    #[test]
    fn a_fifo_keeps_its_order() {
        let (mut table, mut fifo) = ([0; 4], Fifo::EMPTY);
        [2, 0].into_iter().for_each(|at| fifo.push(&mut table, at));
        assert_eq!((fifo.first(), fifo.pop(&mut table)), (Some(2), Some(2)));
        [3, 2].into_iter().for_each(|at| fifo.push(&mut table, at));
        assert_eq!(std::iter::from_fn(|| fifo.pop(&mut table)).collect::<Vec<_>>(), [0, 3, 2]);
        assert!(fifo.is_empty() && fifo.first().is_none() && fifo.pop(&mut table).is_none());
    }
}
