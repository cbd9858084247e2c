//! JSON-RPC 2.0 as SPDK's clients speak it.
//!
//! What it is: the values on a stream without framing ([`stream`]), the parts of a request ([`request`]), the answers to
//! requests and batches ([`call`]), and the listeners ([`server`]).
//!
//! What it is not: the methods. A [`Dispatch`] carries them out.
//!
//! Spec: <https://www.jsonrpc.org/specification>, and SPDK's `doc/jsonrpc.md` for the error codes.

pub mod call;
pub mod request;
pub mod server;
pub mod stream;

use serde::Serialize;
use serde_json::Value;
use trefoil_config::cut_quotations;

/// An error in the form in which a client gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// The code. A code below -32000 is a code of JSON-RPC, and -1 means wrong state. Any other code is a negated errno, as in
    /// SPDK.
    pub code: i32,
    /// The message, for a person.
    pub message: String,
}

/// Invalid JSON.
pub const PARSE_ERROR: i32 = -32700;
/// Not a request.
pub const INVALID_REQUEST: i32 = -32600;
/// No such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// Wrong, missing or unknown parameters.
pub const INVALID_PARAMS: i32 = -32602;
/// A failure inside the gateway.
pub const INTERNAL_ERROR: i32 = -32603;
/// The method may not be called now.
pub const WRONG_STATE: i32 = -1;

impl RpcError {
    /// Makes an error with this code and message.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: cut_quotations(&message.into()) }
    }

    /// Makes an error for wrong parameters.
    pub fn params(message: impl Into<String>) -> Self {
        Self::new(INVALID_PARAMS, message)
    }
}

/// Carries out methods.
pub trait Dispatch {
    /// Carries out one method. `params` is `Null` if the request had none.
    fn call(&self, method: String, params: Value) -> impl Future<Output = Result<Value, RpcError>>;
}
