//! Losses: the objects that a change takes from connected hosts, and the data that the change destroys.
//!
//! This module alone judges changes that take objects without naming them: whole documents, and a few other changes (see
//! [`Change::permit`](crate::Change::permit)). Each loss needs the permission for its kind. The module does no I/O: the caller
//! passes the connected hosts.
//!
//! A change that names every object that it takes, such as the removal of a namespace, is not checked here.

use crate::error::{Fault, Refusal};
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};
use trefoil_config::{Address, Backend, BackendType, DISCOVERY_NQN, Namespace, Subsystem};

/// Most losses that a refusal names.
const NAMED: usize = 20;

/// The connected hosts. The key is the pair of a host's NQN and a subsystem's NQN. The value is the set of listeners that the
/// host's connections use. Listeners that no longer exist are left out.
pub type Links = BTreeMap<(String, String), BTreeSet<Address>>;

/// The losses that the client allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// Allows a change to take objects from connected hosts.
    pub force: bool,
    /// Allows a change to destroy data.
    pub delete_data: bool,
}

/// The permission that a loss needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A connected host uses the object that is removed or changed.
    InUse,
    /// Data is lost for good.
    Data,
}

impl Kind {
    /// Returns the kind's name for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Data => "data",
        }
    }

    /// Returns the command-line option that allows losses of this kind.
    pub fn flag(self) -> &'static str {
        match self {
            Self::InUse => "--force",
            Self::Data => "--delete-data",
        }
    }
}

impl Permit {
    /// Returns whether losses of this kind are allowed.
    pub fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::InUse => self.force,
            Kind::Data => self.delete_data,
        }
    }
}

/// A single loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The permission that the loss needs.
    pub kind: Kind,
    /// The key of the lost object's row, such as `lun/a`.
    pub object: String,
    /// The message for a person. It names LUN, namespace and host.
    pub what: String,
}

/// Returns all losses that the change from `now` to `next` causes while the hosts in `links` are connected.
pub fn losses(now: &State, next: &State, links: &Links) -> Vec<Loss> {
    let mut losses = Vec::new();
    for ((host, nqn), listeners) in links {
        if let Some(old) = now.subsystems.get(nqn).filter(|old| may_connect(old, host)) {
            let object = format!("subsystem/{nqn}");
            let what = taken(now, next, old, host, listeners).into_iter();
            losses.extend(what.map(|what| Loss { kind: Kind::InUse, object: object.clone(), what }));
        }
    }
    // Every listener answers discovery, so a discovery host can use any listener that stays.
    let (gone, left) = (&now.discovery.listeners, next.listeners());
    for ((host, _), listeners) in links.iter().filter(|((_, nqn), _)| nqn == DISCOVERY_NQN) {
        for listen in listeners.iter().filter(|at| gone.contains(at) && !left.contains(at)) {
            let what = format!(
                "host `{host}` is connected for discovery by listener {listen}, and could not reconnect by this listener"
            );
            losses.push(Loss { kind: Kind::InUse, object: "discovery/listeners".into(), what });
        }
    }
    for lun in now.luns.values().filter(|lun| !next.luns.contains_key(&lun.name)) {
        if let Some(pool) = &lun.pool {
            let (name, kind) = (&lun.name, Kind::Data);
            let what = format!("LUN `{name}` loses its data in pool `{pool}`");
            losses.push(Loss { kind, object: format!("lun/{name}"), what });
        }
    }
    for Backend { name, .. } in now.backends.values().filter(|backend| forgets(now, next, backend)) {
        let lun = now.luns.values().find(|lun| lun.backend.as_ref() == Some(name));
        let lun = lun.map_or(String::new(), |lun| format!(", LUN `{}`,", lun.name));
        let what = format!("memory backend `{name}`{lun} loses its contents");
        losses.push(Loss { kind: Kind::Data, object: format!("backend/{name}"), what });
    }
    losses
}

/// Refuses losses that `permit` does not allow.
///
/// # Errors
/// [`Fault::InUse`], with the losses and the options that allow them.
pub fn check(losses: &[Loss], permit: Permit) -> Result<(), Refusal> {
    let refused: Vec<&Loss> = losses.iter().filter(|loss| !permit.allows(loss.kind)).collect();
    let tell = |loss: &&Loss| format!("{}: allow this loss with {}", loss.what, loss.kind.flag());
    let message = match refused.as_slice() {
        [] => return Ok(()),
        [one] => tell(one),
        many => {
            let lines: String = many.iter().take(NAMED).map(|loss| format!("\n  {}", tell(loss))).collect();
            let more = match many.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!("\n  and {more} more"),
            };
            format!("nothing has changed, because the change would lose these:{lines}{more}")
        }
    };
    Err(Refusal::new(Fault::InUse, message))
}

fn may_connect(subsystem: &Subsystem, host: &str) -> bool {
    subsystem.allow_any_host || subsystem.hosts.iter().any(|allowed| allowed == host)
}

fn sees(namespace: &Namespace, host: &str) -> bool {
    namespace.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|allowed| allowed == host))
}

/// Returns the losses of a host that is connected to subsystem `old` through `listeners`.
fn taken(
    now: &State,
    next: &State,
    old: &Subsystem,
    host: &str,
    listeners: &BTreeSet<Address>,
) -> Vec<String> {
    let nqn = &old.nqn;
    let seen = old.namespaces.iter().filter(|ns| sees(ns, host));
    let Some(new) = next.subsystems.get(nqn).filter(|new| may_connect(new, host)) else {
        let luns: Vec<String> = seen.map(|ns| format!("`{}`", ns.lun)).collect();
        let luns = if luns.is_empty() { "none".into() } else { luns.join(", ") };
        return vec![format!("host `{host}` is disconnected from subsystem `{nqn}` (LUNs: {luns})")];
    };
    let mut taken = Vec::new();
    for Namespace { nsid, lun, .. } in seen {
        let stays = |ns: &&Namespace| ns.nsid == *nsid && ns.lun == *lun && sees(ns, host);
        let writable = |state: &State| state.luns.get(lun).is_some_and(|lun| !lun.read_only);
        if !new.namespaces.iter().any(|ns| stays(&ns)) {
            taken.push(format!("host `{host}` loses namespace {nsid} (LUN `{lun}`) of subsystem `{nqn}`"));
        } else if writable(now) && !writable(next) {
            let what = format!("can no longer write to namespace {nsid} (LUN `{lun}`) of subsystem `{nqn}`");
            taken.push(format!("host `{host}` {what}"));
        }
    }
    if (&old.serial, &old.model) != (&new.serial, &new.model) {
        taken.push(format!(
            "host `{host}` is connected to subsystem `{nqn}`, whose serial number or model changes"
        ));
    }
    for listen in listeners.iter().filter(|listen| !new.listeners.contains(listen)) {
        taken.push(format!(
            "host `{host}` is connected to subsystem `{nqn}` by listener {listen}, and could not reconnect by this listener"
        ));
    }
    taken
}

/// Returns whether the removal of this backend destroys the backend's contents. The backends of pools don't count here: the
/// loss of a pool's data is counted with the pool's LUNs.
fn forgets(now: &State, next: &State, backend: &Backend) -> bool {
    let is_gone = !next.backends.contains_key(&backend.name);
    let in_pool = now.pools.values().any(|pool| pool.backends.contains(&backend.name));
    is_gone && !in_pool && backend.kind == BackendType::Memory && backend.path.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_config::{Bytes, Config};

    const HOST: &str = "nqn.2026-01.org.example:h";
    const NQN: &str = "nqn.2026-01.org.example:s";
    const TEXT: &str = r#"
        [[host]]
        name = "h"
        nqn = "nqn.2026-01.org.example:h"
        [[backend]]
        name = "m"
        type = "memory"
        size = "1MiB"
        [[backend]]
        name = "f"
        type = "file"
        path = "f.img"
        [[backend]]
        name = "g"
        type = "file"
        path = "g.img"
        [[pool]]
        name = "p"
        backends = ["f"]
        [[lun]]
        name = "a"
        pool = "p"
        size = "8MiB"
        [[lun]]
        name = "w"
        backend = "m"
        [[lun]]
        name = "v"
        backend = "g"
        [[subsystem]]
        nqn = "nqn.2026-01.org.example:s"
        hosts = ["h"]
        listeners = ["127.0.0.1:4420", "127.0.0.2:4420"]
        namespaces = [{ nsid = 1, lun = "a" }, { nsid = 2, lun = "w", hosts = ["h"] }, { nsid = 3, lun = "v", hosts = [] }]
    "#;

    fn config() -> Config {
        Config::parse("t", TEXT).expect("sound")
    }

    fn connected() -> Links {
        let listener = "127.0.0.1:4420".parse().expect("an address");
        BTreeMap::from([((HOST.into(), NQN.into()), BTreeSet::from([listener]))])
    }

    /// Returns the losses that the edited document causes while the hosts in `links` are connected.
    fn lost(links: &Links, edit: impl FnOnce(&mut Config)) -> Vec<(Kind, String)> {
        let now = State::from_config(&config(), &State::default());
        let mut config = config();
        edit(&mut config);
        assert_eq!(config.check(), [], "the document is sound");
        let losses = losses(&now, &State::from_config(&config, &now), links);
        losses.into_iter().map(|loss| (loss.kind, loss.what)).collect()
    }

    fn used(edit: impl FnOnce(&mut Config)) -> Vec<String> {
        let lost = lost(&connected(), edit).into_iter();
        lost.filter(|(kind, _)| *kind == Kind::InUse).map(|(_, what)| what).collect()
    }

    #[test]
    fn what_a_connected_host_sees_is_in_use() {
        assert_eq!(used(|_| {}), [""; 0]);
        let all = "host `nqn.2026-01.org.example:h` is disconnected from subsystem `nqn.2026-01.org.example:s` (LUNs: `a`, `w`)";
        assert_eq!(used(|c| c.subsystems.clear()), [all]);
        assert_eq!(used(|c| c.subsystems[0].hosts.clear()), [all]);
        assert_eq!(used(|c| c.hosts[0].nqn = "nqn.2026-01.org.example:other".into()), [all]);
        let loses = |nsid: u32, lun: &str| {
            format!("host `{HOST}` loses namespace {nsid} (LUN `{lun}`) of subsystem `{NQN}`")
        };
        assert_eq!(used(|c| drop(c.subsystems[0].namespaces.remove(1))), [loses(2, "w")]);
        assert_eq!(used(|c| c.subsystems[0].namespaces[0].hosts = Some(Vec::new())), [loses(1, "a")]);
        assert_eq!(used(|c| c.subsystems[0].namespaces[0].nsid = 9), [loses(1, "a")]);
        let swap = |c: &mut Config| c.subsystems[0].namespaces[..2].iter_mut().for_each(|ns| ns.nsid ^= 3);
        assert_eq!(used(swap), [loses(1, "a"), loses(2, "w")]);
        assert!(
            used(|c| c.luns[0].read_only = true)[0].contains("can no longer write to namespace 1 (LUN `a`)")
        );
        assert!(
            used(|c| c.subsystems[0].serial = Some("X".into()))[0]
                .contains("whose serial number or model changes")
        );
        assert!(
            used(|c| c.subsystems[0].listeners.retain(|l| l.ip() != std::net::Ipv4Addr::LOCALHOST))[0]
                .contains("by listener 127.0.0.1:4420")
        );
        // These edits cause no loss: the host doesn't see or use the object, or the host gains an object or a right.
        assert_eq!(used(|c| drop(c.subsystems[0].namespaces.remove(2))), [""; 0]);
        assert_eq!(used(|c| c.subsystems[0].listeners.truncate(1)), [""; 0]);
        assert_eq!(used(|c| c.luns[0].size = Some(Bytes(16 << 20))), [""; 0]);
        assert_eq!(used(|c| c.subsystems[0].allow_any_host = true), [""; 0]);
        // Every listener that stays answers discovery.
        let only = |listen: &str| {
            let mut state = State::from_config(&config(), &State::default());
            state.discovery.listeners = vec![listen.parse().expect("an address")];
            let none = State { discovery: Default::default(), ..state.clone() };
            let links = BTreeMap::from([((HOST.into(), DISCOVERY_NQN.into()), state.listeners())]);
            losses(&state, &none, &links).into_iter().map(|loss| loss.what).collect::<Vec<_>>()
        };
        assert!(only("127.0.0.1:8009")[0].contains("for discovery by listener 127.0.0.1:8009"));
        assert_eq!(only("127.0.0.1:4420"), [""; 0]);
        // No host is connected.
        assert_eq!(lost(&Links::new(), |c| c.subsystems.clear()), []);
    }

    #[test]
    fn data_that_goes_is_named() {
        let data = |edit: fn(&mut Config)| {
            let lost = lost(&Links::new(), |c| {
                c.subsystems.clear();
                edit(c);
            });
            lost.into_iter().map(|(kind, what)| (kind == Kind::Data, what)).collect::<Vec<_>>()
        };
        let one = |what: &str| vec![(true, what.to_owned())];
        assert_eq!(data(|c| drop(c.luns.remove(0))), one("LUN `a` loses its data in pool `p`"));
        // The LUN presents a whole backend, and the backend stays. So the LUN is released, and no data is lost.
        assert_eq!(data(|c| drop(c.luns.remove(1))), []);
        let gone = |c: &mut Config| {
            c.luns.remove(1);
            c.backends.remove(0);
        };
        assert_eq!(data(gone), one("memory backend `m`, LUN `w`, loses its contents"));
        let file_gone = |c: &mut Config| {
            c.luns.remove(2);
            c.backends.remove(2);
        };
        assert_eq!(data(file_gone), []);
    }

    #[test]
    fn each_kind_needs_its_own_leave() {
        let loss =
            |kind, n: usize| Loss { kind, object: format!("lun/{n}"), what: format!("LUN `{n}` goes") };
        let permit = |force, delete_data| Permit { force, delete_data };
        let both = [loss(Kind::InUse, 1), loss(Kind::Data, 2)];
        let refused = |permit| check(&both, permit).err().map(|e| (e.fault, e.message));
        assert_eq!(refused(permit(true, true)), None);
        let want = |text: &str| Some((Fault::InUse, text.to_owned()));
        assert_eq!(refused(permit(true, false)), want("LUN `2` goes: allow this loss with --delete-data"));
        assert_eq!(refused(permit(false, true)), want("LUN `1` goes: allow this loss with --force"));
        let all = "nothing has changed, because the change would lose these:\n  \
                   LUN `1` goes: allow this loss with --force\n  \
                   LUN `2` goes: allow this loss with --delete-data";
        assert_eq!(refused(permit(false, false)), want(all));
        let many: Vec<Loss> = (0..NAMED + 3).map(|n| loss(Kind::Data, n)).collect();
        let text = check(&many, Permit::default()).expect_err("a refusal").message;
        assert!(text.lines().count() == NAMED + 2 && text.ends_with("\n  and 3 more"), "{text}");
    }
}
