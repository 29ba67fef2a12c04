//! Preparing a backup: everything that can fail or takes time happens here, before the cut.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Driver;
use super::assemble::{Blueprint, Housing};
use super::note::Place;
use crate::arena::Layout;
use crate::backup::Backup;
use crate::container::Log;
use crate::destination::Destination;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::{Limits, Reserved};
use crate::geometry::{BlockRange, ByteRange, Geometry};
use crate::round::{Policy, Round};
use crate::storage::{SectionStorage, Storage};
use crate::sync::Arc;

/// How long writes in flight may take to end before those after them are watched.
pub(super) const WATCH_HOLD: Duration = Duration::from_secs(30);
/// Longer deadlines are taken as this one, so that instants do not overflow.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where the container is.
pub enum ContainerPlace {
    /// In memory only, of so many bytes.
    Memory(u64),
    /// On a storage of its own.
    Storage(Arc<dyn Storage>),
    /// On sections of the device, one behind the other. Their whole blocks are taken off the list, and only those are used.
    Sections(Vec<ByteRange>),
}

/// What is backed up.
pub enum Listing {
    /// All blocks of the device, less the holes of a sparse file.
    Device,
    /// The blocks that these ranges touch.
    Ranges(Vec<ByteRange>),
}

/// Everything that a backup is made from. Sizes in bytes.
pub struct Spec {
    /// Size of a block; `None` takes the default for the device's size.
    pub block_size: Option<u64>,
    /// The device's logical block.
    pub logical_block: u64,
    /// Where the container is.
    pub container: ContainerPlace,
    /// Memory in front of the container.
    pub staging_bytes: u64,
    /// The selected capacity.
    pub capacity_bytes: u64,
    /// The selected amount.
    pub drain_bytes: u64,
    /// Where the backup goes; as large as the device.
    pub destination: Destination,
    /// What is backed up.
    pub listing: Listing,
    /// What happens to writes that wait for too long.
    pub policy: Policy,
    /// Limit on the sweep's reads, per second.
    pub limit_read: Option<u64>,
    /// What the device is known by, for the manifest.
    pub identity: BTreeMap<String, String>,
    /// Whether another process can go on with it if this one dies: its memory is a memfd then, see [`Backup::kept`].
    pub keep: bool,
}

impl Driver {
    /// Creates a backup of this device. Nothing is copied before the cut.
    ///
    /// # Errors
    /// `Invalid` with the reason for sizes that cannot be; `State` if another backup is under way; `Device` if the
    /// holes of the device cannot be read.
    pub fn prepare(&self, spec: Spec) -> Result<Backup> {
        self.refuse_beside_another()?;
        let geometry = Geometry::new(self.size(), spec.block_size, spec.logical_block)?;
        let housing = self.container_of(geometry, spec.container)?;
        let slots = housing.slots;
        let behind = housing.storage.is_some();
        let staging = if behind { blocks_in(geometry, spec.staging_bytes).clamp(1, slots) } else { slots };
        let capacity = blocks_in(geometry, spec.capacity_bytes).clamp(1, slots);
        let drain = blocks_in(geometry, spec.drain_bytes).clamp(1, capacity);
        let mut blueprint = Blueprint {
            layout: Layout { geometry, staging_slots: staging, log_slots: if behind { slots } else { 0 } },
            limits: Limits { capacity, drain, staging },
            housing,
            destination: spec.destination,
            policy: Policy { cbw_timeout: spec.policy.cbw_timeout.min(LONGEST_TIMEOUT), ..spec.policy },
            sparse: matches!(spec.listing, Listing::Device) && self.has_holes()?,
            limit_read: spec.limit_read,
            identity: spec.identity,
            note: None,
        };
        if spec.keep {
            blueprint.note = Some(blueprint.to_note()?);
        }
        let memory = if spec.keep { blueprint.layout.shared() } else { blueprint.layout.anonymous() };
        let parts = memory.map_err(|error| Error::io(ErrorKind::Invalid, "allocate memory for the backup", &error))?;
        let (round, outfit) = self.assemble(blueprint, parts);
        if let Some(note) = &round.note {
            round.journal.stamp(note);
        }
        let backup = Backup::new(round.clone(), outfit);
        if round.is_watching() {
            self.watch(&round)?;
        }
        make_list(&round, spec.listing)?;
        for &run in round.gate.reserved() {
            round.unlist(run);
        }
        Ok(backup)
    }

    pub(super) fn refuse_beside_another(&self) -> Result<()> {
        if self.armed.load().is_none() {
            return Ok(());
        }
        let reason = "another backup of this device is under way; wait for it or cancel it";
        Err(Error::new(ErrorKind::State, "prepare the backup", reason))
    }

    /// From now on the writes of programs are seen: into holes, so that they are listed, and into the container's place.
    fn watch(&self, round: &Arc<Round>) -> Result<()> {
        let _hold = self.hold(WATCH_HOLD)?;
        // Another may have begun to watch while this one waited for its hold.
        self.refuse_beside_another()?;
        self.armed.store(Some(round.clone()));
        Ok(())
    }

    /// What lies behind staging.
    fn container_of(&self, geometry: Geometry, place: ContainerPlace) -> Result<Housing> {
        match place {
            ContainerPlace::Memory(bytes) => match blocks_in(geometry, bytes) {
                0 => Err(too_small(bytes, geometry)),
                slots => Ok(Housing { place: Place::Memory, storage: None, reserved: Reserved::none(), slots }),
            },
            ContainerPlace::Storage(storage) => self.house(geometry, Place::Storage, storage, Reserved::none()),
            ContainerPlace::Sections(sections) => {
                let (sections, reserved) = whole_blocks(geometry, &sections)?;
                let storage = Arc::new(SectionStorage::new(self.device.clone(), &sections)?);
                let place = Place::Sections(sections.iter().map(|section| (section.start, section.end)).collect());
                self.house(geometry, place, storage, reserved)
            }
        }
    }

    /// A log on a storage.
    pub(super) fn house(
        &self,
        geometry: Geometry,
        place: Place,
        storage: Arc<dyn Storage>,
        reserved: Reserved,
    ) -> Result<Housing> {
        let slots = Log::slots_of(&*storage, geometry.block_size() as usize)?;
        Ok(Housing { place, storage: Some(storage), reserved, slots })
    }

    fn has_holes(&self) -> Result<bool> {
        let whole = ByteRange { start: 0, end: self.size() };
        Ok(next_data(&*self.device, 0)? != Some(whole))
    }
}

/// What of the sections the container may use, so that no slot lies across a border: whole blocks, in the same order.
pub(super) fn whole_blocks(geometry: Geometry, sections: &[ByteRange]) -> Result<(Vec<ByteRange>, Reserved)> {
    let invalid = |reason: String, at: u64| Err(Error::new(ErrorKind::Invalid, "container", reason).at(at));
    let mut whole = Vec::with_capacity(sections.len());
    let mut runs = Vec::with_capacity(sections.len());
    for section in sections {
        if section.start > section.end || section.end > geometry.device_bytes() {
            let reason = format!("the section ends at {}, the device at {}", section.end, geometry.device_bytes());
            return invalid(reason, section.start);
        }
        // Not the device's short last block: the slots behind it would lie askew.
        let bytes = section.shrink_to(geometry.block_size());
        if !bytes.is_empty() {
            whole.push(bytes);
            runs.push(geometry.blocks_inside(bytes));
        }
    }
    if whole.is_empty() {
        return Err(too_small(sections.iter().map(|section| section.len()).sum(), geometry));
    }
    let count = |runs: &[BlockRange]| runs.iter().map(|run| u64::from(run.len())).sum::<u64>();
    let named = count(&runs);
    let reserved = Reserved::new(runs);
    if count(reserved.runs()) != named {
        return invalid("its sections overlap".into(), whole[0].start);
    }
    Ok((whole, reserved))
}

fn next_data(device: &dyn Storage, from: u64) -> Result<Option<ByteRange>> {
    let failed = |error| Error::io(ErrorKind::Device, "look for holes in the device", &error).at(from);
    device.next_data(from).map_err(failed)
}

/// Puts the blocks on the list. A write to a hole after its place was looked at is recorded until the cut.
fn make_list(round: &Round, listing: Listing) -> Result<()> {
    let geometry = round.geometry;
    if let Listing::Ranges(ranges) = listing {
        for range in ranges {
            if range.end > geometry.device_bytes() {
                let reason = format!("the range ends at {}, the device at {}", range.end, geometry.device_bytes());
                return Err(Error::new(ErrorKind::Invalid, "list of ranges", reason).at(range.start));
            }
            round.record(geometry.blocks_touched(range));
        }
        return Ok(());
    }
    if !round.sparse {
        round.record(geometry.all_blocks());
        return Ok(());
    }
    let mut from = 0;
    while from < geometry.device_bytes()
        && let Some(data) = next_data(&*round.device, from)?
    {
        round.record(geometry.blocks_touched(data));
        from = data.end;
    }
    Ok(())
}

/// Whole blocks in so many bytes; at most what a block number can count.
fn blocks_in(geometry: Geometry, bytes: u64) -> u32 {
    u32::try_from(bytes / geometry.block_size()).unwrap_or(u32::MAX - 1)
}

fn too_small(bytes: u64, geometry: Geometry) -> Error {
    let reason = format!("{bytes} bytes do not hold one whole block of {} bytes", geometry.block_size());
    Error::new(ErrorKind::Invalid, "container size", reason)
}
