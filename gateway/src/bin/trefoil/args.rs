//! The commands, as they are typed.

use clap::{Args as ClapArgs, Parser, Subcommand};
use serde_json::value::RawValue;
use std::ffi::OsString;
use std::path::PathBuf;

/// Controls a Trefoil gateway.
#[derive(Parser)]
#[command(name = "trefoil", version)]
pub struct Args {
    /// The gateway's control socket. The default is TREFOIL_SOCKET, if that is set.
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
    /// Backends: the places where blocks are stored.
    #[command(subcommand)]
    Backend(Backend),
    /// Pools: sets of backends from which LUNs are carved (without redundancy of their own).
    #[command(subcommand)]
    Pool(Pool),
    /// LUNs: virtual disks.
    #[command(subcommand)]
    Lun(Lun),
    /// Subsystems: the LUNs and addresses that are offered to hosts.
    #[command(subcommand)]
    Subsystem(Subsystem),
    /// Hosts: their access to subsystems and namespaces, and names for them.
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
        /// Milliseconds between two tables: 50 or more.
        #[arg(long, short, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..))]
        interval_ms: u64,
        /// How many tables to print; without it, until interrupted.
        #[arg(long, short)]
        count: Option<u64>,
    },
    /// Stop the gateway in order.
    Shutdown,
    /// Call any method, with its parameters as JSON.
    Call {
        /// The method.
        method: String,
        /// Its parameters. They are sent unchanged.
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
    pub name: String,
    /// memory, null, file or nvme-tcp.
    #[arg(long = "type", short)]
    pub kind: String,
    /// Its size, such as 10GiB. With it, a missing file is made.
    #[arg(long)]
    pub size: Option<String>,
    /// Logical block size: 512 or 4096.
    #[arg(long)]
    pub block_bytes: Option<u32>,
    /// A file or block device.
    #[arg(long)]
    pub path: Option<String>,
    /// An array's address and port.
    #[arg(long)]
    pub address: Option<String>,
    /// The array's subsystem.
    #[arg(long)]
    pub subnqn: Option<String>,
    /// The NQN that the gateway gives to the array as its own.
    #[arg(long)]
    pub hostnqn: Option<String>,
    /// The array's namespace.
    #[arg(long)]
    pub nsid: Option<u32>,
    /// I/O queue pairs to ask the array for.
    #[arg(long)]
    pub queues: Option<u16>,
    /// Entries of a queue pair.
    #[arg(long)]
    pub depth: Option<u16>,
    /// PDU header digests.
    #[arg(long)]
    pub header_digest: bool,
    /// PDU data digests.
    #[arg(long)]
    pub data_digest: bool,
    #[command(flatten)]
    pub times: ArrayTimes,
}

/// Time limits for an array.
#[derive(ClapArgs)]
pub struct ArrayTimes {
    /// Seconds, 1 to 5. A silent array counts as lost after them, and so does the gateway for the array.
    #[arg(long)]
    pub keep_alive_s: Option<u32>,
    /// Seconds that I/O waits for a lost array.
    #[arg(long)]
    pub loss_timeout_s: Option<u32>,
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
        /// The same, in an older form without the option's name.
        #[arg(hide = true, conflicts_with = "address")]
        at: Option<String>,
        /// The NQN that the gateway gives to the array as its own.
        #[arg(long)]
        hostnqn: Option<String>,
    },
    /// Make a backend of each namespace of an array's subsystem: NAMEn1, NAMEn2, ...
    Attach {
        /// The prefix of the backends' names.
        name: String,
        /// The array's address and port.
        #[arg(long)]
        address: String,
        /// The array's subsystem.
        #[arg(long)]
        subnqn: String,
        /// The address is that of the array's discovery service, which gives the subsystem's own address.
        #[arg(long)]
        discovery: bool,
        /// The NQN that the gateway gives to the array as its own.
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
    /// List all backends, or one.
    List {
        /// The backend's name.
        name: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum Pool {
    /// Make a pool. All data on its backends is lost. But if the backends are a pool of that name already, all of its backends
    /// and no others, that pool is opened as it is, with its LUNs.
    Create {
        /// The pool's name.
        name: String,
        /// Its backends.
        #[arg(required = true)]
        backends: Vec<String>,
        /// Even if a file system, a partition table or another pool's label is recognised on a backend.
        #[arg(long)]
        delete_data: bool,
    },
    /// Destroy a pool. A pool whose backends are lost is only forgotten: its contents stay on them.
    Delete {
        /// The pool's name.
        name: String,
        /// Even if the pool holds LUNs. Their data is lost.
        #[arg(long)]
        delete_data: bool,
        /// Even if subsystems show its LUNs.
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
        /// The pool.
        #[arg(long)]
        pool: String,
        /// Its size, such as 10GiB.
        #[arg(long)]
        size: String,
        /// Logical block size: 512 or 4096.
        #[arg(long)]
        block_bytes: Option<u32>,
        /// Its UUID. Without it, a new one is made.
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
        /// Even if a subsystem shows it.
        #[arg(long)]
        force: bool,
    },
    /// Make a LUN of a pool larger. Hosts are told of the new size.
    Grow {
        /// The LUN's name.
        name: String,
        /// Its new size.
        size: String,
    },
    /// Present a whole backend as a LUN, with its data unchanged.
    Import {
        /// The LUN's name.
        name: String,
        /// The backend.
        #[arg(long)]
        backend: String,
        /// Logical block size: 512 or 4096.
        #[arg(long)]
        block_bytes: Option<u32>,
        /// Its UUID. Without it, the LUN has the backend's own UUID, if there is one. With it, a pool's label on the backend
        /// counts as data of the LUN's hosts.
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
        /// Even if a subsystem shows it.
        #[arg(long)]
        force: bool,
    },
    /// List all LUNs, or one.
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
        /// Serial number.
        #[arg(long)]
        serial: Option<String>,
        /// Model number.
        #[arg(long)]
        model: Option<String>,
        /// Let every host in.
        #[arg(long)]
        allow_any_host: bool,
        /// A host that may connect. Can be repeated.
        #[arg(long = "host")]
        hosts: Vec<String>,
        /// An address and port to offer the subsystem on. Can be repeated.
        #[arg(long = "listen")]
        listeners: Vec<String>,
    },
    /// Delete a subsystem. Its LUNs stay.
    Delete {
        /// The subsystem's NQN.
        nqn: String,
        /// Even if hosts are connected. They are disconnected.
        #[arg(long)]
        force: bool,
    },
    /// List all subsystems, or one. The discovery subsystem is listed once it has listeners of its own.
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
        /// The namespace's NSID. Without it, the lowest that is free.
        #[arg(long)]
        nsid: Option<u32>,
        /// A host that sees the namespace, out of those that may connect. Can be repeated. Without it, all of them see it.
        #[arg(long = "host")]
        hosts: Vec<String>,
    },
    /// Show a LUN no more.
    RemoveNamespace {
        /// The subsystem's NQN.
        nqn: String,
        /// The namespace: its NSID or its LUN.
        namespace: String,
    },
    /// Offer a subsystem on an address.
    AddListener {
        /// The subsystem's NQN. nqn.2014-08.org.nvmexpress.discovery gets listeners of its own, usually at port 8009.
        nqn: String,
        /// Address and port, such as 192.0.2.1:4420, [2001:db8::1]:4420 or [fe80::1%eth0]:4420.
        listen: String,
    },
    /// Stop offering a subsystem on an address. The connections that came by that address end.
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
        /// Even if hosts are connected that are not on the subsystem's list. They are disconnected.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand)]
pub enum Host {
    /// Let a host connect to a subsystem, or see a namespace. If all hosts could see the namespace, only those on its list see it
    /// then.
    Add {
        /// The subsystem.
        nqn: String,
        /// The host's name or its NQN.
        host: String,
        /// The namespace.
        #[arg(long)]
        nsid: Option<u32>,
        /// Even if connected hosts lose the namespace.
        #[arg(long)]
        force: bool,
    },
    /// Take away a host's access to a subsystem or a namespace. A host that loses a subsystem is disconnected.
    Remove {
        /// The subsystem.
        nqn: String,
        /// The host's name or its NQN.
        host: String,
        /// The namespace.
        #[arg(long)]
        nsid: Option<u32>,
    },
    /// Give a host a name.
    Create {
        /// The name.
        name: String,
        /// Its NQN.
        nqn: String,
    },
    /// Forget a host's name.
    Delete {
        /// The name.
        name: String,
    },
    /// List all hosts, with the lists of subsystems and namespaces that they are on.
    List,
}

#[derive(Subcommand)]
pub enum Config {
    /// Print the system as a document.
    Get,
    /// Show the changes that a document would make.
    Diff {
        /// TOML; `-` is standard input.
        file: String,
    },
    /// Make the system as a document says, or change nothing.
    Apply(Document),
    /// Write the system, with every identity, to a file. The file holds no data of LUNs.
    Backup {
        /// The file to write. Without it, standard output.
        file: Option<String>,
    },
    /// Make the system as a backup says. A LUN that was deleted since then comes back empty.
    Restore(Document),
    /// Build what SPDK's nvmf_tgt saved (`spdk-rpc save_config`), or change nothing and name all that this gateway lacks. SPDK's
    /// tuning of its own insides is ignored. (`spdk-rpc load_config` loads such a file call by call, up to the first refusal.)
    LoadSpdk {
        /// JSON; `-` is standard input.
        file: String,
    },
}

/// A document, and the permissions for applying it.
#[derive(ClapArgs)]
pub struct Document {
    /// TOML; `-` is standard input.
    pub file: String,
    /// Only report the changes, the losses and the hosts that they affect, and the obstacles on this machine.
    #[arg(long)]
    pub dry_run: bool,
    /// Remove LUNs, namespaces, listeners and access that connected hosts use and that the document doesn't have.
    #[arg(long)]
    pub force: bool,
    /// Destroy data: that of pools' LUNs and memory backends that the document doesn't have, and any that is recognised on
    /// backends of new pools, such as another pool's label.
    #[arg(long)]
    pub delete_data: bool,
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
    fn an_empty_variable_is_not_set() {
        let socket = |set: Option<&str>| default_socket(set.map(OsString::from));
        let usual = PathBuf::from("/run/trefoil/rpc.sock");
        assert_eq!([None, Some(""), Some("/x")].map(socket), [usual.clone(), usual, "/x".into()]);
    }

    #[test]
    fn an_interval_that_is_too_short_is_refused_by_name() {
        let error = parse(&["top", "-i", "0"]).err().unwrap_or_default();
        assert!(error.contains("invalid value '0' for '--interval-ms <INTERVAL_MS>'"), "{error}");
        assert!(parse(&["top", "-i", "50"]).is_ok());
    }
}
