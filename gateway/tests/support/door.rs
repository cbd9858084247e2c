//! A listener of a [`Gateway`](super::Gateway).

use super::Senders;
use super::mail::send;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use trefoil_storage::Msg;
use trefoil_storage::topology::PortalId;
use trefoil_sys::socket;

/// Accepts connections, and gives them to the cores in turn.
pub(super) struct Door {
    pub listener: TcpListener,
    pub portal: PortalId,
    pub place: Arc<AtomicUsize>,
    pub to_cores: Senders,
    pub stop: Arc<AtomicBool>,
}

impl Door {
    /// Accepts connections until the gateway stops.
    pub fn keep(self) {
        let cores = self.to_cores.lock().expect("no thread panicked with it").len();
        loop {
            let (socket, peer) = self.listener.accept().expect("a connection");
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let local = socket.local_addr().expect("connected");
            if socket::prepare_accepted(&socket).is_err() {
                continue;
            }
            let core = self.place.fetch_add(1, Ordering::SeqCst) % cores;
            let socket = socket.into();
            send(
                &self.to_cores,
                core,
                Msg::Adopt { socket, portal: self.portal, local, peer, initialized: false },
            );
        }
    }
}
