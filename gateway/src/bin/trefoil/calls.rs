//! The method call that each command makes.

use crate::args::{Backend, Command, Host, Lun, Pool, Subsystem};
use serde_json::{Value, json};

impl Command {
    /// Returns the method and its parameters. `top`, `config` and `call` make calls of their own.
    pub fn call(&self) -> (&str, Value) {
        let (method, mut params) = match self {
            Self::Backend(command) => command.call(),
            Self::Pool(command) => command.call(),
            Self::Lun(command) => command.call(),
            Self::Subsystem(command) => command.call(),
            Self::Host(command) => command.call(),
            Self::Cores => ("core_list", json!({})),
            Self::Stats | Self::Top { .. } => ("stats_get", json!({})),
            Self::Config(_) => ("config_get", json!({})),
            Self::Info => ("gateway_info", json!({})),
            Self::Shutdown => ("shutdown", json!({})),
            Self::Call { method, .. } => (method.as_str(), json!({})),
        };
        if let Value::Object(fields) = &mut params {
            fields.retain(|_, value| !value.is_null());
        }
        (method, params)
    }
}

/// Returns `true` if the flag is on, and otherwise `None`, so that the parameter is left out.
fn flag(on: bool) -> Option<bool> {
    on.then_some(true)
}

impl Backend {
    fn call(&self) -> (&'static str, Value) {
        match self {
            Self::Create(b) => (
                "backend_create",
                json!({
                    "name": b.name, "type": b.kind, "size": b.size, "block_bytes": b.block_bytes,
                    "path": b.path, "address": b.address, "subnqn": b.subnqn, "hostnqn": b.hostnqn,
                    "nsid": b.nsid, "queues": b.queues, "depth": b.depth,
                    "header_digest": flag(b.header_digest), "data_digest": flag(b.data_digest),
                    "keep_alive_s": b.times.keep_alive_s, "loss_timeout_s": b.times.loss_timeout_s,
                }),
            ),
            Self::Discover { address, at, hostnqn } => (
                "backend_discover",
                json!({ "address": address.as_ref().or(at.as_ref()), "hostnqn": hostnqn }),
            ),
            Self::Attach { name, address, subnqn, discovery, hostnqn, times } => (
                "backend_attach",
                json!({
                    "name": name, "address": address, "subnqn": subnqn, "discovery": flag(*discovery),
                    "hostnqn": hostnqn, "keep_alive_s": times.keep_alive_s,
                    "loss_timeout_s": times.loss_timeout_s,
                }),
            ),
            Self::Delete { name } => ("backend_delete", json!({ "name": name })),
            Self::List { name } => ("backend_list", json!({ "name": name })),
        }
    }
}

impl Pool {
    fn call(&self) -> (&'static str, Value) {
        match self {
            Self::Create { name, backends, delete_data } => (
                "pool_create",
                json!({ "name": name, "backends": backends, "delete_data": flag(*delete_data) }),
            ),
            Self::Delete { name, delete_data, force } => (
                "pool_delete",
                json!({ "name": name, "delete_data": flag(*delete_data), "force": flag(*force) }),
            ),
            Self::List => ("pool_list", json!({})),
            Self::Show { name } => ("pool_show", json!({ "name": name })),
        }
    }
}

impl Lun {
    fn call(&self) -> (&'static str, Value) {
        match self {
            Self::Create { name, pool, size, block_bytes, uuid, read_only } => (
                "lun_create",
                json!({
                    "name": name, "pool": pool, "size": size, "block_bytes": block_bytes, "uuid": uuid,
                    "read_only": flag(*read_only),
                }),
            ),
            Self::Delete { name, force } => ("lun_delete", json!({ "name": name, "force": flag(*force) })),
            Self::Grow { name, size } => ("lun_grow", json!({ "name": name, "size": size })),
            Self::Import { name, backend, block_bytes, uuid, read_only } => (
                "lun_import",
                json!({
                    "name": name, "backend": backend, "block_bytes": block_bytes, "uuid": uuid,
                    "read_only": flag(*read_only),
                }),
            ),
            Self::Release { name, force } => ("lun_release", json!({ "name": name, "force": flag(*force) })),
            Self::List { name } => ("lun_list", json!({ "name": name })),
        }
    }
}

impl Subsystem {
    fn call(&self) -> (&'static str, Value) {
        match self {
            Self::Create { nqn, serial, model, allow_any_host, hosts, listeners } => (
                "subsystem_create",
                json!({
                    "nqn": nqn, "serial": serial, "model": model, "allow_any_host": flag(*allow_any_host),
                    "hosts": hosts, "listeners": listeners,
                }),
            ),
            Self::Delete { nqn, force } => ("subsystem_delete", json!({ "nqn": nqn, "force": flag(*force) })),
            Self::List { nqn } => ("subsystem_list", json!({ "nqn": nqn })),
            Self::AddNamespace { nqn, lun, nsid, hosts } => {
                let hosts = (!hosts.is_empty()).then_some(hosts);
                let params = json!({ "nqn": nqn, "lun": lun, "nsid": nsid, "hosts": hosts });
                ("subsystem_add_namespace", params)
            }
            Self::RemoveNamespace { nqn, namespace } => {
                let nsid = namespace.parse::<u32>().ok();
                let lun = nsid.is_none().then_some(namespace);
                ("subsystem_remove_namespace", json!({ "nqn": nqn, "nsid": nsid, "lun": lun }))
            }
            Self::AddListener { nqn, listen } => {
                ("subsystem_add_listener", json!({ "nqn": nqn, "listen": listen }))
            }
            Self::RemoveListener { nqn, listen } => {
                ("subsystem_remove_listener", json!({ "nqn": nqn, "listen": listen }))
            }
            Self::AllowAnyHost { nqn, allow, force } => {
                let params = json!({ "nqn": nqn, "allow": allow, "force": flag(*force) });
                ("subsystem_allow_any_host", params)
            }
        }
    }
}

impl Host {
    fn call(&self) -> (&'static str, Value) {
        match self {
            Self::Add { nqn, host, nsid, force } => {
                ("host_add", json!({ "nqn": nqn, "host": host, "nsid": nsid, "force": flag(*force) }))
            }
            Self::Remove { nqn, host, nsid } => {
                ("host_remove", json!({ "nqn": nqn, "host": host, "nsid": nsid }))
            }
            Self::Create { name, nqn } => ("host_create", json!({ "name": name, "nqn": nqn })),
            Self::Delete { name } => ("host_delete", json!({ "name": name })),
            Self::List => ("host_list", json!({})),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::try_parse_from([&["trefoil"], words].concat()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_array_is_named_by_the_same_word_everywhere() {
        let want = ("backend_discover", json!({ "address": "192.0.2.1:4420" }));
        for words in [&["--address", "192.0.2.1:4420"][..], &["192.0.2.1:4420"]] {
            let args = parse(&[&["backend", "discover"], words].concat()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(args.command.call(), want);
        }
        assert!(parse(&["backend", "discover"]).err().is_some_and(|e| e.contains("--address <ADDRESS>")));
    }

    #[test]
    fn a_namespace_goes_by_its_nsid_or_by_its_lun() {
        for (word, key, value) in [("3", "nsid", json!(3)), ("disk", "lun", json!("disk"))] {
            let args =
                parse(&["subsystem", "remove-namespace", "nqn.x", word]).unwrap_or_else(|e| panic!("{e}"));
            let want = json!({ "nqn": "nqn.x", key: value });
            assert_eq!(args.command.call(), ("subsystem_remove_namespace", want));
        }
    }

    #[test]
    fn what_is_not_given_is_not_sent() {
        let args = Args::try_parse_from(["trefoil", "lun", "create", "a", "--pool", "p", "--size", "1GiB"]);
        let Ok(args) = args else { panic!("it parses") };
        let want = json!({ "name": "a", "pool": "p", "size": "1GiB" });
        assert_eq!(args.command.call(), ("lun_create", want));
    }
}
