//! Timers of one core: a hierarchical timing wheel of fixed capacity.
//!
//! What it is: a set of (instant, token) with O(1) arm and cancel, after Varghese and Lauck (SOSP 1987, scheme 7). Time
//! is divided into ticks of 2^20 ns (about 1.05 ms); an instant is rounded up to a tick, so nothing fires early. Eight
//! levels of 64 slots cover 2^48 ticks, more than the clock has. A tick has one 6-bit digit per level. A timer is on
//! the level of the highest digit in which its tick differs from `elapsed`. On that level, the digit is the number of
//! the timer's slot. When `elapsed` reaches a slot, the slot's timers move to lower levels.
//!
//! What it is not: a clock. The caller passes the time.

use crate::time::Instant;

const TICK_SHIFT: u32 = 20;
const DIGIT_BITS: u32 = 6;
const SLOTS: usize = 1 << DIGIT_BITS;
const LEVELS: usize = 8;
/// List heads at the front of `nodes`, one per slot.
const HEADS: usize = LEVELS * SLOTS;
/// The head of the free list.
const FREE: u32 = HEADS as u32;

/// The key of an armed timer. A key of a timer that fired or was cancelled has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey {
    node: u32,
    generation: u32,
}

/// A member of one circular doubly linked list.
#[derive(Clone, Copy)]
struct Node {
    next: u32,
    prev: u32,
    /// The list's head, for clearing its bit of `occupied`.
    head: u32,
    /// Changes when the node is freed.
    generation: u32,
    tick: u64,
    token: u64,
}

/// See the module. Never allocates after [`new`](Self::new).
pub struct TimerWheel {
    nodes: Box<[Node]>,
    /// The slots with timers, as one bit mask per level.
    occupied: [u64; LEVELS],
    /// The current tick. Every slot that starts before or at this tick is empty, except the tick's own slot.
    elapsed: u64,
    armed: usize,
}

impl TimerWheel {
    /// Creates a wheel for up to `capacity` armed timers, with the time starting at `now`. Takes about 40
    /// bytes per timer, and 20 KiB.
    ///
    /// # Panics
    /// Panics if `capacity` is 2^31 or more.
    pub fn new(capacity: usize, now: Instant) -> Self {
        assert!(capacity < 1 << 31, "a timer wheel of {capacity} timers");
        let nodes = (0..=HEADS + capacity)
            .map(|i| Node {
                next: i as u32,
                prev: i as u32,
                head: i as u32,
                generation: 0,
                tick: 0,
                token: 0,
            })
            .collect();
        let mut wheel = Self { nodes, occupied: [0; LEVELS], elapsed: now.as_ns() >> TICK_SHIFT, armed: 0 };
        for node in HEADS + 1..=HEADS + capacity {
            wheel.append(FREE, node as u32);
        }
        wheel
    }

    /// Returns the number of armed timers.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Returns whether no timer is armed.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Arms a timer: [`expire`](Self::expire) returns `token` once, at `at` or up to a tick later. Returns
    /// `None` if the wheel is full.
    pub fn arm(&mut self, at: Instant, token: u64) -> Option<TimerKey> {
        let node = self.nodes[FREE as usize].next;
        if node == FREE {
            return None;
        }
        self.unlink(node);
        self.armed += 1;
        let n = &mut self.nodes[node as usize];
        n.tick = at.as_ns().div_ceil(1 << TICK_SHIFT).max(self.elapsed);
        n.token = token;
        let key = TimerKey { node, generation: n.generation };
        self.place(node);
        Some(key)
    }

    /// Disarms a timer. Returns whether the timer was armed.
    pub fn cancel(&mut self, key: TimerKey) -> bool {
        let current = self.nodes.get(key.node as usize).is_some_and(|n| n.generation == key.generation);
        if current {
            self.release(key.node);
        }
        current
    }

    /// Returns the token of one timer that is due at `now`, the earliest tick first. Returns `None` if no
    /// further timer is due.
    pub fn expire(&mut self, now: Instant) -> Option<u64> {
        let now = now.as_ns() >> TICK_SHIFT;
        while let Some((level, slot, start)) = self.first() {
            if start > now {
                break;
            }
            self.elapsed = self.elapsed.max(start);
            let head = (level * SLOTS + slot) as u32;
            let node = self.nodes[head as usize].next;
            if level == 0 {
                self.release(node);
                return Some(self.nodes[node as usize].token);
            }
            self.cascade(head);
        }
        // No occupied slot starts at or before `now`, so every timer stays on the correct level and in the correct
        // slot.
        self.elapsed = self.elapsed.max(now);
        None
    }

    /// Returns when to call [`expire`](Self::expire) next, or `None` if no timer is armed. The time is never later than
    /// the time of the first timer. It may be earlier, but at most once per level.
    pub fn next(&self) -> Option<Instant> {
        let (_, _, start) = self.first()?;
        Some(Instant::from_ns(start.saturating_mul(1 << TICK_SHIFT)))
    }

    /// Finds the occupied slot that starts first. All timers of a level are earlier than the timers of higher levels,
    /// because they share more leading digits with `elapsed`. Slots below the digit of `elapsed` are empty.
    fn first(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = level as u32 * DIGIT_BITS;
        let above = self.elapsed >> (shift + DIGIT_BITS) << DIGIT_BITS;
        Some((level, slot, (above | slot as u64) << shift))
    }

    /// Moves the timers of a slot to lower levels. `elapsed` is the start of that slot.
    fn cascade(&mut self, head: u32) {
        loop {
            let node = self.nodes[head as usize].next;
            if node == head {
                break;
            }
            self.unlink(node);
            self.place(node);
        }
    }

    fn place(&mut self, node: u32) {
        let tick = self.nodes[node as usize].tick;
        let highest = 63 - ((tick ^ self.elapsed) | 1).leading_zeros();
        let level = (highest / DIGIT_BITS) as usize;
        let slot = (tick >> (level as u32 * DIGIT_BITS)) as usize % SLOTS;
        self.occupied[level] |= 1 << slot;
        self.append((level * SLOTS + slot) as u32, node);
    }

    fn release(&mut self, node: u32) {
        self.unlink(node);
        self.nodes[node as usize].generation = self.nodes[node as usize].generation.wrapping_add(1);
        self.armed -= 1;
        self.append(FREE, node);
    }

    fn append(&mut self, head: u32, node: u32) {
        let prev = self.nodes[head as usize].prev;
        let n = &mut self.nodes[node as usize];
        (n.next, n.prev, n.head) = (head, prev, head);
        self.nodes[prev as usize].next = node;
        self.nodes[head as usize].prev = node;
    }

    fn unlink(&mut self, node: u32) {
        let Node { next, prev, head, .. } = self.nodes[node as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        if next == prev && next == head && head != FREE {
            self.occupied[head as usize / SLOTS] &= !(1 << (head as usize % SLOTS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rand::Rng;
    use std::collections::{BTreeMap, HashMap};

    const TICK_NS: u64 = 1 << TICK_SHIFT;

    /// Runs random operations against a map from (due tick, token) and checks every answer.
    fn against_a_model(seed: u64, ops: usize) {
        let mut rng = Rng::new(seed);
        let mut now = rng.below(1 << 50);
        let mut wheel = TimerWheel::new(100, Instant::from_ns(now));
        let mut model: BTreeMap<(u64, u64), TimerKey> = BTreeMap::new();
        let mut due: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut stale = Vec::new();
        for token in 0..ops as u64 {
            match rng.below(10) {
                0..=5 => {
                    let span = rng.below(45);
                    let at = (now + rng.below(1 << span)).saturating_sub(rng.below(3) * TICK_NS);
                    match wheel.arm(Instant::from_ns(at), token) {
                        Some(key) => {
                            model.insert((at, token), key);
                            due.insert(token, (at, at.div_ceil(TICK_NS).max(now / TICK_NS)));
                        }
                        None => assert_eq!(model.len(), 100),
                    }
                }
                6 => {
                    if let Some((&(at, token), &key)) = model.iter().nth(rng.below(5) as usize) {
                        model.remove(&(at, token));
                        due.remove(&token);
                        assert!(wheel.cancel(key));
                        stale.push(key);
                    }
                    assert!(stale.iter().all(|&key| !wheel.cancel(key)));
                }
                _ => {
                    let span = rng.below(45);
                    now = match wheel.next() {
                        Some(next) if rng.below(2) == 0 => next.as_ns().max(now),
                        _ => now + rng.below(1 << span),
                    };
                    let mut last = 0;
                    while let Some(token) = wheel.expire(Instant::from_ns(now)) {
                        let (at, tick) = due.remove(&token).expect("a timer fires once");
                        assert!(at <= now, "fired {} ns early", at - now);
                        assert!(tick >= last, "out of order");
                        last = tick;
                        stale.push(model.remove(&(at, token)).expect("it is armed"));
                    }
                    let late = model.keys().next().map(|&(at, _)| at + TICK_NS);
                    assert!(late.is_none_or(|at| at > now), "a timer did not fire");
                }
            }
            assert_eq!(wheel.len(), model.len());
            match (wheel.next(), model.keys().next()) {
                (None, None) => {}
                (Some(next), Some(&(at, _))) => {
                    assert!(next.as_ns() < at.max(now) + TICK_NS, "oversleeps")
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn agrees_with_an_ordered_map() {
        let (seeds, ops) = if cfg!(miri) { (2, 200) } else { (200, 2000) };
        (0..seeds).for_each(|seed| against_a_model(seed, ops));
    }

    #[test]
    fn sleeping_until_next_always_gets_there() {
        let mut wheel = TimerWheel::new(1, Instant::from_ns(12_345));
        for distance_ns in [0, 1, TICK_NS, 63 * TICK_NS, 64 * TICK_NS, 1 << 40, 1 << 62] {
            let at = Instant::from_ns(12_345 + distance_ns);
            wheel.arm(at, distance_ns).expect("room");
            let mut wakes = 0;
            let fired = loop {
                let next = wheel.next().expect("armed");
                if let Some(token) = wheel.expire(next) {
                    assert!(next >= at);
                    break token;
                }
                wakes += 1;
            };
            assert_eq!(fired, distance_ns);
            assert!(wakes < LEVELS, "{wakes} wakes for nothing");
        }
    }

    #[test]
    fn the_end_of_time_is_armed_and_never_fires() {
        let mut wheel = TimerWheel::new(1, Instant::from_ns(0));
        let key = wheel.arm(Instant::from_ns(u64::MAX), 1).expect("room");
        assert!(wheel.arm(Instant::from_ns(0), 2).is_none(), "full");
        assert_eq!(wheel.expire(Instant::from_ns(u64::MAX)), None);
        assert!(wheel.cancel(key));
        assert_eq!(wheel.next(), None);
    }
}
