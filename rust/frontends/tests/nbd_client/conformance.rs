//! An export is a storage like any other: it passes the engine's suite, whatever its server can and cannot do.

use std::io;

use blockcow_engine::error::ErrorKind;
use blockcow_engine::storage::{Access, Alignment, Storage};
use blockcow_frontends::nbd::protocol::transmission;

use crate::servers::{Server, can};
use crate::suite::{conform, holds};

/// Runs the suite on a server, and looks again over a new connection.
fn conforms(server: &Server, seed: u64) {
    let expected = conform(&server.open(), seed);
    holds(&server.try_open(Access::ReadOnly).unwrap(), &expected);
}

#[test]
fn nbdkit_conforms_at_any_size() {
    if !can("nbdkit_conforms_at_any_size", &["nbdkit"]) {
        return;
    }
    for (seed, size) in [(1, (64 << 20) + 77), (2, 300_007), (3, 77)] {
        let server = Server::nbdkit(&["memory", &format!("size={size}")]);
        let storage = server.open();
        assert_eq!((storage.connections(), storage.alignment()), (4, Alignment::NONE));
        assert!(storage.agreed().structured && storage.agreed().allocation.is_some());
        conforms(&server, seed);
    }
}

#[test]
fn a_server_without_anything_optional_conforms() {
    if !can("a_server_without_anything_optional_conforms", &["nbdkit"]) {
        return;
    }
    let filters = ["--filter=nozero", "--filter=noextents", "--filter=multi-conn"];
    let server =
        Server::nbdkit(&[&["--no-sr"], &filters[..], &["memory", "size=5M", "multi-conn-mode=disable"]].concat());
    let storage = server.open();
    assert_eq!(storage.connections(), 1);
    assert!(!storage.agreed().structured && storage.agreed().allocation.is_none());
    assert!(!storage.agreed().can(transmission::SEND_WRITE_ZEROES));
    conforms(&server, 4);
}

#[test]
fn a_server_that_insists_on_its_block_sizes_conforms() {
    if !can("a_server_that_insists_on_its_block_sizes_conforms", &["nbdkit"]) {
        return;
    }
    for (seed, minimum) in [(5, "4096"), (6, "65536")] {
        let sizes = [&format!("blocksize-minimum={minimum}"), "blocksize-preferred=64K", "blocksize-maximum=256K"];
        let policy = ["--filter=blocksize-policy", "memory", "size=11M", "blocksize-error-policy=error"];
        let server = Server::nbdkit(&[&policy[..], &sizes[..]].concat());
        let agreed = server.open().agreed().clone();
        assert_eq!((agreed.minimum.to_string().as_str(), agreed.maximum), (minimum, 256 << 10));
        conforms(&server, seed);
    }
}

#[test]
fn an_export_is_as_long_as_its_whole_blocks() {
    if !can("an_export_is_as_long_as_its_whole_blocks", &["nbdkit"]) {
        return;
    }
    let sizes = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=1M"];
    let server = Server::nbdkit(&[&["--filter=blocksize-policy", "memory", "size=10001"], &sizes[..]].concat());
    assert_eq!(server.open().size(), 8192);
}

#[test]
fn qemu_nbd_conforms() {
    if !can("qemu_nbd_conforms", &["qemu-nbd"]) {
        return;
    }
    let server = Server::qemu((64 << 20) + 512, &["--discard=unmap"]);
    let storage = server.open();
    assert!(storage.agreed().structured && storage.agreed().allocation.is_some());
    drop(storage);
    let expected = conform(&server.open(), 7);
    holds(&server.try_open(Access::ReadOnly).unwrap(), &expected);
    assert!(std::fs::read(server.path("image")).unwrap() == expected, "other programs see something else");
}

#[test]
fn a_server_without_flush_makes_every_write_durable_or_cannot_sync() {
    if !can("a_server_without_flush_makes_every_write_durable_or_cannot_sync", &["nbdkit"]) {
        return;
    }
    let serve = |flush: &str, fua: &str| {
        let script = [
            "get_size=echo 1048576",
            "pread=dd if=/dev/zero count=$3 bs=1 status=none",
            "can_write=exit 0",
            "pwrite=cat > /dev/null; echo $5 > flags",
            &format!("can_flush=exit {flush}"),
            &format!("can_fua=echo {fua}"),
            "flush=exit 0",
        ];
        Server::nbdkit(&[&["eval"], &script[..]].concat())
    };
    // The exit codes of an nbdkit script: 0 is yes, 3 is no.
    let server = serve("3", "native");
    let storage = server.open();
    assert!(storage.can_sync());
    storage.write_at(&[1; 4096], 0).unwrap();
    assert_eq!(std::fs::read_to_string(server.path("flags")).unwrap().trim(), "fua");
    storage.sync().unwrap();

    let server = serve("0", "native");
    let storage = server.open();
    storage.write_at(&[1; 4096], 0).unwrap();
    assert_eq!(std::fs::read_to_string(server.path("flags")).unwrap().trim(), "");
    storage.sync().unwrap();

    let storage = serve("3", "none").open();
    assert!(!storage.can_sync());
    let error = storage.sync().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    assert!(error.to_string().contains("neither FLUSH nor FUA"), "{error}");
}

#[test]
fn a_read_only_export_is_read_and_not_written() {
    if !can("a_read_only_export_is_read_and_not_written", &["nbdkit"]) {
        return;
    }
    let server = Server::nbdkit(&["--readonly", "memory", "size=1M"]);
    let error = server.try_open(Access::ReadWrite).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Invalid, Some(libc::EROFS)));
    assert!(error.reason.contains("only reading"), "{error}");
    let mut buf = [1; 4096];
    server.try_open(Access::ReadOnly).unwrap().read_at(&mut buf, 4096).unwrap();
    assert_eq!(buf, [0; 4096]);
}
