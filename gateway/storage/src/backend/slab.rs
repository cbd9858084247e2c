//! A table of fixed capacity whose indices are stable.

/// A table of at most its capacity of values, each under the index that [`insert`](Self::insert) returned. Its memory is
/// reserved at the start, and touched only as far as the table has ever been filled.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// The free entry to use next.
    free: u32,
    len: u32,
}

#[derive(Debug)]
enum Entry<T> {
    Used(T),
    Free { next: u32 },
}

const NIL: u32 = u32::MAX;

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
    pub fn insert(&mut self, value: T) -> Result<u32, T> {
        let at = self.free;
        if let Some(entry) = self.entries.get_mut(at as usize) {
            if let Entry::Free { next } = *entry {
                self.free = next;
            }
            *entry = Entry::Used(value);
            self.len += 1;
            return Ok(at);
        }
        if self.entries.len() == self.entries.capacity() {
            return Err(value);
        }
        self.entries.push(Entry::Used(value));
        self.len += 1;
        Ok(self.entries.len() as u32 - 1)
    }

    /// Returns the value under `at`.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        match self.entries.get_mut(at as usize) {
            Some(Entry::Used(value)) => Some(value),
            _ => None,
        }
    }

    /// Iterates over all values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| match entry {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        })
    }

    /// Removes and returns the value under `at`.
    pub fn remove(&mut self, at: u32) -> Option<T> {
        let entry = self.entries.get_mut(at as usize)?;
        if let Entry::Free { .. } = entry {
            return None;
        }
        let Entry::Used(value) = std::mem::replace(entry, Entry::Free { next: self.free }) else {
            return None;
        };
        self.free = at;
        self.len -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_capacity_and_reuses_what_is_free() {
        let mut slab = Slab::with_capacity(2);
        let capacity = slab.entries.capacity() as u32;
        let all: Vec<_> = (0..capacity).map(|n| slab.insert(n).expect("room")).collect();
        assert_eq!(slab.insert(9), Err(9));
        assert_eq!(slab.remove(all[1]), Some(1));
        assert_eq!(slab.remove(all[1]), None);
        assert_eq!(slab.get_mut(all[1]), None);
        assert_eq!(slab.insert(7), Ok(all[1]));
        assert_eq!(slab.get_mut(all[0]), Some(&mut 0));
        assert_eq!(slab.len(), capacity as usize);
    }
}
