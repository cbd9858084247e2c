//! NVMe/TCP protocol data units (NVMe-oF TCP Transport 1.0c §3).
//!
//! A receiver reads a PDU in three steps, because each step yields the size of the next step:
//! 1. eight bytes: [`CommonHeader::parse`], then [`CommonHeader::layout`] under the connection's [`Framing`] gives the
//!    lengths of the header (with its digest), the padding, the data and the data digest;
//! 2. the rest of the header: [`Framing::check_header_digest`], then the function `parse` of the PDU type;
//! 3. the data: [`digest()`] and [`digest_append`] compute its digest.
//!
//! A [`HeaderError`] is fatal, and has the status for the terminate request.
//!
//! Not here: checks whether a PDU is legal in the connection's state, and whether data lies within the range of an R2T. The
//! connection makes both checks.

mod error;
mod header;

mod initialize;

mod capsule;
mod data;

mod terminate;

mod digest;

pub use capsule::{CapsuleCmd, CapsuleResp};
pub use data::{C2hData, H2cData, R2t};
pub use digest::{digest, digest_append};
pub use error::{FatalStatus, Fault, HeaderError, field};
pub use header::{CommonHeader, DIGEST_LEN, Framing, Layout, PduType, Receiver, flag};
pub use initialize::{IcReq, IcResp};
pub use terminate::{TermReq, TermReqDirection};
