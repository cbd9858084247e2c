//! A table of fixed size: dense indices, a list of free slots, and a generation per slot against stale
//! completions.

/// A table of values that never move, with a fixed number of slots.
pub(super) struct Table<T> {
    slots: Box<[Slot<T>]>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    /// Creates a table with room for `capacity` values.
    pub fn new(capacity: u32) -> Self {
        Self {
            slots: (0..capacity).map(|_| Slot { generation: 0, value: None }).collect(),
            free: (0..capacity).rev().collect(),
        }
    }

    /// Returns the number of values in the table.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns the number of values that fit.
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Returns whether the table is full.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Inserts a value and returns its index, or returns the value if the table is full.
    pub fn insert(&mut self, value: T) -> Result<u32, T> {
        let Some(index) = self.free.pop() else { return Err(value) };
        self.slots[index as usize].value = Some(value);
        Ok(index)
    }

    /// Removes a value and returns it.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(value)
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    /// Returns how often the slot was freed.
    pub fn generation(&self, index: u32) -> u32 {
        self.slots.get(index as usize).map_or(0, |slot| slot.generation)
    }
}
