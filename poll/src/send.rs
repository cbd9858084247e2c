//! The contents of one send: small header bytes and payload blocks, in wire order.

use crate::buf::Buf;
use crate::ram::Loan;
use libc::iovec;

/// Header bytes that one list can hold: 56 for each of [`BUFS`] small reads (NVMe/TCP's header, response and their digests), and
/// 256 spare bytes for longer headers.
pub const HEAD_BYTES: usize = 56 * BUFS + 256;
/// Payload blocks that one list can hold: a queue of 128 small reads answered with one system call.
pub const BUFS: usize = 128;
/// Pieces that one list can hold: at worst headers and payloads alternate.
pub const SEGMENTS: usize = 2 * BUFS + 16;
/// Memory of one list.
pub const LIST_BYTES: usize = size_of::<SendList>()
    + HEAD_BYTES
    + BUFS * (size_of::<Buf>() + size_of::<Loan>())
    + SEGMENTS * (size_of::<Segment>() + size_of::<iovec>());

/// Zeros that one piece can hold.
pub const ZEROS_BYTES: usize = 128 << 10;

/// The source of every piece of zeros, so that zeros take no block.
static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// Returns `len` zeros, at most [`ZEROS_BYTES`].
///
/// # Panics
/// Panics if `len` exceeds [`ZEROS_BYTES`].
pub fn zeros(len: usize) -> &'static [u8] {
    &ZEROS[..len]
}

/// One piece of a list. Lists hold many pieces, so a piece is kept small.
#[derive(Clone, Copy, Debug)]
enum Segment {
    Head {
        at: u32,
        len: u32,
    },
    Buf {
        index: u16,
        at: u32,
        len: u32,
    },
    Zeros {
        len: u32,
    },
    /// All bytes of a loan. If the loan must end early, the block `buf` takes its bytes.
    Loan {
        index: u16,
        buf: u16,
    },
}

const _: () = assert!(size_of::<Segment>() == 12 && BUFS <= u16::MAX as usize);

/// A gathered send of bounded size, made at start-up and reused.
///
/// A machine fills the list ([`push_head`](Self::push_head), [`push_buf`](Self::push_buf)) and passes it to
/// [`Io::send`](crate::Io::send). The machine gets the list back with [`SockEvent::Sent`](crate::SockEvent::Sent),
/// takes the blocks out ([`take_buf`](Self::take_buf)) and uses the list again.
pub struct SendList {
    head: Vec<u8>,
    bufs: Vec<Buf>,
    loans: Vec<Loan>,
    segments: Vec<Segment>,
    len_bytes: usize,
    gather: Gather,
}

/// Room for the kernel's view of the pieces. [`SendList::gather`] fills it.
struct Gather(Vec<iovec>);

// SAFETY: the pointers lead into the same list's header bytes and blocks, which move with the list, and
// nothing here follows the pointers.
unsafe impl Send for Gather {}
// SAFETY: as above.
unsafe impl Sync for Gather {}

impl SendList {
    /// Creates an empty list with all its memory: [`LIST_BYTES`].
    pub fn new() -> Box<Self> {
        Box::new(Self {
            head: Vec::with_capacity(HEAD_BYTES),
            bufs: Vec::with_capacity(BUFS),
            loans: Vec::with_capacity(BUFS),
            segments: Vec::with_capacity(SEGMENTS),
            len_bytes: 0,
            gather: Gather(Vec::with_capacity(SEGMENTS)),
        })
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns the number of bytes to send.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Returns whether `head_bytes` of header still fit, together with a payload block if `with_buf`.
    pub fn fits(&self, head_bytes: usize, with_buf: bool) -> bool {
        self.head.len() + head_bytes <= HEAD_BYTES
            && self.bufs.len() + usize::from(with_buf) <= BUFS
            && self.segments.len() + 2 <= SEGMENTS
    }

    /// Appends `len` header bytes, all zero, and returns them for the caller to write.
    ///
    /// # Panics
    /// Panics if the bytes don't fit; the caller asks [`fits`](Self::fits) first.
    pub fn push_head(&mut self, len: usize) -> &mut [u8] {
        assert!(self.fits(len, false), "a send list of {HEAD_BYTES} header bytes overflows");
        let at = self.head.len();
        self.head.resize(at + len, 0);
        self.len_bytes += len;
        match self.segments.last_mut() {
            Some(Segment::Head { len: last, .. }) => *last += len as u32,
            _ => self.segments.push(Segment::Head { at: at as u32, len: len as u32 }),
        }
        &mut self.head[at..]
    }

    /// Appends `len` bytes of `buf` from byte `at`. The block stays in the list until it is taken out.
    ///
    /// # Panics
    /// Panics if the block doesn't fit, or if the range lies outside the block.
    pub fn push_buf(&mut self, buf: Buf, at: usize, len: usize) {
        assert!(self.fits(0, true), "a send list of {BUFS} blocks overflows");
        assert!(at + len <= buf.len(), "bytes {at}..{} of {buf:?}", at + len);
        self.segments.push(Segment::Buf { index: self.bufs.len() as u16, at: at as u32, len: len as u32 });
        self.bufs.push(buf);
        self.len_bytes += len;
    }

    /// Appends `len` zeros, at most [`ZEROS_BYTES`].
    ///
    /// # Panics
    /// Panics if the zeros don't fit.
    pub fn push_zeros(&mut self, len: usize) {
        assert!(self.fits(0, false) && len <= ZEROS_BYTES, "{len} zeros overflow a send list");
        self.segments.push(Segment::Zeros { len: len as u32 });
        self.len_bytes += len;
    }

    /// Returns the number of loans in the list.
    pub fn loans(&self) -> usize {
        self.loans.len()
    }

    /// Appends the bytes of `loan`. `behind` is a block with room for these bytes. The block stays in the list, like
    /// the blocks of [`push_buf`](Self::push_buf). If the loan must end before its bytes are sent, the bytes are copied
    /// into the block.
    ///
    /// # Panics
    /// Panics if the loan doesn't fit, or if the block is smaller than the loan.
    pub fn push_loan(&mut self, loan: Loan, behind: Buf) {
        assert!(self.fits(0, true), "a send list of {BUFS} blocks overflows");
        assert!(loan.len() <= behind.len(), "{loan:?} with {behind:?}");
        self.segments.push(Segment::Loan { index: self.loans.len() as u16, buf: self.bufs.len() as u16 });
        self.len_bytes += loan.len();
        self.loans.push(loan);
        self.bufs.push(behind);
    }

    /// Ends the loans after `sent` bytes of the list are sent. Copies each loan with unsent bytes into the loan's
    /// block. A driver calls this function when it can't send everything at once, so that a slow peer keeps no memory
    /// lent.
    pub fn end_loans(&mut self, sent: usize) {
        if self.loans.is_empty() {
            return;
        }
        let mut end = 0;
        for segment in &mut self.segments {
            match *segment {
                Segment::Head { len, .. } | Segment::Buf { len, .. } | Segment::Zeros { len } => {
                    end += len as usize;
                }
                Segment::Loan { index, buf: behind } => {
                    let loan = &self.loans[usize::from(index)];
                    end += loan.len();
                    if end > sent {
                        self.bufs[usize::from(behind)][..loan.len()].copy_from_slice(loan);
                    }
                    *segment = Segment::Buf { index: behind, at: 0, len: loan.len() as u32 };
                }
            }
        }
        self.loans.clear();
    }

    /// Takes out the payload block that was pushed last. If no block is left, clears the rest of the list and returns
    /// `None`. The list is then ready for reuse.
    pub fn take_buf(&mut self) -> Option<Buf> {
        let buf = self.bufs.pop();
        if buf.is_none() {
            self.head.clear();
            self.loans.clear();
            self.segments.clear();
            self.len_bytes = 0;
        }
        buf
    }

    /// Returns the bytes to send, piece by piece, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.segments.iter().map(|segment| match *segment {
            Segment::Head { at, len } => &self.head[at as usize..(at + len) as usize],
            Segment::Buf { index, at, len } => {
                &self.bufs[usize::from(index)][at as usize..(at + len) as usize]
            }
            Segment::Loan { index, .. } => &self.loans[usize::from(index)],
            Segment::Zeros { len } => zeros(len as usize),
        })
    }
}

impl SendList {
    /// Returns the pieces in the kernel's form, without their first `skip` bytes and at most `max` bytes. The
    /// result is valid until the list is changed or gathered again. The list may be moved meanwhile.
    pub(crate) fn gather(&mut self, mut skip: usize, mut max: usize) -> &mut [iovec] {
        let mut vectors = std::mem::take(&mut self.gather.0);
        vectors.clear();
        for piece in self.pieces() {
            let cut = skip.min(piece.len());
            skip -= cut;
            let piece = &piece[cut..];
            let len = piece.len().min(max);
            max -= len;
            if len > 0 {
                vectors.push(iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: len });
            }
        }
        self.gather.0 = vectors;
        &mut self.gather.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_next_to_each_other_are_one_piece() {
        let mut list = SendList::new();
        list.push_head(2).copy_from_slice(b"ab");
        list.push_head(1).copy_from_slice(b"c");
        assert_eq!(list.pieces().collect::<Vec<_>>(), [b"abc"]);
        assert_eq!(list.len_bytes(), 3);
        assert!(list.take_buf().is_none());
        assert!(list.is_empty());
    }

    #[test]
    fn zeros_take_no_block() {
        let mut list = SendList::new();
        list.push_head(1).copy_from_slice(b"a");
        list.push_zeros(ZEROS_BYTES);
        list.push_zeros(3);
        list.push_head(1).copy_from_slice(b"b");
        list.end_loans(0);
        let sent: Vec<u8> = list.pieces().flatten().copied().collect();
        assert_eq!((list.len_bytes(), sent.len()), (ZEROS_BYTES + 5, ZEROS_BYTES + 5));
        assert_eq!((sent[0], sent.last()), (b'a', Some(&b'b')));
        assert!(sent[1..sent.len() - 1].iter().all(|byte| *byte == 0));
        assert!(list.take_buf().is_none() && list.is_empty());
    }

    #[test]
    fn gathering_skips_and_stops() {
        use crate::arena::Arena;
        use crate::buf::ArenaId;
        let region = trefoil_sys::region::Region::anonymous(2 << 20).expect("memory");
        let mut arena = Arena::new(ArenaId(210), region);
        let mut list = SendList::new();
        list.push_head(5).copy_from_slice(b"head1");
        let mut buf = arena.alloc(1).expect("room");
        buf[1..6].copy_from_slice(b"block");
        list.push_buf(buf, 1, 5);
        list.push_head(5).copy_from_slice(b"head2");
        let whole = b"head1blockhead2";
        for skip in 0..=whole.len() {
            for max in 0..=whole.len() + 1 {
                let mut got: Vec<u8> = Vec::new();
                for v in list.gather(skip, max) {
                    assert!(v.iov_len > 0);
                    // SAFETY: the list is unchanged since it was gathered.
                    got.extend(unsafe { std::slice::from_raw_parts(v.iov_base.cast::<u8>(), v.iov_len) });
                }
                assert_eq!(got, whole[skip..whole.len().min(skip + max)], "{skip} {max}");
            }
        }
        while let Some(buf) = list.take_buf() {
            arena.free(buf);
        }
    }

    /// Stands for the kernel during a send: the kernel follows the pieces while a driver holds the list.
    #[test]
    fn what_was_gathered_stays_valid_while_the_list_moves() {
        use crate::arena::Arena;
        use crate::buf::ArenaId;
        use crate::ram::Ram;
        /// Pointers for another thread, as the kernel holds them.
        struct Pieces(Vec<iovec>);
        // SAFETY: only read below, while the list is kept unchanged.
        unsafe impl Send for Pieces {}
        let region = || trefoil_sys::region::Region::anonymous(2 << 20).expect("memory");
        let (mut arena, mut ram) = (Arena::new(ArenaId(212), region()), Ram::new(region()));
        ram.write(0, b"lent").expect("inside");
        let mut list = SendList::new();
        list.push_head(4).copy_from_slice(b"head");
        let mut buf = arena.alloc(1).expect("room");
        buf[..5].copy_from_slice(b"block");
        list.push_buf(buf, 0, 5);
        list.push_loan(ram.lend(0, 4).expect("inside"), arena.alloc(4).expect("room"));
        let pieces = Pieces(list.gather(1, usize::MAX).to_vec());
        let mut held = vec![list];
        let kernel = std::thread::spawn(move || {
            let pieces = pieces;
            let mut sent = Vec::new();
            for piece in &pieces.0 {
                // SAFETY: the list that was gathered is kept unchanged until this thread has ended.
                sent.extend_from_slice(unsafe {
                    std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len)
                });
            }
            sent
        });
        assert_eq!(kernel.join().expect("it was sent"), b"eadblocklent");
        let mut list = held.pop().expect("the list");
        list.end_loans(13);
        while let Some(buf) = list.take_buf() {
            arena.free(buf);
        }
        ram.write(0, b"free").expect("no longer lent");
    }

    #[test]
    fn a_loan_that_ends_early_leaves_its_bytes() {
        use crate::arena::Arena;
        use crate::buf::ArenaId;
        use crate::ram::Ram;
        let region = || trefoil_sys::region::Region::anonymous(2 << 20).expect("memory");
        let mut arena = Arena::new(ArenaId(211), region());
        let mut ram = Ram::new(region());
        ram.write(10, b"lent").expect("inside");
        for sent in 0..=12 {
            let mut list = SendList::new();
            list.push_head(4).copy_from_slice(b"head");
            for _ in 0..2 {
                list.push_loan(ram.lend(10, 4).expect("inside"), arena.alloc(4).expect("room"));
            }
            assert_eq!(list.pieces().collect::<Vec<_>>().concat(), b"headlentlent");
            list.end_loans(sent);
            assert!(!ram.is_lent(10, 4));
            assert_eq!(list.len_bytes(), 12);
            assert_eq!(list.pieces().collect::<Vec<_>>().concat()[sent..], b"headlentlent"[sent..]);
            while let Some(mut buf) = list.take_buf() {
                buf.fill(0);
                arena.free(buf);
            }
        }
    }
}
