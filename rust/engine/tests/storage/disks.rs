//! Real disks for the tests: loop devices and mounted file systems that are gone when the test ends, failed or not.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Whether the test can run here; says so where nobody can overlook it if not.
pub fn can(test: &str, programs: &[&str]) -> bool {
    let root = fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0;
    let missing: Vec<_> = programs.iter().filter(|program| !installed(program)).collect();
    if root && missing.is_empty() {
        return true;
    }
    // Not eprintln: the test harness would swallow it.
    writeln!(std::io::stderr(), "SKIPPED {test}: root: {root}, programs missing: {missing:?}").expect("stderr is open");
    false
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/sbin", "/usr/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(program).exists())
}

/// Runs a command that must succeed and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// As `run`, for the end of a test: a test that has failed already goes on to clean up the rest.
fn clean(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).status().is_ok_and(|status| status.success());
    assert!(done || std::thread::panicking(), "{program} {arguments:?} failed");
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// A loop device over a sparse file.
pub struct Loop {
    pub path: PathBuf,
    _folder: TempDir,
}

impl Loop {
    pub fn new(size: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("backing");
        File::create(&backing).unwrap().set_len(size).unwrap();
        let arguments = [&["--find", "--show"], options, &[text(&backing)]].concat();
        Self { path: run("losetup", &arguments).into(), _folder: folder }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        clean("losetup", &["--detach", text(&self.path)]);
    }
}

/// A file system of its own, mounted on a scratch folder.
pub struct Mounted {
    folder: TempDir,
    device: Option<Loop>,
}

impl Mounted {
    /// A file system of `size` bytes on a loop device, made by `mkfs.KIND`.
    pub fn made(kind: &str, size: u64) -> Self {
        let device = Loop::new(size, &[]);
        run(&format!("mkfs.{kind}"), &["-q", text(&device.path)]);
        Self::mount(kind, text(&device.path).to_owned(), Some(device))
    }

    /// A file system that lives in memory, such as tmpfs.
    pub fn memory(kind: &str) -> Self {
        Self::mount(kind, kind.to_owned(), None)
    }

    fn mount(kind: &str, source: String, device: Option<Loop>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        run("mount", &["-t", kind, &source, text(folder.path())]);
        Self { folder, device }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn device(&self) -> &Path {
        &self.device.as_ref().expect("it stands on a device").path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, because a program that another test is just starting has copies of our descriptors for a moment.
        clean("umount", &["--lazy", text(self.folder.path())]);
    }
}
