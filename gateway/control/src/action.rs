//! All actions that a client can ask of a gateway, in one enum.
//!
//! Native methods and SPDK's methods only translate a call into one of these actions. Each variant says when the action is
//! legal.

use crate::error::{Fault, Refusal};
use crate::loss::Permit;
use crate::state::Transport;
use trefoil_config::{Address, Backend, Bytes, Config, Host, Lun, Pool, Subsystem};
use uuid::Uuid;

/// The phase of a gateway's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The gateway brings up its objects from the store. Hosts can't connect yet.
    Starting,
    /// The gateway serves.
    Running,
    /// The gateway was asked to stop.
    Stopping,
}

/// An action that a client asks for.
#[derive(Clone, Debug)]
pub enum Action {
    /// Changes the desired state, all or nothing. Legal when running.
    Change(Change),
    /// Returns the effects that a change would have. Legal when running.
    Preview(Change),
    /// Returns the state, and the engine's knowledge about the state's objects. Legal always.
    View,
    /// Asks every core for its queue pairs. Legal when running or stopping.
    Survey,
    /// Asks every core for its statistics of LUNs. Legal when running or stopping.
    LunStats,
    /// Begins an orderly stop: closes listeners and disconnects hosts. Legal when starting or running.
    Shutdown,
    /// Withdraws all objects from the cores, and detaches the backends. Legal when stopping.
    Halt,
}

/// A change of the desired state. All changes are legal when running. The plan checks their other conditions: see
/// [`crate::plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a backend. Legal if no backend has the new backend's name.
    BackendCreate(Backend),
    /// Deletes a backend. Legal if no pool and no LUN uses the backend.
    BackendDelete {
        /// The backend's name.
        name: String,
    },
    /// Makes a pool. Legal if no pool has the new pool's name, and the new pool's backends exist and are unused.
    PoolCreate {
        /// The pool to make.
        pool: Pool,
        /// Makes the pool even if a file system or similar data is recognised on a backend. The data is lost.
        delete_data: bool,
    },
    /// Deletes a pool. Legal if no LUN is in the pool, or with `delete_data`. If the pool is down, its labels stay on its
    /// backends.
    PoolDelete {
        /// The pool's name.
        name: String,
        /// Deletes the pool's LUNs too. Legal if no subsystem shows such a LUN, or with `force`.
        delete_data: bool,
        /// Takes the pool's LUNs out of their subsystems.
        force: bool,
    },
    /// Makes a LUN from a pool or from a whole backend (an import). Legal if no LUN has this name. Also legal if the LUN of
    /// this name is the same LUN, and the request gives the UUID of this LUN.
    LunCreate(Lun),
    /// Deletes a LUN of a pool, with its data. Legal if no subsystem shows the LUN, or with `force`.
    LunDelete {
        /// The LUN's name.
        name: String,
        /// Takes the LUN out of its subsystems.
        force: bool,
    },
    /// Releases a LUN that is a whole backend. Legal if no subsystem shows the LUN, or with `force`. The data stays.
    LunRelease {
        /// The LUN's name.
        name: String,
        /// Takes the LUN out of its subsystems.
        force: bool,
    },
    /// Grows a LUN. Legal if the LUN is in a pool and the new size is larger.
    LunGrow {
        /// The LUN's name.
        name: String,
        /// The LUN's new size.
        size: Bytes,
    },
    /// Makes a subsystem. Legal if no subsystem has the new subsystem's NQN.
    SubsystemCreate(Subsystem),
    /// Deletes a subsystem. Legal if the subsystem exists and no host is connected to it. With `force`, also legal while hosts
    /// are connected: they are disconnected.
    SubsystemDelete {
        /// The subsystem's NQN.
        nqn: String,
        /// Deletes the subsystem even if hosts are connected.
        force: bool,
    },
    /// Shows a LUN in a subsystem. Legal if the LUN exists and is not in this subsystem, and the NSID is free.
    NamespaceAdd {
        /// The subsystem.
        nqn: String,
        /// The NSID. If `None`, the lowest free NSID.
        nsid: Option<u32>,
        /// The LUN.
        lun: String,
        /// The hosts that see the namespace. If `None`, all hosts that may connect.
        hosts: Option<Vec<String>>,
        /// Gives the LUN this UUID. Legal if no other subsystem shows the LUN.
        uuid: Option<Uuid>,
        /// Gives the LUN this NGUID. Legal if no other subsystem shows the LUN.
        nguid: Option<String>,
    },
    /// Removes a namespace from a subsystem. Legal if the namespace exists.
    NamespaceRemove {
        /// The subsystem.
        nqn: String,
        /// The namespace's NSID.
        nsid: u32,
    },
    /// Offers a subsystem on a listener. Legal if the subsystem is not offered there yet.
    ListenerAdd {
        /// The subsystem.
        nqn: String,
        /// The listener's address.
        listen: Address,
    },
    /// Ends the offer of a subsystem on a listener. Legal if the subsystem is offered there.
    ListenerRemove {
        /// The subsystem.
        nqn: String,
        /// The listener's address.
        listen: Address,
    },
    /// Puts a host on a list. Legal if the host isn't on the list yet. If all hosts could see the namespace, the namespace now
    /// gets its first list. Hosts that are not on this list no longer see the namespace. If a connected host would lose the
    /// namespace, the change is legal only with `force`.
    HostAllow {
        /// The subsystem.
        nqn: String,
        /// The NSID of the namespace whose list changes. If `None`, the subsystem's own list changes.
        nsid: Option<u32>,
        /// The host: an NQN or a name.
        host: String,
        /// Puts the host on the list even if connected hosts lose the namespace.
        force: bool,
    },
    /// Takes a host off a list. Legal if the host is on the list.
    HostRevoke {
        /// The subsystem.
        nqn: String,
        /// The NSID of the namespace whose list changes. If `None`, the subsystem's own list changes.
        nsid: Option<u32>,
        /// The host: an NQN or a name.
        host: String,
    },
    /// Sets whether every host may connect. Legal if the subsystem exists and no connected host loses the subsystem. With
    /// `force`, also legal if connected hosts lose it.
    AllowAnyHost {
        /// The subsystem.
        nqn: String,
        /// `true` if every host may connect.
        allow: bool,
        /// Makes the change even if connected hosts lose the subsystem.
        force: bool,
    },
    /// Gives a host a name. Legal if no host has the name or the NQN.
    HostCreate(Host),
    /// Deletes a host's name. Legal if the name exists. Lists keep the host's NQN.
    HostDelete {
        /// The host's name.
        name: String,
    },
    /// Makes the TCP transport. Legal if there is none yet.
    TransportCreate(Transport),
    /// Makes a backend and the LUN that presents the whole backend. The backend and the LUN have the same name. SPDK calls such
    /// a pair a bdev. Legal if no backend and no LUN has the name.
    BdevCreate {
        /// The backend.
        backend: Backend,
        /// The LUN's UUID.
        uuid: Option<Uuid>,
    },
    /// Makes backends from the namespaces of an array's subsystem. Legal if no object has one of their names.
    Attach {
        /// One backend for each namespace.
        backends: Vec<Backend>,
        /// Also makes, for each backend, a LUN of the same name that presents the whole backend.
        whole: bool,
    },
    /// Deletes backends, each LUN that presents one of these backends as a whole, and the namespaces of these LUNs. Legal under
    /// the conditions of [`Change::BdevDelete`].
    Detach {
        /// The names of the backends.
        names: Vec<String>,
    },
    /// Deletes a backend and the LUN that presents the whole backend. Legal if the two belong together. As with SPDK, the LUN's
    /// namespaces are deleted too.
    BdevDelete {
        /// The name of the backend and of the LUN.
        name: String,
    },
    /// Changes the state to the state that a document asks for. Legal if the document is valid, if it changes no backend, pool
    /// or identity in place, and if `permit` allows all losses.
    Apply {
        /// The document that describes the new state.
        config: Box<Config>,
        /// The losses that are allowed.
        permit: Permit,
    },
    /// Makes these changes in order, as one change. Legal if each change is legal after the changes before it.
    Load(Vec<Change>),
}

impl Change {
    /// Returns the permission for losses that the change causes without naming the lost objects. Returns `None` if the change
    /// names every object that it takes: to name the object is permission enough.
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

    /// Returns the change's name, for the log.
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
    /// Returns whether the engine answers the action without waiting for changes.
    pub fn is_query(&self) -> bool {
        match self {
            Self::View | Self::Survey | Self::LunStats | Self::Preview(_) => true,
            Self::Change(_) | Self::Shutdown | Self::Halt => false,
        }
    }

    /// Checks that the action is legal in this phase.
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
