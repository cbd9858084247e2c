//! A blocking JSON-RPC client on the control socket.

use serde::Serialize;
use serde::de::Error;
use serde_json::{Deserializer, Value};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A reason why a command failed.
#[derive(Debug)]
pub enum CallError {
    /// No process answers on the socket.
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The error of the connection.
        source: io::Error,
    },
    /// The gateway refused the call.
    Refused {
        /// The gateway's code.
        code: i64,
        /// The gateway's message.
        message: String,
    },
    /// The connection ended before a valid answer.
    Broken(String),
    /// A file that the user named can't be read or written.
    File {
        /// The file's path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The answer can't be written to standard output. The command itself was carried out.
    Output(io::Error),
}

impl CallError {
    /// Returns whether the gateway may be stopping or starting now, so that a later call can succeed.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Broken(_) => true,
            Self::Refused { .. } | Self::File { .. } | Self::Output(_) => false,
        }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable { path, source } => {
                let path = path.display();
                if source.kind() == io::ErrorKind::PermissionDenied {
                    let who = "only trefoild's own user may use the socket: try sudo";
                    return write!(f, "the control socket {path}: {source} ({who})");
                }
                let hint = "start trefoild, or give another socket with --socket";
                write!(f, "no gateway answers on the control socket {path}: {source} ({hint})")
            }
            Self::Refused { message, .. } => f.write_str(message),
            Self::Broken(why) => write!(f, "the gateway's answer is incomplete: {why}"),
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Output(error) => error.fmt(f),
        }
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: P,
}

/// A connection to the control socket.
pub struct Client {
    stream: UnixStream,
    next_id: u64,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| CallError::Unreachable { path: path.into(), source })?;
        Ok(Self { stream, next_id: 1 })
    }

    /// Calls a method and waits for its result.
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let broken = |e: &dyn std::fmt::Display| CallError::Broken(e.to_string());
        let request = Request { jsonrpc: "2.0", id, method, params };
        let request = serde_json::to_string(&request).map_err(|e| broken(&e))?;
        self.stream.write_all(request.as_bytes()).map_err(|e| broken(&e))?;
        // The client sends one request at a time, so the reader can't consume a part of another answer.
        let reply = Deserializer::from_reader(&self.stream).into_iter::<Value>().next();
        let reply =
            reply.unwrap_or_else(|| Err(serde_json::Error::custom("the gateway closed the connection")));
        let mut reply = reply.map_err(|e| broken(&e))?;
        if let Some(error) = reply.get("error") {
            let message = error["message"].as_str().unwrap_or_default().to_owned();
            return Err(CallError::Refused { code: error["code"].as_i64().unwrap_or_default(), message });
        }
        Ok(reply["result"].take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_one_may_not_use_is_no_absent_gateway() {
        let said = |kind: io::ErrorKind| {
            CallError::Unreachable { path: "/run/x.sock".into(), source: kind.into() }.to_string()
        };
        assert!(
            said(io::ErrorKind::NotFound).contains("no gateway answers on the control socket /run/x.sock")
        );
        let denied = said(io::ErrorKind::PermissionDenied);
        assert!(denied.contains("/run/x.sock: permission denied") && !denied.contains("running"), "{denied}");
    }
}
