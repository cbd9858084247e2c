//! Gives each core a connection to itself. Over this connection, the core keeps itself warm: see [`trefoil_storage::warm`].

use crate::engine::cores::Cores;
use crate::engine::socket_options;
use crate::error::{Fault, Refusal, device};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use trefoil_config::{Gateway, Idle};
use trefoil_poll::CoreId;
use trefoil_storage::Msg;
use trefoil_storage::topology::PortalId;
use trefoil_storage::warm::WarmHost;
use trefoil_sys::socket;
use trefoil_wire::fabrics::Nqn;
use uuid::Uuid;

/// Time limit for the connection. A connection over loopback comes up at once. If a firewall drops its packets, the connect
/// would take minutes without this limit, and the gateway would serve no host meanwhile.
const WITHIN: Duration = Duration::from_millis(200);

/// Gives each core its connection, if the cores sleep when idle and `gateway.keep_warm_ms` is not 0. If this fails for a core,
/// a warning is logged, and the core runs without the connection.
pub async fn keep_warm(cores: &Cores, gateway: &Gateway) {
    if gateway.idle == Idle::Spin || gateway.keep_warm_ms == 0 {
        return;
    }
    let every = Duration::from_millis(gateway.keep_warm_ms.into());
    for core in cores.all() {
        if let Err(error) = give(cores, gateway, core, every).await {
            tracing::warn!(core = core.0, %error, "a core can't connect to itself: its first request after idle will be slower");
        }
    }
}

async fn give(cores: &Cores, gateway: &Gateway, core: CoreId, every: Duration) -> Result<(), Refusal> {
    let id = Uuid::new_v4();
    let nqn = Nqn::new(&format!("nqn.2014-08.org.nvmexpress:uuid:{id}"));
    let nqn = nqn.map_err(|e| Refusal::new(Fault::Internal, e.to_string()))?;
    let host = Box::new(WarmHost::new(nqn, id.into_bytes(), every));
    let (asks, peer, answers, local) = pair(gateway).map_err(|e| device("loopback", &e))?;
    cores
        .send(
            core,
            Msg::Adopt { socket: answers.into(), portal: PortalId::OWN, local, peer, initialized: false },
        )
        .await?;
    cores.send(core, Msg::KeepWarm { socket: asks.into(), to: local, host }).await
}

/// Returns a connection over loopback with the gateway's socket options. Returns the end that connected and its address, then
/// the end that accepted and its address.
fn pair(gateway: &Gateway) -> io::Result<(TcpStream, SocketAddr, TcpStream, SocketAddr)> {
    pair_over(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, gateway)
}

fn pair_over(
    listener: TcpListener,
    gateway: &Gateway,
) -> io::Result<(TcpStream, SocketAddr, TcpStream, SocketAddr)> {
    if let Some(algorithm) = socket_options(gateway).congestion_control {
        algorithm.set(&listener)?;
    }
    let local = listener.local_addr()?;
    let asks = TcpStream::connect_timeout(&local, WITHIN)?;
    let peer = asks.local_addr()?;
    let answers = loop {
        // Another process on this machine may have connected first.
        let (answers, from) = listener.accept()?;
        if from == peer {
            break answers;
        }
    };
    socket::prepare_accepted(&asks)?;
    socket::prepare_accepted(&answers)?;
    Ok((asks, peer, answers, local))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_connection_that_does_not_come_up_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let to = listener.local_addr().expect("its address");
        // A listener with a full backlog ignores new connections, as a firewall does.
        let connect = || TcpStream::connect_timeout(&to, WITHIN).ok();
        let held: Vec<_> = std::iter::from_fn(connect).take(10_000).collect();
        let begun = Instant::now();
        let refused = pair_over(listener, &Gateway::default()).expect_err("no connection");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut, "beside {}", held.len());
        assert!(begun.elapsed() < 10 * WITHIN, "{:?}", begun.elapsed());
    }
}
