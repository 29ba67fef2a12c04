//! The note that goes with the arena of a backup: everything that another process must know to read it, as JSON. It does
//! not change once the backup is prepared.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arena::Layout;
use crate::destination::Remembered;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Limits;
use crate::geometry::{ByteRange, Geometry};
use crate::round::Policy;

/// Where the container of a backup is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    /// In the arena.
    Memory,
    /// On a storage of its own.
    Storage,
    /// On sections of the device: first byte and one past the last.
    Sections(Vec<(u64, u64)>),
}

/// See the file's first lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    pub(super) device_bytes: u64,
    pub(super) block_size: u64,
    pub(super) extent_size: u64,
    pub(super) container: Place,
    pub(super) log_slots: u32,
    pub(super) staging_slots: u32,
    pub(super) capacity_slots: u32,
    pub(super) drain_slots: u32,
    pub(super) cbw_timeout_us: u64,
    pub(super) fail_write: bool,
    pub(super) limit_read: Option<u64>,
    pub(super) sparse: bool,
    pub(super) destination: Remembered,
    pub(super) identity: BTreeMap<String, String>,
}

impl Note {
    pub(super) fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| unreadable("write", &error))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| unreadable("read", &error))
    }

    pub(super) fn layout(&self) -> Result<Layout> {
        let geometry = Geometry::recorded(self.device_bytes, self.block_size, self.extent_size)?;
        Ok(Layout { geometry, staging_slots: self.staging_slots, log_slots: self.log_slots })
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { capacity: self.capacity_slots, drain: self.drain_slots, staging: self.staging_slots }
    }

    pub(super) fn policy(&self) -> Policy {
        Policy { cbw_timeout: Duration::from_micros(self.cbw_timeout_us), fail_write: self.fail_write }
    }
}

impl Place {
    pub(super) fn sections(&self) -> Vec<ByteRange> {
        match self {
            Self::Sections(sections) => sections.iter().map(|&(start, end)| ByteRange { start, end }).collect(),
            Self::Memory | Self::Storage => Vec::new(),
        }
    }
}

fn unreadable(operation: &str, error: &serde_json::Error) -> Error {
    Error::new(ErrorKind::State, format!("{operation} the note of a backup"), error.to_string())
}
