//! The commands and their arguments, as a user types them.

use clap::{Args as ClapArgs, Parser, Subcommand};
use serde_json::value::RawValue;
use std::ffi::OsString;
use std::path::PathBuf;

/// Heading of the options that every command takes, in its help.
const EVERYWHERE: &str = "Options of every command";

/// Controls a Trefoil gateway.
#[derive(Parser)]
#[command(name = "trefoil", version)]
pub struct Args {
    /// The gateway's control socket. The variable TREFOIL_SOCKET, if set, gives the default.
    #[arg(long, short, global = true, help_heading = EVERYWHERE,
        default_value_os_t = default_socket(std::env::var_os("TREFOIL_SOCKET")))]
    pub socket: PathBuf,
    /// Print results as JSON.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
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
    /// Call any JSON-RPC method; `rpc_get_methods` lists all methods.
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
    pub name: String,
    /// The backend's type: memory, null, file or nvme-tcp.
    #[arg(long = "type", short)]
    pub kind: String,
    /// Size of the backend, such as 10GiB. If the backend's file is missing, the gateway makes a file of this size.
    #[arg(long)]
    pub size: Option<String>,
    /// Logical block size in bytes: 512 or 4096.
    #[arg(long)]
    pub block_bytes: Option<u32>,
    /// Path of the file or block device.
    #[arg(long)]
    pub path: Option<String>,
    /// An array's address and port.
    #[arg(long)]
    pub address: Option<String>,
    /// NQN of the array's subsystem.
    #[arg(long)]
    pub subnqn: Option<String>,
    /// Host NQN that the gateway uses at the array.
    #[arg(long)]
    pub hostnqn: Option<String>,
    /// NSID of the array's namespace.
    #[arg(long)]
    pub nsid: Option<u32>,
    /// Number of I/O queue pairs to request from the array.
    #[arg(long)]
    pub queues: Option<u16>,
    /// Entries of each queue pair, 2 to 1024.
    #[arg(long)]
    pub depth: Option<u16>,
    /// Request PDU header digests.
    #[arg(long)]
    pub header_digest: bool,
    /// Request PDU data digests.
    #[arg(long)]
    pub data_digest: bool,
    #[command(flatten)]
    pub times: ArrayTimes,
}

/// Time limits for an array.
#[derive(ClapArgs)]
pub struct ArrayTimes {
    /// Keep-alive timeout in seconds, 1 to 5. After this time without an answer, the gateway treats the array as lost, and the
    /// array treats the gateway as lost.
    #[arg(long)]
    pub keep_alive_s: Option<u32>,
    /// Time in seconds for which I/O waits for a lost array.
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
        /// Address and port, such as 192.0.2.1:4420, `[2001:db8::1]:4420` or [fe80::1%eth0]:4420.
        listen: String,
    },
    /// Stop offering a subsystem on an address. The subsystem's connections by this address are closed.
    RemoveListener {
        /// The subsystem's NQN.
        nqn: String,
        /// Address and port, such as 192.0.2.1:4420, `[2001:db8::1]:4420` or [fe80::1%eth0]:4420.
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
    /// Print the system as a TOML document, with all UUIDs and NGUIDs.
    Get,
    /// Show the changes that a document would make.
    Diff {
        /// File with a TOML document; `-` is standard input.
        file: String,
    },
    /// Change the system to what a document says. If a change can't be made, nothing changes.
    Apply(Document),
    /// Write the same document to a file, with a first line that `restore` needs. The file holds no data of LUNs.
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
