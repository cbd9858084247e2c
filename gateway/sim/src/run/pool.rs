//! The pool code of the simulated control thread.
//!
//! The run itself polls the operations of [`trefoil_storage::pool`]. As with the real control thread, their I/O goes through the
//! gateway's cores, so a crash can happen between any two steps. After a crash, the pool code reads everything from the disks
//! again. This module keeps only the facts that an operator would remember, and checks the disks against these facts.

mod io;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use trefoil_poll::Arena;
use trefoil_storage::pool::{
    BackendInfo, Found, Imported, LunError, MIN_UNIT_BYTES, NewLun, NewMember, NewPool, Pool, PoolOwner,
    create_lun, create_pool, delete_lun, grow_lun, import_namespace, open_pool, scan,
};
use trefoil_storage::topology::{BackendId, Extent};
use uuid::Uuid;

use super::Run;
use super::sizes::{GROWN, IMPORTED, REPLACED};
use io::ControlIo;

const POOL: Uuid = Uuid::from_bytes([0x77; 16]);
/// Number of LUNs in the pool. The LUN after these is the imported LUN.
const POOLED: usize = IMPORTED;

/// Returns the identity that a LUN keeps for its whole life.
pub(super) fn lun_id(lun: usize) -> [u8; 16] {
    [lun as u8 + 1; 16]
}

/// Result of an operation.
enum Ended {
    Opened(Result<Pool, String>),
    Imported(Result<Imported, String>),
    Changed(Pool, Result<(), LunError>),
}

/// Kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Open,
    Import,
    Create(usize),
    Grow,
    Delete,
}

impl Doing {
    /// Returns the name of the fault for a crash that interrupts the operation.
    fn crash(self) -> &'static str {
        match self {
            Self::Open => "crash-in-open",
            Self::Import => "crash-in-import",
            Self::Create(_) => "crash-in-create",
            Self::Grow => "crash-in-grow",
            Self::Delete => "crash-in-delete",
        }
    }
}

type Work = Pin<Box<dyn Future<Output = Ended>>>;

/// State of the pool code; see the module.
pub(super) struct Pools {
    io: ControlIo,
    home: u16,
    arena: Option<Arena>,
    pool: Option<Pool>,
    imported: Option<Imported>,
    work: Option<(Doing, Work)>,
    /// True if the current operation has a cause to fail, such as a failed disk.
    pub excused: bool,
    /// True once the creation of the pool has been acknowledged.
    made: bool,
    /// Acknowledged size of each LUN. None if the LUN may or may not exist.
    acknowledged: [Option<u64>; POOLED],
    /// Size with which LUN [`REPLACED`] is created again.
    pub renewed_blocks: u64,
    /// Initial sizes of the LUNs.
    pub first_blocks: [u64; POOLED],
    /// Size to which LUN [`GROWN`] must still grow.
    pub grow_to: Option<u64>,
    /// True if LUN [`REPLACED`] must still be removed.
    pub removing: bool,
    /// True if the cores may not yet present the wanted LUNs.
    pub stale: bool,
    /// True if the imported backend must be imported again.
    reimport: bool,
}

impl Pools {
    pub fn new(home: u16) -> Self {
        Self {
            io: ControlIo::default(),
            home,
            arena: None,
            pool: None,
            imported: None,
            work: None,
            excused: false,
            made: false,
            acknowledged: [None; POOLED],
            renewed_blocks: 0,
            first_blocks: [0; POOLED],
            grow_to: None,
            removing: false,
            stale: true,
            reimport: false,
        }
    }

    pub fn skip_zeroing(&self) {
        self.io.0.borrow_mut().skip_zeroing = true;
    }

    pub fn forget_layout(&self) {
        self.io.0.borrow_mut().volatile = true;
    }

    /// Records the death of the process: only the disks' contents remain.
    pub fn crash(&mut self) {
        (self.pool, self.imported, self.work, self.reimport) = (None, None, None, false);
        self.io.clear();
        self.stale = true;
        while self.arena.as_mut().is_some_and(|arena| arena.repair_next().is_some()) {}
    }

    /// If an operation is under way, returns the name of the fault for a crash at this moment.
    pub fn crash_kind(&self) -> Option<&'static str> {
        self.work.as_ref().map(|(doing, _)| doing.crash())
    }

    /// Requests another import, because the size of the imported backend has changed.
    pub fn reimport(&mut self) {
        self.reimport = true;
    }

    /// Returns whether an operation is under way that runs while the gateway serves hosts.
    pub fn is_changing(&self) -> bool {
        matches!(self.work, Some((Doing::Create(REPLACED) | Doing::Grow | Doing::Delete, _)))
    }

    pub fn is_settled(&self) -> bool {
        self.work.is_none()
            && !self.stale
            && !self.removing
            && self.grow_to.is_none()
            && self.imported.is_some()
            && !self.reimport
            && self.pool.as_ref().is_some_and(|pool| pool.frozen().is_none())
            && self.acknowledged.iter().all(Option::is_some)
    }

    pub fn blocks(&self, lun: usize) -> Option<u64> {
        self.acknowledged.get(lun).copied().flatten()
    }

    /// Returns the size in blocks and the extents of each LUN that the gateway must present.
    pub fn presented(&self) -> Vec<Option<(u64, Vec<Extent>)>> {
        let pooled = (0..POOLED).map(|lun| {
            let pool = self.pool.as_ref()?;
            let found = pool.lun(Uuid::from_bytes(lun_id(lun))).filter(|found| found.is_visible())?;
            let shown = lun != REPLACED || !self.removing;
            shown.then(|| Some((found.blocks, pool.extents(found).ok()?))).flatten()
        });
        let imported = self.imported.as_ref().map(|lun| (lun.blocks(), lun.extents()));
        pooled.chain([imported]).collect()
    }

    fn wanted_blocks(&self, lun: usize) -> u64 {
        if lun == REPLACED { self.renewed_blocks } else { self.first_blocks[lun] }
    }

    /// Checks the open pool against the acknowledged sizes. Takes over the sizes that were unknown.
    fn check(&mut self) -> Result<(), String> {
        let Some(pool) = &self.pool else { return Ok(()) };
        pool.table().check().map_err(|why| format!("the layout is wrong: {why}"))?;
        for lun in 0..POOLED {
            let found = pool
                .lun(Uuid::from_bytes(lun_id(lun)))
                .filter(|found| found.is_visible())
                .map(|found| found.blocks);
            let grown = self.grow_to.filter(|_| lun == GROWN);
            match (self.acknowledged[lun], found) {
                (Some(blocks), Some(now)) if now == blocks || Some(now) == grown => {}
                (None, Some(now)) if now == self.wanted_blocks(lun) || (lun == REPLACED && self.removing) => {
                }
                (None, None) => {}
                (before, now) => {
                    return Err(format!(
                        "LUN {lun} had {before:?} blocks and has {now:?} after opening the pool"
                    ));
                }
            }
            self.acknowledged[lun] = found;
            if found.is_some() && found == grown {
                self.grow_to = None;
            }
        }
        Ok(())
    }
}

async fn open_or_make(io: ControlIo, backends: Vec<BackendInfo>, made: bool) -> Ended {
    let found = scan(&io, &backends).await;
    if found.iter().any(|found| matches!(found, Found::Member(label) if label.pool_uuid == POOL)) {
        return Ended::Opened(open_pool(&io, POOL, backends).await.map_err(|error| error.to_string()));
    }
    if made {
        return Ended::Opened(Err(format!("no disk knows the pool any more: {found:?}")));
    }
    let member =
        |backend: BackendInfo| NewMember { uuid: Uuid::from_bytes([backend.id.0 as u8 + 1; 16]), backend };
    let new = NewPool {
        uuid: POOL,
        name: "pool".into(),
        unit_bytes: MIN_UNIT_BYTES,
        owner: PoolOwner { id: [1; 16], epoch: 1 },
        members: backends.into_iter().map(member).collect(),
        overwrite: false,
    };
    Ended::Opened(create_pool(&io, new).await.map_err(|error| error.to_string()))
}

fn new_lun(lun: usize, blocks: u64, block_bytes: usize) -> NewLun {
    NewLun {
        uuid: Uuid::from_bytes(lun_id(lun)),
        nguid: lun_id(lun),
        serial: *b"SIM                 ",
        nsid: lun as u32 + 1,
        name: format!("lun{lun}"),
        created_at_s: 0,
        block_bytes: block_bytes as u32,
        blocks,
    }
}

impl Run {
    /// Continues the control thread's work on pools, as far as possible without waiting.
    pub(super) fn pool_step(&mut self) {
        while self.world.is_up(self.gateway) && self.attach_left == 0 {
            if self.pools.work.is_none() {
                self.pools.work = self.next_work();
                self.pools.excused = self.workload.borrow().model.excused || self.is_lost();
            }
            let Some((doing, work)) = &mut self.pools.work else { break };
            let (doing, polled) = (*doing, work.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            let Poll::Ready(ended) = polled else { break };
            self.pools.work = None;
            if !self.work_ended(doing, ended) {
                break;
            }
        }
        self.post_asked();
    }

    /// Returns the next operation: the one that corrects the first difference from the wanted state.
    fn next_work(&mut self) -> Option<(Doing, Work)> {
        let io = self.pools.io.clone();
        let frozen = self.pools.pool.as_ref().is_none_or(|pool| pool.frozen().is_some());
        if frozen {
            self.pools.pool = None;
            let work = open_or_make(io, self.backend_infos(0..POOLED), self.pools.made);
            return Some((Doing::Open, Box::pin(work)));
        }
        if self.pools.imported.is_none() || self.pools.reimport {
            let backend = self.backend_infos(POOLED..POOLED + 1).pop()?;
            let work = async move {
                let (uuid, nguid) = (Uuid::from_bytes(lun_id(IMPORTED)), lun_id(IMPORTED));
                let imported = import_namespace(&io, backend, "imported".into(), uuid, nguid).await;
                Ended::Imported(imported.map_err(|error| error.to_string()))
            };
            return Some((Doing::Import, Box::pin(work)));
        }
        let gone = self.pools.acknowledged[REPLACED].is_none();
        if self.pools.removing && gone {
            self.pools.removing = false;
            let blocks = 500 + self.rng.below(1000);
            self.pools.renewed_blocks = self.scaled(REPLACED, blocks);
        }
        if let Some(lun) = (0..POOLED).find(|&lun| self.pools.acknowledged[lun].is_none()) {
            let new = new_lun(lun, self.pools.wanted_blocks(lun), self.block_bytes[lun]);
            let mut pool = self.pools.pool.take()?;
            let work = async move {
                let result = create_lun(&io, &mut pool, new).await;
                Ended::Changed(pool, result)
            };
            return Some((Doing::Create(lun), Box::pin(work)));
        }
        if self.pools.stale || self.publish_left > 0 {
            if self.publish_left == 0 {
                self.pools.stale = false;
                self.publish();
            }
            return None;
        }
        if self.pools.removing && self.workload.borrow().model.under_way(Some(REPLACED)) == 0 {
            self.pools.acknowledged[REPLACED] = None;
            let mut pool = self.pools.pool.take()?;
            let work = async move {
                let result =
                    delete_lun(&io, &mut pool, Uuid::from_bytes(lun_id(REPLACED)), false, false).await;
                Ended::Changed(pool, result)
            };
            return Some((Doing::Delete, Box::pin(work)));
        }
        if let Some(blocks) = self.pools.grow_to.filter(|_| !self.pools.removing) {
            let mut pool = self.pools.pool.take()?;
            let work = async move {
                let result = grow_lun(&io, &mut pool, Uuid::from_bytes(lun_id(GROWN)), blocks).await;
                Ended::Changed(pool, result)
            };
            return Some((Doing::Grow, Box::pin(work)));
        }
        None
    }

    /// Takes the result of an operation. Returns whether to continue at once.
    fn work_ended(&mut self, doing: Doing, ended: Ended) -> bool {
        let failed = match ended {
            Ended::Opened(Ok(pool)) => {
                let frozen = pool.frozen().map(ToString::to_string);
                self.pools.made = true;
                self.pools.pool = Some(pool);
                if frozen.is_none()
                    && let Err(what) = self.pools.check()
                {
                    self.workload.borrow_mut().model.violate(what);
                }
                frozen
            }
            Ended::Imported(Ok(imported)) => {
                self.pools.imported = Some(imported);
                (self.pools.stale, self.pools.reimport) = (true, false);
                None
            }
            Ended::Changed(pool, result) => {
                self.pools.pool = Some(pool);
                match result {
                    Ok(()) => {
                        self.changed(doing);
                        None
                    }
                    Err(LunError::NoSpace { .. }) if doing == Doing::Grow => {
                        self.pools.grow_to = None;
                        None
                    }
                    Err(error) => {
                        // Only the disks show whether the change took effect.
                        self.pools.pool = None;
                        Some(error.to_string())
                    }
                }
            }
            Ended::Opened(Err(error)) | Ended::Imported(Err(error)) => Some(error),
        };
        if let Some(error) = &failed {
            self.world.story.tell(self.world.now(), format_args!("control: {doing:?} failed: {error}"));
            if !self.pools.excused {
                let what = format!("{doing:?} failed without a cause: {error}");
                self.workload.borrow_mut().model.violate(what);
            }
        }
        failed.is_none()
    }

    fn changed(&mut self, doing: Doing) {
        let pools = &mut self.pools;
        match doing {
            Doing::Create(lun) => {
                pools.acknowledged[lun] = Some(pools.wanted_blocks(lun));
                pools.stale = true;
                if lun == REPLACED {
                    self.fired("lun-create");
                }
            }
            Doing::Grow => {
                pools.acknowledged[GROWN] = pools.grow_to.take();
                pools.stale = true;
                self.fired("lun-grow");
            }
            Doing::Delete => self.fired("lun-delete"),
            Doing::Open | Doing::Import => return,
        }
        self.layout_changed();
    }

    fn backend_infos(&self, which: std::ops::Range<usize>) -> Vec<BackendInfo> {
        let info = |at: usize| BackendInfo {
            id: BackendId(at as u32),
            name: format!("disk{at}"),
            len_bytes: self.lens[at],
            block_bytes: self.backend_block_bytes(at),
        };
        which.map(info).collect()
    }
}
