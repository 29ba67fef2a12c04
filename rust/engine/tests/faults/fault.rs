//! One fault: the nth call on one of the three places fails, or is cut short, once or from then on. Also counts, without.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::kernel::{Call, Fate, Kind, Watch};

/// Where the calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Device,
    Container,
    Destination,
}

impl Place {
    pub const ALL: [Self; 3] = [Self::Device, Self::Container, Self::Destination];

    /// The folder below that of the run in which nothing else lies.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Container => "container",
            Self::Destination => "destination",
        }
    }
}

/// What happens to the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It fails with this error number.
    Errno(i32),
    /// It transfers half of its bytes. Only transfers count.
    Short,
}

/// And to those after it, on the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    Once,
    /// All of its kind too: a disk that cannot be written any more may still be read.
    Kind,
    /// All of them: it is gone.
    All,
}

#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub place: Place,
    pub nth: u64,
    pub what: What,
    pub lasting: Lasting,
}

/// A call that the fault struck.
pub struct Struck {
    pub kind: Kind,
    pub thread: u32,
    pub number: i64,
    pub path: PathBuf,
    /// Calls of the same thread that changed the device before, struck or not.
    pub changes_before: usize,
    /// Whether nobody had written to the device yet.
    pub before_the_cut: bool,
    /// Whether the older backup's manifest had been removed by then, as it is before names change.
    pub publishing: bool,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {:?} that failed (system call {}, {})", self.kind, self.number, self.path.display())
    }
}

/// Counts the calls on each place, and makes the fault happen.
pub struct Injector {
    folders: [PathBuf; 3],
    direct: bool,
    fault: Option<Fault>,
    /// Calls on each place so far; if the fault is short transfers, transfers only.
    counts: [u64; 3],
    pub transfers: [u64; 3],
    pub struck: Vec<Struck>,
    pub unknown: Vec<i64>,
    /// How often each thread changed the device.
    changed: HashMap<u32, usize>,
    publishing: bool,
    /// Said when the fault strikes.
    pub hit: Arc<AtomicBool>,
}

impl Injector {
    pub fn new(folder: &Path, direct: bool, fault: Option<Fault>) -> Self {
        Self {
            folders: Place::ALL.map(|place| folder.join(place.folder())),
            direct,
            fault,
            counts: [0; 3],
            transfers: [0; 3],
            struck: Vec::new(),
            unknown: Vec::new(),
            changed: HashMap::new(),
            publishing: false,
            hit: Arc::default(),
        }
    }

    /// Calls on each place.
    pub fn calls(&self) -> [u64; 3] {
        self.counts
    }

    fn place(&self, call: &Call) -> Option<Place> {
        let folder = self.folders.iter().position(|folder| call.path.starts_with(folder))?;
        Some(Place::ALL[folder])
    }

    fn strikes(&self, fault: &Fault, kind: Kind, count: u64) -> bool {
        match fault.lasting {
            _ if count == fault.nth => true,
            Lasting::Once => false,
            Lasting::Kind => self.struck.first().is_some_and(|first| first.kind == kind),
            Lasting::All => count > fault.nth,
        }
    }
}

impl Watch for Injector {
    fn before(&mut self, call: &Call) -> Fate {
        let Some(place) = self.place(call).filter(|_| call.kind != Kind::Close) else { return Fate::Go };
        let is_transfer = matches!(call.kind, Kind::Read | Kind::Write);
        let changes_before = self.changed.get(&call.thread).copied().unwrap_or(0);
        if place == Place::Device && matches!(call.kind, Kind::Write | Kind::Shape) {
            *self.changed.entry(call.thread).or_default() += 1;
        }
        self.counts[place as usize] += 1;
        self.transfers[place as usize] += u64::from(is_transfer);
        let Some(fault) = self.fault.filter(|fault| fault.place == place) else { return Fate::Go };
        let shortest = match fault.lasting {
            // The kernel does not halve sectors.
            _ if self.direct => 1023,
            Lasting::Once => 1,
            // If all are halved, and the rest of each again, there must be an end to it.
            _ => 256,
        };
        let (counted, count) = match fault.what {
            What::Errno(_) => (true, self.counts[place as usize]),
            What::Short => (is_transfer && call.length() > shortest, self.transfers[place as usize]),
        };
        if !counted || !self.strikes(&fault, call.kind, count) {
            self.publishing |= call.kind == Kind::Remove && call.path.ends_with("image.manifest");
            return Fate::Go;
        }
        self.hit.store(true, Ordering::Relaxed);
        let Call { kind, number, thread, .. } = *call;
        let (path, before_the_cut) = (call.path.to_path_buf(), self.changed.is_empty());
        let publishing = self.publishing;
        self.struck.push(Struck { kind, thread, number, path, changes_before, before_the_cut, publishing });
        match fault.what {
            What::Errno(errno) => Fate::Fail(errno),
            What::Short => Fate::Short(call.length() / 2),
        }
    }

    fn after(&mut self, call: &Call, outcome: i64) {
        if self.direct && outcome == 0 && call.number == libc::SYS_statx {
            call.offer_direct_io();
        }
    }

    fn unknown(&mut self, number: i64) {
        self.unknown.push(number);
    }
}
