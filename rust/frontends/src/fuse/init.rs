//! What kernel and server agree on in the connection's first request, and the note of it that a successor needs.

use blockcow_engine::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, FromZeros};

use super::channel::MAX_TRANSFER;
use super::wire::{InitIn, InitOut, MAJOR, MINOR, flag};

/// As many requests of programs that do not wait for each one as the protocol can count: the kernel queues them, not the
/// connection, so that reads never stand behind writes that are suspended.
const MAX_BACKGROUND: u16 = u16::MAX;

const WANTED: u64 =
    flag::ASYNC_READ | flag::BIG_WRITES | flag::ASYNC_DIO | flag::MAX_PAGES | flag::INIT_EXT | flag::HAS_RESEND;

/// Everything that a process needs to know of a connection that another one began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// 1; another number is from a version that this one does not know.
    pub schema: u32,
    /// The minor version of the protocol that is spoken.
    pub minor: u32,
    /// Whether the kernel can send again what was in flight.
    pub resend: bool,
    /// Size of the file in bytes.
    pub size: u64,
    /// Where the file is mounted.
    pub mountpoint: String,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Permission bits, owner and group: those of the file that it is mounted on.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The answer to the kernel's offer, and what was agreed: the minor version, and whether requests can be sent again.
///
/// # Errors
/// `Device` if the kernel speaks another protocol.
pub fn agree(offer: &[u8]) -> Result<(InitOut, u32, bool)> {
    let failed = |reason: String| Err(Error::new(ErrorKind::Device, "begin a FUSE connection", reason));
    // An old kernel's offer is shorter.
    let mut whole = [0; size_of::<InitIn>()];
    let length = offer.len().min(whole.len());
    whole[..length].copy_from_slice(&offer[..length]);
    let Ok(offered) = InitIn::read_from_bytes(&whole) else { return failed("the kernel's offer is cut short".into()) };
    if offered.major != MAJOR {
        return failed(format!("the kernel speaks version {} of the protocol, not {MAJOR}", offered.major));
    }
    let mut flags = u64::from(offered.flags);
    if flags & flag::INIT_EXT != 0 {
        flags |= u64::from(offered.flags2) << 32;
    }
    let flags = flags & WANTED;
    let mut answer = InitOut::new_zeroed();
    answer.major = MAJOR;
    answer.minor = MINOR.min(offered.minor);
    answer.max_readahead = offered.max_readahead;
    answer.flags = flags as u32;
    answer.flags2 = (flags >> 32) as u32;
    answer.max_background = MAX_BACKGROUND;
    answer.congestion_threshold = MAX_BACKGROUND / 4 * 3;
    answer.max_write = MAX_TRANSFER as u32;
    answer.max_pages = (MAX_TRANSFER / rustix::param::page_size()) as u16;
    answer.time_gran = 1;
    Ok((answer, answer.minor, flags & flag::HAS_RESEND != 0))
}

impl Note {
    /// Reads a note that another process wrote.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::new(ErrorKind::Invalid, "take over a FUSE connection", reason);
        let note: Self =
            serde_json::from_str(text).map_err(|error| invalid(format!("its note is damaged: {error}")))?;
        if note.schema == 1 { Ok(note) } else { Err(invalid(format!("its note has schema {}, not 1", note.schema))) }
    }

    /// The note as text, for whoever keeps the descriptors.
    pub fn text(&self) -> String {
        serde_json::json!(self).to_string()
    }
}
