//! NBD servers for the tests: real ones, on unix sockets of their own, that are gone when the test ends, failed or not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blockcow_engine::error::{ErrorKind, Result};
use blockcow_engine::storage::Access;
use blockcow_frontends::nbd::client::{NbdStorage, Patience, Uri};
use tempfile::TempDir;

const START: Duration = Duration::from_secs(20);

/// Whether the test can run here; says so where nobody can overlook it if not.
pub fn can(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &&str| std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    let missing: Vec<_> = programs.iter().filter(|program| !there(program)).collect();
    if missing.is_empty() {
        return true;
    }
    // Not eprintln: the test harness would swallow it.
    writeln!(std::io::stderr(), "SKIPPED {test}: programs missing: {missing:?}").expect("stderr is open");
    false
}

/// A server that runs until it is dropped.
pub struct Server {
    child: Child,
    folder: TempDir,
}

impl Server {
    /// nbdkit with a filter, plugin and their settings.
    pub fn nbdkit(arguments: &[&str]) -> Self {
        Self::start("nbdkit", &["--foreground", "--exit-with-parent", "--unix=socket", "--pidfile=pid"], arguments)
    }

    /// qemu-nbd in front of a new image of zeroes, with more options.
    pub fn qemu(size: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("image")).unwrap().set_len(size).unwrap();
        let socket = format!("--socket={}", folder.path().join("socket").display());
        let fixed = ["--persistent", "--shared=9", "--format=raw", "--pid-file=pid", &socket];
        Self::start_in(folder, "qemu-nbd", &fixed, &[options, &["image"]].concat())
    }

    fn start(program: &str, fixed: &[&str], arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), program, fixed, arguments)
    }

    fn start_in(folder: TempDir, program: &str, fixed: &[&str], arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(fixed).args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        let child = command.spawn().expect(program);
        let mut server = Self { child, folder };
        let start = Instant::now();
        // Both write it when they listen. Trying to connect would count as a client.
        while !server.path("pid").exists() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{program} {arguments:?} ended: {ended:?}");
            assert!(start.elapsed() < START, "{program} {arguments:?} does not listen");
            sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// A file in the server's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn uri(&self) -> Uri {
        uri_of(&self.socket())
    }

    pub fn open(&self) -> NbdStorage {
        self.try_open(Access::ReadWrite).unwrap()
    }

    pub fn try_open(&self, access: Access) -> Result<NbdStorage> {
        NbdStorage::open(&self.uri(), access, Patience::default(), ErrorKind::Destination)
    }

    /// Opens it with little patience.
    pub fn open_briefly(&self, silence: Duration) -> NbdStorage {
        let patience = Patience { silence, ..Patience::default() };
        NbdStorage::open(&self.uri(), Access::ReadWrite, patience, ErrorKind::Destination).unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Lets it stand still.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The default export of the server that listens there.
pub fn uri_of(socket: &Path) -> Uri {
    Uri::parse(&format!("nbd+unix:///?socket={}", socket.display())).unwrap()
}
