//! Linked lists of numbers. The links stand in a table of the owner, which has one entry for each number.
//!
//! A number is on at most one list of a table at a time. Each call takes constant time and allocates nothing.

/// The number that no entry has.
pub const NIL: u32 = u32::MAX;

/// The neighbours of an entry that is on a [`List`].
#[derive(Clone, Copy, Debug)]
pub struct Links {
    prev: u32,
    /// The next entry, or [`NIL`]. A table may use it for its own purposes while the entry is on no list.
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

impl LinkTable for Box<[Links]> {
    #[inline]
    fn links(&self, at: u32) -> Option<&Links> {
        self.get(at as usize)
    }

    #[inline]
    fn links_mut(&mut self, at: u32) -> Option<&mut Links> {
        self.get_mut(at as usize)
    }
}

/// A list of numbers in the order in which they were pushed. All calls of a list must name the same table.
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
    pub fn pop(&mut self, table: &mut impl LinkTable) -> Option<u32> {
        let at = self.first()?;
        self.unlink(table, at);
        Some(at)
    }

    /// Removes `at`, which must be on this list.
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
}
