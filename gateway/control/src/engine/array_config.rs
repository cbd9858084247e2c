//! The settings and the identity with which the gateway connects to an array.

use crate::address::resolve;
use crate::error::{Fault, Refusal, device};
use std::time::Duration;
use trefoil_config::{Backend, MAX_KEEP_ALIVE_S, default_serial};
use trefoil_storage::backend::nvme_tcp::NvmeTcpConfig;
use trefoil_storage::initiator::{ControllerConfig, FenceRule, Identity, MAX_KATO_MS, Purpose, QueueEntries};
use trefoil_wire::fabrics::{Nqn, NqnError};

const _: () = assert!(MAX_KEEP_ALIVE_S * 1000 == MAX_KATO_MS, "hosts are told a CQT that is made from it");

/// Returns the settings for an array's channels.
///
/// # Errors
/// The backend has no address, the address doesn't resolve, or one of the backend's NQN fields is not an NQN.
pub fn array_config(backend: &Backend, gateway: &str, requests: usize) -> Result<NvmeTcpConfig, Refusal> {
    let missing = || {
        Refusal::new(
            Fault::Invalid,
            format!("backend `{}`: address: the field `address` is missing", backend.name),
        )
    };
    let address = backend.address.ok_or_else(missing)?;
    let to = resolve(address)
        .map_err(|e| device(format!("backend `{}`: address: {address}", backend.name), &e))?;
    let kato_ms = backend.keep_alive_s.unwrap_or(MAX_KEEP_ALIVE_S).clamp(1, MAX_KEEP_ALIVE_S) * 1000;
    let controller = ControllerConfig {
        addrs: vec![to],
        identity: identity(backend, gateway)?,
        purpose: Purpose::Nvm { nsid: backend.nsid.unwrap_or(1) },
        digests: (backend.header_digest.unwrap_or(false), backend.data_digest.unwrap_or(false)),
        kato_ms,
        io_queues: backend.queues.unwrap_or(u16::MAX),
        entries: QueueEntries::new(backend.depth.unwrap_or(128)),
        reconnect: (Duration::from_millis(100), Duration::from_secs(5)),
        connect_timeout: Duration::from_secs(5),
        admin_timeout: Duration::from_secs(30),
        loss_timeout: Duration::from_secs(u64::from(backend.loss_timeout_s.unwrap_or(60))),
        fence: FenceRule::KeepAliveBound,
        discovery_entries: 0,
    };
    Ok(NvmeTcpConfig { controller, command_timeout: Duration::from_secs(30), requests })
}

/// Returns the identity under which the gateway connects to an array: the host's names and the array's subsystem.
///
/// # Errors
/// One of the backend's NQN fields is not an NQN.
pub fn identity(backend: &Backend, gateway: &str) -> Result<Identity, Refusal> {
    let invalid = |field: &str, e: NqnError| {
        Refusal::new(Fault::Invalid, format!("backend `{}`: {field}: {e}", backend.name))
    };
    let subnqn = backend.subnqn.as_deref().unwrap_or_default();
    let own = format!("nqn.2014-08.org.nvmexpress:uuid:{}", identifier(gateway));
    let hostnqn = backend.hostnqn.as_deref().unwrap_or(&own);
    // The host identifier is derived from the host NQN, so that an array takes both for the same host.
    let suffix = hostnqn.rsplit(':').next().and_then(|id| uuid::Uuid::try_parse(id).ok());
    let host_id = suffix.unwrap_or_else(|| identifier(hostnqn));
    Ok(Identity {
        host_nqn: Nqn::new(hostnqn).map_err(|e| invalid("hostnqn", e))?,
        host_id: *host_id.as_bytes(),
        subsystem_nqn: Nqn::new(subnqn).map_err(|e| invalid("subnqn", e))?,
    })
}

/// Derives a UUID (version 8) from a name.
fn identifier(name: &str) -> uuid::Uuid {
    let hash = |text: &str| u64::from_str_radix(&default_serial(text)[2..], 16).unwrap_or_default();
    let bytes = uuid::Uuid::from_u64_pair(hash(name), hash(&format!("{name}/2"))).into_bytes();
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
