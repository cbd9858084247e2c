//! Payload memory for commands, and the backlog of connections that wait for memory or a command slot.
//!
//! [`Shares`] decides how much memory a connection may have. In addition, the reserve has one block for each connection's
//! Connect or admin command. All connections that wait are in one backlog, first come, first served. Inside a connection,
//! commands get their blocks in the order in which they came. This module names no transport and no command set: a connection
//! and a command are numbers.

use super::limits::{IN_CAPSULE_BYTES, TargetLimits};
use super::shares::Shares;
use crate::cx::Cx;
use crate::list::{Links, List, NIL};
use crate::msg::StorageIo;
use std::collections::VecDeque;
use trefoil_poll::Buf;

/// Slots that a connection may have even if few slots are free.
const SLOTS_AT_LEAST: usize = 16;

/// A connection's place in the backlog.
#[derive(Clone, Copy)]
struct Waits {
    /// Commands that wait for a block.
    commands: List,
    /// True if the connection is in the backlog. Stays true if the backlog has an entry of an earlier connection with the same
    /// number.
    queued: bool,
}

/// The block that a waiting command needs.
#[derive(Clone, Copy)]
struct Need {
    /// The connection; [`NIL`] if the command doesn't wait.
    conn: u32,
    /// Bytes of the block.
    len: u32,
}

/// Bytes of a command's place in the backlog.
pub const NEED_BYTES: usize = size_of::<Need>() + size_of::<Links>();

/// The payload memory of one core, as connections share it.
pub struct PayloadMemory {
    shares: Shares,
    waits: Box<[Waits]>,
    /// The needs, by the command's number. The tables grow with the highest number that has ever waited, up to the reserved
    /// memory.
    needs: Vec<Need>,
    links: Vec<Links>,
    /// The connections that wait, in the order in which they are served.
    backlog: VecDeque<u32>,
    /// The connection from the backlog that is being served; [`NIL`] for none.
    serving: u32,
    reserved_slots: usize,
}

impl PayloadMemory {
    /// Allocates all memory: 16 B a connection besides its [`Shares`], and [`NEED_BYTES`] a command.
    pub fn new(limits: &TargetLimits) -> Self {
        Self {
            shares: Shares::new(limits.max_conns, limits.reserved_bytes),
            waits: vec![Waits { commands: List::EMPTY, queued: false }; limits.max_conns].into(),
            needs: Vec::with_capacity(limits.slots),
            links: Vec::with_capacity(limits.slots),
            backlog: VecDeque::with_capacity(limits.max_conns),
            serving: NIL,
            reserved_slots: limits.reserved_slots,
        }
    }

    /// Adds a connection, as a host of its own.
    pub fn open(&mut self, c: u32) {
        self.shares.open(c);
    }

    /// Counts a connection to the host with the hash `host`.
    pub fn join(&mut self, c: u32, host: u64) {
        self.shares.join(c, host);
    }

    /// Forgets a connection: none of its commands waits, and no memory is counted for it.
    pub fn close(&mut self, c: u32) {
        while let Some(at) = self.waits[c as usize].commands.pop(&mut self.links) {
            self.needs[at as usize].conn = NIL;
        }
        self.shares.close(c);
    }

    /// Allocates a block for `len` bytes, if the connection may have the block. A `privileged` command may take the block from
    /// the reserve.
    #[inline]
    pub fn acquire<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        c: u32,
        len: u32,
        privileged: bool,
    ) -> Option<Buf> {
        // The reserve gives each connection one small block, since any host may ask for a discovery log of any length.
        let from_reserve = privileged && len <= IN_CAPSULE_BYTES && self.shares.holds_nothing(c);
        if !from_reserve && !self.shares.may_hold(c, len as usize, cx.arena.free_bytes()) {
            return None;
        }
        let buf = cx.arena.alloc(len as usize)?;
        self.shares.hold(c, buf.len());
        Some(buf)
    }

    /// Frees a block that [`acquire`](Self::acquire) returned.
    #[inline]
    pub fn give_back<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, c: u32, buf: Buf) {
        self.shares.let_go(c, buf.len());
        cx.arena.free(buf);
    }

    /// Returns the block for a command, unless the command must wait. It then waits behind the earlier commands of its
    /// connection.
    #[inline]
    pub fn fund<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        c: u32,
        at: u32,
        len: u32,
        privileged: bool,
    ) -> Option<Buf> {
        // A connection with a waiting command is in the backlog, or is being served.
        let must_wait = (self.is_short() || self.serving != NIL) && self.must_wait(c, privileged);
        let buf = if must_wait { None } else { self.acquire(cx, c, len, privileged) };
        if buf.is_none() {
            self.wait(c, at, len);
        }
        buf
    }

    #[cold]
    fn must_wait(&self, c: u32, privileged: bool) -> bool {
        !self.waits[c as usize].commands.is_empty() || (!privileged && self.must_queue(c))
    }

    #[cold]
    fn wait(&mut self, c: u32, at: u32, len: u32) {
        if self.needs.len() <= at as usize {
            self.needs.resize(at as usize + 1, Need { conn: NIL, len: 0 });
            self.links.resize(at as usize + 1, Links::NONE);
        }
        self.needs[at as usize] = Need { conn: c, len };
        self.waits[c as usize].commands.push(&mut self.links, at);
        self.queue(c);
    }

    /// Removes a command from the waiting commands. Returns whether the command was waiting.
    pub fn withdraw(&mut self, at: u32) -> bool {
        let Some(need) = self.needs.get_mut(at as usize).filter(|need| need.conn != NIL) else {
            return false;
        };
        let c = std::mem::replace(&mut need.conn, NIL);
        self.waits[c as usize].commands.unlink(&mut self.links, at);
        true
    }

    /// Returns true if at least one connection waits.
    #[inline]
    pub fn is_short(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Returns whether other connections wait, so that this connection must join the backlog.
    #[inline]
    pub fn must_queue(&self, c: u32) -> bool {
        self.is_short() && self.serving != c
    }

    /// Adds a connection to the backlog.
    #[cold]
    pub fn queue(&mut self, c: u32) {
        if !std::mem::replace(&mut self.waits[c as usize].queued, true) {
            self.backlog.push_back(c);
        }
    }

    /// Returns the number of connections in the backlog.
    #[inline]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Takes the next connection from the backlog. The connection is being served until the next call.
    pub fn serve_next(&mut self) -> Option<u32> {
        let next = self.backlog.pop_front();
        if let Some(c) = next {
            self.waits[c as usize].queued = false;
        }
        self.serving = next.unwrap_or(NIL);
        next
    }

    /// Ends the service of the connection that [`serve_next`](Self::serve_next) returned.
    pub fn served(&mut self) {
        self.serving = NIL;
    }

    /// Returns the connection's next waiting command and its block. Returns `None` if no command waits, or if the next command
    /// must wait longer.
    pub fn next_funded<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        c: u32,
        privileged: bool,
    ) -> Option<(u32, Buf)> {
        let at = self.waits[c as usize].commands.first()?;
        let Some(buf) = self.acquire(cx, c, self.needs[at as usize].len, privileged) else {
            self.queue(c);
            return None;
        };
        self.withdraw(at);
        Some((at, buf))
    }

    /// Returns whether a connection that has `has` slots may take one more if `free` slots are free. The reserve stays free. A
    /// connection with [`SLOTS_AT_LEAST`] slots or more may take another slot only while it has fewer slots than are free
    /// beyond the reserve. So such a connection gets at most half of the slots beyond the reserve.
    #[inline]
    pub fn may_take_slot(&self, has: usize, free: usize) -> bool {
        let free = free.saturating_sub(self.reserved_slots);
        free > 0 && (has < SLOTS_AT_LEAST || has < free)
    }

    /// Allocates a block for `len` received bytes that can't be parsed yet, if the connection may keep that many bytes.
    pub fn keep<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, c: u32, len: usize) -> Option<Buf> {
        if !self.shares.may_keep(c, len, cx.arena.free_bytes()) {
            return None;
        }
        let buf = cx.arena.alloc(len)?;
        self.shares.keep(c, buf.len());
        Some(buf)
    }

    /// Frees a block that [`keep`](Self::keep) returned.
    pub fn drop_kept<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, c: u32, buf: Buf) {
        self.shares.drop_kept(c, buf.len());
        cx.arena.free(buf);
    }

    /// Returns the most bytes that any one connection has had.
    pub fn peak_bytes(&self) -> usize {
        self.shares.peak_bytes()
    }

    /// Returns the bytes that all connections have.
    pub fn total_bytes(&self) -> usize {
        self.shares.total_bytes()
    }
}
