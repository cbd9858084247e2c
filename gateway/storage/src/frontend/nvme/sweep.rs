//! The walk that applies a new topology to the connected hosts. `admin/topology.rs` executes the steps of this walk.

use crate::topology::Topology;
use std::sync::Arc;

/// The most sweeps that can wait. Control publishes one topology after the other. So two sweeps wait only after control has
/// stopped waiting for a slow core.
pub const MAX_SWEEPS: usize = 4;

/// The walk from one topology to the next.
#[derive(Debug)]
pub struct Sweep {
    pub old: Arc<Topology>,
    pub new: Arc<Topology>,
    /// True if the discovery log changes.
    pub discovery: bool,
    pub place: SweepCursor,
}

/// The next step of a sweep.
#[derive(Clone, Copy, Debug)]
pub enum SweepCursor {
    /// Close this queue if its host may not stay connected.
    Queue(u32),
    /// Clear the counters of this LUN number if another LUN has the number now.
    Lun(usize),
    /// Compare this subsystem of the new topology with the old subsystem.
    Subsystem(usize),
    /// Compare these namespaces of a subsystem, and report a difference to this controller.
    Namespace {
        subsystem: usize,
        before: usize,
        was: usize,
        is: usize,
        ctrlr: u32,
    },
    /// Raise the discovery event if this is a discovery controller.
    Discovery(u32),
    End,
}
