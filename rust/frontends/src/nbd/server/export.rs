//! One device as clients see it: its name, size, and what it can do.

use std::sync::Arc;

use blockcow_engine::driver::Driver;

use super::pace::Pace;
use crate::nbd::protocol::transmission;

/// A device under a name.
pub struct Export {
    pub(super) name: String,
    pub(super) driver: Arc<Driver>,
    pub(super) read_only: bool,
    /// How long its I/O takes; all connections learn together.
    pub(super) pace: Pace,
}

impl Export {
    /// `driver`'s device under `name`.
    pub fn new(name: impl Into<String>, driver: Arc<Driver>, read_only: bool) -> Self {
        Self { name: name.into(), driver, read_only, pace: Pace::default() }
    }

    /// The transmission flags. `DF` only makes sense with structured replies.
    pub(super) fn flags(&self, structured: bool) -> u16 {
        use transmission as t;
        // One inode is behind all connections: a flush on one covers what any of them wrote.
        let mut flags = t::HAS_FLAGS | t::SEND_FLUSH | t::SEND_FUA | t::CAN_MULTI_CONN | t::SEND_CACHE;
        if self.read_only {
            flags |= t::READ_ONLY;
        } else {
            flags |= t::SEND_TRIM | t::SEND_WRITE_ZEROES | t::SEND_FAST_ZERO;
        }
        if structured {
            flags |= t::SEND_DF;
        }
        flags
    }
}
