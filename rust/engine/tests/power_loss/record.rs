//! The record of a backup: what its system calls did to files and names, in order. Calls that it cannot follow fail the test.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::kernel::{Call, Fate, Kind, Watch};

/// A file, whatever name it bears.
pub type FileId = usize;

/// One change, or one call that makes changes durable.
#[derive(Debug, Clone)]
pub enum Op {
    Data {
        file: FileId,
        at: u64,
        bytes: Vec<u8>,
    },
    Zero {
        file: FileId,
        start: u64,
        end: u64,
    },
    Size {
        file: FileId,
        size: u64,
    },
    SyncFile {
        file: FileId,
    },
    /// A new file under a name.
    Create {
        name: String,
        file: FileId,
    },
    Rename {
        from: String,
        to: String,
        file: FileId,
    },
    Remove {
        name: String,
    },
    SyncFolder,
}

/// Records what becomes of the files in one folder.
pub struct Recorder {
    folder: PathBuf,
    files: HashMap<u64, FileId>,
    names: HashMap<String, FileId>,
    pub ops: Vec<Op>,
    /// What it could not follow.
    pub unknown: Vec<String>,
}

impl Recorder {
    /// Of `folder`, in which these files lie already: their names, in the order of their numbers.
    pub fn new(folder: &Path, names: &[String]) -> Self {
        let mut recorder = Self {
            folder: folder.into(),
            files: HashMap::new(),
            names: HashMap::new(),
            ops: Vec::new(),
            unknown: Vec::new(),
        };
        for (file, name) in names.iter().enumerate() {
            let found = rustix::fs::stat(folder.join(name)).unwrap();
            recorder.files.insert(found.st_ino, file);
            recorder.names.insert(name.clone(), file);
        }
        recorder
    }

    fn file(&mut self, fd: u64) -> FileId {
        // SAFETY: the descriptor was opened by those who make the calls, and is open while they wait for the answer.
        let fd = unsafe { BorrowedFd::borrow_raw(fd as i32) };
        let inode = rustix::fs::fstat(fd).unwrap().st_ino;
        let next = self.files.len();
        *self.files.entry(inode).or_insert(next)
    }

    fn name(&self, path: &Path) -> Option<String> {
        (path.parent() == Some(&self.folder)).then(|| path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn opened(&mut self, call: &Call, fd: u64) {
        let at = if call.number == libc::SYS_openat { 2 } else { 1 };
        let flags = call.args[at] as i32;
        let unnamed = flags & libc::O_TMPFILE == libc::O_TMPFILE;
        if flags & libc::O_TRUNC != 0 || flags & libc::O_CREAT != 0 && flags & libc::O_EXCL == 0 {
            self.unknown.push(format!("{call:?}"));
        }
        if let Some(name) = self.name(&call.path)
            && flags & libc::O_CREAT != 0
            && !unnamed
        {
            let file = self.file(fd);
            self.names.insert(name.clone(), file);
            self.ops.push(Op::Create { name, file });
        }
    }

    fn wrote(&mut self, call: &Call, count: u64) {
        let file = self.file(call.args[0]);
        let at = if call.number == libc::SYS_pwrite64 { call.args[3] } else { position(call.args[0]) - count };
        let bytes = call.bytes()[..count as usize].to_vec();
        self.ops.push(Op::Data { file, at, bytes });
    }

    fn shaped(&mut self, call: &Call) {
        let file = self.file(call.args[0]);
        let [_, second, start, length, ..] = call.args;
        if call.number == libc::SYS_ftruncate {
            self.ops.push(Op::Size { file, size: second });
            return;
        }
        let keeps_size = libc::FALLOC_FL_KEEP_SIZE;
        match second as i32 {
            // What is allocated reads as before.
            mode if mode == keeps_size => {}
            mode if mode == keeps_size | libc::FALLOC_FL_PUNCH_HOLE
                || mode == keeps_size | libc::FALLOC_FL_ZERO_RANGE =>
            {
                self.ops.push(Op::Zero { file, start, end: start + length });
            }
            _ => self.unknown.push(format!("{call:?}")),
        }
    }

    fn renamed(&mut self, call: &Call) {
        let to = call.to.as_deref().and_then(|path| self.name(path));
        let (Some(from), Some(to)) = (self.name(&call.path), to) else {
            self.unknown.push(format!("{call:?}"));
            return;
        };
        let file = self.names.remove(&from).expect("what is renamed has a name");
        self.names.insert(to.clone(), file);
        self.ops.push(Op::Rename { from, to, file });
    }

    fn removed(&mut self, call: &Call) {
        let name = self.name(&call.path).expect("names are removed from the folder itself");
        self.names.remove(&name);
        self.ops.push(Op::Remove { name });
    }

    fn synced(&mut self, call: &Call) {
        let op =
            if *call.path == *self.folder { Op::SyncFolder } else { Op::SyncFile { file: self.file(call.args[0]) } };
        self.ops.push(op);
    }
}

impl Watch for Recorder {
    fn before(&mut self, _call: &Call) -> Fate {
        Fate::Go
    }

    fn after(&mut self, call: &Call, outcome: i64) {
        if outcome < 0 || !call.path.starts_with(&self.folder) {
            return;
        }
        match call.kind {
            Kind::Open => self.opened(call, outcome as u64),
            Kind::Write => self.wrote(call, outcome as u64),
            Kind::Shape => self.shaped(call),
            Kind::Rename => self.renamed(call),
            Kind::Remove => self.removed(call),
            Kind::Sync => self.synced(call),
            Kind::Read | Kind::Look | Kind::Close => {}
        }
    }

    fn unknown(&mut self, number: i64) {
        self.unknown.push(format!("system call {number}"));
    }
}

fn position(fd: u64) -> u64 {
    // SAFETY: as above.
    let fd = unsafe { BorrowedFd::borrow_raw(fd as i32) };
    rustix::fs::tell(fd).unwrap()
}
