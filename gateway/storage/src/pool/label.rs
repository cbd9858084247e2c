//! A member's label: its identity and its pool. `RawLabel` defines its bytes.

use super::format::{
    BLOCK_BYTES, Damage, GENERATIONS, LABEL_AT, NAME_BYTES, NO_NEXT, VERSION, checksum, emit_name,
    parse_name, seal,
};
use super::{MAX_UNIT_BYTES, MIN_UNIT_BYTES};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"TREFOIL\0";

trefoil_wire::layout! {
    /// One slot. Bytes between fields are zero.
    pub struct RawLabel [4096] {
        /// `TREFOIL` and NUL.
        magic: [u8; 8] = 0,
        /// Format version.
        version: u32 = 8,
        /// CRC32C of the slot with this field zero.
        crc32c: u32 = 12,
        /// The generation. Of two valid labels, the label with the higher generation is current.
        generation: u64 = 16,
        /// The pool.
        pool_uuid: [u8; 16] = 24,
        /// The member's UUID.
        member_uuid: [u8; 16] = 40,
        /// The gateway that may write; all zero for none.
        owner_id: [u8; 16] = 56,
        /// The number that grows with each change of owner.
        owner_epoch: u64 = 72,
        /// 1 Creating, 2 Ready.
        state: u32 = 80,
        /// Bit 0: the member keeps the layout table.
        flags: u32 = 84,
        /// The backend's logical block size.
        block_bytes: u32 = 88,
        /// The pool's unit as a power of two.
        unit_shift: u32 = 92,
        /// The backend's size when the pool was made.
        len_bytes: u64 = 96,
        /// UTF-8, padded with NUL.
        pool_name: [u8; NAME_BYTES] = 104,
    }
}

/// The gateway that may write a pool, for the takeover between two gateways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolOwner {
    /// The gateway's identity; all zero for none.
    pub id: [u8; 16],
    /// The number that grows with each change of owner.
    pub epoch: u64,
}

/// The state of the pool, which tells whether the pool exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelState {
    /// The pool is being made or destroyed.
    Creating,
    /// The pool exists.
    Ready,
}

/// The contents of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The generation. Of two valid labels, the label with the higher generation is current.
    pub generation: u64,
    /// The pool.
    pub pool_uuid: Uuid,
    /// The pool's name.
    pub pool_name: String,
    /// The member's UUID.
    pub member_uuid: Uuid,
    /// The gateway that may write.
    pub owner: PoolOwner,
    /// Whether the pool exists.
    pub state: LabelState,
    /// The member keeps the layout table.
    pub holder: bool,
    /// The backend's logical block size: 512 or 4096.
    pub block_bytes: u32,
    /// The pool's unit.
    pub unit_bytes: u64,
    /// The backend's size when the pool was made.
    pub len_bytes: u64,
}

impl Label {
    /// Returns whether a slot holds a valid or damaged label.
    pub fn is_begun(slot: &[u8]) -> bool {
        slot.starts_with(&MAGIC)
    }

    /// Returns the newest valid label in the first bytes of a backend. Never panics.
    pub fn newest(start: &[u8]) -> Option<Self> {
        let slots = LABEL_AT.iter().filter_map(|&at| Self::parse(start.get(at as usize..)?).ok());
        slots.max_by_key(|label| label.generation)
    }

    /// Returns whether the first bytes of a backend have a damaged label and no valid one. A first label whose write
    /// was interrupted doesn't count: it is in the first slot only.
    pub fn is_damaged(start: &[u8]) -> bool {
        let second = start.get(LABEL_AT[1] as usize..).unwrap_or_default();
        Self::newest(start).is_none() && Self::is_begun(second)
    }

    /// Reads a slot. Never panics.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let bytes: &[u8; BLOCK_BYTES] = bytes.first_chunk().ok_or(Damage::Blank)?;
        let raw = RawLabel::parse(bytes);
        if raw.magic != MAGIC {
            return Err(Damage::Blank);
        }
        if raw.crc32c != checksum(bytes) {
            return Err(Damage::Checksum);
        }
        if raw.version != VERSION {
            return Err(Damage::Version(raw.version));
        }
        if raw.generation >= GENERATIONS {
            return Err(NO_NEXT);
        }
        let unit_bytes = 1u64.checked_shl(raw.unit_shift).unwrap_or(0);
        if !(MIN_UNIT_BYTES..=MAX_UNIT_BYTES).contains(&unit_bytes) {
            return Err(Damage::Invalid("the unit is out of range"));
        }
        if !matches!(raw.block_bytes, 512 | 4096) {
            return Err(Damage::Invalid("the block size is neither 512 nor 4096"));
        }
        Ok(Self {
            generation: raw.generation,
            pool_uuid: Uuid::from_bytes(raw.pool_uuid),
            pool_name: parse_name(&raw.pool_name)?,
            member_uuid: Uuid::from_bytes(raw.member_uuid),
            owner: PoolOwner { id: raw.owner_id, epoch: raw.owner_epoch },
            state: match raw.state {
                1 => LabelState::Creating,
                2 => LabelState::Ready,
                _ => return Err(Damage::Invalid("the state is unknown")),
            },
            holder: raw.flags & 1 != 0,
            block_bytes: raw.block_bytes,
            unit_bytes,
            len_bytes: raw.len_bytes,
        })
    }

    /// Returns all bytes of the slot.
    pub fn emit(&self) -> Vec<u8> {
        let raw = RawLabel {
            magic: MAGIC,
            version: VERSION,
            crc32c: 0,
            generation: self.generation,
            pool_uuid: self.pool_uuid.into_bytes(),
            member_uuid: self.member_uuid.into_bytes(),
            owner_id: self.owner.id,
            owner_epoch: self.owner.epoch,
            state: match self.state {
                LabelState::Creating => 1,
                LabelState::Ready => 2,
            },
            flags: u32::from(self.holder),
            block_bytes: self.block_bytes,
            unit_shift: self.unit_bytes.trailing_zeros(),
            len_bytes: self.len_bytes,
            pool_name: emit_name(&self.pool_name),
        };
        let mut bytes = [0; BLOCK_BYTES];
        raw.emit(&mut bytes);
        seal(&mut bytes);
        bytes.to_vec()
    }
}
