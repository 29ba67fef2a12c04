//! Runs the threads of a backup: sweepers, write-behind, the watch over deadlines; then publishes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Outfit, status};
use crate::error::{Error, ErrorKind, Result};
use crate::list::BlockList;
use crate::manifest::{Manifest, Particulars};
use crate::round::Round;
use crate::state::State;
use crate::sweep::{Desk, Lanes, Pace, Plan, Sweeper};
use crate::sync::{AtomicU32, Ordering, thread};

/// Takes an active backup to its end.
pub(super) fn run(round: &Round, outfit: Outfit) {
    if outfit.publishing {
        // The step of the dead process stands in the journal.
        round.published(without_panic(|| publish_again(round, outfit.identity)));
        return;
    }
    guarded(round, || {
        sweep_all(round, outfit.desks, outfit.limit_read);
        Ok(())
    });
    if round.begin_publishing() {
        round.published(without_panic(|| publish(round, outfit.identity)));
    }
}

/// Returns when every extent is at the destination, or the backup has ended and its threads too.
fn sweep_all(round: &Round, desks: Vec<Desk>, limit_read: Option<u64>) {
    let plan = Plan::new(round.geometry.extent_count());
    let at_hand = desks.iter().filter_map(Desk::extent);
    (0..round.geometry.extent_count())
        .filter(|&extent| round.journal.is_delivered(extent))
        .chain(at_hand)
        .for_each(|extent| plan.leave_out(extent));
    let lanes = Lanes::new(desks.len(), round);
    let pace = Pace::new(limit_read);
    let sweeping = AtomicU32::new(desks.len() as u32);
    thread::scope(|scope| {
        let sweepers = desks.into_iter().try_for_each(|desk| {
            let (plan, lanes, pace, sweeping) = (&plan, &lanes, &pace, &sweeping);
            let sweep = move || {
                guarded(round, || Sweeper::new(round, plan, lanes, pace, desk).run());
                sweeping.fetch_sub(1, Ordering::AcqRel);
                round.life.nudge();
            };
            thread::Builder::new().spawn_scoped(scope, sweep).map(drop)
        });
        let write_behind = || guarded(round, || write_behind(round));
        let started = sweepers.and_then(|()| thread::Builder::new().spawn_scoped(scope, write_behind).map(drop));
        if let Err(error) = started {
            round.end(State::Broken, Error::io(ErrorKind::State, "start the threads of the backup", &error));
        }
        let over = |state: State, _| state != State::Active || sweeping.load(Ordering::Acquire) == 0;
        while !round.life.wait(Some(round.enforce_deadline()), over) {}
        round.container.close();
    });
}

fn write_behind(round: &Round) -> Result<()> {
    while let Some((room, outcome)) = round.container.write_behind() {
        round.freed(room);
        if let Err(error) = outcome {
            round.container_failed(error);
            break;
        }
    }
    Ok(())
}

fn publish(round: &Round, identity: BTreeMap<String, String>) -> Result<()> {
    let manifest = manifest_of(round, identity)?;
    round.destination.publish(&manifest)?;
    round.digest.get_or_init(|| manifest.header().digest.clone());
    Ok(())
}

/// Brings publishing that a dead process began to its end. It may be done; else it is begun again.
fn publish_again(round: &Round, identity: BTreeMap<String, String>) -> Result<()> {
    let manifest = manifest_of(round, identity)?;
    if !round.destination.was_published(&manifest)? {
        round.destination.read_back(round.geometry, &round.digests)?;
        round.destination.publish(&manifest)?;
    }
    round.digest.get_or_init(|| manifest.header().digest.clone());
    Ok(())
}

fn manifest_of(round: &Round, identity: BTreeMap<String, String>) -> Result<Manifest> {
    let list: BlockList = std::mem::take(&mut round.list.lock());
    let figures = status::figures(round);
    let cut_at = status::cut_at(round).unwrap_or_default();
    Manifest::new(round.geometry, Particulars { cut_at, identity, figures }, list, round.digests.clone())
}

/// Runs a thread's work; an error or a panic breaks the backup, never the program.
fn guarded(round: &Round, work: impl FnOnce() -> Result<()>) {
    if let Err(error) = without_panic(work) {
        round.end(State::Broken, error);
    }
}

fn without_panic(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::State, "backup", "an internal error, please report it with the lines above"))
    })
}
