//! Going on with a backup whose process was killed, from its arena, its container and what is at its destination.
//!
//! Whatever instruction it was killed at, the arena tells for each block where its bytes at the cut are: on the device as
//! long as it is pending; else at the destination if its extent is delivered; else on a sweeper's desk, in the log or in
//! staging; else it is zero.

use std::os::fd::OwnedFd;
use std::time::SystemTime;

use super::Driver;
use super::assemble::{Blueprint, Housing};
use super::note::{Note, Place};
use super::prepare::{WATCH_HOLD, whole_blocks};
use crate::backup::{Backup, Outfit};
use crate::destination::Destination;
use crate::digest::to_hex;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Reserved;
use crate::geometry::{BlockRange, Geometry};
use crate::journal::Phase;
use crate::list::runs;
use crate::mutant::planted;
use crate::round::{Cut, Round};
use crate::state::State;
use crate::storage::{FileStorage, SectionStorage, Storage};
use crate::sweep::Desk;
use crate::sync::{Arc, Instant, Ordering};

const OPERATION: &str = "go on with the backup";

/// What is left of a backup whose process is dead, all its system calls included.
pub struct Remains {
    /// The memfd.
    pub arena: OwnedFd,
    /// The note.
    pub note: String,
    /// What the image lies on.
    pub image: Arc<dyn Storage>,
    /// What the container lies on, by descriptors that were kept; `None` if it is in memory or on the device itself.
    pub container: Option<Arc<dyn Storage>>,
}

impl Remains {
    /// From the descriptors and the note of [`Backup::kept`]. If the image is on a storage without descriptors, the caller
    /// opens it anew and gives it; late writes of the dead process do no harm there, as each extent has only one content.
    ///
    /// # Errors
    /// `State` if one is missing, or the error of taking it over.
    pub fn adopt(
        mut descriptors: Vec<(String, OwnedFd)>,
        note: String,
        image: Option<Arc<dyn Storage>>,
    ) -> Result<Self> {
        let mut take = |name: &str| {
            let index = descriptors.iter().position(|(other, _)| other == name)?;
            Some(descriptors.swap_remove(index).1)
        };
        let missing = |name: &str| Error::new(ErrorKind::State, OPERATION, format!("its {name} was not kept"));
        let arena = take("arena").ok_or_else(|| missing("arena"))?;
        let mut adopt = |name: &str, role| -> Result<Option<Arc<dyn Storage>>> {
            let Some(buffered) = take(name) else { return Ok(None) };
            Ok(Some(Arc::new(FileStorage::adopt(buffered, take(&format!("{name}-direct")), role)?)))
        };
        let (kept, container) = (adopt("image", ErrorKind::Destination)?, adopt("container", ErrorKind::Container)?);
        let image = kept.or(image).ok_or_else(|| missing("image"))?;
        Ok(Self { arena, note, image, container })
    }
}

impl Driver {
    /// Goes on with a backup of this device whose process is dead; no write may have reached the device since but through
    /// it. Before the front-end lets the first request through. A backup that was published already is returned as complete.
    ///
    /// # Errors
    /// `State` with the reason if the backup does not go on: then it is broken, and what it left at the destination has been
    /// removed.
    pub fn resume(&self, remains: Remains) -> Result<Backup> {
        let Remains { arena, note, image, container } = remains;
        let facts = Note::parse(&note)?;
        let destination = Destination::resume(image, facts.destination.clone());
        let layout = facts.layout()?;
        if layout.geometry.device_bytes() != self.size() {
            let reason = format!("it is of a device of {} bytes, and this one has {}", facts.device_bytes, self.size());
            return Err(Error::new(ErrorKind::State, OPERATION, reason));
        }
        if !self.device.ends_with_its_process() {
            let reason = "the device is behind a network, and what was read from it may still arrive in memory";
            return Err(Error::new(ErrorKind::State, OPERATION, reason));
        }
        let failed = |error| Error::io(ErrorKind::State, OPERATION, &error);
        let parts = layout.adopt(arena).map_err(failed)?;
        parts.populate().map_err(failed)?;
        let blueprint = Blueprint {
            layout,
            limits: facts.limits(),
            housing: self.house_again(layout.geometry, facts.container.clone(), facts.log_slots, container)?,
            destination,
            policy: facts.policy(),
            sparse: facts.sparse,
            limit_read: facts.limit_read,
            identity: facts.identity,
            note: Some(note),
        };
        let (round, outfit) = self.assemble(blueprint, parts);
        round.journal.check(round.note.as_deref().unwrap_or_default())?;
        match round.journal.phase() {
            Phase::Active | Phase::Publishing => {
                let publishing = round.journal.phase() == Phase::Publishing;
                let backup = self.go_on(&round, Outfit { publishing, ..outfit });
                backup.inspect_err(|error| round.journal.end(State::Broken, Some(error)))
            }
            Phase::Complete => Ok(recall(round, outfit)),
            Phase::Prepared => Err(give_up(&round, "its process died before the cut was made")),
            Phase::Broken => {
                Err(give_up(&round, &format!("it was broken before its process died: {}", round.journal.cause())))
            }
            Phase::Cancelled => Err(give_up(&round, "it was cancelled before its process died")),
        }
    }

    fn house_again(
        &self,
        geometry: Geometry,
        place: Place,
        slots: u32,
        container: Option<Arc<dyn Storage>>,
    ) -> Result<Housing> {
        let housing = match (&place, container) {
            (Place::Memory, _) => Housing { place, storage: None, reserved: Reserved::none(), slots },
            // Elsewhere a write of the dead process may come after one of ours to the same slot.
            (Place::Storage, Some(storage)) if storage.ends_with_its_process() => {
                self.house(geometry, place, storage, Reserved::none())?
            }
            (Place::Storage, _) => {
                let reason = "its container is behind a network, and what is on its way there may still arrive";
                return Err(Error::new(ErrorKind::State, OPERATION, reason));
            }
            (Place::Sections(_), _) => {
                let (sections, reserved) = whole_blocks(geometry, &place.sections())?;
                let storage = Arc::new(SectionStorage::new(self.device.clone(), &sections)?);
                self.house(geometry, place, storage, reserved)?
            }
        };
        if housing.slots < slots {
            let reason = format!("its container has {} slots, and had {slots}", housing.slots);
            return Err(Error::new(ErrorKind::State, OPERATION, reason));
        }
        Ok(housing)
    }

    fn go_on(&self, round: &Arc<Round>, outfit: Outfit) -> Result<Backup> {
        restore_figures(round);
        let (listed, list) = round.journal.list()?;
        round.listed.store(listed, Ordering::Relaxed);
        *round.list.lock() = list;
        if !outfit.publishing {
            take_up(round, &outfit.desks)?;
        }
        round.watching.store(false, Ordering::Release);
        round.journal.restarted();
        let hold = self.hold(WATCH_HOLD)?;
        self.refuse_beside_another()?;
        *self.newest.lock() = Some(round.life.clone());
        self.armed.store(Some(round.clone()));
        round.begin_again();
        hold.release();
        let backup = Backup::new(round.clone(), outfit);
        backup.start(round.journal.held())?;
        Ok(backup)
    }
}

/// Finds for each block where its bytes are. May be interrupted and done again, as nothing is let go that is needed.
fn take_up(round: &Round, desks: &[Desk]) -> Result<()> {
    let (geometry, journal) = (round.geometry, &round.journal);
    runs(&round.list.lock()).for_each(|run| round.gate.map().prepare_claims(run));
    let is_copied = |block: u32| round.gate.map().all_copied(BlockRange::at(block, 1));
    for desk in desks {
        match desk.extent().filter(|&extent| extent < geometry.extent_count() && !journal.is_delivered(extent)) {
            None => desk.put_down(),
            Some(_) if planted("desk-is-forgotten") => desk.put_down(),
            Some(extent) => {
                let blocks = geometry.blocks_of_extent(extent);
                // Read by a sweeper that did not come to mark them copied: they are on the device still, and anybody's.
                blocks.blocks().filter(|&block| !is_copied(block)).for_each(|block| desk.has_not(block - blocks.start));
            }
        }
    }
    let keep = |block: u32| {
        block < geometry.block_count() && is_copied(block) && !journal.is_delivered(geometry.extent_of(block))
    };
    let held = round.container.take_up(keep)?;
    let figures = journal.figures();
    round.gate.take_up(held, u32::try_from(figures.peak).unwrap_or(u32::MAX), figures.drains);
    Ok(())
}

fn restore_figures(round: &Round) {
    let (figures, cut_at) = (round.journal.figures(), round.journal.cut_at());
    round.stats.blocks_swept.store(figures.blocks_swept, Ordering::Relaxed);
    round.stats.blocks_copied_before_write.store(figures.blocks_copied_before_write, Ordering::Relaxed);
    let delivered = (0..round.geometry.extent_count()).filter(|&extent| round.journal.is_delivered(extent));
    let done = delivered.map(|extent| round.geometry.bytes_of_extent(extent).len()).sum();
    round.stats.done_bytes.store(done, Ordering::Relaxed);
    round.destination.restore_figures(figures.written, figures.zeroed);
    let since = SystemTime::now().duration_since(cut_at).unwrap_or_default();
    let instant = Instant::now().checked_sub(since).unwrap_or_else(Instant::now);
    *round.cut.lock() = Some(Cut { at: cut_at, instant, held: round.journal.held() });
}

/// A backup that was published before its process died.
fn recall(round: Arc<Round>, outfit: Outfit) -> Backup {
    restore_figures(&round);
    round.destination.leave();
    round.digest.get_or_init(|| to_hex(&round.digests.root()));
    round.life.go(State::Active, None);
    round.published(Ok(()));
    Backup::new(round, outfit).over()
}

/// The backup does not go on: removes what it left.
fn give_up(round: &Round, reason: &str) -> Error {
    let error = Error::new(ErrorKind::State, OPERATION, reason).hint("nothing was published; make the backup again");
    match round.destination.abandon() {
        Ok(()) => error,
        Err(left) => error.hint(&format!("and something is left behind, incomplete: {left}")),
    }
}
