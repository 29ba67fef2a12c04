//! Locks, against the programs that must honour them: QEMU's own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use blockcow_engine::error::{ErrorKind, Result};
use blockcow_engine::storage::{Access, FileStorage, Storage};
use tempfile::TempDir;

use crate::disks::{Loop, can, run, text};

const SIZE: u64 = 1 << 20;

fn image() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    (folder, path)
}

fn open(path: &Path, access: Access) -> Result<FileStorage> {
    FileStorage::open(path, access, ErrorKind::Device)
}

fn qemu_io(path: &Path, options: &[&str], command: &str) -> Output {
    Command::new("qemu-io").args(["-f", "raw"]).args(options).args(["-c", command, text(path)]).output().unwrap()
}

/// qemu-io with the image open, until dropped.
struct Holder(Child);

impl Holder {
    fn new(path: &Path, options: &[&str]) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(options).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let output = BufReader::new(child.stdout.as_mut().unwrap());
        let answered = output.lines().map_while(|line| line.ok()).any(|line| line.contains("read 512/512 bytes"));
        assert!(answered, "qemu-io ended without having read");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("qemu-io ends with its input");
    }
}

fn refuses(path: &Path, options: &[&str], command: &str) {
    let output = qemu_io(path, options, command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("lock"), "qemu-io was let in: {said}");
}

fn accepts(path: &Path, options: &[&str], command: &str) {
    let output = qemu_io(path, options, command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn busy(path: &Path, access: Access) {
    let error = open(path, access).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.reason.contains("another program"), "{error}");
}

#[test]
fn dropping_unlocks_although_a_child_process_has_a_copy_of_the_descriptor() {
    let (_folder, path) = image();
    let held = open(&path, Access::ReadWrite).unwrap();
    let copy = held.as_fd().try_clone_to_owned().unwrap();
    drop(held);
    open(&path, Access::ReadWrite).unwrap();
    drop(copy);
}

#[test]
fn two_of_us_share_reading_only() {
    let (_folder, path) = image();
    let first = open(&path, Access::ReadOnly).unwrap();
    let second = open(&path, Access::ReadOnly).unwrap();
    busy(&path, Access::ReadWrite);
    drop((first, second));
    let writer = open(&path, Access::ReadWrite).unwrap();
    busy(&path, Access::ReadOnly);
    busy(&path, Access::ReadWrite);
    drop(writer);
    open(&path, Access::ReadWrite).unwrap();
}

#[test]
fn a_new_file_is_locked_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let made = FileStorage::create(&path, SIZE, ErrorKind::Container).unwrap();
    busy(&path, Access::ReadOnly);
    drop(made);
}

#[test]
fn qemu_stays_out_while_we_hold_an_image() {
    if !can("qemu_stays_out_while_we_hold_an_image", &["qemu-io", "qemu-img"]) {
        return;
    }
    let (_folder, path) = image();
    let writer = open(&path, Access::ReadWrite).unwrap();
    refuses(&path, &[], "write -P 7 0 4096");
    // As beside a running machine: who only reads a raw image, and shares writing, is let in.
    accepts(&path, &["-r"], "read 0 4096");
    run("qemu-img", &["info", "--force-share", text(&path)]);
    let mut bytes = [1; 4096];
    writer.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 4096]);
    drop(writer);

    let reader = open(&path, Access::ReadOnly).unwrap();
    refuses(&path, &[], "write -P 7 0 4096");
    accepts(&path, &["-r"], "read 0 4096");
    drop(reader);
    accepts(&path, &[], "write -P 7 0 4096");
}

#[test]
fn we_stay_out_while_qemu_holds_an_image() {
    if !can("we_stay_out_while_qemu_holds_an_image", &["qemu-io"]) {
        return;
    }
    let (_folder, path) = image();
    let writer = Holder::new(&path, &[]);
    busy(&path, Access::ReadWrite);
    busy(&path, Access::ReadOnly);
    drop(writer);
    let _reader = Holder::new(&path, &["-r"]);
    open(&path, Access::ReadOnly).unwrap();
    open(&path, Access::ReadWrite).unwrap();
}

#[test]
fn qemu_and_we_keep_each_other_off_a_block_device() {
    if !can("qemu_and_we_keep_each_other_off_a_block_device", &["losetup", "qemu-io"]) {
        return;
    }
    let device = Loop::new(SIZE, &[]);
    let held = open(&device.path, Access::ReadWrite).unwrap();
    refuses(&device.path, &[], "write -P 7 0 4096");
    drop(held);
    let writer = Holder::new(&device.path, &[]);
    busy(&device.path, Access::ReadWrite);
    drop(writer);
    open(&device.path, Access::ReadWrite).unwrap();
}
