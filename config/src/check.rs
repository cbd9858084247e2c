//! Checks of single objects.

use crate::address::Address;
use crate::bytes::Bytes;
use crate::document::{Backend, BackendType, DISCOVERY_NQN, FieldError, Host, Lun, Pool, Subsystem};
use crate::nqn::{check_host_nqn, check_subsystem_nqn};
use crate::told::cut_quotations;

/// The most backends of one gateway.
pub const MAX_BACKENDS: usize = 256;
/// The longest keep-alive timeout towards an array, in seconds. When a path is lost or the gateway dies, writes may still
/// be outstanding at the array. The keep-alive timeout bounds the time in which these writes can still take effect. After a
/// lost path, hosts know this time, because it is part of the CQT that the gateway reports. After the gateway's death, the
/// restarted gateway doesn't know these writes, so hosts should not reconnect before the array has noticed the death. Linux
/// hosts have a keep-alive timeout of 5 s by default.
pub const MAX_KEEP_ALIVE_S: u32 = 5;

fn wrong<T>(field: &'static str, message: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError { field, message: cut_quotations(&message.into()) })
}

/// Checks the name of a backend, pool, LUN or host: 1 to 63 printable ASCII characters without
/// spaces or quotes.
///
/// # Errors
/// A description of the fault, for the field `name`.
pub fn check_name(name: &str) -> Result<(), FieldError> {
    let ok = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'`');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(ok) {
        return wrong(
            "name",
            format!(
                "`{name}` is not a name: use 1 to 63 printable ASCII characters without spaces or quotes"
            ),
        );
    }
    Ok(())
}

/// Checks only the listeners of a subsystem or of the discovery subsystem.
///
/// # Errors
/// The first address that can't be a listener, for the field `listeners`.
pub fn check_listeners(listeners: &[Address]) -> Result<(), FieldError> {
    match listeners.iter().find(|listen| listen.port() == 0) {
        Some(listen) => wrong("listeners", format!("{listen} has no port")),
        None => Ok(()),
    }
}

fn check_block(field: &'static str, block_bytes: Option<u32>) -> Result<u64, FieldError> {
    match block_bytes {
        None => Ok(512),
        Some(n @ (512 | 4096)) => Ok(u64::from(n)),
        Some(n) => wrong(field, format!("a logical block can't have {n} bytes: use 512 or 4096")),
    }
}

fn check_size(size: Bytes, block_bytes: u64) -> Result<(), FieldError> {
    if size.0 == 0 || !size.0.is_multiple_of(block_bytes) {
        let text = format!("{size} is not a positive multiple of the block size {block_bytes}");
        return wrong("size", text + &binary_hint(size));
    }
    Ok(())
}

/// Returns a hint to use the binary unit, for a size with a decimal unit.
fn binary_hint(Bytes(bytes): Bytes) -> String {
    let units = [
        ("TB", "TiB", 1_000_000_000_000),
        ("GB", "GiB", 1_000_000_000),
        ("MB", "MiB", 1_000_000),
        ("kB", "KiB", 1000),
    ];
    let decimal = units.iter().find(|(_, _, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    decimal.map_or_else(String::new, |(is, binary, scale)| {
        let count = bytes / scale;
        format!(": {count}{is} are {bytes} bytes; did you mean {count}{binary}?")
    })
}

fn check_ascii(field: &'static str, text: &str, max: usize) -> Result<(), FieldError> {
    if text.is_empty() || text.len() > max || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return wrong(field, format!("`{text}` is not 1 to {max} printable ASCII characters"));
    }
    Ok(())
}

impl Backend {
    /// Checks this backend by itself. Each type requires some fields and refuses others.
    ///
    /// # Errors
    /// The first field that is wrong, missing, or valid only for another type of backend.
    pub fn check(&self) -> Result<(), FieldError> {
        use BackendType::{File, Memory, Null, NvmeTcp};
        check_name(&self.name)?;
        let kind = self.kind;
        let fields: [(&'static str, bool, &[BackendType]); 13] = [
            ("size", self.size.is_some(), &[Memory, Null, File]),
            ("block_bytes", self.block_bytes.is_some(), &[Memory, Null, File]),
            ("path", self.path.is_some(), &[Memory, File]),
            ("address", self.address.is_some(), &[NvmeTcp]),
            ("subnqn", self.subnqn.is_some(), &[NvmeTcp]),
            ("hostnqn", self.hostnqn.is_some(), &[NvmeTcp]),
            ("nsid", self.nsid.is_some(), &[NvmeTcp]),
            ("queues", self.queues.is_some(), &[NvmeTcp]),
            ("depth", self.depth.is_some(), &[NvmeTcp]),
            ("header_digest", self.header_digest.is_some(), &[NvmeTcp]),
            ("data_digest", self.data_digest.is_some(), &[NvmeTcp]),
            ("keep_alive_s", self.keep_alive_s.is_some(), &[NvmeTcp]),
            ("loss_timeout_s", self.loss_timeout_s.is_some(), &[NvmeTcp]),
        ];
        if let Some((field, ..)) = fields.iter().find(|(_, set, kinds)| *set && !kinds.contains(&kind)) {
            return wrong(field, format!("a backend of type {} has no field `{field}`", kind.as_str()));
        }
        let needed: &[&'static str] = match kind {
            Memory | Null => &["size"],
            File => &["path"],
            NvmeTcp => &["address", "subnqn"],
        };
        if let Some((field, ..)) = fields.iter().find(|(field, set, _)| !set && needed.contains(field)) {
            return wrong(field, format!("a backend of type {} needs the field `{field}`", kind.as_str()));
        }
        let block_bytes = check_block("block_bytes", self.block_bytes)?;
        if let Some(size) = self.size {
            check_size(size, block_bytes)?;
        }
        for (field, nqn) in [("subnqn", &self.subnqn), ("hostnqn", &self.hostnqn)] {
            if let Some(Err(error)) = nqn.as_deref().map(check_host_nqn) {
                return wrong(field, error);
            }
        }
        match self.nsid {
            Some(0 | u32::MAX) => wrong("nsid", "the namespace ID is out of range: use 1 to 4294967294"),
            _ => Ok(()),
        }?;
        match self.queues {
            Some(0) => wrong("queues", "0 I/O queue pairs are too few: use 1 or more"),
            _ => Ok(()),
        }?;
        match self.keep_alive_s {
            Some(n) if !(1..=MAX_KEEP_ALIVE_S).contains(&n) => {
                wrong("keep_alive_s", format!("the timeout can't be {n} s: use 1 to {MAX_KEEP_ALIVE_S}"))
            }
            _ => Ok(()),
        }?;
        match self.depth {
            Some(n) if !(2..=1024).contains(&n) => {
                wrong("depth", format!("a queue pair can't have {n} entries: use 2 to 1024"))
            }
            _ => Ok(()),
        }
    }
}

impl Pool {
    /// Checks this object by itself, without its references to other objects.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        check_name(&self.name)?;
        if self.backends.is_empty() {
            return wrong("backends", "a pool needs at least one backend");
        }
        // This check limits the length of the list before the later checks compare all backends with each other.
        if self.backends.len() > MAX_BACKENDS {
            let len = self.backends.len();
            return wrong(
                "backends",
                format!("{len} backends are too many: a gateway can have {MAX_BACKENDS}"),
            );
        }
        let twice = self.backends.iter().enumerate().find(|(n, name)| self.backends[..*n].contains(name));
        match twice {
            Some((_, name)) => wrong("backends", format!("backend `{name}` is listed twice: list it once")),
            None => Ok(()),
        }
    }
}

impl Lun {
    /// Checks this object by itself, without its references to other objects.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        check_name(&self.name)?;
        let block_bytes = check_block("block_bytes", self.block_bytes)?;
        match (&self.pool, &self.backend, self.size) {
            (Some(_), Some(_), _) => wrong(
                "backend",
                "a LUN has either a `pool` or a `backend`, not both: remove one of the two fields",
            ),
            (None, None, _) => {
                wrong("pool", "the LUN has neither a `pool` nor a `backend`: set one of the two fields")
            }
            (Some(_), None, None) => wrong("size", "a LUN that is carved from a pool needs a `size`"),
            (None, Some(_), Some(_)) => {
                wrong("size", "a LUN that presents a whole backend has the backend's size: remove `size`")
            }
            (Some(_), None, Some(size)) => check_size(size, block_bytes),
            (None, Some(_), None) => Ok(()),
        }?;
        if self.uuid.is_some_and(|uuid| uuid.is_nil()) {
            return wrong(
                "uuid",
                "a UUID of zeros identifies nothing: leave `uuid` out, and the gateway makes a random UUID",
            );
        }
        match self.nguid.as_deref() {
            Some(text) if parse_nguid(text).is_none() => wrong(
                "nguid",
                format!("`{text}` is not an NGUID: use 32 hexadecimal digits that are not all zero"),
            ),
            _ => Ok(()),
        }
    }

    /// Returns the NGUID's bytes, if the LUN has a valid NGUID.
    pub fn nguid_bytes(&self) -> Option<[u8; 16]> {
        self.nguid.as_deref().and_then(parse_nguid)
    }

    /// Returns the identities by which hosts recognise the LUN: its UUID and its NGUID, if the document has them. If the
    /// document has no NGUID, the NGUID is the UUID's bytes.
    pub fn identities(&self) -> [Option<(&'static str, [u8; 16])>; 2] {
        let uuid = self.uuid.map(|uuid| *uuid.as_bytes());
        [uuid.map(|id| ("uuid", id)), self.nguid_bytes().or(uuid).map(|id| ("nguid", id))]
    }
}

fn parse_nguid(text: &str) -> Option<[u8; 16]> {
    // `Uuid` reads 32 digits without hyphens ("simple"); its other forms are longer.
    let id = uuid::Uuid::try_parse(text).ok().filter(|id| text.len() == 32 && !id.is_nil())?;
    Some(*id.as_bytes())
}

impl Subsystem {
    /// Checks this object by itself, without its references to other objects.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        if let Err(error) = check_subsystem_nqn(&self.nqn) {
            return wrong("nqn", error);
        }
        if self.nqn == DISCOVERY_NQN {
            return wrong(
                "nqn",
                "the discovery subsystem always exists: write its own listeners under [discovery]",
            );
        }
        self.serial.as_deref().map_or(Ok(()), |serial| check_ascii("serial", serial, 20))?;
        if self.serial.as_deref().is_some_and(|serial| serial.trim().is_empty()) {
            return wrong(
                "serial",
                "the serial number has only spaces: leave `serial` out, and the gateway derives it from the NQN",
            );
        }
        self.model.as_deref().map_or(Ok(()), |model| check_ascii("model", model, 40))?;
        if !(1..=4096).contains(&self.max_nsid()) {
            return wrong("max_namespaces", format!("{} is out of range: use 1 to 4096", self.max_nsid()));
        }
        let (min, max) = (self.min_cntlid.unwrap_or(1), self.max_cntlid.unwrap_or(0xFFEF));
        // FFF0h to FFFFh are reserved (NVMe base 2.0c §4.6.1 CNTLID).
        if min == 0 || max > 0xFFEF || min > max {
            return wrong(
                "max_cntlid",
                format!("`min_cntlid` {min} and `max_cntlid` {max} are not a range within 1 to 65519"),
            );
        }
        check_listeners(&self.listeners)?;
        for (n, namespace) in self.namespaces.iter().enumerate() {
            if !(1..=self.max_nsid()).contains(&namespace.nsid) {
                let max = self.max_nsid();
                return wrong(
                    "namespaces",
                    format!("nsid {} is out of range: use 1 to {max}", namespace.nsid),
                );
            }
            if self.namespaces[..n].iter().any(|earlier| earlier.nsid == namespace.nsid) {
                return wrong("namespaces", format!("nsid {} is listed twice", namespace.nsid));
            }
        }
        Ok(())
    }
}

impl Host {
    /// Checks this object by itself, without its references to other objects.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        check_name(&self.name)?;
        if self.name.starts_with("nqn.") {
            return wrong(
                "name",
                format!(
                    "`{}` begins like an NQN: use another name, so that lists of hosts are clear",
                    self.name
                ),
            );
        }
        check_host_nqn(&self.nqn).or_else(|error| wrong("nqn", error))
    }
}
