//! Tests of a gateway whose backends are the namespaces of an array.

use super::{ARRAY_NQN, DOCUMENT};
use crate::support::daemon::{Daemon, own_addr};
use crate::support::wait_for;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The document of a gateway that acts as an array: one memory LUN, for any host.
const ARRAY: &str = r#"
[[backend]]
name = "ram"
type = "memory"
size = "64MiB"

[[lun]]
name = "l0"
backend = "ram"

[[subsystem]]
nqn = "nqn.2026-01.org.example:array"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "l0" }]
"#;

/// The document of a gateway whose pool is on that array.
const BEHIND: &str = r#"
[[backend]]
name = "far"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:array"

[[pool]]
name = "tank"
backends = ["far"]

[[lun]]
name = "a"
pool = "tank"
size = "8MiB"
"#;

fn array_and_gateway() -> (Daemon, Daemon) {
    let array = Daemon::start(ARRAY);
    let gateway = Daemon::start(&BEHIND.replace("ARRAY", &array.addr.to_string()));
    (array, gateway)
}

#[test]
fn counters_tell_what_a_host_did_with_each_lun() {
    let (array, gateway) = array_and_gateway();
    let count = |key: &str| array.json("bdev_get_iostat", r#"{"names":["l0"]}"#)["bdevs"][0][key].clone();
    let writes = |value: Value| value.as_u64().expect("a number");
    let before = writes(count("num_write_ops"));
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    assert!(writes(count("num_write_ops")) > before);
    // The gateway has zeroed the units of both LUNs.
    assert!(writes(count("bytes_unmapped")) >= 16 << 20, "{}", count("bytes_unmapped"));
    assert!(writes(count("max_write_latency_ticks")) >= writes(count("min_write_latency_ticks")));
    assert_eq!(count("io_error"), serde_json::json!({}));
    let stats = array.json("stats_get", "{}");
    let lun = &stats["luns"][0];
    let all: u64 = ["read", "write", "trim", "flush"].iter().map(|op| writes(lun[*op]["ops"].clone())).sum();
    let histogram = lun["latency_below_ns"].as_array().expect("a histogram");
    assert_eq!(histogram.iter().map(|pair| writes(pair[1].clone())).sum::<u64>(), all, "{lun}");
    let top = array.ok(&["top", "--count", "1", "--interval-ms", "100"]);
    assert!(top.contains("P99.9 US") && top.contains("  l0\n"), "{top}");
    assert!(array.refused(&["call", "bdev_get_iostat", r#"{"names":["none"]}"#]).contains("`none`"));
}

#[test]
fn queries_are_answered_while_a_change_waits_for_its_backend() {
    let (array, mut gateway) = array_and_gateway();
    array.signal(Signal::SIGSTOP);
    let mut first = gateway.begin(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    // The change has begun when the pool is taken out of the tables. From the outside, only the missing answer shows that.
    let mut second = gateway.begin(&["lun", "create", "c", "--pool", "tank", "--size", "8MiB"]);
    for _ in 0..20 {
        for query in
            [&["lun", "list"][..], &["pool", "show", "tank"], &["backend", "list"], &["stats"], &["info"]]
        {
            gateway.ok(query);
        }
        assert!(!gateway.ok(&["lun", "list"]).contains("\nb "), "it is not there before it is zeroed");
        assert!(gateway.json("bdev_get_iostat", "{}")["bdevs"].is_array());
    }
    assert!(first.try_wait().expect("a state").is_none() && second.try_wait().expect("a state").is_none());
    array.signal(Signal::SIGCONT);
    assert!(first.wait().expect("its end").success() && second.wait().expect("its end").success());
    let luns = gateway.ok(&["lun", "list"]);
    assert!(luns.contains("\nb ") && luns.contains("\nc "), "{luns}");
    // A stop doesn't wait for a change that can't end. The next start removes the objects that such a change left.
    array.signal(Signal::SIGSTOP);
    let mut cut = gateway.begin(&["lun", "create", "d", "--pool", "tank", "--size", "8MiB"]);
    let call = [r#"{"toml":""}"#];
    assert!(gateway.run(&["call", "config_diff", call[0]]).status.success(), "a preview is a query");
    gateway.signal(Signal::SIGTERM);
    assert!(!cut.wait().expect("its end").success());
    let code = gateway.child.wait().expect("its end");
    assert!(code.success(), "{code}");
    array.signal(Signal::SIGCONT);
    gateway.restart();
    wait_for("the array is reached", || gateway.ok(&["pool", "list"]).contains(" up "));
    let luns = gateway.ok(&["lun", "list"]);
    assert!(luns.contains("\nb ") && !luns.contains("\nd "), "{luns}");
    gateway.ok(&["lun", "create", "d", "--pool", "tank", "--size", "8MiB"]);
}

#[test]
fn an_array_is_discovered_and_all_its_namespaces_are_attached() {
    let array = Daemon::start(ARRAY);
    let address = array.addr.to_string();
    array.ok(&["call", "bdev_malloc_create", r#"{"name":"l5","num_blocks":65536,"block_size":512}"#]);
    array.ok(&["subsystem", "add-namespace", ARRAY_NQN, "l5", "--nsid", "5"]);
    let gateway = Daemon::start(DOCUMENT);
    let offered = gateway.json("backend_discover", &format!(r#"{{"address":"{address}"}}"#));
    let nvm: Vec<&Value> =
        offered.as_array().expect("a list").iter().filter(|row| row["type"] == "nvm").collect();
    assert_eq!(nvm.len(), 1, "{offered}");
    assert_eq!(nvm[0]["subnqn"], ARRAY_NQN);
    assert_eq!(
        (&nvm[0]["address"], &nvm[0]["namespaces"]),
        (&serde_json::json!(address), &serde_json::json!([1, 5]))
    );
    // The attach names the array's own address, as SPDK's clients do.
    let (ip, port) = address.split_once(':').expect("a port");
    let attach = format!(
        r#"{{"name":"Nvme0","trtype":"TCP","traddr":"{ip}","trsvcid":"{port}","subnqn":"nqn.2026-01.org.example:array"}}"#
    );
    let before = gateway.ok(&["config", "get"]);
    assert_eq!(
        gateway.json("bdev_nvme_attach_controller", &attach),
        serde_json::json!(["Nvme0n1", "Nvme0n5"])
    );
    let bdev = &gateway.json("bdev_get_bdevs", r#"{"name":"Nvme0n5"}"#)[0];
    assert_eq!((&bdev["num_blocks"], &bdev["block_size"]), (&65536.into(), &512.into()));
    let controllers = gateway.json("bdev_nvme_get_controllers", "{}");
    assert_eq!(controllers.as_array().map(Vec::len), Some(1), "{controllers}");
    assert_eq!(controllers[0]["ctrlrs"][0]["state"], "enabled");
    assert!(gateway.refused(&["call", "bdev_nvme_attach_controller", &attach]).contains("already"));
    gateway.ok(&["call", "bdev_nvme_detach_controller", r#"{"name":"Nvme0"}"#]);
    assert_eq!(gateway.json("bdev_nvme_get_controllers", "{}"), serde_json::json!([]));
    assert_eq!(gateway.ok(&["config", "get"]), before);
    // This attach names the NQN, and the discovery service gives the address.
    let far = ["backend", "attach", "far", "--address", &address, "--subnqn", ARRAY_NQN, "--discovery"];
    let keep_alive = |seconds| [&far[..], &["--keep-alive-s", seconds]].concat();
    assert!(gateway.refused(&keep_alive("6")).contains("keep_alive_s: the timeout can't be 6 s"));
    let table = gateway.ok(&keep_alive("2"));
    assert!(table.contains("farn1") && table.contains("farn5"), "{table}");
    assert_eq!(gateway.ok(&["config", "get"]).matches("keep_alive_s = 2\n").count(), 2);
    let none = ["backend", "attach", "x", "--address", &address, "--subnqn", "nqn.2026-01.org.example:none"];
    assert!(gateway.refused(&[&none[..], &["--discovery"]].concat()).contains("does not offer"));
    assert!(gateway.refused(&none).contains(&address));
    assert!(
        gateway.refused(&none).contains("the controller has no such subsystem"),
        "{}",
        gateway.refused(&none)
    );
    let nobody = own_addr().to_string();
    let refused = gateway.refused(&["backend", "discover", "--address", &nobody]);
    assert_eq!(refused, format!("trefoil: {nobody}: the connection failed: Connection refused\n"));
}

#[test]
fn a_lost_backend_is_named_and_told_once_for_each_cause() {
    let (mut array, gateway) = array_and_gateway();
    let lost = || {
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains("backend lost")).map(str::to_owned);
        let told: Vec<String> = lines.collect();
        assert!(
            told.iter().all(|line| line.contains("WARN") && line.contains("backend=\"far\" why=")),
            "{told:?}"
        );
        let why = told.iter().filter_map(|line| Some(line.split_once("why=")?.1.to_owned()));
        why.collect::<Vec<_>>()
    };
    array.kill();
    wait_for("a try that is refused", || lost().contains(&"\"the array refused the connection\"".to_owned()));
    // This listener closes each connection at once, so that the test can count the gateway's attempts.
    let closes = std::net::TcpListener::bind(array.addr).expect("its address");
    for _ in 0..4 {
        drop(closes.accept().expect("a try"));
    }
    wait_for("the other cause", || {
        lost().len() > 1 && lost().last() != Some(&"\"the array refused the connection\"".to_owned())
    });
    let causes = lost();
    assert!(causes.windows(2).all(|pair| pair[0] != pair[1]), "{causes:?}");
    drop(closes);
    array.restart();
    let back = |line: &str| line.contains("INFO backend back backend=\"far\"");
    wait_for("the array is back", || gateway.log().lines().any(back));
}

#[test]
fn a_whole_namespace_keeps_its_identity() {
    let mut array = Daemon::start(ARRAY);
    let address = array.addr.to_string();
    let whole = r#"
[[backend]]
name = "far"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:array"

[[lun]]
name = "w"
backend = "far"
"#;
    let mut gateway = Daemon::start(&format!("{DOCUMENT}{whole}").replace("ARRAY", &address));
    let identity = |daemon: &Daemon, name: &str| {
        let lun = daemon.json("lun_list", &format!(r#"{{"name":"{name}"}}"#))[0].clone();
        assert!(lun["uuid"].is_string() && lun["nguid"].is_string(), "{lun}");
        (lun["uuid"].clone(), lun["nguid"].clone())
    };
    let own = identity(&array, "l0");
    assert_eq!(identity(&gateway, "w"), own);
    // The disk has the same identity after a restart, after the loss of the database, and after another import.
    gateway.kill_and_restart();
    assert_eq!(identity(&gateway, "w"), own);
    std::fs::remove_dir_all(gateway.path("state")).expect("removed");
    gateway.kill_and_restart();
    assert_eq!(identity(&gateway, "w"), own);
    gateway.ok(&["lun", "release", "w"]);
    gateway.ok(&["lun", "import", "again", "--backend", "far"]);
    assert_eq!(identity(&gateway, "again"), own);
    // A second LUN can't have the same identity. Here the second backend is the same namespace over another path.
    let attach = ["backend", "attach", "twin", "--address", &address, "--subnqn"];
    gateway.ok(&[&attach[..], &[ARRAY_NQN]].concat());
    gateway.ok(&["lun", "import", "twin", "--backend", "twinn1"]);
    assert_ne!(identity(&gateway, "twin"), own);
    // A lost backend can't be imported, and the import doesn't wait for the backend.
    gateway.ok(&["lun", "release", "again"]);
    array.kill();
    wait_for("the array is lost", || gateway.ok(&["backend", "list", "far"]).contains(" lost "));
    let refused = gateway.refused(&["lun", "import", "again", "--backend", "far"]);
    assert!(refused.contains("backend `far` is lost"), "{refused}");
    array.restart();
    wait_for("the array is back", || gateway.ok(&["backend", "list", "far"]).contains(" up "));
    gateway.ok(&["lun", "import", "again", "--backend", "far"]);
    assert_eq!(identity(&gateway, "again"), own);
}

#[test]
fn a_namespace_that_is_a_backend_twice_is_no_pool_s() {
    let array = Daemon::start(ARRAY);
    let gateway = Daemon::start(DOCUMENT);
    for name in ["one", "two"] {
        let (address, subnqn) = (array.addr, ARRAY_NQN);
        let far = json!({ "name": name, "type": "nvme-tcp", "address": address, "subnqn": subnqn });
        gateway.call("backend_create", far);
    }
    let refused = |backends: &[&str]| {
        let pool = gateway.try_call("pool_create", json!({ "name": "p", "backends": backends }));
        let why = pool.expect_err("a refusal");
        assert!(
            why.contains("`one`")
                && why.contains("`two`")
                && why.contains("are the same namespace of an array"),
            "{why}"
        );
    };
    refused(&["one", "two"]);
    // A pool's label would overwrite data of the LUN's hosts.
    gateway.call("lun_import", json!({ "name": "w", "backend": "one" }));
    refused(&["two"]);
}
