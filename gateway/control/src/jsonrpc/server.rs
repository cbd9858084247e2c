//! The listeners: a unix socket that only its owner and root may use, and a TCP port if one is configured.

use super::call::{answer, failure};
use super::stream::{Splitter, StreamError};
use super::{Dispatch, INVALID_REQUEST, PARSE_ERROR, RpcError};
use crate::address::resolve;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::value::RawValue;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use trefoil_config::Address;

/// The most clients at a time. Each may buffer a request of the largest size.
const MAX_CLIENTS: usize = 32;
/// The time limit for sending one answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A reason why the control socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the socket.
    #[error("{}: another process already listens on this socket", .0.display())]
    InUse(PathBuf),
    /// A file that is not a socket is at the socket's path.
    #[error("{}: a file that is not a socket is at this path: remove it or use another path", .0.display())]
    NotSocket(PathBuf),
    /// The kernel refused a system call for the socket.
    #[error("{}: {error}", .path.display())]
    Os {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The TCP address can't be bound.
    #[error("{0}: {1}")]
    Tcp(Address, io::Error),
}

/// The control socket. The drop removes the socket's path.
#[derive(Debug)]
pub struct RpcSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl RpcSocket {
    /// Opens the socket with mode 0600. Removes the socket of an earlier process first, unless that process still listens.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let os = |error| ListenError::Os { path: path.into(), error };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(os)?;
        }
        if Self::is_left_behind(path)? {
            std::fs::remove_file(path).map_err(os)?;
        }
        // The credentials of each peer are checked too, so the socket is safe even before its mode is set.
        let listener = UnixListener::bind(path).map_err(os)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(os)?;
        Ok(Self { listener, path: path.into() })
    }

    /// Returns whether `path` is a socket that an earlier process left, and on which no process listens any more.
    ///
    /// # Errors
    /// [`ListenError`] if another object is at `path`.
    pub fn is_left_behind(path: &Path) -> Result<bool, ListenError> {
        let os = |error| ListenError::Os { path: path.into(), error };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotSocket(path.into())),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(os(e)),
        }
        // A blocking connect would wait if the listener's backlog is full.
        let (family, kind) = (AddressFamily::Unix, SockType::Stream);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let connected = socket(family, kind, flags, None)
            .and_then(|stream| connect(stream.as_raw_fd(), &UnixAddr::new(path)?));
        match connected {
            Err(Errno::ECONNREFUSED) => Ok(true),
            Ok(()) | Err(Errno::EAGAIN) => Err(ListenError::InUse(path.into())),
            // The socket has another type or belongs to another user, so it may be in use.
            Err(e) => Err(os(e.into())),
        }
    }

    /// Serves clients until the future is dropped.
    pub async fn serve<D: Dispatch + 'static>(self, dispatch: Rc<D>) {
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(permit) = clients.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) if may_control(&stream) => {
                    let dispatch = dispatch.clone();
                    tokio::task::spawn_local(async move {
                        let _permit = permit;
                        let (read, write) = stream.into_split();
                        client(read, write, &*dispatch).await;
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the control socket can't accept a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for RpcSocket {
    fn drop(&mut self) {
        // Best effort: the next start removes a leftover socket.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves clients over TCP, without authentication, until the future is dropped.
///
/// # Errors
/// [`ListenError::Tcp`] if the address can't be resolved or bound.
pub async fn serve_tcp<D: Dispatch + 'static>(at: Address, dispatch: Rc<D>) -> Result<(), ListenError> {
    let failed = |e| ListenError::Tcp(at, e);
    let listener = TcpListener::bind(resolve(at).map_err(failed)?).await.map_err(failed)?;
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, _)) => {
                let dispatch = dispatch.clone();
                tokio::task::spawn_local(async move {
                    let _permit = permit;
                    let (read, write) = stream.into_split();
                    client(read, write, &*dispatch).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control port can't accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Returns whether the peer is root or our own user (SO_PEERCRED).
fn may_control(stream: &UnixStream) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == us => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "the control socket refused a client of another user");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "the control socket refused a client whose user is unknown");
            false
        }
    }
}

/// Serves one client. Ends if the client closes the stream, sends data that is not a request, or doesn't receive an answer in
/// time.
pub async fn client<D, R, W>(mut read: R, mut write: W, dispatch: &D)
where
    D: Dispatch,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut splitter = Splitter::default();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match splitter.next_value() {
            Ok(Some(value)) => {
                let Some(reply) = answer(dispatch, &value).await else { continue };
                if !tell(&mut write, reply).await {
                    return;
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                tell(&mut write, failure(RawValue::NULL, refusal(&error))).await;
                return;
            }
        }
        match read.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(len) => {
                let fed = chunk.get(..len).map_or(Ok(()), |bytes| splitter.feed(bytes));
                if let Err(error) = fed {
                    tell(&mut write, failure(RawValue::NULL, refusal(&error))).await;
                    return;
                }
            }
        }
    }
}

fn refusal(error: &StreamError) -> RpcError {
    let code = match error {
        StreamError::Oversize | StreamError::Depth => INVALID_REQUEST,
        StreamError::Start(_) | StreamError::Syntax(_) => PARSE_ERROR,
    };
    RpcError::new(code, error.to_string())
}

async fn tell<W: AsyncWrite + Unpin>(write: &mut W, reply: String) -> bool {
    let mut text = reply;
    text.push('\n');
    let sent = tokio::time::timeout(WRITE_TIMEOUT, write.write_all(text.as_bytes())).await;
    matches!(sent, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    struct Echo;

    impl Dispatch for Echo {
        async fn call(&self, _method: String, params: Value) -> Result<Value, RpcError> {
            Ok(params)
        }
    }

    fn on_runtime<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn the_socket_is_private_and_answers() {
        on_runtime(async {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("sub/rpc.sock");
            let socket = RpcSocket::bind(&path).expect("a socket");
            let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(matches!(RpcSocket::bind(&path), Err(ListenError::InUse(_))));
            let serving = tokio::task::spawn_local(socket.serve(Rc::new(Echo)));
            let mut stream = UnixStream::connect(&path).await.expect("a connection");
            let request = b"{\"id\":1,\"method\":\"x\",\"params\":{\"a\":1}} {\"id\":2,\"method\":\"x\"}";
            stream.write_all(request).await.expect("sent");
            stream.write_all(b"nonsense").await.expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("answers, then the end");
            let replies: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            assert_eq!(replies[0], json!({"jsonrpc": "2.0", "id": 1, "result": {"a": 1}}));
            assert_eq!(replies[1], json!({"jsonrpc": "2.0", "id": 2, "result": null}));
            assert_eq!(replies[2]["error"]["code"], json!(PARSE_ERROR));
            serving.abort();
            let _ = serving.await;
            assert!(!path.exists());
        });
    }
}
