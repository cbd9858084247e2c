//! The gateway's reports about the array: whether the gateway reaches the array, the sizes and access rights of its namespaces,
//! and failed commands.

use trefoil_storage::topology::{Access, BackendId, LunId};

use crate::node::Node;
use crate::run::sizes::{IMPORTED, LUNS};
use crate::run::{ARRAY_BACK, GRACE, Run};

impl Run {
    /// Records whether the gateway reaches a backend.
    pub(in crate::run) fn on_backend_state(&mut self, backend: BackendId, usable: bool) {
        let Some(array) = &mut self.array else { return };
        array.usable[backend.0 as usize] = usable;
        if array.lost && !array.out && array.backends.iter().all(|&b| array.usable[b]) {
            self.world.after(GRACE, ARRAY_BACK);
        }
    }

    /// Records the size that the gateway reports for a backend. If the imported namespace grew, requests another import.
    pub(in crate::run) fn on_backend_len(&mut self, backend: BackendId, len_bytes: u64) {
        let at = backend.0 as usize;
        if at != IMPORTED || len_bytes == self.lens[at] {
            return;
        }
        if len_bytes < self.lens[at] {
            let what = format!("backend {at} shrank to {len_bytes} bytes");
            return self.workload.borrow_mut().model.violate(what);
        }
        self.lens[at] = len_bytes;
        self.fired("array-grown");
        self.pools.reimport();
        self.pool_step();
    }

    /// Returns whether the gateway presents the array's current size.
    pub(in crate::run) fn knows_array(&mut self) -> bool {
        !self.is_remote(IMPORTED) || self.world.disk(self.disks[IMPORTED]).len_bytes() == self.lens[IMPORTED]
    }

    /// Records a backend's new access rights. Has the topology published again, so that hosts learn these rights.
    pub(in crate::run) fn on_backend_access(&mut self, backend: BackendId, access: Access) {
        self.access[backend.0 as usize] = access;
        self.pools.stale = true;
        self.pool_step();
    }

    /// Returns whether path errors have a cause.
    pub(in crate::run) fn is_lost(&self) -> bool {
        self.array.as_ref().is_some_and(|array| array.lost || array.ana_is_bad)
    }

    /// Checks that the gateway failed no command without a cause. Hosts retry failed commands, so this error would otherwise stay
    /// hidden. The check does not apply to seeds in which hosts disconnect.
    pub(in crate::run) fn check_errors(&mut self) {
        if !self.is_upset() || self.array.as_ref().is_some_and(|array| array.both) {
            return;
        }
        if self.workload.borrow().model.path_failures() > 0 {
            let what = "a command failed that its host was to be told to wait with".to_owned();
            return self.workload.borrow_mut().model.violate(what);
        }
        let mut errors = 0;
        for core in 0..self.cores {
            if let Some(Node::Gateway(gateway)) = self.world.machine(self.gateway, core) {
                errors +=
                    (0..LUNS as u32).map(|lun| gateway.target().lun_stats(LunId(lun)).errors).sum::<u64>();
            }
        }
        let Some(array) = &mut self.array else { return };
        let before = std::mem::replace(&mut array.errors, errors);
        let mut workload = self.workload.borrow_mut();
        if errors > before && !self.error_cause {
            let what = format!("{} commands of hosts failed without a cause", errors - before);
            workload.model.violate(what);
        }
        drop(workload);
        self.error_cause = self.workload.borrow().model.has_excuses() || self.is_lost();
    }
}
