//! Files of the io_uring driver: starting operations and handling their completions.

use super::UringIo;
use super::tag::{Kind, pack};
use crate::buf::Buf;
use crate::io::{FileDone, FileError, FileId, FileOp, Handler};
use std::os::fd::{AsRawFd, OwnedFd};
use trefoil_sys::uring::{Entry, opcode, types};

/// The size of one span of registered memory: the largest size that the kernel accepts.
pub(super) const SPAN_BYTES: usize = 1 << 30;

/// One attached file.
pub(super) struct File {
    fd: OwnedFd,
    outstanding: u32,
    detached: bool,
}

/// One operation from [`Io::file`](crate::Io::file) to its answer.
pub(super) struct Running {
    file: u32,
    op: FileOp,
    /// Bytes that earlier, short completions transferred.
    done: u32,
    token: u64,
}

impl<M: Send> UringIo<M> {
    pub(super) fn file_attach(&mut self, fd: OwnedFd) -> Result<FileId, OwnedFd> {
        let file = File { fd, outstanding: 0, detached: false };
        self.files.insert(file).map(FileId).map_err(|file| file.fd)
    }

    pub(super) fn file_detach(&mut self, id: FileId) {
        let Some(file) = self.files.get_mut(id.0) else { return };
        file.detached = true;
        if file.outstanding == 0 {
            self.files.remove(id.0);
        }
    }

    pub(super) fn file_start(&mut self, id: FileId, op: FileOp, token: u64) {
        if let FileOp::Read { buf, at, len, .. } | FileOp::Write { buf, at, len, .. } = &op {
            let fits = (*at as usize).checked_add(*len as usize).is_some_and(|end| end <= buf.len());
            assert!(fits && *len > 0, "bytes {at}+{len} of {buf:?}");
        }
        let file = self.files.get_mut(id.0).filter(|file| !file.detached);
        let Some(file) = file else { panic!("an operation on {id:?}, which is detached") };
        file.outstanding += 1;
        let running = Running { file: id.0, op, done: 0, token };
        let Ok(index) = self.running.insert(running) else {
            panic!("over {} file operations (max_file_ops) on {:?}", self.running.len(), self.core)
        };
        self.continue_op(index);
    }

    fn continue_op(&mut self, index: u32) {
        let tag = pack(Kind::File, self.running.generation(index), index);
        let Some(running) = self.running.get_mut(index) else { return };
        let Some(file) = self.files.get_mut(running.file) else { return };
        let fd = types::Fd(file.fd.as_raw_fd());
        let done = running.done;
        let entry = match &running.op {
            FileOp::Read { buf, at, len, offset } => {
                let len = self.faults.cap_pages(len - done);
                let (start, key) = place(buf, at + done, &self.spans);
                let offset = offset + u64::from(done);
                match key {
                    Some(key) => opcode::ReadFixed::new(fd, start, len, key).offset(offset).build(),
                    None => opcode::Read::new(fd, start, len).offset(offset).build(),
                }
            }
            FileOp::Write { buf, at, len, offset, durable } => {
                let len = self.faults.cap_pages(len - done);
                let (start, key) = place(buf, at + done, &self.spans);
                let offset = offset + u64::from(done);
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match key {
                    Some(key) => {
                        opcode::WriteFixed::new(fd, start, len, key).offset(offset).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(fd, start, len).offset(offset).rw_flags(flags).build(),
                }
            }
            FileOp::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            FileOp::Zero { offset, len } => fallocate(fd, libc::FALLOC_FL_ZERO_RANGE, *offset, *len),
            FileOp::Punch { offset, len } => fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE, *offset, *len),
        };
        self.push(entry.user_data(tag));
    }

    pub(super) fn file_done<H: Handler<Self>>(&mut self, index: u32, result: i32, handler: &mut H) {
        let Some(running) = self.running.get_mut(index) else { return };
        running.done += result.max(0) as u32;
        let wanted = match running.op {
            FileOp::Read { len, .. } | FileOp::Write { len, .. } => len,
            FileOp::Sync | FileOp::Zero { .. } | FileOp::Punch { .. } => 0,
        };
        let errno = -result;
        let result = if result >= 0 && running.done == wanted {
            Ok(())
        } else if result > 0 || matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
            return self.continue_op(index);
        } else {
            // A transfer of zero bytes means the end of the file.
            Err(FileError(if errno == 0 { libc::EIO } else { errno }))
        };
        let Some(running) = self.running.remove(index) else { return };
        if let Some(file) = self.files.get_mut(running.file) {
            file.outstanding -= 1;
            if file.detached && file.outstanding == 0 {
                self.files.remove(running.file);
            }
        }
        let buf = match running.op {
            FileOp::Read { buf, .. } | FileOp::Write { buf, .. } => Some(buf),
            FileOp::Sync | FileOp::Zero { .. } | FileOp::Punch { .. } => None,
        };
        handler.on_file(self, FileDone { token: running.token, buf, result });
    }
}

/// Returns the address of byte `at` of `buf`, and the registered buffer that contains that byte.
fn place(buf: &Buf, at: u32, spans: &[Option<u16>]) -> (*mut u8, Option<u16>) {
    // SAFETY: `at` lies inside the block, as `file_start` checked.
    let start = unsafe { buf.as_ptr().add(at as usize) };
    let first = spans.get(usize::from(buf.arena().0)).copied().flatten();
    // Blocks are at most 2 MiB and aligned to their size: no block crosses a span's end.
    (start, first.map(|first| first + (buf.offset_bytes() as usize / SPAN_BYTES) as u16))
}

fn fallocate(fd: types::Fd, mode: i32, offset: u64, len: u64) -> Entry {
    opcode::Fallocate::new(fd, len).offset(offset).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build()
}
