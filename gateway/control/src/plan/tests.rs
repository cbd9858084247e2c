use super::storage::whole;
use super::*;
use crate::error::Fault;
use crate::notes;
use trefoil_config::{Backend, Config, Lun, Subsystem};

const NQN: &str = "nqn.2026-01.org.example:s";
const WEB: &str = "nqn.2026-01.org.example:web";
const TEXT: &str = r#"
        [[backend]]
        name = "a"
        type = "null"
        size = "1MiB"
        [[backend]]
        name = "b"
        type = "null"
        size = "1MiB"
        [[lun]]
        name = "l"
        backend = "a"
        uuid = "00000000-0000-4000-8000-00000000000a"
        [[host]]
        name = "web"
        nqn = "nqn.2026-01.org.example:web"
        [[subsystem]]
        nqn = "nqn.2026-01.org.example:s"
        hosts = ["web", "nqn.2026-01.org.example:web"]
        listeners = ["[::1]:4420", "[0:0:0:0:0:0:0:1]:4420"]
        namespaces = [{ nsid = 1, lun = "l", hosts = ["nqn.2026-01.org.example:web", "web"] }]
    "#;

fn state() -> State {
    State::from_config(&Config::parse("t", TEXT).expect("sound"), &State::default())
}

fn change(now: &State, change: &Change) -> (State, Vec<String>) {
    let gateway = Gateway::default();
    let next = plan(now, &gateway, change).unwrap_or_else(|e| panic!("{change:?}: {e}"));
    let notes = notes::of_change(change, now, &next, &gateway);
    (next, notes)
}

fn refused(now: &State, change: &Change) -> Refusal {
    plan(now, &Gateway::default(), change).expect_err("a refusal")
}

fn revoke(nsid: Option<u32>, host: &str) -> Change {
    Change::HostRevoke { nqn: NQN.into(), nsid, host: host.into() }
}

#[test]
fn a_revoked_host_is_gone_by_whichever_of_its_names() {
    for host in ["web", WEB] {
        let (next, notes) = change(&state(), &revoke(None, host));
        assert!(next.subsystems[NQN].hosts.is_empty(), "{host}");
        assert!(notes.len() == 1 && notes[0].contains("stays on the lists of these namespaces"), "{notes:?}");
        let (next, notes) = change(&next, &revoke(Some(1), host));
        assert_eq!((next.subsystems[NQN].namespaces[0].hosts.as_deref(), notes), (Some(&[][..]), vec![]));
        assert_eq!(refused(&next, &revoke(None, host)).fault, Fault::NotFound);
    }
    let listen = "[::1]:4420".parse().expect("an address");
    let remove = Change::ListenerRemove { nqn: NQN.into(), listen };
    let (next, notes) = change(&state(), &remove);
    assert!(next.listeners().is_empty() && notes.is_empty(), "{notes:?}");
}

#[test]
fn a_revoked_host_that_is_not_gone_is_told() {
    let mut open = state();
    open.subsystems.values_mut().for_each(|s| {
        s.allow_any_host = true;
        s.namespaces[0].hosts = None;
    });
    let (next, notes) = change(&open, &revoke(None, "web"));
    let told = format!("host `{WEB}` may still connect to subsystem `{NQN}`, as any host may");
    assert!(notes.len() == 1 && notes[0].starts_with(&told), "{notes:?}");
    for (nsid, why) in
        [(None, "any host may connect"), (Some(1), "all hosts that may connect see the namespace")]
    {
        let refusal = refused(&next, &revoke(nsid, "web"));
        assert!(refusal.fault == Fault::NotFound && refusal.message.contains(why), "{refusal}");
    }
    let (_, notes) = change(&state(), &Change::HostDelete { name: "web".into() });
    let told = format!("the name `web` is removed; host `{WEB}` stays on the lists of subsystems `{NQN}`");
    assert_eq!(notes, [told]);
    let other = Subsystem {
        listeners: state().subsystems[NQN].listeners.clone(),
        ..Subsystem::new("nqn.2026-01.org.example:t")
    };
    let (both, _) = change(&state(), &Change::SubsystemCreate(other));
    let listen = "[::1]:4420".parse().expect("an address");
    let (_, notes) = change(&both, &Change::ListenerRemove { nqn: NQN.into(), listen });
    assert!(
        notes.len() == 1 && notes[0].contains("stays open for subsystem `nqn.2026-01.org.example:t`"),
        "{notes:?}"
    );
}

#[test]
fn a_host_that_sees_a_namespace_and_may_not_connect_is_told() {
    let allow =
        |host: &str| Change::HostAllow { nqn: NQN.into(), nsid: Some(1), host: host.into(), force: false };
    let (_, notes) = change(&state(), &allow("nqn.2026-01.org.example:mail"));
    assert!(notes.len() == 1 && notes[0].contains("mail` may not connect"), "{notes:?}");
    let (mut open, _) = change(&state(), &revoke(Some(1), "web"));
    assert_eq!(change(&open, &allow("web")).1, Vec::<String>::new());
    open.subsystems.values_mut().for_each(|s| s.allow_any_host = true);
    assert_eq!(change(&open, &allow("nqn.2026-01.org.example:mail")).1, Vec::<String>::new());
}

#[test]
fn a_document_that_is_refused_for_what_is_there_is_compared_all_the_same() {
    let now = state();
    let text = TEXT.replacen("1MiB", "2MiB", 2).replace("name = \"web\"", "name = \"mail\"");
    let text = text.replace("\"web\"", "\"mail\"");
    let config = Box::new(Config::parse("t", &text).expect("sound"));
    let apply = Change::Apply { config, permit: Default::default() };
    let (next, refusals) = preview(&now, &Gateway::default(), &apply).expect("a comparison");
    assert_eq!(next.hosts.keys().collect::<Vec<_>>(), ["mail"]);
    let told: Vec<&str> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
    let refusal = |name| format!("backend `{name}` can't be changed in place: give it a new name");
    assert_eq!(told, [refusal("a"), refusal("b")]);
    assert_eq!(refused(&now, &apply), refusals[0]);
}

#[test]
fn every_way_in_refuses_an_identity_that_is_taken_or_nil() {
    let uuid = |n: u128| Some(uuid::Uuid::from_u128(n));
    let own = state().luns["l"].uuid;
    let import = |uuid| Lun { uuid, ..whole("b".into(), None) };
    let nguid = Lun { nguid: own.map(|uuid| uuid.simple().to_string().to_uppercase()), ..import(uuid(7)) };
    let document = |uuid| {
        // The document was parsed, but not checked yet.
        let mut config = Config::parse("t", TEXT).expect("sound");
        config.luns.push(import(uuid));
        Box::new(config)
    };
    let (with_b, _) = change(&state(), &Change::LunCreate(import(uuid(8))));
    let add = |uuid| Change::NamespaceAdd {
        nqn: NQN.into(),
        nsid: None,
        lun: "b".into(),
        hosts: None,
        uuid,
        nguid: None,
    };
    let backend = Backend {
        size: Some(trefoil_config::Bytes(1 << 20)),
        ..Backend::new("c", trefoil_config::BackendType::Null)
    };
    let bdev = |uuid| Change::BdevCreate { backend: backend.clone(), uuid };
    for (taken, id) in [(true, own), (false, uuid(0))] {
        for (now, change) in [
            (state(), Change::LunCreate(import(id))),
            (with_b.clone(), add(id)),
            (state(), bdev(id)),
            (state(), Change::Apply { config: document(id), permit: Default::default() }),
        ] {
            let refusal = refused(&now, &change);
            let told = if taken { "LUN `l` already has this" } else { "of zeros identifies nothing" };
            assert!(refusal.message.contains(told), "{change:?}: {refusal}");
        }
    }
    assert!(
        refused(&state(), &Change::LunCreate(nguid))
            .message
            .contains("LUN `l` already has this UUID or NGUID")
    );
}

#[test]
fn what_a_change_makes_look_like_one_is_told_once() {
    let other = Subsystem {
        serial: state().subsystems[NQN].serial.clone(),
        ..Subsystem::new("nqn.2026-01.org.example:t")
    };
    let (next, notes) = change(&state(), &Change::SubsystemCreate(other));
    assert!(
        notes.len() == 1 && notes[0].starts_with("subsystems `") && notes[0].contains("the same serial `"),
        "{notes:?}"
    );
    let add = Change::NamespaceAdd {
        nqn: "nqn.2026-01.org.example:t".into(),
        nsid: None,
        lun: "l".into(),
        hosts: None,
        uuid: None,
        nguid: None,
    };
    let (_, notes) = change(&next, &add);
    assert!(notes.len() == 1 && notes[0].starts_with("LUN `l` is namespace 1 of subsystem"), "{notes:?}");
}
