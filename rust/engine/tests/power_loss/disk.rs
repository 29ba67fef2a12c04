//! What a disk may hold after a power cut: all that was made durable, and of the rest any part. Knows nothing of backups.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::record::{FileId, Op};
use crate::rig::Chance;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// How much of what was not durable is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Survival {
    /// All of it but for one change.
    AllBut(usize),
    /// One change alone.
    Only(usize),
    /// Changes whose bit is set; of more than 64, those whose number's remainder is set.
    Bits(u64),
    /// Each change by chance, whole, in part, with other bytes in it, or cut off with the end of the file. From a seed.
    Chance(u64),
}

/// A name that comes or goes: a rename is one of each, and a disk may know of one without the other.
#[derive(Debug, Clone)]
struct NameChange {
    name: String,
    file: Option<FileId>,
}

/// A file and what was done to it since it was durable.
#[derive(Clone, Default)]
struct File {
    durable: Arc<Vec<u8>>,
    pending: Vec<Op>,
    version: usize,
}

/// Which contents of which file: how often it was durable, which changes came since, and which of them survived.
pub type Key = (FileId, usize, Option<(Range<usize>, Survival)>);

/// A disk on which changes arrive.
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, FileId>,
    pending_names: Vec<NameChange>,
    /// Says that files are durable when they are not.
    lies: bool,
}

/// What is found on it after a power cut.
pub struct Found<'a> {
    disk: &'a Disk,
    survival: Survival,
    pub names: BTreeMap<String, FileId>,
}

impl Disk {
    /// With these files, durable.
    pub fn new(files: impl IntoIterator<Item = (String, Arc<Vec<u8>>)>, lies: bool) -> Self {
        let mut disk = Self { files: Vec::new(), names: BTreeMap::new(), pending_names: Vec::new(), lies };
        for (name, durable) in files {
            disk.names.insert(name, disk.files.len());
            disk.files.push(File { durable, ..File::default() });
        }
        disk
    }

    /// The next change arrives.
    pub fn take(&mut self, op: &Op) {
        let mut name =
            |name: &String, file: Option<FileId>| self.pending_names.push(NameChange { name: name.clone(), file });
        match op {
            Op::Data { file, .. } | Op::Zero { file, .. } | Op::Size { file, .. } => {
                self.file(*file).pending.push(op.clone())
            }
            Op::Create { name: new, file } => name(new, Some(*file)),
            Op::Rename { from, to, file } => {
                name(to, Some(*file));
                name(from, None);
            }
            Op::Remove { name: gone } => name(gone, None),
            Op::SyncFile { file } if !self.lies => self.file(*file).settle(),
            Op::SyncFile { .. } => {}
            Op::SyncFolder => {
                for change in std::mem::take(&mut self.pending_names) {
                    change.apply(&mut self.names);
                }
            }
        }
    }

    fn file(&mut self, file: FileId) -> &mut File {
        if self.files.len() <= file {
            self.files.resize(file + 1, File::default());
        }
        &mut self.files[file]
    }

    /// How many changes are not durable; names first.
    pub fn pending(&self) -> usize {
        self.pending_names.len() + self.files.iter().map(|file| file.pending.len()).sum::<usize>()
    }

    /// How many of these are changes of names.
    pub fn pending_names(&self) -> usize {
        self.pending_names.len()
    }

    /// Cuts the power.
    pub fn cut(&self, survival: Survival) -> Found<'_> {
        let mut names = self.names.clone();
        for (index, change) in self.pending_names.iter().enumerate() {
            if survival.keeps(index) {
                change.apply(&mut names);
            }
        }
        Found { disk: self, survival, names }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, FileId>) {
        match self.file {
            Some(file) => drop(names.insert(self.name.clone(), file)),
            None => drop(names.remove(&self.name)),
        }
    }
}

impl Survival {
    fn keeps(self, index: usize) -> bool {
        match self {
            Self::AllBut(lost) => index != lost,
            Self::Only(kept) => index == kept,
            Self::Bits(bits) => bits >> (index % 64) & 1 == 1,
            Self::Chance(seed) => Chance::new(seed ^ (index as u64 * 0x9e37)).next() >> 63 == 1,
        }
    }
}

impl File {
    fn settle(&mut self) {
        for op in std::mem::take(&mut self.pending) {
            apply(&op, Arc::make_mut(&mut self.durable));
        }
        self.version += 1;
    }
}

impl Found<'_> {
    /// The bytes of a file.
    pub fn content(&self, file: FileId) -> Arc<Vec<u8>> {
        let found = &self.disk.files[file];
        if found.pending.is_empty() {
            return found.durable.clone();
        }
        let mut bytes = Vec::clone(&found.durable);
        for (index, op) in found.pending.iter().enumerate() {
            let index = self.first_change_of(file) + index;
            match self.survival {
                Survival::Chance(seed) => apply_some(op, &mut bytes, &mut Chance::new(seed ^ (index as u64 * 0x85eb))),
                survival if survival.keeps(index) => apply(op, &mut bytes),
                _ => {}
            }
        }
        if let Survival::Chance(seed) = self.survival
            && seed % 3 == 0
        {
            // The bytes came, the new size did not.
            bytes.truncate(found.durable.len().max(bytes.len() / SECTOR as usize / 2 * SECTOR as usize));
        }
        Arc::new(bytes)
    }

    /// Never the same for two contents on disks with one history; it may differ for equal ones.
    pub fn key(&self, file: FileId) -> Key {
        let found = &self.disk.files[file];
        let first = self.first_change_of(file);
        let survived = (!found.pending.is_empty()).then(|| (first..first + found.pending.len(), self.survival));
        (file, found.version, survived)
    }

    fn first_change_of(&self, file: FileId) -> usize {
        let before: usize = self.disk.files[..file].iter().map(|file| file.pending.len()).sum();
        self.disk.pending_names.len() + before
    }
}

fn apply(op: &Op, bytes: &mut Vec<u8>) {
    match op {
        Op::Data { at, bytes: data, .. } => place(bytes, *at, data),
        Op::Zero { start, end, .. } => {
            let end = (*end as usize).min(bytes.len());
            bytes[(*start as usize).min(end)..end].fill(0);
        }
        Op::Size { size, .. } => bytes.resize(*size as usize, 0),
        _ => unreachable!("only changes of contents are kept with a file"),
    }
}

/// Some sectors of a change, and in some of the others bytes that nobody wrote.
fn apply_some(op: &Op, bytes: &mut Vec<u8>, chance: &mut Chance) {
    let Op::Data { at, bytes: data, .. } = op else {
        if chance.below(2) == 0 {
            apply(op, bytes);
        }
        return;
    };
    let (mut from, end) = (*at, at + data.len() as u64);
    while from < end {
        let to = (from / SECTOR * SECTOR + SECTOR).min(end);
        let sector = &data[(from - at) as usize..(to - at) as usize];
        match chance.below(8) {
            0..4 => place(bytes, from, sector),
            4 => {
                let mut stale = vec![0; sector.len()];
                chance.fill(&mut stale);
                place(bytes, from, &stale);
            }
            _ => {}
        }
        from = to;
    }
}

fn place(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = at as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(data);
}
