//! Files that bear their final name only when they are whole: written beside it as `<name>.partial`, then renamed.
//!
//! Knows nothing of what is in them. Whoever writes one syncs its contents before it is placed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::mutant::planted;
use crate::storage::{Access, FileStorage};

/// The name under which a file is written until it is whole.
pub(crate) fn partial_path(target: &Path) -> PathBuf {
    let mut name = OsString::from(target);
    name.push(".partial");
    name.into()
}

/// Removes a file, if there is one, and makes that durable.
///
/// # Errors
/// Of kind `role`, with the path.
pub(crate) fn remove_durably(path: &Path, role: ErrorKind) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder_of(path, role),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(role, format!("remove {}", path.display()), &e)),
    }
}

/// Makes durable which names the folder of `path` holds.
///
/// # Errors
/// Of kind `role`, with the folder.
pub(crate) fn sync_folder_of(path: &Path, role: ErrorKind) -> Result<()> {
    let folder = folder_of(path);
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(|e| Error::io(role, format!("sync the folder {}", folder.display()), &e))
}

/// The folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new file among the device nodes lives in memory and is gone with the next boot; mostly it is a name misspelt.
///
/// # Errors
/// `Invalid` for a path under `/dev`, shared memory excepted.
pub(crate) fn refuse_among_devices(path: &Path) -> Result<()> {
    if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
        let reason = "there is no such device, and a file in /dev would be gone with the next boot; name another place";
        return Err(Error::new(ErrorKind::Invalid, format!("create {}", path.display()), reason));
    }
    Ok(())
}

/// A path that means the same to another process.
pub(crate) fn lasting(path: &Path) -> Result<String> {
    let refuse = |reason: String| {
        Error::new(ErrorKind::Invalid, format!("keep the backup to {} over a restart", path.display()), reason)
    };
    let absolute: PathBuf = std::path::absolute(path).map_err(|error| refuse(error.to_string()))?;
    absolute.into_os_string().into_string().map_err(|_| refuse("the path is not UTF-8; name another".into()))
}

/// What is kept of a file on its way to its final name, so that another process can take it further.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RememberedFile {
    target: String,
    inode: (u64, u64),
}

/// A file on its way to its final name. Recognised by its inode, so that nobody else's file is renamed or removed.
pub(crate) struct PartialFile {
    target: PathBuf,
    partial: PathBuf,
    inode: (u64, u64),
    role: ErrorKind,
}

impl PartialFile {
    /// Creates `<target>.partial` with `size` bytes of zeroes and holds it. A leftover that nobody holds is replaced;
    /// the third value says whether there was one.
    ///
    /// # Errors
    /// `Busy` if somebody is writing it, `NotFound` if the folder does not exist, `Invalid` in `/dev`, else `role`.
    pub(crate) fn create(target: &Path, size: u64, role: ErrorKind) -> Result<(Self, FileStorage, bool)> {
        refuse_among_devices(target)?;
        let partial = partial_path(target);
        let leftover = remove_leftover(&partial, role)?;
        let storage = FileStorage::create(&partial, size, role)?;
        Ok((Self::new(target, partial, storage.as_fd(), role)?, storage, leftover))
    }

    /// Creates `<target>.partial`, empty, in place of what an interrupted backup may have left there.
    ///
    /// # Errors
    /// Of kind `role`.
    pub(crate) fn create_text(target: &Path, role: ErrorKind) -> Result<(Self, File)> {
        let partial = partial_path(target);
        remove_durably(&partial, role)?;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(|e| Error::io(role, format!("create {}", partial.display()), &e))?;
        Ok((Self::new(target, partial, file.as_fd(), role)?, file))
    }

    /// Of a file that has just been created; removes it if its inode cannot be had.
    fn new(target: &Path, partial: PathBuf, file: impl AsFd, role: ErrorKind) -> Result<Self> {
        let stat = rustix::fs::fstat(file).map_err(|e| {
            let error = Error::io(role, format!("look at {}", partial.display()), &io::Error::from(e));
            match remove_durably(&partial, role) {
                Ok(()) => error,
                Err(left) => error.hint(&format!("and it is left behind, empty: {left}")),
            }
        })?;
        Ok(Self { target: target.into(), partial, inode: (stat.st_dev, stat.st_ino), role })
    }

    /// What another process needs to take it further.
    ///
    /// # Errors
    /// `Invalid` for a path that is not UTF-8.
    pub(crate) fn remember(&self) -> Result<RememberedFile> {
        Ok(RememberedFile { target: lasting(&self.target)?, inode: self.inode })
    }

    /// Takes a file further that a dead process left under either name.
    pub(crate) fn resume(remembered: RememberedFile, role: ErrorKind) -> Self {
        let target = PathBuf::from(remembered.target);
        Self { partial: partial_path(&target), target, inode: remembered.inode, role }
    }

    /// Whether it bears its final name.
    ///
    /// # Errors
    /// Of kind `role`.
    pub(crate) fn is_placed(&self) -> Result<bool> {
        self.is_ours(&self.target)
    }

    /// Whether it bears either name.
    ///
    /// # Errors
    /// Of kind `role`.
    pub(crate) fn is_there(&self) -> Result<bool> {
        Ok(self.is_ours(&self.target)? || self.is_ours(&self.partial)?)
    }

    /// Makes durable which name it bears.
    ///
    /// # Errors
    /// Of kind `role`.
    pub(crate) fn sync_folder(&self) -> Result<()> {
        sync_folder_of(&self.target, self.role)
    }

    /// Gives the file its final name, durably; it may bear it already. On an error it may bear either name; `discard` finds
    /// it.
    ///
    /// # Errors
    /// `Exists` if the name is taken and may not be replaced; `role`, also if the file was moved away meanwhile.
    pub(crate) fn place(&self, replace: bool) -> Result<()> {
        if self.is_placed()? {
            return self.sync_folder();
        }
        let operation = format!("rename {} to {}", self.partial.display(), self.target.display());
        if !self.is_ours(&self.partial)? {
            return Err(Error::new(self.role, operation, "somebody removed or replaced it while it was written"));
        }
        rename(&self.partial, &self.target, replace).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::io(ErrorKind::Exists, operation, &e).hint("it was not replaced"),
            _ => Error::io(self.role, operation, &e),
        })?;
        if planted("folder-is-not-synced") {
            return Ok(());
        }
        sync_folder_of(&self.target, self.role)
    }

    /// Removes the file, durably, whichever name it bears.
    ///
    /// # Errors
    /// Of kind `role`, with the name that could not be removed.
    pub(crate) fn discard(&self) -> Result<()> {
        for name in [&self.target, &self.partial] {
            if self.is_ours(name)? {
                remove_durably(name, self.role)?;
            }
        }
        Ok(())
    }

    fn is_ours(&self, name: &Path) -> Result<bool> {
        match std::fs::symlink_metadata(name) {
            Ok(found) => Ok((found.dev(), found.ino()) == self.inode),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io(self.role, format!("look at {}", name.display()), &e)),
        }
    }
}

fn remove_leftover(partial: &Path, role: ErrorKind) -> Result<bool> {
    match FileStorage::open(partial, Access::ReadWrite, role) {
        // Held until it is gone, so that nobody takes it up in between.
        Ok(_held) => remove_durably(partial, role).map(|()| true),
        Err(e) if e.kind == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn rename(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    if replace || planted("somebody-elses-image-is-replaced") {
        return std::fs::rename(from, to);
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot exclude replacing (NFS, for one); looking first is the best there is.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match std::fs::symlink_metadata(to) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
            Err(e) => Err(e),
        },
        result => Ok(result?),
    }
}
