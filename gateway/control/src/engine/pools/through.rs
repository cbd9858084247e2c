//! Control's own I/O to the backends of pools, as the pool code needs it.

use super::Lives;
use crate::engine::cores::Cores;
use std::collections::BTreeMap;
use trefoil_poll::CoreId;
use trefoil_storage::pool::PoolIo;
use trefoil_storage::topology::BackendId;
use trefoil_storage::{Fault as IoFault, Op};

/// Control's own I/O. Each request goes to the core that has the backend.
pub struct Through<'a> {
    cores: &'a Cores,
    routes: BTreeMap<BackendId, CoreId>,
}

impl<'a> Through<'a> {
    /// Makes the routes to the backends that are up.
    pub fn new(cores: &'a Cores, lives: &Lives) -> Self {
        Self { cores, routes: lives.values().map(|live| (live.id, live.core())).collect() }
    }

    async fn run(
        &self,
        id: BackendId,
        op: Op,
        range: (u64, u64),
        bytes: Option<(usize, &[u8])>,
        durable: bool,
    ) -> Result<Option<Vec<u8>>, IoFault> {
        let core = self.routes.get(&id).copied().ok_or(IoFault::Gone)?;
        let mut buf = None;
        if let Some((len, from)) = bytes {
            let mut block = self.cores.alloc(len).ok_or(IoFault::Internal)?;
            block.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            buf = Some(block);
        }
        let (buf, result) = self.cores.request(core, id, op, range, buf, durable).await;
        let read = match (op, &buf) {
            (Op::Read, Some(block)) => block.get(..range.1 as usize).map(<[u8]>::to_vec),
            _ => None,
        };
        self.cores.free(buf);
        result.map(|()| read)
    }
}

impl PoolIo for Through<'_> {
    async fn read(&self, backend: BackendId, offset: u64, len: usize) -> Result<Vec<u8>, IoFault> {
        let range = (offset, len as u64);
        self.run(backend, Op::Read, range, Some((len, &[])), false).await?.ok_or(IoFault::Internal)
    }

    async fn write(
        &self,
        backend: BackendId,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> Result<(), IoFault> {
        let range = (offset, bytes.len() as u64);
        self.run(backend, Op::Write, range, Some((bytes.len(), bytes)), durable).await.map(drop)
    }

    async fn flush(&self, backend: BackendId) -> Result<(), IoFault> {
        self.run(backend, Op::Flush, (0, 0), None, false).await.map(drop)
    }

    async fn write_zeroes(&self, backend: BackendId, offset: u64, len: u64) -> Result<(), IoFault> {
        let op = Op::WriteZeroes { deallocate: false };
        self.run(backend, op, (offset, len), None, false).await.map(drop)
    }
}
