//! A table of fixed capacity whose indices are stable.

/// Holds up to its capacity of values, each under the index that [`insert`](Self::insert) gave.
/// Its memory is reserved when it is made and touched only as far as it has ever been filled.
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
    /// Room for `capacity` values.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), free: NIL, len: 0 }
    }

    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many it can hold: at least what was asked for.
    pub fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// Whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    /// Stores a value. Never allocates.
    ///
    /// # Errors
    /// Gives the value back if the table is full.
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

    /// The value under `at`.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        match self.entries.get_mut(at as usize) {
            Some(Entry::Used(value)) => Some(value),
            _ => None,
        }
    }

    /// All values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| match entry {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        })
    }

    /// Takes the value under `at` out.
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
