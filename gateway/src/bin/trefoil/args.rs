//! The commands, and the method call that each command makes.

use clap::{Args as ClapArgs, Parser, Subcommand};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;

/// Controls a Trefoil gateway.
#[derive(Parser)]
#[command(name = "trefoil", version)]
pub struct Args {
    /// The gateway's control socket. The variable TREFOIL_SOCKET, if set, gives the default.
    #[arg(long, short, global = true, default_value_os_t = default_socket(std::env::var_os("TREFOIL_SOCKET")))]
    pub socket: PathBuf,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The command, or a group of commands.
#[derive(Subcommand)]
pub enum Command {
    /// Backends: memory, files, devices and arrays that store blocks.
    #[command(subcommand)]
    Backend(Backend),
    /// Pools: sets of backends from which LUNs are carved. A pool has no redundancy of its own.
    #[command(subcommand)]
    Pool(Pool),
    /// LUNs: virtual disks.
    #[command(subcommand)]
    Lun(Lun),
    /// Subsystems: the targets that hosts connect to, with their LUNs and addresses.
    #[command(subcommand)]
    Subsystem(Subsystem),
    /// Hosts: their names, and their access to subsystems and namespaces.
    #[command(subcommand)]
    Host(Host),
    /// The whole system as one TOML document.
    #[command(subcommand)]
    Config(Config),
    /// List the cores.
    Cores,
    /// Show the counters of cores, LUNs and queue pairs.
    Stats,
    /// Show the gateway's own state.
    Info,
    /// Show a live table of cores, LUNs and hosts.
    Top {
        /// Time between two tables in milliseconds, 50 or more.
        #[arg(long, short, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..))]
        interval_ms: u64,
        /// Number of tables to print. Without this option, `top` runs until interrupted.
        #[arg(long, short)]
        count: Option<u64>,
    },
    /// Stop the gateway after hosts' commands have drained.
    Shutdown,
    /// Call any JSON-RPC method.
    Call {
        /// The method's name.
        method: String,
        /// The parameters as JSON. They are sent unchanged.
        #[arg(default_value = "{}", value_parser = parse_json)]
        params: Box<RawValue>,
    },
}

/// Returns the control socket's path if the command line gives none. An empty variable counts as not set.
fn default_socket(set: Option<OsString>) -> PathBuf {
    set.filter(|path| !path.is_empty()).map_or_else(|| "/run/trefoil/rpc.sock".into(), PathBuf::from)
}

fn parse_json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

#[derive(ClapArgs)]
pub struct NewBackend {
    /// The backend's name.
    name: String,
    /// The backend's type: memory, null, file or nvme-tcp.
    #[arg(long = "type", short)]
    kind: String,
    /// Size of the backend, such as 10GiB. If the backend's file is missing, the gateway makes a file of this size.
    #[arg(long)]
    size: Option<String>,
    /// Logical block size in bytes: 512 or 4096.
    #[arg(long)]
    block_bytes: Option<u32>,
    /// Path of the file or block device.
    #[arg(long)]
    path: Option<String>,
    /// The array's address and port.
    #[arg(long)]
    address: Option<String>,
    /// NQN of the array's subsystem.
    #[arg(long)]
    subnqn: Option<String>,
    /// Host NQN that the gateway uses at the array.
    #[arg(long)]
    hostnqn: Option<String>,
    /// NSID of the array's namespace.
    #[arg(long)]
    nsid: Option<u32>,
    /// Number of I/O queue pairs to request from the array.
    #[arg(long)]
    queues: Option<u16>,
    /// Entries of each queue pair, 2 to 1024.
    #[arg(long)]
    depth: Option<u16>,
    /// Request PDU header digests.
    #[arg(long)]
    header_digest: bool,
    /// Request PDU data digests.
    #[arg(long)]
    data_digest: bool,
    #[command(flatten)]
    times: ArrayTimes,
}

/// Time limits for an array.
#[derive(ClapArgs)]
pub struct ArrayTimes {
    /// Keep-alive timeout in seconds, 1 to 5. After this time without an answer, the gateway treats the array as lost, and the
    /// array treats the gateway as lost.
    #[arg(long)]
    keep_alive_s: Option<u32>,
    /// Time in seconds for which I/O waits for a lost array.
    #[arg(long)]
    loss_timeout_s: Option<u32>,
}

#[derive(Subcommand)]
pub enum Backend {
    /// Make a backend.
    Create(Box<NewBackend>),
    /// List the subsystems that an array offers.
    Discover {
        /// The address and port of the array's discovery service.
        #[arg(long, required_unless_present = "at")]
        address: Option<String>,
        /// The same address, in an older form without the option's name.
        #[arg(hide = true, conflicts_with = "address")]
        at: Option<String>,
        /// Host NQN that the gateway uses at the array.
        #[arg(long)]
        hostnqn: Option<String>,
    },
    /// Make a backend of each namespace of an array's subsystem: NAMEn1, NAMEn2, ...
    Attach {
        /// Prefix of the backends' names.
        name: String,
        /// The array's address and port.
        #[arg(long)]
        address: String,
        /// NQN of the array's subsystem.
        #[arg(long)]
        subnqn: String,
        /// Take --address as the address of the array's discovery service, and ask this service for the subsystem's address.
        #[arg(long)]
        discovery: bool,
        /// Host NQN that the gateway uses at the array.
        #[arg(long)]
        hostnqn: Option<String>,
        #[command(flatten)]
        times: ArrayTimes,
    },
    /// Remove a backend that nothing uses. Its data stays, unless it is a memory backend without a path.
    Delete {
        /// The backend's name.
        name: String,
    },
    /// List all backends, or only one.
    List {
        /// The backend's name.
        name: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum Pool {
    /// Make a pool. All data on its backends is lost. Exception: if the backends already are a pool of this name, and the pool
    /// has no other backends, the gateway opens this pool with its LUNs.
    Create {
        /// The pool's name.
        name: String,
        /// The names of the pool's backends.
        #[arg(required = true)]
        backends: Vec<String>,
        /// Make the pool even if a backend holds a file system, a partition table or another pool's label.
        #[arg(long)]
        delete_data: bool,
    },
    /// Destroy a pool. If the pool's backends are lost, the gateway only forgets the pool: its contents stay on the backends.
    Delete {
        /// The pool's name.
        name: String,
        /// Destroy the pool even if it holds LUNs. The LUNs' data is lost.
        #[arg(long)]
        delete_data: bool,
        /// Destroy the pool even if subsystems show its LUNs.
        #[arg(long)]
        force: bool,
    },
    /// List all pools.
    List,
    /// Show one pool, with its LUNs.
    Show {
        /// The pool's name.
        name: String,
    },
}

#[derive(Subcommand)]
pub enum Lun {
    /// Carve a LUN from a pool.
    Create {
        /// The LUN's name.
        name: String,
        /// The pool's name.
        #[arg(long)]
        pool: String,
        /// Size of the LUN, such as 10GiB.
        #[arg(long)]
        size: String,
        /// Logical block size in bytes: 512 or 4096.
        #[arg(long)]
        block_bytes: Option<u32>,
        /// UUID of the LUN. Without this option, the LUN gets a random UUID.
        #[arg(long)]
        uuid: Option<String>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
    },
    /// Delete a LUN of a pool, with its data.
    Delete {
        /// The LUN's name.
        name: String,
        /// Delete the LUN even if a subsystem shows it.
        #[arg(long)]
        force: bool,
    },
    /// Make a LUN of a pool larger. Hosts are told of the new size.
    Grow {
        /// The LUN's name.
        name: String,
        /// The LUN's new size, such as 20GiB.
        size: String,
    },
    /// Present a whole backend as a LUN, with its data unchanged.
    Import {
        /// The LUN's name.
        name: String,
        /// The backend's name.
        #[arg(long)]
        backend: String,
        /// Logical block size in bytes: 512 or 4096.
        #[arg(long)]
        block_bytes: Option<u32>,
        /// UUID of the LUN. Without this option, the LUN has the backend's own UUID, if the backend has a UUID. With this option,
        /// the gateway treats a pool's label on the backend as data of the LUN's hosts.
        #[arg(long)]
        uuid: Option<String>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
    },
    /// End an import. The backend's data stays.
    Release {
        /// The LUN's name.
        name: String,
        /// Release the LUN even if a subsystem shows it.
        #[arg(long)]
        force: bool,
    },
    /// List all LUNs, or only one.
    List {
        /// The LUN's name.
        name: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum Subsystem {
    /// Make a subsystem.
    Create {
        /// The subsystem's NQN.
        nqn: String,
        /// Serial number, at most 20 ASCII characters.
        #[arg(long)]
        serial: Option<String>,
        /// Model number, at most 40 ASCII characters.
        #[arg(long)]
        model: Option<String>,
        /// Let every host connect.
        #[arg(long)]
        allow_any_host: bool,
        /// Name or NQN of a host that may connect. Can be repeated.
        #[arg(long = "host")]
        hosts: Vec<String>,
        /// Address and port of a listener for the subsystem. Can be repeated.
        #[arg(long = "listen")]
        listeners: Vec<String>,
    },
    /// Delete a subsystem. Its LUNs stay.
    Delete {
        /// The subsystem's NQN.
        nqn: String,
        /// Delete the subsystem even if hosts are connected. The hosts are disconnected.
        #[arg(long)]
        force: bool,
    },
    /// List all subsystems, or only one. The discovery subsystem is listed only if it has listeners of its own.
    List {
        /// The subsystem's NQN.
        nqn: Option<String>,
    },
    /// Show a LUN in a subsystem.
    AddNamespace {
        /// The subsystem's NQN.
        nqn: String,
        /// The LUN's name.
        lun: String,
        /// NSID of the namespace. Without this option, the namespace gets the lowest free NSID.
        #[arg(long)]
        nsid: Option<u32>,
        /// Name or NQN of a host that sees the namespace; the host must also be allowed to connect. Can be repeated. Without this
        /// option, all hosts that may connect see the namespace.
        #[arg(long = "host")]
        hosts: Vec<String>,
    },
    /// Remove a LUN from a subsystem. The LUN stays.
    RemoveNamespace {
        /// The subsystem's NQN.
        nqn: String,
        /// The namespace's NSID, or the name of its LUN.
        namespace: String,
    },
    /// Offer a subsystem on an address.
    AddListener {
        /// The subsystem's NQN. With nqn.2014-08.org.nvmexpress.discovery, the discovery subsystem gets a listener of its own,
        /// usually at port 8009.
        nqn: String,
        /// Address and port, such as 192.0.2.1:4420, [2001:db8::1]:4420 or [fe80::1%eth0]:4420.
        listen: String,
    },
    /// Stop offering a subsystem on an address. The subsystem's connections by this address are closed.
    RemoveListener {
        /// The subsystem's NQN.
        nqn: String,
        /// Address and port, such as 192.0.2.1:4420, [2001:db8::1]:4420 or [fe80::1%eth0]:4420.
        listen: String,
    },
    /// Set whether every host may connect.
    AllowAnyHost {
        /// The subsystem's NQN.
        nqn: String,
        /// true or false.
        #[arg(action = clap::ArgAction::Set)]
        allow: bool,
        /// Close the subsystem to other hosts even if hosts are connected that are not on its list. These hosts are disconnected.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand)]
pub enum Host {
    /// Let a host connect to a subsystem, or with --nsid, see a namespace. A namespace without a list of hosts gets a list, so
    /// only listed hosts see the namespace from then on.
    Add {
        /// The subsystem's NQN.
        nqn: String,
        /// The host's name or NQN.
        host: String,
        /// NSID of the namespace.
        #[arg(long)]
        nsid: Option<u32>,
        /// Add the host even if connected hosts lose the namespace.
        #[arg(long)]
        force: bool,
    },
    /// Take away a host's access to a subsystem, or with --nsid, to a namespace. A host that loses access to a subsystem is
    /// disconnected.
    Remove {
        /// The subsystem's NQN.
        nqn: String,
        /// The host's name or NQN.
        host: String,
        /// NSID of the namespace.
        #[arg(long)]
        nsid: Option<u32>,
    },
    /// Give a host's NQN a name.
    Create {
        /// The host's name.
        name: String,
        /// The host's NQN.
        nqn: String,
    },
    /// Forget a host's name. Lists keep the host's NQN.
    Delete {
        /// The host's name.
        name: String,
    },
    /// List all hosts, and for each host the subsystems and namespaces whose lists have the host.
    List,
}

#[derive(Subcommand)]
pub enum Config {
    /// Print the system as a TOML document.
    Get,
    /// Show the changes that a document would make.
    Diff {
        /// File with a TOML document; `-` is standard input.
        file: String,
    },
    /// Change the system to what a document says. If a change can't be made, nothing changes.
    Apply(Document),
    /// Write the system, with all UUIDs and NGUIDs, to a file. The file holds no data of LUNs.
    Backup {
        /// File to write. Without a file, the backup goes to standard output.
        file: Option<String>,
    },
    /// Change the system to what a backup says. A LUN that was deleted after the backup comes back empty.
    Restore(Document),
    /// Build the system that SPDK's nvmf_tgt saved with `spdk-rpc save_config`. If this gateway lacks anything that the file
    /// needs, it names all of it and changes nothing. Calls that tune SPDK's internals are ignored. (`spdk-rpc load_config` loads
    /// such a file call by call, up to the first refusal.)
    LoadSpdk {
        /// File with JSON; `-` is standard input.
        file: String,
    },
}

/// A document, and the permissions for applying it.
#[derive(ClapArgs)]
pub struct Document {
    /// File with a TOML document; `-` is standard input.
    pub file: String,
    /// Only report the changes, the losses with the hosts that they affect, and the obstacles on this machine.
    #[arg(long)]
    pub dry_run: bool,
    /// Remove LUNs, namespaces, listeners and permissions that the document lacks, even if connected hosts use them.
    #[arg(long)]
    pub force: bool,
    /// Destroy the data of LUNs of pools and of memory backends that the document lacks, and data on backends of new pools, such
    /// as a file system or another pool's label.
    #[arg(long)]
    pub delete_data: bool,
}

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

/// Returns `true`, or nothing.
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
    use clap::CommandFactory;

    #[test]
    fn commands_are_consistent() {
        Args::command().debug_assert();
    }

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
    fn an_empty_variable_is_not_set() {
        let socket = |set: Option<&str>| default_socket(set.map(OsString::from));
        let usual = PathBuf::from("/run/trefoil/rpc.sock");
        assert_eq!([None, Some(""), Some("/x")].map(socket), [usual.clone(), usual, "/x".into()]);
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
    fn an_interval_that_is_too_short_is_refused_by_name() {
        let error = parse(&["top", "-i", "0"]).err().unwrap_or_default();
        assert!(error.contains("invalid value '0' for '--interval-ms <INTERVAL_MS>'"), "{error}");
        assert!(parse(&["top", "-i", "50"]).is_ok());
    }

    #[test]
    fn what_is_not_given_is_not_sent() {
        let args = Args::try_parse_from(["trefoil", "lun", "create", "a", "--pool", "p", "--size", "1GiB"]);
        let Ok(args) = args else { panic!("it parses") };
        let want = json!({ "name": "a", "pool": "p", "size": "1GiB" });
        assert_eq!(args.command.call(), ("lun_create", want));
    }
}
