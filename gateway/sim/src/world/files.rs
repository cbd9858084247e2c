//! File operations of a core.

use std::time::Duration;

use trefoil_poll::errno::{EIO, ENOSPC};
use trefoil_poll::{Buf, FileDone, FileError, FileId, FileOp};

use crate::disk::Change;
use crate::net::NodeId;
use crate::simio::Manners;
use crate::world::events::{Event, Where};
use crate::world::running::{Ready, Running};
use crate::world::{Machine, World};

/// An operation under way, and its result once the operation is done.
pub(crate) struct FileJob {
    file: u32,
    disk: u32,
    op: FileOp,
    token: u64,
    pub result: Option<Result<(), FileError>>,
}

impl FileJob {
    /// Returns the disk and the change of an operation that a crash interrupts.
    pub fn change(&self) -> Option<(u32, Change)> {
        if self.result.is_some() {
            return None;
        }
        let change = match &self.op {
            FileOp::Write { buf, at, len, offset, .. } => {
                Change::Bytes(*offset, buf[*at as usize..(*at + *len) as usize].into())
            }
            FileOp::Zero { offset, len } | FileOp::Punch { offset, len } => Change::Zeros(*offset, *len),
            FileOp::Read { .. } | FileOp::Sync => return None,
        };
        Some((self.disk, change))
    }
}

impl<M: Send, H: Machine<M>> World<M, H> {
    pub(super) fn ask_file(&mut self, node: NodeId, core: u16, file: FileId, op: FileOp, token: u64) {
        let c = self.core(node, core);
        let Some((disk, busy)) = &mut c.files[file.0 as usize] else { unreachable!("attached: see SimIo") };
        *busy += 1;
        let disk = disk.0;
        let job = FileJob { file: file.0, disk, op, token, result: None };
        let slot = c.jobs.iter().position(Option::is_none).unwrap_or(c.jobs.len());
        if slot == c.jobs.len() {
            c.jobs.push(None);
        }
        c.jobs[slot] = Some(job);
        let slow = u64::from(self.disks[disk as usize].1.fault.slow.max(1));
        let usual = 10_000 + self.rng.below(80_000);
        let extra = if self.rng.below(40) == 0 { self.rng.below(3_000_000) } else { 0 };
        let place = self.place(node, core);
        self.events
            .push(self.now + Duration::from_nanos((usual + extra) * slow), Event::Disk(place, slot as u32));
    }

    pub(super) fn ask_detach(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>, file: FileId) {
        let entry = &mut self.core(node, core).files[file.0 as usize];
        if entry.is_some_and(|(_, busy)| busy == 0) {
            *entry = None;
            running.io.files[file.0 as usize] = Manners::default();
        }
    }

    pub(super) fn disk_done(&mut self, at: Where, slot: u32) {
        if !self.is_life(at.node, at.life) {
            return;
        }
        let Some(mut job) = self.core(at.node, at.core).jobs[slot as usize].take() else { return };
        let result = self.perform(&mut job);
        self.story.note(self.now, &[7, u64::from(slot), u64::from(result.is_ok())]);
        job.result = Some(result);
        self.core(at.node, at.core).jobs[slot as usize] = Some(job);
        self.tell_core(at.node, at.core, Ready::File(slot));
    }

    fn perform(&mut self, job: &mut FileJob) -> Result<(), FileError> {
        let index = job.disk as usize;
        let (fault, defect) = (self.disks[index].1.fault, self.disks[index].1.defect);
        match &mut job.op {
            FileOp::Read { buf, at, len, offset } => {
                if self.chance(fault.read_eio) || !self.disks[index].1.holds(*offset, u64::from(*len)) {
                    return Err(FileError(EIO));
                }
                let shift = if self.chance(defect.shift_read) { *offset ^ 4096 } else { *offset };
                self.disks[index].1.peek(shift, &mut buf[*at as usize..(*at + *len) as usize]);
                Ok(())
            }
            FileOp::Write { durable, len, offset, .. } => {
                let (durable, len, offset) = (*durable, u64::from(*len), *offset);
                self.check_write(index, offset, len)?;
                let Some((_, mut change)) = job.change() else { return Ok(()) };
                if self.chance(fault.write_eio) {
                    let mut rng = self.fork_rng();
                    self.disks[index].1.interrupt(change, &mut rng);
                    return Err(FileError(EIO));
                }
                if self.chance(defect.lose_write) || (change.is_zeros() && self.chance(defect.lose_zeros)) {
                    return Ok(());
                }
                if self.chance(defect.tear_write) {
                    change = change.first_half();
                }
                let early = self.chance(defect.early_ack);
                if early || self.chance(defect.replay_write) {
                    self.replays.push(Some((crate::DiskId(job.disk), change.clone())));
                    let delay = Duration::from_micros(100 + self.rng.below(5_000));
                    self.events.push(self.now + delay, Event::Replay(self.replays.len() as u32 - 1));
                }
                if early {
                    return Ok(());
                }
                let durable = durable && !self.chance(defect.drop_durable);
                self.disks[index].1.write(change, durable);
                Ok(())
            }
            FileOp::Sync => {
                if self.chance(fault.sync_eio) {
                    return Err(FileError(EIO));
                }
                if !self.chance(defect.skip_sync) {
                    self.disks[index].1.sync();
                }
                Ok(())
            }
            FileOp::Zero { offset, len } | FileOp::Punch { offset, len } => {
                let (offset, len) = (*offset, *len);
                let punch = matches!(job.op, FileOp::Punch { .. });
                match self.check_write(index, offset, len) {
                    Err(FileError(ENOSPC)) if punch => {}
                    other => other?,
                }
                if self.chance(fault.write_eio) {
                    return Err(FileError(EIO));
                }
                if !self.chance(defect.skip_zero) {
                    self.disks[index].1.write(Change::Zeros(offset, len), false);
                }
                Ok(())
            }
        }
    }

    fn check_write(&self, index: usize, offset: u64, len: u64) -> Result<(), FileError> {
        let disk = &self.disks[index].1;
        if !disk.holds(offset, len) {
            return Err(FileError(EIO));
        }
        if disk.lacks_space(offset, len) { Err(FileError(ENOSPC)) } else { Ok(()) }
    }

    pub(super) fn replay(&mut self, index: u32) {
        if let Some((disk, change)) = self.replays[index as usize].take() {
            self.story.tell(self.now, format_args!("defect: a write lands once more on disk {}", disk.0));
            self.disks[disk.0 as usize].1.write(change, false);
        }
    }

    pub(super) fn deliver_file(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>, slot: u32) {
        let c = self.core(node, core);
        let Some(job) = c.jobs[slot as usize].take() else { return };
        if let Some((_, busy)) = &mut c.files[job.file as usize] {
            *busy -= 1;
            if *busy == 0 && running.io.files[job.file as usize].closing {
                c.files[job.file as usize] = None;
                running.io.files[job.file as usize] = Manners::default();
            }
        }
        let buf: Option<Buf> = match job.op {
            FileOp::Read { buf, .. } | FileOp::Write { buf, .. } => Some(buf),
            FileOp::Sync | FileOp::Zero { .. } | FileOp::Punch { .. } => None,
        };
        let result = job.result.unwrap_or(Err(FileError(EIO)));
        running.machine.on_file(&mut running.io, FileDone { token: job.token, buf, result });
    }
}
