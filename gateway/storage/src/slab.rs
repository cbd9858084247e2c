//! A table of fixed capacity whose indices are stable, and whose entries can be on lists.

use crate::list::{LinkTable, Links, List, NIL};

/// A table of values with a fixed capacity. Each value has the index that [`insert`](Self::insert) returned. The table
/// reserves its memory at the start, and touches the memory of an entry only once the entry is used. A value can be on
/// a [`List`] of this table. Unlink a value before you remove it from the table.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// The free entry to use next. Its [`Links::next`] is the free entry after it.
    free: u32,
    len: u32,
}

#[derive(Debug)]
struct Entry<T> {
    value: Option<T>,
    links: Links,
}

impl<T> LinkTable for Slab<T> {
    #[inline]
    fn links(&self, at: u32) -> Option<&Links> {
        self.entries.get(at as usize).map(|entry| &entry.links)
    }

    #[inline]
    fn links_mut(&mut self, at: u32) -> Option<&mut Links> {
        self.entries.get_mut(at as usize).map(|entry| &mut entry.links)
    }
}

impl<T> Slab<T> {
    /// Creates a table with room for `capacity` values.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), free: NIL, len: 0 }
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many values the table can hold: at least the requested capacity.
    pub fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// Returns whether the table has no room for another value.
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    /// Stores a value and returns its index. Never allocates.
    ///
    /// # Errors
    /// Returns the value if the table is full.
    #[allow(clippy::result_large_err)] // the value must come back, and boxing it would allocate
    pub fn insert(&mut self, value: T) -> Result<u32, T> {
        if self.is_full() {
            return Err(value);
        }
        self.len += 1;
        let used = Entry { value: Some(value), links: Links::NONE };
        let at = self.free;
        if let Some(entry) = self.entries.get_mut(at as usize) {
            self.free = entry.links.next;
            *entry = used;
            return Ok(at);
        }
        self.entries.push(used);
        Ok(self.entries.len() as u32 - 1)
    }

    /// Returns the value under `at`.
    pub fn get(&self, at: u32) -> Option<&T> {
        self.entries.get(at as usize)?.value.as_ref()
    }

    /// Returns the value under `at`.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.entries.get_mut(at as usize)?.value.as_mut()
    }

    /// Iterates over all values, with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.entries).filter_map(|(at, entry)| Some((at, entry.value.as_ref()?)))
    }

    /// Iterates over all values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| entry.value.as_mut())
    }

    /// Removes and returns the value under `at`.
    pub fn remove(&mut self, at: u32) -> Option<T> {
        let entry = self.entries.get_mut(at as usize)?;
        let value = entry.value.take()?;
        entry.links.next = std::mem::replace(&mut self.free, at);
        self.len -= 1;
        Some(value)
    }

    /// Stores a value at the end of `list`.
    ///
    /// # Errors
    /// Returns the value if the table is full.
    #[allow(clippy::result_large_err)] // as for `insert`
    pub fn push(&mut self, list: &mut List, value: T) -> Result<(), T> {
        let at = self.insert(value)?;
        list.push(self, at);
        Ok(())
    }

    /// Returns the first value of `list`.
    pub fn first(&self, list: &List) -> Option<&T> {
        self.get(list.first()?)
    }

    /// Removes and returns the first value of `list`.
    pub fn pop(&mut self, list: &mut List) -> Option<T> {
        let at = list.pop(self)?;
        self.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_capacity_and_reuses_what_is_free() {
        let mut slab = Slab::with_capacity(2);
        let capacity = slab.capacity() as u32;
        let all: Vec<_> = (0..capacity).map(|n| slab.insert(n).expect("room")).collect();
        assert_eq!(slab.insert(9), Err(9));
        assert_eq!(slab.remove(all[1]), Some(1));
        assert_eq!(slab.remove(all[1]), None);
        assert_eq!(slab.get_mut(all[1]), None);
        assert_eq!(slab.insert(7), Ok(all[1]));
        assert_eq!(slab.get_mut(all[0]), Some(&mut 0));
        assert_eq!(slab.len(), capacity as usize);
        assert_eq!(slab.iter().nth(1), Some((all[1], &7)));
    }

    #[test]
    fn lists_share_a_table() {
        let mut slab = Slab::with_capacity(3);
        let (mut even, mut odd) = (List::EMPTY, List::EMPTY);
        for n in 0..3 {
            slab.push(if n % 2 == 0 { &mut even } else { &mut odd }, n).expect("room");
        }
        assert_eq!(slab.push(&mut odd, 3), Err(3));
        assert_eq!((slab.pop(&mut even), slab.first(&even), slab.first(&odd)), (Some(0), Some(&2), Some(&1)));
        assert_eq!(slab.push(&mut odd, 3), Ok(()));
        assert_eq!([slab.pop(&mut odd), slab.pop(&mut odd), slab.pop(&mut odd)], [Some(1), Some(3), None]);
        assert_eq!((slab.pop(&mut even), slab.is_empty()), (Some(2), true));
    }
}
