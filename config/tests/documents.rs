//! Tests that the example documents have no mistakes, and that each mistake is reported with its line and field.
#![forbid(unsafe_code)]

use trefoil_config::{Bytes, Config, ConfigError, Gateway};

#[test]
fn every_example_is_sound() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).expect("the examples") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let config = Config::parse(&path.display().to_string(), &text).unwrap_or_else(|e| panic!("{e}"));
        let written = config.to_toml().expect("TOML");
        assert_eq!(Config::parse("written", &written).unwrap_or_else(|e| panic!("{e}\n{written}")), config);
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn the_reference_has_every_setting_and_the_gateway_s_defaults() {
    let text = include_str!("../examples/reference.toml");
    let tables = known_names("nosuch = 1\n");
    assert!(tables.len() >= 7, "{tables:?}");
    for table in tables {
        let list = format!("[[{table}]]");
        let head = if text.contains(&list) { list } else { format!("[{table}]") };
        assert!(text.contains(&format!("\n{head}")), "the reference lacks {head}");
        let fields = known_names(&format!("{head}\nnosuch = 1\n"));
        assert!(!fields.is_empty(), "{head}");
        let tables = text.split("\n[").filter(|part| part.starts_with(&head[1..]));
        let lines: Vec<&str> = tables.flat_map(str::lines).collect();
        for field in fields {
            let set = format!("{field} = ");
            assert!(lines.iter().any(|line| line.starts_with(&set)), "the reference lacks {table}.{field}");
        }
    }
    let gateway = Config::parse("reference.toml", text).expect("sound").gateway;
    let optional = Gateway {
        resume_latency_us: None,
        memory_limit: None,
        rpc_listen: None,
        metrics_listen: None,
        tcp_congestion_control: None,
        ..gateway
    };
    assert_eq!(optional, Gateway::default());
}

/// Returns the names that the error for an unknown field lists as expected.
fn known_names(text: &str) -> Vec<String> {
    let error = refused(text).to_string();
    let names = error.split_once(", expected ").unwrap_or_else(|| panic!("{error}")).1;
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn refused(text: &str) -> ConfigError {
    Config::parse("test.toml", text).expect_err("a mistake")
}

fn told(text: &str, line: usize, field: &str, part: &str) {
    let error = refused(text);
    let hit = error.mistakes.iter().find(|m| m.line == line && m.field == field);
    assert!(hit.is_some_and(|m| m.message.contains(part)), "wanted {line} {field} {part}, got\n{error}");
}

const BASE: &str = "[[backend]]\nname = \"a\"\ntype = \"memory\"\nsize = \"1MiB\"\n";

#[test]
fn syntax_is_told_by_line() {
    told("[gateway]\nname = \n", 2, "", "");
}

#[test]
fn an_unknown_field_is_named() {
    told("[gateway]\nname = \"x\"\nmax_host = 3\n", 3, "gateway.max_host", "unknown field `max_host`");
    told(&format!("{BASE}colour = 1\n"), 5, "backend[0].colour", "unknown field `colour`");
}

#[test]
fn a_wrong_type_is_told_at_its_value() {
    told("[gateway]\nspin_us = \"long\"\n", 2, "gateway.spin_us", "invalid type");
    told("[gateway]\nmemory_per_core = \"12 apples\"\n", 2, "gateway.memory_per_core", "not a unit of size");
    told("[gateway]\nidle = \"lazy\"\n", 2, "gateway.idle", "unknown variant `lazy`");
    told("[gateway]\ncores = \"all\"\n", 2, "gateway.cores", "a number of cores, or a list");
}

#[test]
fn a_missing_field_is_told_at_its_table() {
    told("\n[[backend]]\nname = \"a\"\n", 2, "backend[0]", "missing field `type`");
    told("\n[[backend]]\nname = \"a\"\ntype = \"file\"\n", 2, "backend[0].path", "needs the field `path`");
}

#[test]
fn a_field_of_another_type_is_refused() {
    told(&format!("{BASE}nsid = 1\n"), 5, "backend[0].nsid", "type memory has no field `nsid`");
}

#[test]
fn a_keep_alive_timeout_is_no_longer_than_the_hosts() {
    let array = "[[backend]]\nname = \"a\"\ntype = \"nvme-tcp\"\naddress = \"192.0.2.1:4420\"\n\
                 subnqn = \"nqn.2026-01.org.example:a\"\nkeep_alive_s = ";
    for seconds in [0, 6] {
        told(&format!("{array}{seconds}\n"), 6, "backend[0].keep_alive_s", "use 1 to 5");
    }
    Config::parse("t", &format!("{array}5\n")).expect("sound");
}

#[test]
fn names_are_unique_and_references_exist() {
    told(&format!("{BASE}{BASE}"), 6, "backend[1].name", "backend[0] already has the name `a`");
    told("[[pool]]\nname = \"p\"\nbackends = [\"b\"]\n", 3, "pool[0].backends[0]", "no backend `b`");
    told("[[lun]]\nname = \"l\"\npool = \"p\"\nsize = 512\n", 3, "lun[0].pool", "no pool `p`");
    let two =
        format!("{BASE}[[lun]]\nname = \"x\"\nbackend = \"a\"\n[[lun]]\nname = \"y\"\nbackend = \"a\"\n");
    told(&two, 10, "lun[1].backend", "already belongs to LUN `x`");
}

#[test]
fn a_pool_has_no_more_backends_than_a_gateway() {
    let names: String = (0..257).map(|n| format!("\"b{n}\", ")).collect();
    let text = format!("[[pool]]\nname = \"p\"\nbackends = [{names}]\n");
    told(&text, 3, "pool[0].backends", "257 backends are too many: a gateway can have 256");
}

#[test]
fn nqns_are_checked() {
    told("[[subsystem]]\nnqn = \"disk\"\n", 2, "subsystem[0].nqn", "not an NQN");
    // A number parser would accept the month `+1`.
    told("[[subsystem]]\nnqn = \"nqn.2026-+1.org.example:t\"\n", 2, "subsystem[0].nqn", "not an NQN");
    let host = "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:d\"\nhosts = [\n  \"\",\n  \"a\\nb\",\n]\n";
    told(host, 4, "subsystem[0].hosts[0]", "the NQN is empty");
    told(host, 5, "subsystem[0].hosts[1]", r"`a\nb` is not an NQN");
}

#[test]
fn a_host_that_may_connect_can_be_listed() {
    let names = [
        "nqn.2014-08.org.nvmexpress:uuid:07e4a0a641d54bff96b28a173dcfb6b5",
        "2014-08.org.nvmexpress:uuid:07e4a0a6-41d5-4bff-96b2-8a173dcfb6b5",
        "nqn.2021-13.x:y",
        "host with spaces",
        "hostnqn1",
    ];
    let text = format!(
        "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:d\"\nhosts = {names:?}\n\
         [[host]]\nname = \"other\"\nnqn = \"hostnqn2\"\n"
    );
    let config = Config::parse("test.toml", &text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.subsystems[0].hosts, names);
    // Two entries may be meant as names of `[[host]]`s. Every entry that doesn't begin like an NQN is reported.
    let told = config.oversights();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[1].starts_with("host `host with spaces`: no [[host]] has this name"), "{told:?}");
}

#[test]
fn the_name_of_a_host_is_no_other_hosts_nqn() {
    let text = "[[host]]\nname = \"a\"\nnqn = \"b\"\n[[host]]\nname = \"b\"\nnqn = \"c\"\n";
    told(text, 3, "host[0].nqn", "another [[host]] has the name `b`");
    assert!(Config::parse("test.toml", "[[host]]\nname = \"b\"\nnqn = \"b\"\n").is_ok());
}

#[test]
fn every_mistake_is_told_at_once() {
    let error =
        refused(&format!("[gateway]\nmax_hosts = 0\n{BASE}nsid = 1\n[[pool]]\nname = \"\"\nbackends = []\n"));
    assert_eq!(error.mistakes.iter().map(|m| m.line).collect::<Vec<_>>(), [2, 7, 9]);
}

#[test]
fn sums_are_worked_out() {
    let text =
        format!("[gateway]\ncores = 2\nmemory_per_core = \"64MiB\"\nmemory_limit = \"100MiB\"\n{BASE}");
    told(&text, 4, "gateway.memory_limit", "cores 2 x 64MiB + backend a 1MiB = 129MiB");
    told(
        "[gateway]\nmemory_per_core = \"1MiB\"\n",
        2,
        "gateway.memory_per_core",
        "queue pairs 1024 x 8KiB + unauthenticated and discovery connections = 6MiB = 46MiB",
    );
    // Without the reserve for connections without permission, this memory would be enough.
    let few = "[gateway]\nmax_hosts = 4\nmax_qpairs = 16\nmemory_per_core = ";
    told(
        &format!("{few}\"33MiB\"\n"),
        4,
        "gateway.memory_per_core",
        "33MiB is less than a core needs: use at least 39MiB (large transfers ",
    );
    Config::parse("t", &format!("{few}\"39MiB\"\n")).expect("the figure that the refusal names is enough");
}

#[test]
fn absent_sizes_are_not_invented() {
    let config = Config::parse("t", BASE).expect("sound");
    assert_eq!(config.backends[0].size, Some(Bytes(1 << 20)));
    assert_eq!(config.backends[0].block_bytes, None);
}

#[test]
fn a_decimal_size_that_fits_no_block_is_told_of_binary_units() {
    let size = BASE.replace("1MiB", "10MB");
    let part = "multiple of the block size 512: 10MB are 10000000 bytes; did you mean 10MiB?";
    told(&size, 4, "backend[0].size", part);
}

#[test]
fn an_nqn_has_one_name() {
    let host = |name: &str| format!("[[host]]\nname = \"{name}\"\nnqn = \"nqn.2026-01.org.example:h\"\n");
    let text = host("a") + &host("b");
    told(&text, 6, "host[1].nqn", "host `a` already has NQN `nqn.2026-01.org.example:h`");
}

#[test]
fn a_subsystem_that_no_host_may_use_is_an_oversight() {
    let told = |more: &str| {
        let text = format!("[[subsystem]]\nnqn = \"nqn.2026-01.org.example:s\"\n{more}\n");
        Config::parse("test.toml", &text).unwrap_or_else(|e| panic!("{e}")).oversights()
    };
    let oversights = told("");
    let want = "subsystem `nqn.2026-01.org.example:s`: no host may connect";
    assert!(oversights.len() == 1 && oversights[0].starts_with(want), "{oversights:?}");
    assert!(told("allow_any_host = true").is_empty());
    assert!(told("hosts = [\"nqn.2026-01.org.example:h\"]").is_empty());
}

/// Returns a document with three LUNs. Each LUN has one more line.
fn luns(lines: [&str; 3]) -> String {
    let lun = |(n, line): (usize, &str)| {
        let backend = format!("[[backend]]\nname = \"b{n}\"\ntype = \"null\"\nsize = \"1MiB\"\n");
        format!("{backend}[[lun]]\nname = \"l{n}\"\nbackend = \"b{n}\"\n{line}\n")
    };
    lines.into_iter().enumerate().map(lun).collect()
}

#[test]
fn identities_are_unique_and_never_nil() {
    let uuid = "uuid = \"00000000-0000-4000-8000-00000000000a\"";
    let digits = "nguid = \"0000000000004000800000000000000A\"";
    let other = "nguid = \"0123456789abcdef0123456789abcdef\"";
    told(&luns(["uuid = \"00000000-0000-0000-0000-000000000000\"", "", ""]), 8, "lun[0].uuid", "of zeros");
    let nil = format!("nguid = \"{}\"", "0".repeat(32));
    told(&luns([&nil, "", ""]), 8, "lun[0].nguid", "32 hexadecimal digits that are not all zero");
    told(&luns([uuid, "", uuid]), 24, "lun[2].uuid", "LUN `l0` already has this UUID");
    told(&luns([other, "", other]), 24, "lun[2].nguid", "LUN `l0` already has this NGUID");
    // An NGUID that isn't given equals the UUID's bytes.
    told(&luns([uuid, "", digits]), 24, "lun[2].nguid", "LUN `l0` already has this NGUID");
    Config::parse("t", &luns([&format!("{uuid}\n{other}"), "", digits])).expect("each has its own");
    let spaces = "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:s\"\nserial = \"  \"\n";
    told(spaces, 3, "subsystem[0].serial", "the serial number has only spaces");
}

#[test]
fn one_lun_or_serial_of_two_subsystems_is_told_with_what_hosts_make_of_it() {
    let subsystem = |name: &str, serial: &str, namespaces: &str| {
        format!(
            "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:{name}\"\nallow_any_host = true\n\
             serial = \"{serial}\"\nnamespaces = [{namespaces}]\n"
        )
    };
    let twins = |subsystems: &[String]| {
        let text = luns(["", "", ""]) + &subsystems.concat();
        Config::parse("t", &text).unwrap_or_else(|e| panic!("{e}")).oversights()
    };
    let first = "{ nsid = 1, lun = \"l0\" }, { nsid = 2, lun = \"l1\" }";
    let second = "{ nsid = 7, lun = \"l0\" }, { nsid = 2, lun = \"l2\" }";
    let told = twins(&[subsystem("a", "1", first), subsystem("b", "2", second)]);
    let lun = "LUN `l0` is namespace 1 of subsystem `nqn.2026-01.org.example:a` and namespace 7 of subsystem \
               `nqn.2026-01.org.example:b`, each with the same UUID and NGUID: ";
    assert!(told.len() == 1 && told[0].starts_with(lun) && told[0].contains("duplicate IDs"), "{told:?}");
    // Hosts don't see spaces at the end of a serial number.
    let told = twins(&[subsystem("a", "1", ""), subsystem("b", "1 ", "")]);
    let serial =
        "subsystems `nqn.2026-01.org.example:a` and `nqn.2026-01.org.example:b` have the same serial `1`: ";
    assert!(told.len() == 1 && told[0].starts_with(serial) && told[0].contains("by-id"), "{told:?}");
    let own = trefoil_config::default_serial("nqn.2026-01.org.example:b");
    let without = subsystem("b", "", "").replace("serial = \"\"\n", "");
    assert_eq!(twins(&[subsystem("a", &own, ""), without]).len(), 1, "that of one without a serial");
    let many: Vec<String> = (0..9).map(|n| subsystem(&format!("s{n}"), "1", "")).collect();
    assert!(twins(&many)[0].contains("`nqn.2026-01.org.example:s1` and 7 more"), "{:?}", twins(&many));
}

#[test]
fn a_message_for_an_unknown_field_names_the_nearest() {
    let part = "unknown field `max_host`, did you mean `max_hosts`? expected one of ";
    told("[gateway]\nmax_host = 3\n", 2, "gateway.max_host", part);
    told("[[subsystem]]\nhostz = []\n", 2, "subsystem[0].hostz", "did you mean `hosts`?");
    told("[gateway]\nidle = \"adaptiv\"\n", 2, "gateway.idle", "did you mean `adaptive`?");
    told("[[backends]]\nname = \"a\"\n", 1, "backends", "did you mean `backend`?");
}

#[test]
fn one_bracket_for_two_is_hinted_at() {
    for list in ["backend", "pool", "lun", "host", "subsystem"] {
        let table = format!("[{list}] # the first\nname = \"a\"\n");
        let hint = format!("s, so write [[{list}]]").replace("luns,", "LUNs,");
        told(&format!("\n{table}"), 2, list, &hint);
        // The second mistake is a mistake in TOML's syntax, which has no field.
        told(&format!("{table}[{list}]\nname = \"b\"\n"), 3, "", &hint);
    }
    told("[[gateway]]\nname = \"a\"\n", 1, "gateway[0]", "a document has one gateway, so write [gateway]");
}

#[test]
fn names_are_cut_in_messages() {
    let long = "x".repeat(10_000);
    for text in [
        format!("{BASE}{long} = 1\n"),
        BASE.replace("\"a\"", &format!("\"{long}\"")),
        format!("{BASE}[[lun]]\nname = \"l\"\nbackend = \"{long}\"\n"),
        format!("[[subsystem]]\nnqn = \"nqn.2026-01.org.example:s\"\nhosts = [\"{long}\"]\n"),
        format!("[gateway]\nidle = \"{long}\"\n"),
        format!("[gateway]\nmemory_per_core = \"{long}\"\n"),
    ] {
        let error = refused(&text).to_string();
        assert!(error.contains("xxx") && error.contains('…') && error.len() < 1500, "{error}");
    }
    let control = refused("[gateway]\nmemory_per_core = \"1\\u001b[2J\\n2\"\n").to_string();
    assert!(control.contains("\\u{1b}[2J\\n2") && control.lines().count() == 1, "{control}");
}
