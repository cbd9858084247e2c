//! Lists of numbers, linked through a table: the one kind of intrusive list in this crate.
//!
//! The numbers are indices of some table of the caller's. A second table, of [`Links`], holds the neighbours of each number. A
//! number is in at most one list of a table of links at a time. Each call takes constant time, and nothing is allocated.

/// Stands for no number.
pub const NIL: u32 = u32::MAX;

/// The neighbours of a number in its [`List`].
#[derive(Clone, Copy, Debug)]
pub struct Links {
    prev: u32,
    next: u32,
}

impl Links {
    /// The links of a number that is in no list.
    pub const NONE: Self = Self { prev: NIL, next: NIL };
}

/// Numbers in the order in which they were pushed. The caller passes the same table of links to each call.
#[derive(Clone, Copy, Debug)]
pub struct List {
    head: u32,
    tail: u32,
}

impl List {
    /// A list without numbers.
    pub const EMPTY: Self = Self { head: NIL, tail: NIL };

    /// Returns whether the list has no number.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Returns the first number, which was pushed before all others.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// Appends `at`, which must be in no list.
    #[inline]
    pub fn push(&mut self, links: &mut [Links], at: u32) {
        links[at as usize] = Links { prev: self.tail, next: NIL };
        match links.get_mut(self.tail as usize) {
            Some(last) => last.next = at,
            None => self.head = at,
        }
        self.tail = at;
    }

    /// Removes `at`, which must be in this list.
    #[inline]
    pub fn unlink(&mut self, links: &mut [Links], at: u32) {
        let Links { prev, next } = links[at as usize];
        match links.get_mut(prev as usize) {
            Some(prev) => prev.next = next,
            None => self.head = next,
        }
        match links.get_mut(next as usize) {
            Some(next) => next.prev = prev,
            None => self.tail = prev,
        }
    }

    /// Removes and returns the first number.
    #[inline]
    pub fn pop(&mut self, links: &mut [Links]) -> Option<u32> {
        let at = self.first()?;
        self.unlink(links, at);
        Some(at)
    }

    /// Iterates over the numbers, the first one first.
    pub fn iter<'a>(&self, links: &'a [Links]) -> impl Iterator<Item = u32> + use<'a> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let next = links.get(at as usize)?.next;
            Some(std::mem::replace(&mut at, next))
        })
    }
}

/// An entry of a table whose entries a [`Fifo`] links.
pub trait Linked {
    /// Returns the place of the link to the entry behind this one.
    fn link(&mut self) -> &mut u32;
}

/// Numbers of a table's entries, first in, first out. Cheaper than a [`List`], as no number leaves from the middle.
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

    #[test]
    fn a_list_keeps_its_order_when_numbers_leave_from_any_place() {
        let mut links = [Links::NONE; 5];
        let mut list = List::EMPTY;
        (0..5).for_each(|at| list.push(&mut links, at));
        [2, 0, 4].into_iter().for_each(|at| list.unlink(&mut links, at));
        list.push(&mut links, 2);
        assert_eq!(list.iter(&links).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(std::iter::from_fn(|| list.pop(&mut links)).collect::<Vec<_>>(), [1, 3, 2]);
        assert!(list.is_empty() && list.first().is_none());
        list.push(&mut links, 3);
        assert_eq!((list.first(), list.pop(&mut links), list.pop(&mut links)), (Some(3), Some(3), None));
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

    #[test]
    fn two_lists_share_one_table_of_links() {
        let mut links = [Links::NONE; 4];
        let (mut even, mut odd) = (List::EMPTY, List::EMPTY);
        for at in 0..4 {
            if at % 2 == 0 { even.push(&mut links, at) } else { odd.push(&mut links, at) }
        }
        assert_eq!(even.iter(&links).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(odd.iter(&links).collect::<Vec<_>>(), [1, 3]);
    }
}
