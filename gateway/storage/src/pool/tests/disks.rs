//! Disks with a volatile cache that lose power at a chosen step.

use super::super::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use trefoil_poll::Rng;

const PAGE: usize = 4096;
type Page = Rc<[u8; PAGE]>;

#[derive(Clone)]
pub struct Disks(RefCell<State>);

#[derive(Clone)]
struct State {
    disks: Vec<Disk>,
    rng: Rng,
    /// The number of writes, zeroings and flushes so far.
    steps: u64,
    crash_at: Option<u64>,
    fail_at: Option<u64>,
    /// Reads of this byte fail.
    bad: Option<(BackendId, u64)>,
    off: bool,
    garbage: Page,
}

#[derive(Clone, Default)]
struct Disk {
    /// The contents that reads return.
    live: HashMap<u64, Page>,
    /// The contents that survive a power loss for certain.
    durable: HashMap<u64, Page>,
    /// The contents that may survive a power loss.
    cache: Vec<(u64, Page)>,
    len: u64,
}

impl Disks {
    pub fn new(backends: &[BackendInfo], seed: u64) -> Self {
        let disks = backends.iter().map(|b| Disk { len: b.len_bytes, ..Disk::default() }).collect();
        let garbage = Rc::new([0xA5; PAGE]);
        let (rng, crash_at, fail_at, bad) = (Rng::new(seed), None, None, None);
        Self(RefCell::new(State { disks, rng, steps: 0, crash_at, fail_at, bad, off: false, garbage }))
    }

    pub fn steps(&self) -> u64 {
        self.0.borrow().steps
    }

    /// Makes power fail at the `step`th step from now, counted from 1.
    pub fn crash_after(&self, step: u64) {
        let mut state = self.0.borrow_mut();
        state.crash_at = Some(state.steps + step);
    }

    /// Makes the `step`th step from now fail without effect.
    pub fn fail_after(&self, step: u64) {
        let mut state = self.0.borrow_mut();
        state.fail_at = Some(state.steps + step);
    }

    /// Makes reads of the byte `bad` fail.
    pub fn fail_reads(&self, bad: Option<(BackendId, u64)>) {
        self.0.borrow_mut().bad = bad;
    }

    /// Restores power. Returns `true` if the power was off.
    pub fn power_on(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().off)
    }

    /// Restores power and cancels the planned power failure.
    pub fn disarm(&self) {
        self.power_on();
        self.0.borrow_mut().crash_at = None;
    }

    /// Changes bytes outside of the I/O under test.
    pub fn poke(&self, backend: BackendId, offset: u64, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        for (page, data) in state.pages(backend, offset, bytes) {
            let disk = &mut state.disks[backend.0 as usize];
            disk.live.insert(page, data.clone());
            disk.durable.insert(page, data);
        }
    }

    /// Shortens a disk to `len` bytes.
    pub fn truncate(&self, backend: BackendId, len: u64) {
        self.0.borrow_mut().disks[backend.0 as usize].len = len;
    }

    pub fn peek(&self, backend: BackendId, offset: u64, len: usize) -> Vec<u8> {
        self.0.borrow().peek(backend, offset, len)
    }

    /// Replaces the contents of disk `to` by the contents of disk `from`.
    pub fn copy_disk(&self, from: BackendId, to: BackendId) {
        let mut state = self.0.borrow_mut();
        state.disks[to.0 as usize] = state.disks[from.0 as usize].clone();
    }
}

impl State {
    fn peek(&self, backend: BackendId, offset: u64, len: usize) -> Vec<u8> {
        let disk = &self.disks[backend.0 as usize];
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = offset + out.len() as u64;
            let page = disk.live.get(&(at / PAGE as u64)).unwrap_or(&self.garbage);
            let from = (at % PAGE as u64) as usize;
            out.extend_from_slice(&page[from..PAGE.min(from + len - out.len())]);
        }
        out
    }

    /// Returns the affected pages with `bytes` stored at `offset`.
    fn pages(&self, backend: BackendId, offset: u64, bytes: &[u8]) -> Vec<(u64, Page)> {
        let first = offset / PAGE as u64;
        let last = (offset + bytes.len() as u64).div_ceil(PAGE as u64);
        let start = first * PAGE as u64;
        let mut all = self.peek(backend, start, ((last - first) as usize) * PAGE);
        let skip = (offset - start) as usize;
        all[skip..skip + bytes.len()].copy_from_slice(bytes);
        let page = |n: usize| Rc::new(<[u8; PAGE]>::try_from(&all[n * PAGE..(n + 1) * PAGE]).expect("whole"));
        (first..last).enumerate().map(|(n, at)| (at, page(n))).collect()
    }

    /// Counts a step. Returns `Err` if the step fails. A step that a power failure interrupts may still take effect.
    fn step(&mut self, backend: BackendId, under_way: &[(u64, Page)]) -> Result<(), Fault> {
        if self.off {
            return Err(Fault::PathLost);
        }
        self.steps += 1;
        if self.fail_at == Some(self.steps) {
            return Err(Fault::MediaWrite);
        }
        if self.crash_at == Some(self.steps) {
            self.disks[backend.0 as usize].cache.extend_from_slice(under_way);
            self.lose_power();
            return Err(Fault::PathLost);
        }
        Ok(())
    }

    /// Cuts the power: each page of the caches is kept, lost, or torn between sectors.
    fn lose_power(&mut self) {
        self.off = true;
        for disk in &mut self.disks {
            for (at, new) in std::mem::take(&mut disk.cache) {
                let old = disk.durable.get(&at).unwrap_or(&self.garbage).clone();
                let page = match self.rng.below(3) {
                    0 => old,
                    1 => new,
                    _ => {
                        let mut torn = *old;
                        for sector in 0..PAGE / 512 {
                            if self.rng.below(2) == 0 {
                                let range = sector * 512..(sector + 1) * 512;
                                torn[range.clone()].copy_from_slice(&new[range]);
                            }
                        }
                        Rc::new(torn)
                    }
                };
                disk.durable.insert(at, page);
            }
            disk.live = disk.durable.clone();
        }
    }

    fn store(&mut self, backend: BackendId, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Fault> {
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096), "{offset}+{}", bytes.len());
        assert!(offset + bytes.len() as u64 <= self.disks[backend.0 as usize].len, "past the end");
        let pages = self.pages(backend, offset, bytes);
        self.step(backend, &pages)?;
        let disk = &mut self.disks[backend.0 as usize];
        for (at, page) in pages {
            disk.live.insert(at, page.clone());
            if durable {
                disk.cache.retain(|(other, _)| *other != at);
                disk.durable.insert(at, page);
            } else {
                disk.cache.push((at, page));
            }
        }
        Ok(())
    }
}

impl PoolIo for Disks {
    async fn read(&self, backend: BackendId, offset: u64, len: usize) -> Result<Vec<u8>, Fault> {
        let state = self.0.borrow();
        let end = offset + len as u64;
        match end <= state.disks[backend.0 as usize].len {
            _ if state.off => Err(Fault::PathLost),
            _ if state.bad.is_some_and(|(id, at)| id == backend && (offset..end).contains(&at)) => {
                Err(Fault::MediaRead)
            }
            true => Ok(state.peek(backend, offset, len)),
            false => Err(Fault::MediaRead),
        }
    }

    async fn write(&self, backend: BackendId, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Fault> {
        self.0.borrow_mut().store(backend, offset, bytes, durable)
    }

    async fn flush(&self, backend: BackendId) -> Result<(), Fault> {
        let mut state = self.0.borrow_mut();
        state.step(backend, &[])?;
        let disk = &mut state.disks[backend.0 as usize];
        for (at, page) in std::mem::take(&mut disk.cache) {
            disk.durable.insert(at, page);
        }
        Ok(())
    }

    async fn write_zeroes(&self, backend: BackendId, offset: u64, len: u64) -> Result<(), Fault> {
        assert!(len <= ZERO_PIECE_BYTES);
        self.0.borrow_mut().store(backend, offset, &vec![0; len as usize], false)
    }
}
