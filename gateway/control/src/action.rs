//! Everything that can be asked of a gateway, in one enum.
//!
//! Methods, native and SPDK's, only translate into these. Each variant says when it is legal.

use crate::error::{Fault, Refusal};
use crate::loss::Permit;
use crate::state::Transport;
use trefoil_config::{Address, Backend, Bytes, Config, Host, Lun, Pool, Subsystem};
use uuid::Uuid;

/// Where a gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being brought up from its store; hosts can't connect yet.
    Starting,
    /// It serves.
    Running,
    /// It was asked to stop.
    Stopping,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Action {
    /// Legal when running: changes the desired state, all or nothing.
    Change(Change),
    /// Legal when running: says what a change would do.
    Preview(Change),
    /// Legal always: the state, and what the engine knows about its parts.
    View,
    /// Legal when running or stopping: asks every core for its queue pairs.
    Survey,
    /// Legal when running or stopping: asks every core what hosts did with LUNs.
    LunStats,
    /// Legal when starting or running: an orderly stop. Listeners close and hosts are disconnected.
    Shutdown,
    /// Legal when stopping: nothing is presented any more, and backends are let go.
    Halt,
}

/// A change of the desired state. All are legal when running, and their other conditions are the
/// plan's: see [`crate::plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Legal if nothing has its name.
    BackendCreate(Backend),
    /// Legal if no pool and no LUN uses it.
    BackendDelete {
        /// Which.
        name: String,
    },
    /// Legal if nothing has its name and its backends are there and unused.
    PoolCreate {
        /// What it is to be.
        pool: Pool,
        /// Though a file system or the like is recognised on a backend, and will be lost.
        delete_data: bool,
    },
    /// Legal if no LUN is in it, or with `delete_data`; one that is down keeps its labels on its backends.
    PoolDelete {
        /// Which.
        name: String,
        /// With its LUNs. Legal if no subsystem shows one, or with `force`.
        delete_data: bool,
        /// Take its LUNs out of their subsystems.
        force: bool,
    },
    /// Legal if nothing has its name; from a pool, or a whole backend (an import).
    LunCreate(Lun),
    /// Legal if no subsystem shows it, or with `force`; one from a pool loses its data.
    LunDelete {
        /// Which.
        name: String,
        /// Take it out of its subsystems.
        force: bool,
    },
    /// Legal for a whole backend that no subsystem shows, or with `force`; its data stays.
    LunRelease {
        /// Which.
        name: String,
        /// Take it out of its subsystems.
        force: bool,
    },
    /// Legal for a LUN of a pool, to a larger size.
    LunGrow {
        /// Which.
        name: String,
        /// Its new size.
        size: Bytes,
    },
    /// Legal if nothing has its NQN.
    SubsystemCreate(Subsystem),
    /// Legal if it is there, and nobody is connected or with `force`; its hosts are disconnected.
    SubsystemDelete {
        /// Which.
        nqn: String,
        /// Though hosts are connected.
        force: bool,
    },
    /// Legal if the LUN is there and not in this subsystem, and the NSID is free.
    NamespaceAdd {
        /// The subsystem.
        nqn: String,
        /// The NSID, or the lowest that is free.
        nsid: Option<u32>,
        /// The LUN.
        lun: String,
        /// Who sees it; all who may connect if `None`.
        hosts: Option<Vec<String>>,
        /// Give the LUN this UUID. Legal if no other subsystem shows it.
        uuid: Option<Uuid>,
        /// Give the LUN this NGUID. Likewise.
        nguid: Option<String>,
    },
    /// Legal if it is there.
    NamespaceRemove {
        /// The subsystem.
        nqn: String,
        /// Which.
        nsid: u32,
    },
    /// Legal if the subsystem is not offered there yet.
    ListenerAdd {
        /// The subsystem.
        nqn: String,
        /// Where.
        listen: Address,
    },
    /// Legal if the subsystem is offered there.
    ListenerRemove {
        /// The subsystem.
        nqn: String,
        /// Where.
        listen: Address,
    },
    /// Legal if the host isn't on the list yet. A namespace that all could see gets its first list by it, so that the others
    /// see it no more: if one of them is connected, only with `force`.
    HostAllow {
        /// The subsystem.
        nqn: String,
        /// The namespace whose list is meant, or the subsystem's own.
        nsid: Option<u32>,
        /// The host: an NQN or a name.
        host: String,
        /// Though connected hosts lose the namespace.
        force: bool,
    },
    /// Legal if the host is on the list.
    HostRevoke {
        /// The subsystem.
        nqn: String,
        /// The namespace whose list is meant, or the subsystem's own.
        nsid: Option<u32>,
        /// The host: an NQN or a name.
        host: String,
    },
    /// Legal if the subsystem is there, and if no connected host loses it or with `force`.
    AllowAnyHost {
        /// The subsystem.
        nqn: String,
        /// Whether every host may connect.
        allow: bool,
        /// Though connected hosts lose it.
        force: bool,
    },
    /// Legal if nothing has its name.
    HostCreate(Host),
    /// Legal if it is there; lists keep its NQN.
    HostDelete {
        /// Which.
        name: String,
    },
    /// Legal if there is none yet.
    TransportCreate(Transport),
    /// A backend and the LUN that presents it whole, both with its name: what SPDK calls a bdev.
    /// Legal if nothing has its name.
    BdevCreate {
        /// The backend.
        backend: Backend,
        /// The LUN's UUID.
        uuid: Option<Uuid>,
    },
    /// The namespaces of an array's subsystem as backends. Legal if nothing has their names.
    Attach {
        /// One for each.
        backends: Vec<Backend>,
        /// Each with a LUN of its name that presents it whole.
        whole: bool,
    },
    /// Backends, the LUNs that present them whole, and their namespaces. Legal as [`Change::BdevDelete`].
    Detach {
        /// Which.
        names: Vec<String>,
    },
    /// Both again. Legal if they belong together; its namespaces go too, as with SPDK.
    BdevDelete {
        /// Which.
        name: String,
    },
    /// Legal for a sound document that changes no backend, pool or identity in place, as far as it loses only what may be.
    Apply {
        /// What the system is to be like.
        config: Box<Config>,
        /// What may be lost by it.
        permit: Permit,
    },
    /// All of these, one after another, as one change. Legal if each is after the ones before it.
    Load(Vec<Change>),
}

impl Change {
    /// What it may take without naming it; `None` if it names all that it takes, which is leave enough.
    pub fn permit(&self) -> Option<Permit> {
        match self {
            Self::SubsystemDelete { force, .. }
            | Self::HostAllow { force, .. }
            | Self::AllowAnyHost { force, .. } => Some(Permit { force: *force, delete_data: false }),
            Self::PoolCreate { delete_data, .. } => Some(Permit { force: false, delete_data: *delete_data }),
            Self::Apply { permit, .. } => Some(*permit),
            Self::Load(_) => Some(Permit::default()),
            Self::BackendCreate(_)
            | Self::BackendDelete { .. }
            | Self::PoolDelete { .. }
            | Self::LunCreate(_)
            | Self::LunDelete { .. }
            | Self::LunRelease { .. }
            | Self::LunGrow { .. }
            | Self::SubsystemCreate(_)
            | Self::NamespaceAdd { .. }
            | Self::NamespaceRemove { .. }
            | Self::ListenerAdd { .. }
            | Self::ListenerRemove { .. }
            | Self::HostRevoke { .. }
            | Self::HostCreate(_)
            | Self::HostDelete { .. }
            | Self::TransportCreate(_)
            | Self::BdevCreate { .. }
            | Self::Attach { .. }
            | Self::Detach { .. }
            | Self::BdevDelete { .. } => None,
        }
    }

    /// Its name, for the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BackendCreate(_) => "backend_create",
            Self::BackendDelete { .. } => "backend_delete",
            Self::PoolCreate { .. } => "pool_create",
            Self::PoolDelete { .. } => "pool_delete",
            Self::LunCreate(_) => "lun_create",
            Self::LunDelete { .. } => "lun_delete",
            Self::LunRelease { .. } => "lun_release",
            Self::LunGrow { .. } => "lun_grow",
            Self::SubsystemCreate(_) => "subsystem_create",
            Self::SubsystemDelete { .. } => "subsystem_delete",
            Self::NamespaceAdd { .. } => "namespace_add",
            Self::NamespaceRemove { .. } => "namespace_remove",
            Self::ListenerAdd { .. } => "listener_add",
            Self::ListenerRemove { .. } => "listener_remove",
            Self::HostAllow { .. } => "host_allow",
            Self::HostRevoke { .. } => "host_revoke",
            Self::AllowAnyHost { .. } => "allow_any_host",
            Self::HostCreate(_) => "host_create",
            Self::HostDelete { .. } => "host_delete",
            Self::TransportCreate(_) => "transport_create",
            Self::BdevCreate { .. } => "bdev_create",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::BdevDelete { .. } => "bdev_delete",
            Self::Apply { .. } => "apply",
            Self::Load(_) => "load",
        }
    }
}

impl Action {
    /// Whether it is answered without waiting for changes.
    pub fn is_query(&self) -> bool {
        match self {
            Self::View | Self::Survey | Self::LunStats | Self::Preview(_) => true,
            Self::Change(_) | Self::Shutdown | Self::Halt => false,
        }
    }

    /// Whether it may be done in this phase.
    ///
    /// # Errors
    /// [`Fault::WrongState`], naming the phase.
    pub fn check_phase(&self, phase: Phase) -> Result<(), Refusal> {
        let legal = match (self, phase) {
            (Self::View, _) => true,
            (Self::Change(_) | Self::Preview(_), Phase::Running) => true,
            (Self::Survey | Self::LunStats, Phase::Running | Phase::Stopping) => true,
            (Self::Shutdown, Phase::Starting | Phase::Running) => true,
            (Self::Halt, Phase::Stopping) => true,
            (Self::Change(_) | Self::Preview(_) | Self::Survey | Self::LunStats, _) => false,
            (Self::Shutdown | Self::Halt, _) => false,
        };
        let phase = match phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
        };
        if legal { Ok(()) } else { Err(Refusal::new(Fault::WrongState, format!("the gateway is {phase}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_phases() {
        let change = Change::PoolDelete { name: "p".into(), delete_data: false, force: false };
        let table = [
            (Action::Change(change.clone()), [false, true, false]),
            (Action::Preview(change), [false, true, false]),
            (Action::View, [true, true, true]),
            (Action::Survey, [false, true, true]),
            (Action::LunStats, [false, true, true]),
            (Action::Shutdown, [true, true, false]),
            (Action::Halt, [false, false, true]),
        ];
        for (action, legal) in table {
            for (phase, legal) in [Phase::Starting, Phase::Running, Phase::Stopping].into_iter().zip(legal) {
                assert_eq!(action.check_phase(phase).is_ok(), legal, "{action:?} {phase:?}");
            }
        }
    }
}
