//! Tests of `trefoild` and `trefoil` as processes: first starts, restarts, kills, a lost database, refusals.
#![forbid(unsafe_code)]

mod support;

#[path = "daemon/arrays.rs"]
mod arrays;
#[path = "daemon/documents.rs"]
mod documents;
#[path = "daemon/life.rs"]
mod life;
#[path = "daemon/listeners.rs"]
mod listeners;
#[path = "daemon/load.rs"]
mod load;
#[path = "daemon/pools.rs"]
mod pools;
#[path = "daemon/told.rs"]
mod told;

use trefoil_control::admin::Admin;
use trefoil_storage::initiator::Identity;
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::identify::cns;

const NQN: &str = "nqn.2026-01.org.example:s";
const HOST: &str = "nqn.2026-01.org.example:h";
const ARRAY_NQN: &str = "nqn.2026-01.org.example:array";
const DOCUMENT: &str = r#"
[[backend]]
name = "file0"
type = "file"
path = "DIR/file0.img"
size = "64MiB"

[[pool]]
name = "tank"
backends = ["file0"]

[[lun]]
name = "a"
pool = "tank"
size = "8MiB"

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
allow_any_host = true
namespaces = [{ nsid = 1, lun = "a" }]
"#;

/// Returns [`DOCUMENT`] with a listener.
fn listening() -> String {
    DOCUMENT.replace("allow_any_host = true", "allow_any_host = true\nlisteners = [\"ADDR\"]")
}

/// Returns a host's view of the gateway: the discovery log, and the Identify data of a subsystem's controller and namespaces.
fn host_view(address: &str, nqn: &str) -> String {
    let nqn_of = |nqn: &str| Nqn::new(nqn).expect("an NQN");
    let ask = |nqn: &str| {
        let identity = Identity { host_nqn: nqn_of(HOST), host_id: [7; 16], subsystem_nqn: nqn_of(nqn) };
        Admin::connect(address.parse().expect("an address"), identity).expect("connects")
    };
    let mut admin = ask(nqn);
    let mut controller = admin.identify(cns::CONTROLLER, 0).expect("Identify Controller");
    // The CNTLID differs between connections.
    controller[78..80].fill(0);
    let mut view = vec![(0, controller)];
    for nsid in admin.namespaces().expect("a list") {
        view.push((nsid, admin.identify(cns::NAMESPACE, nsid).expect("Identify Namespace")));
        view.push((nsid, admin.identify(cns::NAMESPACE_DESCRIPTORS, nsid).expect("descriptors")));
    }
    admin.close().expect("its end");
    let mut discovery = ask(Nqn::DISCOVERY.as_str());
    let log = discovery.discovery_log().expect("a log");
    discovery.close().expect("its end");
    let bytes = view.iter().map(|(nsid, data)| format!("{nsid} {data:02x?}\n")).collect::<String>();
    format!("{bytes}{log:?}")
}
