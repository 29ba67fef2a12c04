//! A server in front of a file, and clients on socket pairs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::storage::{Access, Fault, FaultStorage, FileStorage, Operation, ThrottledStorage};
use blockcow_frontends::nbd::server::{Export, Server};
use tempfile::TempDir;

use crate::client::Client;

/// Long enough for the slowest machine, short enough to see a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Size of the device: more than the sweepers hold in memory, and no multiple of a page, as the protocol does not ask.
pub const SIZE: u64 = (12 << 20) + 1536;

/// A device with known contents, and a server that exports it as `disk`, and read-only as `still`.
pub struct Rig {
    pub folder: TempDir,
    pub path: PathBuf,
    pub faults: Arc<FaultStorage>,
    pub driver: Arc<Driver>,
    pub server: Server,
}

impl Rig {
    pub fn new() -> Self {
        Self::in_folder(folder_in_memory())
    }

    pub fn in_folder(folder: TempDir) -> Self {
        let path = folder.path().join("device");
        fs::write(&path, contents()).unwrap();
        let storage = Arc::new(FileStorage::open(&path, Access::ReadWrite, ErrorKind::Device).unwrap());
        let faults = Arc::new(FaultStorage::new(storage));
        let driver = Driver::new(faults.clone());
        let exports = vec![Export::new("disk", driver.clone(), false), Export::new("still", driver.clone(), true)];
        Self { folder, path, faults, driver, server: Server::new(exports).unwrap() }
    }

    /// A new connection, which has said nothing yet.
    pub fn connect(&self) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.server.attach(theirs.into());
        Client::new(ours)
    }

    /// A connection that has agreed on `disk`, with simple replies.
    pub fn simple(&self) -> Client {
        let mut client = self.connect();
        client.greet();
        client.go("disk");
        client
    }

    /// A connection that has agreed on `disk`, with structured replies and block status.
    pub fn structured(&self) -> Client {
        let mut client = self.connect();
        client.greet();
        client.structured_replies();
        client.set_allocation("disk");
        client.go("disk");
        client
    }

    /// The device's bytes now, read by nobody's code under test.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    pub fn file(&self) -> File {
        File::open(&self.path).unwrap()
    }

    pub fn fail(&self, operation: Operation, errno: i32) {
        self.faults.inject(Fault { operation, errno, range: None, after: 0, times: Some(1) });
    }

    /// The server still does what it is for.
    pub fn assert_well(&self) {
        let mut client = self.simple();
        client.write(4096, &[0x5a; 512]);
        assert_eq!(client.read(4096, 512), [0x5a; 512]);
        client.goodbye();
    }

    /// The same for those who only read, while a backup suspends every write.
    pub fn assert_well_for_readers(&self) {
        let mut client = self.simple();
        assert_eq!(client.read(SIZE - 512, 512), contents()[SIZE as usize - 512..]);
        client.goodbye();
    }

    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// A backup through 64 KiB of memory to a destination that stands still until it is resumed.
    pub fn stalled_backup(&self) -> (Spec, Arc<ThrottledStorage>) {
        let image = self.image();
        let mut throttle = None;
        let destination =
            Destination::file(&image, &manifest_path_for(&image), SIZE, false).unwrap().decorate(|storage| {
                let stalled = Arc::new(ThrottledStorage::new(storage, u64::MAX));
                stalled.stall();
                throttle = Some(stalled.clone());
                stalled
            });
        let spec = Spec {
            block_size: None,
            logical_block: 512,
            container: ContainerPlace::Memory(64 << 10),
            staging_bytes: 64 << 10,
            capacity_bytes: 64 << 10,
            drain_bytes: 16 << 10,
            destination,
            listing: Listing::Device,
            policy: Policy { cbw_timeout: PATIENCE, fail_write: false },
            limit_read: None,
            identity: BTreeMap::new(),
            keep: false,
        };
        (spec, throttle.expect("the destination was decorated"))
    }
}

/// A folder in memory, in which tests do not wait for a disk.
pub fn folder_in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// Every 8 bytes say where they are.
pub fn contents() -> Vec<u8> {
    (0..SIZE / 8).flat_map(|word| (word | 1 << 63).to_le_bytes()).collect()
}
