//! The I/O of the pool code: passes the operations' requests to the cores, and passes the results back to the operations.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use trefoil_poll::{Buf, CoreId};
use trefoil_storage::pool::PoolIo;
use trefoil_storage::topology::{BackendId, LunId};
use trefoil_storage::{Completed, Fault, Msg, Op, Origin, Owner, Request};

use crate::memory::arena;
use crate::run::Run;

/// Bytes of the control thread's own arena. The thread handles one piece of metadata at a time. A piece has at most 256 KiB.
const ARENA_BYTES: usize = 2 << 20;

/// One I/O that an operation waits for.
struct PoolAsk {
    slot: u32,
    backend: BackendId,
    op: Op,
    offset: u64,
    len: u64,
    bytes: Vec<u8>,
    durable: bool,
}

/// The requests of operations, and their answers.
#[derive(Default)]
pub(super) struct Desk {
    next: u32,
    asked: VecDeque<PoolAsk>,
    /// Number of bytes that each I/O under way reads.
    posted: BTreeMap<u32, usize>,
    answers: BTreeMap<u32, Result<Vec<u8>, Fault>>,
    pub skip_zeroing: bool,
    pub volatile: bool,
}

/// The pool code's access to the disks.
#[derive(Clone, Default)]
pub(super) struct ControlIo(pub Rc<RefCell<Desk>>);

impl ControlIo {
    async fn ask(
        &self,
        backend: BackendId,
        op: Op,
        range: (u64, u64),
        bytes: &[u8],
        durable: bool,
    ) -> Result<Vec<u8>, Fault> {
        let slot = {
            let mut desk = self.0.borrow_mut();
            desk.next += 1;
            let (slot, (offset, len), bytes) = (desk.next, range, bytes.to_vec());
            desk.asked.push_back(PoolAsk { slot, backend, op, offset, len, bytes, durable });
            slot
        };
        poll_fn(|_| match self.0.borrow_mut().answers.remove(&slot) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }

    /// Drops all I/O, because no operation waits for it any more.
    pub fn clear(&self) {
        let mut desk = self.0.borrow_mut();
        desk.asked.clear();
        desk.posted.clear();
        desk.answers.clear();
    }
}

impl PoolIo for ControlIo {
    async fn read(&self, backend: BackendId, offset: u64, len: usize) -> Result<Vec<u8>, Fault> {
        self.ask(backend, Op::Read, (offset, len as u64), &[], false).await
    }

    async fn write(&self, backend: BackendId, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Fault> {
        let durable = durable && !self.0.borrow().volatile;
        self.ask(backend, Op::Write, (offset, bytes.len() as u64), bytes, durable).await.map(drop)
    }

    async fn flush(&self, backend: BackendId) -> Result<(), Fault> {
        self.ask(backend, Op::Flush, (0, 0), &[], false).await.map(drop)
    }

    async fn write_zeroes(&self, backend: BackendId, offset: u64, len: u64) -> Result<(), Fault> {
        if self.0.borrow().skip_zeroing {
            return Ok(());
        }
        let op = Op::WriteZeroes { deallocate: false };
        self.ask(backend, op, (offset, len), &[], false).await.map(drop)
    }
}

impl Run {
    /// Sends the requested I/O to the cores that have the disks open.
    pub(in crate::run) fn post_asked(&mut self) {
        let home = self.pools.home;
        let arena = self.pools.arena.get_or_insert_with(|| arena(home, ARENA_BYTES));
        let mut desk = self.pools.io.0.borrow_mut();
        while let Some(ask) = desk.asked.pop_front() {
            let mut buf: Option<Buf> = None;
            if matches!(ask.op, Op::Read | Op::Write) {
                let Some(mut block) = arena.alloc(ask.len as usize) else {
                    desk.asked.push_front(ask);
                    break;
                };
                block[..ask.bytes.len()].copy_from_slice(&ask.bytes);
                buf = Some(block);
            }
            let core = self.owners[ask.backend.0 as usize];
            let origin =
                Origin { core: CoreId(core), home, owner: Owner::Control, slot: ask.slot, generation: 0 };
            let request =
                Request::new(ask.op, LunId(0), ask.offset, ask.len, buf, origin).durable(ask.durable);
            desk.posted.insert(ask.slot, if ask.op == Op::Read { ask.len as usize } else { 0 });
            self.world.post(self.gateway, CoreId(core), Msg::BackendIo(ask.backend, request));
        }
    }

    /// Takes the result of an I/O of the control thread.
    pub(in crate::run) fn answered(&mut self, done: Completed) {
        let slot = done.origin().slot;
        let (buf, result) = done.settle();
        let mut desk = self.pools.io.0.borrow_mut();
        match desk.posted.remove(&slot) {
            Some(len) => {
                let bytes = buf.as_deref().and_then(|buf| buf.get(..len)).unwrap_or_default().to_vec();
                desk.answers.insert(slot, result.map(|()| bytes));
            }
            None => {
                let what = format!("control got a completion that nobody waits for: {slot}");
                self.workload.borrow_mut().model.violate(what);
            }
        }
        drop(desk);
        if let (Some(buf), Some(arena)) = (buf, &mut self.pools.arena) {
            arena.free(buf);
        }
        self.pool_step();
    }
}
