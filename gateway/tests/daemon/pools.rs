//! Tests of the disks from which a pool or a backend may be made.

use super::DOCUMENT;
use crate::support::daemon::Daemon;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The null backend of this pool stores no bytes. So the pool's creation can't be finished, and the pool can't be destroyed.
#[test]
fn a_pool_that_a_failed_change_leaves_is_in_no_later_one_s_way() {
    let gateway = Daemon::start(DOCUMENT);
    gateway.call("backend_create", json!({ "name": "void", "type": "null", "size": "64MiB" }));
    let before = gateway.ok(&["config", "get"]);
    let pool = json!({ "name": "p", "backends": ["void"] });
    gateway.try_call("pool_create", pool).expect_err("a refusal");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    gateway.ok(&["host", "create", "web", "nqn.2026-01.org.example:web"]);
    gateway.ok(&["backend", "delete", "void"]);
}

#[test]
fn a_file_system_is_not_taken_for_a_pool_unasked() {
    let gateway = Daemon::start(DOCUMENT);
    let mut image = vec![0; 64 << 20];
    image[1080..1082].copy_from_slice(&[0x53, 0xEF]);
    let path = gateway.write("ext4.img", &image);
    gateway.ok(&["backend", "create", "kept", "--type", "file", "--path", &path]);
    let before = gateway.ok(&["config", "get"]);
    let refused = gateway.refused(&["pool", "create", "p", "kept"]);
    assert!(refused.contains("backend kept holds an ext2, ext3 or ext4 file system"), "{refused}");
    assert!(refused.contains("--delete-data"), "{refused}");
    let with = format!("{before}\n[[pool]]\nname = \"p\"\nbackends = [\"kept\"]\n");
    let document = gateway.write("with.toml", with);
    let refused = gateway.refused(&["config", "apply", &document]);
    assert!(refused.contains("backend kept holds an ext2, ext3 or ext4 file system"), "{refused}");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    assert!(std::fs::read(&path).expect("read") == image, "a refusal writes nothing");

    gateway.ok(&["config", "apply", "--delete-data", &document]);
    gateway.ok(&["pool", "delete", "p"]);
    gateway.ok(&["pool", "create", "p", "kept"]);
    gateway.ok(&["pool", "delete", "p"]);
    std::fs::write(&path, &image).expect("written");
    gateway.ok(&["pool", "create", "--delete-data", "p", "kept"]);
}

#[test]
fn a_pool_s_member_is_not_presented_whole() {
    let mut gateway = Daemon::start(DOCUMENT);
    let path = |name: &str| gateway.path(name);
    std::fs::copy(path("file0.img"), path("copy.img")).expect("copied");
    let copy = gateway.arg("copy.img");
    gateway.ok(&["backend", "create", "copy", "--type", "file", "--path", &copy]);
    let before = gateway.ok(&["config", "get"]);
    let import = ["lun", "import", "w", "--backend", "copy"];
    let refused = gateway.refused(&import);
    assert!(refused.contains("backend copy belongs to pool tank"), "{refused}");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    // The request gives the UUID, so the backend was a LUN before, and the LUN's hosts made the pool on it.
    gateway.ok(&[&import[..], &["--uuid", "6d1d4b8e-0000-4000-8000-0000000000aa"]].concat());
    let with = gateway.ok(&["--json", "lun", "list"]);
    gateway.kill_and_restart();
    assert_eq!(gateway.ok(&["--json", "lun", "list"]), with);
}

/// One disk can appear under two names: for example as a file and as a loop device of the file, or as an array's namespace
/// without identifiers at two addresses. This test uses a copy of the disk, which looks the same to the gateway.
#[test]
fn an_open_pool_s_disk_is_not_taken_from_it_by_another_name() {
    let gateway = Daemon::start(DOCUMENT);
    std::fs::copy(gateway.path("file0.img"), gateway.path("copy.img")).expect("copied");
    let path = gateway.arg("copy.img");
    gateway.ok(&["backend", "create", "copy", "--type", "file", "--path", &path]);
    let refused = gateway.refused(&["pool", "create", "other", "copy", "--delete-data"]);
    assert!(refused.contains("has the label of backend `file0` of the open pool `tank`"), "{refused}");
    let image = File::options().write(true).open(&path).expect("opened");
    image.write_all_at(&[0; 8192], 0).expect("zeroed");
    gateway.ok(&["pool", "create", "other", "copy"]);
}

/// In SPDK, the backend and the LUN have the same name.
#[test]
fn a_bdev_that_is_another_s_backend_is_not_deleted() {
    let gateway = Daemon::start(DOCUMENT);
    let ram = |name: &str| json!({ "name": name, "type": "memory", "size": "1MiB" });
    gateway.call("backend_create", ram("m"));
    gateway.call("backend_create", ram("other"));
    gateway.call("lun_import", json!({ "name": "m", "backend": "other" }));
    let refused = gateway.try_call("bdev_malloc_delete", json!({ "name": "m" })).expect_err("a refusal");
    assert!(refused.contains("LUN `m` presents backend `other`"), "{refused}");
    assert_eq!(gateway.call("backend_list", json!({ "name": "other" })).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_backend_is_neither_a_special_file_nor_one_of_the_gateway_s_own() {
    let gateway = Daemon::start(DOCUMENT);
    let cases = [
        ("/dev/null".into(), "is a character device"),
        (gateway.path("state"), "is a directory"),
        (gateway.path("rpc.sock"), "is a socket"),
        (gateway.path("trefoil.toml"), "is the gateway's own document"),
        (gateway.path("state/state.redb"), "is the gateway's own database"),
    ];
    for (path, what) in cases {
        let path = path.to_str().expect("UTF-8");
        let new = json!({ "name": "new", "type": "file", "path": path });
        let refused = gateway.try_call("backend_create", new).expect_err(what);
        assert!(refused.contains(&format!("backend `new`: path {path} {what}")), "{refused}");
    }
}
