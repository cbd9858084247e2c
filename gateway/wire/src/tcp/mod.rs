//! NVMe/TCP protocol data units (NVMe-oF TCP Transport 1.0c §3).
//!
//! A receiver reads in three steps, since each tells how much the next one takes:
//! 1. eight bytes: [`CommonHeader::parse`], then [`CommonHeader::layout`] under the connection's [`Framing`] says how
//!    long the header (with its digest), the padding, the data and the data digest are;
//! 2. the header: [`Framing::check_header_digest`], then the `parse` of its PDU type;
//! 3. the data, whose digest is [`digest`] and [`digest_append`].
//!
//! A [`HeaderError`] is fatal: it holds what the terminate request must say.
//!
//! Not here: which PDU is legal when, and whether data lies within what an R2T asked for. Those are the connection's.

mod error;
mod header;

mod initialize;

mod capsule;
mod data;

mod terminate;

mod digest;

pub use capsule::{CapsuleCmd, CapsuleResp};
pub use data::{C2hData, H2cData, R2t};
pub use digest::{DIGEST_LEN, digest, digest_append};
pub use error::{FatalStatus, Fault, HeaderError, field};
pub use header::{CommonHeader, Framing, Layout, PduType, Receiver, flag};
pub use initialize::{IcReq, IcResp};
pub use terminate::{TermReq, TermReqDirection};
