//! What a backup puts into the hands of a process that outlives this one.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::error::{Error, ErrorKind, Result};
use crate::round::Round;
use crate::storage::Storage;

/// Descriptors by name, and the note that says how to read them. `arena`; `image` and `container`, each also with `-direct`,
/// as far as their storages have descriptors.
#[derive(Debug)]
pub struct Kept {
    /// Copies of the descriptors.
    pub descriptors: Vec<(String, OwnedFd)>,
    /// JSON.
    pub note: String,
}

impl Kept {
    pub(super) fn of(round: &Round) -> Result<Self> {
        let (Some(note), Some(arena)) = (&round.note, round.journal.file()) else {
            let reason = "it was not prepared for that; its memory goes with this process";
            return Err(Error::new(ErrorKind::State, "keep the backup", reason));
        };
        let mut descriptors = Vec::new();
        let mut add = |name: &str, descriptor: BorrowedFd<'_>| {
            let copy = descriptor.try_clone_to_owned().map_err(|error| no_descriptor(&error))?;
            descriptors.push((name.to_owned(), copy));
            Ok(())
        };
        add("arena", arena)?;
        for (name, storage) in [("image", Some(round.destination.holds())), ("container", round.container.storage())] {
            let handles = storage.map_or(Vec::new(), Storage::handles);
            for (suffix, handle) in ["", "-direct"].iter().zip(handles) {
                add(&format!("{name}{suffix}"), handle)?;
            }
        }
        Ok(Self { descriptors, note: note.clone() })
    }
}

fn no_descriptor(error: &io::Error) -> Error {
    Error::io(ErrorKind::Invalid, "keep the backup", error)
}
