//! The record of a run. It is a text for a reader, and a proof that a seed always tells the same story.

use std::fmt::Arguments;
use trefoil_poll::Instant;

/// The most lines of the story that are kept. The oldest lines are dropped first.
const KEPT_LINES: usize = 200_000;

/// A running hash of all events. If the story is told, it also has their text.
#[derive(Debug)]
pub struct Story {
    hash: u64,
    events: u64,
    told: bool,
    lines: std::collections::VecDeque<String>,
}

impl Story {
    /// Returns an empty story. The story keeps text only if `told` is true. The hash does not depend on `told`.
    pub fn new(told: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, told, lines: Default::default() }
    }

    /// Adds an event to the hash. `what` must differ between different events.
    pub fn note(&mut self, now: Instant, what: &[u64]) {
        self.events += 1;
        self.mix(now.as_ns());
        what.iter().for_each(|&word| self.mix(word));
    }

    /// Adds a line for the reader.
    pub fn tell(&mut self, now: Instant, line: Arguments<'_>) {
        if !self.told {
            return;
        }
        if self.lines.len() == KEPT_LINES {
            self.lines.pop_front();
        }
        let us = now.as_ns() / 1000;
        self.lines.push_back(format!("{:>6}.{:06}s  {line}", us / 1_000_000, us % 1_000_000));
    }

    /// Returns whether the story keeps lines. If not, a caller need not format any.
    pub fn is_told(&self) -> bool {
        self.told
    }

    /// Returns the hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the number of events in the hash.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Returns the lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}
