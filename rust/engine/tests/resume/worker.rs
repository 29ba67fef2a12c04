//! The process that is killed: prepares a backup or goes on with one, while it writes to the device all the time.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use blockcow_engine::Policy;
use blockcow_engine::backup::Backup;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Remains, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Access, FileStorage, Storage, ThrottledStorage};
use serde::{Deserialize, Serialize};

use crate::rig::{Chance, PATIENCE, create, open};

/// Tells the program that it is to be a worker.
pub const PART: &str = "BLOCKCOW_TEST_WORKER";

const WRITERS: u64 = 3;
const LONGEST_WRITE: u64 = 40 << 10;

/// Where the container is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Place {
    Memory,
    File,
    Disk(PathBuf),
    Sections(Vec<(u64, u64)>),
}

/// What a worker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Orders {
    pub folder: PathBuf,
    pub seed: u64,
    pub size: u64,
    pub block: u64,
    pub place: Place,
    pub container: u64,
    pub staging: u64,
    pub capacity: u64,
    /// Bytes a second that the destination takes.
    pub rate: u64,
    pub overwrite: bool,
    /// Whether it writes to the device meanwhile.
    pub load: bool,
    /// What was kept of a dead worker, by name: descriptors that this one inherits.
    pub kept: Vec<(String, i32)>,
}

impl Orders {
    pub fn expected(&self) -> PathBuf {
        self.folder.join("expected")
    }

    pub fn note(&self) -> PathBuf {
        self.folder.join("note")
    }

    fn slow(&self, image: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(ThrottledStorage::new(image, self.rate))
    }

    fn container(&self) -> ContainerPlace {
        match &self.place {
            Place::Memory => ContainerPlace::Memory(self.container),
            Place::File => {
                let path = self.folder.join("container");
                let storage = create(&path, self.container);
                fs::remove_file(path).unwrap();
                ContainerPlace::Storage(storage)
            }
            Place::Disk(path) => ContainerPlace::Storage(open(path)),
            Place::Sections(sections) => {
                ContainerPlace::Sections(sections.iter().map(|&(start, end)| ByteRange { start, end }).collect())
            }
        }
    }
}

fn say(line: &str) {
    let text = format!("@{line}\n");
    stdout().write_all(text.as_bytes()).unwrap();
}

/// Not a test of its own: what the processes do that the tests start. Does nothing otherwise.
#[test]
fn part_of_the_worker() {
    let Ok(text) = env::var(PART) else { return };
    let orders: Orders = serde_json::from_str(&text).unwrap();
    let path = orders.folder.join("device");
    let device = Arc::new(FileStorage::open(&path, Access::ReadWrite, ErrorKind::Device).unwrap());
    let driver = Driver::new(device.clone());
    if orders.kept.is_empty() {
        begin(&orders, &driver);
    } else {
        go_on(&orders, &driver);
    }
}

fn begin(orders: &Orders, driver: &Arc<Driver>) {
    let image = orders.folder.join("image");
    let destination = Destination::file(&image, &manifest_path_for(&image), orders.size, orders.overwrite).unwrap();
    let spec = Spec {
        block_size: Some(orders.block),
        logical_block: 512,
        container: orders.container(),
        staging_bytes: orders.staging,
        capacity_bytes: orders.capacity,
        drain_bytes: orders.capacity / 3,
        destination: destination.decorate(|image| orders.slow(image)),
        listing: Listing::Device,
        policy: Policy { cbw_timeout: PATIENCE, fail_write: false },
        limit_read: None,
        identity: BTreeMap::from([("path".to_owned(), "device".to_owned())]),
        keep: true,
    };
    let backup = driver.prepare(spec).unwrap();
    let kept = backup.kept().unwrap();
    fs::write(orders.note(), &kept.note).unwrap();
    let names: Vec<_> = kept.descriptors.iter().map(|(name, fd)| format!("{name}={}", fd.as_raw_fd())).collect();
    say(&format!("kept {}", names.join(" ")));
    stdin().lock().read_line(&mut String::new()).unwrap();
    drop(kept);
    loaded(orders, driver, || {
        let hold = driver.hold(PATIENCE).unwrap();
        let mut expected = fs::read(orders.folder.join("device")).unwrap();
        if let Place::Sections(sections) = &orders.place {
            sections.iter().for_each(|&(start, end)| expected[start as usize..end as usize].fill(0));
        }
        fs::write(orders.expected(), expected).unwrap();
        hold.arm(&backup).unwrap();
        say("armed");
        backup.start(hold.release()).unwrap();
        finish(&backup);
    });
}

fn go_on(orders: &Orders, driver: &Arc<Driver>) {
    let note = fs::read_to_string(orders.note()).unwrap();
    // SAFETY: the test made these descriptors inheritable for this process, which has no other owner for them.
    let own = |&(ref name, fd): &(String, i32)| (name.clone(), unsafe { OwnedFd::from_raw_fd(fd) });
    let mut remains = Remains::adopt(orders.kept.iter().map(own).collect(), note, None, None).unwrap();
    remains.image = orders.slow(remains.image);
    match driver.resume(remains) {
        Err(error) => say(&format!("refused {error}")),
        Ok(backup) => {
            say("resumed");
            loaded(orders, driver, || finish(&backup));
        }
    }
}

fn finish(backup: &Backup) {
    assert!(backup.wait(Some(PATIENCE)));
    let status = backup.status();
    say(&format!("end {}", serde_json::to_string(&status).unwrap()));
}

/// Does something while programs write.
fn loaded(orders: &Orders, driver: &Arc<Driver>, work: impl FnOnce()) {
    let writes = Arc::new(AtomicU64::new(0));
    for writer in 0..if orders.load { WRITERS } else { 0 } {
        let (driver, orders, writes) = (driver.clone(), orders.clone(), writes.clone());
        let mut chance = Chance::new(orders.seed * 1000 + u64::from(std::process::id()) * 10 + writer);
        // Not joined: the end of the process is the end of its writers.
        thread::spawn(move || {
            loop {
                one_write(&orders, &driver, &mut chance);
                writes.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while orders.load && writes.load(Ordering::Relaxed) < WRITERS {
        thread::yield_now();
    }
    work();
    std::process::exit(0);
}

fn one_write(orders: &Orders, driver: &Driver, chance: &mut Chance) {
    let start = chance.below(orders.size);
    let length = (1 + chance.below(LONGEST_WRITE)).min(orders.size - start);
    if let Place::Sections(sections) = &orders.place {
        // With a block to spare on either side: nobody writes to the container's place.
        let margin = orders.block;
        if sections.iter().any(|&(from, to)| start < to + margin && from < start + length + margin) {
            return;
        }
    }
    match chance.below(8) {
        0 => driver.zero(start, length).unwrap(),
        1 => driver.discard(start, length).unwrap(),
        _ => {
            let mut data = vec![0; length as usize];
            chance.fill(&mut data);
            driver.write(&data, start).unwrap();
        }
    }
}
