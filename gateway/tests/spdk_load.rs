//! Tests that a configuration of SPDK's nvmf_tgt is loaded completely or not at all.
#![forbid(unsafe_code)]

mod support;

use serde_json::{Value, json};
use std::net::SocketAddr;
use support::daemon::{Daemon, own_addr, spdk_address};
use support::raw::Pair;

const NQN: &str = "nqn.2026-01.org.example:saved";
const HOST: &str = "nqn.2026-01.org.example:host1";

/// Returns a configuration as nvmf_tgt saves it: each of nvmf_tgt's own subsystems with tuning calls, and one NVMe subsystem
/// for hosts.
fn saved(listener: SocketAddr) -> Value {
    let no_keys = json!({ "subsystem": "keyring", "config": [] });
    let iobuf = json!([{ "method": "iobuf_set_options", "params": { "small_pool_count": 8192, "enable_numa": false } }]);
    let sock = json!([
        { "method": "sock_set_default_impl", "params": { "impl_name": "posix" } },
        { "method": "sock_impl_set_options", "params": { "impl_name": "ssl", "tls_version": 0, "enable_ktls": false } },
    ]);
    let bdev = json!([
        { "method": "bdev_set_options", "params": { "bdev_io_pool_size": 65535, "bdev_auto_examine": true } },
        { "method": "bdev_nvme_set_options", "params": { "keep_alive_timeout_ms": 10000, "dhchap_digests": ["sha256"] } },
        { "method": "bdev_nvme_set_hotplug", "params": { "period_us": 100000, "enable": false } },
        { "method": "bdev_malloc_create", "params": {
            "name": "Malloc0", "num_blocks": 16384, "block_size": 512, "physical_block_size": 512,
            "uuid": "6d1d4b8e-0000-4000-8000-000000000001", "optimal_io_boundary": 0, "md_size": 0, "dif_type": 0,
            "dif_is_head_of_md": false, "dif_pi_format": 0, "numa_id": -1 } },
        { "method": "bdev_wait_for_examine" },
    ]);
    let nvmf = json!([
        { "method": "nvmf_set_config", "params": {
            "discovery_filters": [], "dhchap_digests": ["sha256"], "dhchap_dhgroups": ["null"], "dup_host_policy": "allow",
            "admin_cmd_passthru": { "identify_ctrlr": false, "sanitize": false } } },
        { "method": "nvmf_set_max_subsystems", "params": { "max_subsystems": 1024 } },
        { "method": "nvmf_set_crdt", "params": { "crdt1": 0, "crdt2": 0, "crdt3": 0 } },
        { "method": "nvmf_create_transport", "params": {
            "trtype": "TCP", "max_queue_depth": 128, "max_io_qpairs_per_ctrlr": 127, "in_capsule_data_size": 4096,
            "max_io_size": 131072, "max_aq_depth": 128, "iobuf_small_cache_size": 4294967295u32, "zcopy": false,
            "dif_insert_or_strip": false, "c2h_success": true, "kas": 100, "min_kato": 10000 } },
        // nvmf_tgt groups calls like this if it saves a configuration with batches.
        [
            { "method": "nvmf_create_subsystem", "params": {
                "nqn": NQN, "allow_any_host": false, "serial_number": "SAVED1", "model_number": "SPDK saved",
                "max_namespaces": 32, "min_cntlid": 1, "max_cntlid": 65519, "ana_reporting": false,
                "dmrsl": 2097152, "wzsl": 12, "passthrough": false, "enable_nssr": false } },
            { "method": "nvmf_subsystem_add_host", "params": { "nqn": NQN, "host": HOST } },
        ],
        { "method": "nvmf_subsystem_add_ns", "params": { "nqn": NQN, "namespace": {
            "nsid": 1, "bdev_name": "Malloc0", "nguid": "6D1D4B8E000040008000000000000001",
            "uuid": "6d1d4b8e-0000-4000-8000-000000000001", "no_auto_visible": false } } },
        { "method": "nvmf_subsystem_add_listener", "params": {
            "nqn": NQN, "listen_address": spdk_address(listener), "secure_channel": false } },
    ]);
    json!({ "subsystems": [
        no_keys,
        { "subsystem": "iobuf", "config": iobuf },
        { "subsystem": "sock", "config": sock },
        { "subsystem": "bdev", "config": bdev },
        { "subsystem": "nbd", "config": null },
        { "subsystem": "scheduler", "config": [
            { "method": "framework_set_scheduler", "params": { "name": "static" } } ] },
        { "subsystem": "nvmf", "config": nvmf },
    ] })
}

#[test]
fn what_nvmf_tgt_saved_is_built() {
    let gateway = Daemon::start("");
    let at = own_addr();
    let file = gateway.write("saved.json", saved(at).to_string());
    let said = gateway.ok(&["config", "load-spdk", &file]);
    assert!(
        said.starts_with(
            "loaded 8 calls; ignored, because the calls tune SPDK's internals: bdev_nvme_set_hotplug, "
        ),
        "{said}"
    );
    Pair::connect(at, HOST, NQN).check(1, 1);
    // A second load fails, because all objects already exist.
    let again =
        gateway.try_call("config_load_spdk", json!({ "config": saved(at) })).expect_err("it is there");
    assert!(again.contains("bdev_malloc_create: ") && again.contains("nvmf_create_subsystem: "), "{again}");
}

#[test]
fn what_is_lacking_is_named_in_one_answer_and_nothing_is_built() {
    let gateway = Daemon::start("");
    let before = gateway.call("config_get", json!({}));
    let mut saved = saved(own_addr());
    let keys =
        json!([{ "method": "keyring_file_add_key", "params": { "name": "key0", "path": "/tmp/key" } }]);
    saved["subsystems"][0]["config"] = keys;
    let calls = |at: usize| format!("/subsystems/{at}/config");
    let bdevs = saved.pointer_mut(&calls(3)).and_then(Value::as_array_mut).expect("calls");
    bdevs.push(
        json!({ "method": "bdev_set_qos_limit", "params": { "name": "Malloc0", "rw_ios_per_sec": 1000 } }),
    );
    bdevs.push(json!({ "method": "spdk_kill_instance", "params": { "sig_name": "SIGKILL" } }));
    let nvmf = saved.pointer_mut(&calls(6)).and_then(Value::as_array_mut).expect("calls");
    nvmf[0]["params"]["admin_cmd_passthru"]["sanitize"] = true.into();
    nvmf[4][1]["params"]["psk"] = "key0".into();
    nvmf.push(json!({ "method": "nvmf_create_transport", "params": { "trtype": "RDMA" } }));
    let refused =
        gateway.try_call("config_load_spdk", json!({ "config": saved })).expect_err("it lacks much");
    let lines: Vec<&str> = refused.lines().collect();
    let want = [
        "nothing has changed, because this gateway can't make these calls:",
        "  keyring_file_add_key: this gateway has no such method",
        "  bdev_set_qos_limit: this gateway has no such method",
        "  spdk_kill_instance: this gateway has no such method",
        "  nvmf_set_config: admin_cmd_passthru: {\"identify_ctrlr\":false,\"sanitize\":true} is not supported by this gateway",
        "  nvmf_subsystem_add_host: psk: \"key0\" is not supported by this gateway",
        "  nvmf_create_transport: trtype: `RDMA` is not supported by this gateway: use TCP",
    ];
    assert_eq!(lines, want);
    assert_eq!(gateway.call("config_get", json!({})), before);
    // If a configuration fails only while its objects are brought up, no object stays either.
    let away = "192.0.2.1:4420".parse().expect("an address");
    gateway
        .try_call("config_load_spdk", json!({ "config": self::saved(away) }))
        .expect_err("no such address");
    assert_eq!(gateway.call("config_get", json!({})), before);
}

/// Calls the methods one after another, as SPDK's own client does.
#[test]
fn every_method_that_nvmf_tgt_saves_is_listed_and_taken() {
    let gateway = Daemon::start("");
    let names = gateway.call("rpc_get_methods", json!({ "current": true }));
    let saved = saved(own_addr());
    let all = saved["subsystems"].as_array().into_iter().flatten().filter_map(|s| s["config"].as_array());
    let calls = all.flatten().flat_map(|call| call.as_array().cloned().unwrap_or_else(|| vec![call.clone()]));
    for call in calls {
        let method = call["method"].as_str().expect("a name");
        assert!(
            names.as_array().is_some_and(|names| names.contains(&json!(method))),
            "{method} isn't listed"
        );
        gateway.call(method, call.get("params").cloned().unwrap_or_default());
    }
    assert_eq!(gateway.call("subsystem_list", json!({}))[0]["serial"], "SAVED1");
}
