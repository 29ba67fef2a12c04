//! Puts the parts of a backup together over its arena, new or left by a dead process. Decides nothing, lists nothing.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::Driver;
use super::note::Place;
use crate::arena::{Bytes, Layout, Marks, Parts, Words};
use crate::backup::Outfit;
use crate::container::{Container, Log};
use crate::copied::CopiedMap;
use crate::destination::Destination;
use crate::digest::DigestTable;
use crate::error::Result;
use crate::gate::{Gate, Limits, Reserved};
use crate::journal::Journal;
use crate::list::BlockList;
use crate::round::{Policy, Round};
use crate::slab::Slab;
use crate::stats::Stats;
use crate::storage::Storage;
use crate::sweep::Desk;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex};

/// What lies behind staging.
pub(super) struct Housing {
    pub(super) place: Place,
    /// What the log lies on; `None` for a container in memory.
    pub(super) storage: Option<Arc<dyn Storage>>,
    /// Its blocks on the device.
    pub(super) reserved: Reserved,
    /// How many blocks it can hold.
    pub(super) slots: u32,
}

/// Everything that the parts are made from, beside memory.
pub(super) struct Blueprint {
    pub(super) layout: Layout,
    pub(super) limits: Limits,
    pub(super) housing: Housing,
    pub(super) destination: Destination,
    pub(super) policy: Policy,
    pub(super) sparse: bool,
    pub(super) limit_read: Option<u64>,
    pub(super) identity: BTreeMap<String, String>,
    /// What another process needs to read the arena; `None` if it dies with this one.
    pub(super) note: Option<String>,
}

impl Driver {
    /// A backup that is neither listed nor armed.
    pub(super) fn assemble(&self, blueprint: Blueprint, parts: Parts) -> (Arc<Round>, Outfit) {
        let Blueprint { layout: Layout { geometry, .. }, limits, housing, .. } = blueprint;
        let block = geometry.block_size() as usize;
        let map = CopiedMap::new(Words::new(parts.pending), Words::new(parts.claimed));
        let log = housing.storage.map(|storage| Log::new(storage, block, Marks::new(parts.log_marks)));
        let staging = Slab::new(parts.staging, block, Marks::new(parts.staging_marks));
        let watched = blueprint.sparse || !housing.reserved.is_empty();
        let round = Arc::new(Round {
            geometry,
            device: self.device.clone(),
            gate: Gate::new(map, housing.reserved, limits),
            container: Container::new(geometry, staging, log),
            destination: blueprint.destination,
            digests: Arc::new(DigestTable::over(Bytes::new(parts.digests))),
            policy: blueprint.policy,
            stats: Stats::new(Words::new(parts.tally)),
            programs: self.counters.clone(),
            requests_before: self.counters.ended(),
            journal: Journal::new(parts.header, parts.delivered, parts.list),
            note: blueprint.note,
            events: Arc::default(),
            life: Arc::default(),
            list: Mutex::new(BlockList::new()),
            listed: AtomicU64::new(0),
            digest: OnceLock::new(),
            cut: Mutex::new(None),
            sparse: blueprint.sparse,
            watching: AtomicBool::new(watched),
            armed: self.armed.clone(),
        });
        let desks = parts.desks.into_iter().map(|(record, buffer)| Desk::new(record, buffer)).collect();
        let outfit =
            Outfit { desks, limit_read: blueprint.limit_read, identity: blueprint.identity, publishing: false };
        (round, outfit)
    }
}

impl Blueprint {
    /// The note for another process.
    ///
    /// # Errors
    /// `Invalid` if a name cannot be written down.
    pub(super) fn to_note(&self) -> Result<String> {
        let Self { layout, limits, housing, policy, .. } = self;
        let note = super::note::Note {
            device_bytes: layout.geometry.device_bytes(),
            block_size: layout.geometry.block_size(),
            extent_size: layout.geometry.extent_size(),
            container: housing.place.clone(),
            log_slots: layout.log_slots,
            staging_slots: layout.staging_slots,
            capacity_slots: limits.capacity,
            drain_slots: limits.drain,
            cbw_timeout_us: u64::try_from(policy.cbw_timeout.as_micros()).unwrap_or(u64::MAX),
            fail_write: policy.fail_write,
            limit_read: self.limit_read,
            sparse: self.sparse,
            destination: self.destination.remember()?,
            identity: self.identity.clone(),
        };
        note.to_text()
    }
}
