//! Runs the threads of a backup: sweepers, write-behind, the watch over deadlines; then publishes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::{Outfit, status};
use crate::buffer::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::list::BlockList;
use crate::manifest::{Manifest, Particulars};
use crate::round::Round;
use crate::state::State;
use crate::sweep::{Pace, Plan, Sweeper};
use crate::sync::{AtomicU32, Ordering};

/// Takes an active backup to its end.
pub(super) fn run(round: &Round, outfit: Outfit) {
    guarded(round, || {
        sweep_all(round, outfit.buffers, outfit.limit_read);
        Ok(())
    });
    if round.life.begin_publishing() {
        round.published(without_panic(|| publish(round, outfit.identity)));
    }
}

/// Returns when every extent is at the destination, or the backup has ended and its threads too.
fn sweep_all(round: &Round, buffers: Vec<AlignedBuf>, limit_read: Option<u64>) {
    let plan = Plan::new(round.geometry.extent_count());
    let pace = Pace::new(limit_read);
    let sweeping = AtomicU32::new(buffers.len() as u32);
    thread::scope(|scope| {
        let sweepers = buffers.into_iter().try_for_each(|buffer| {
            let (plan, pace, sweeping) = (&plan, &pace, &sweeping);
            let sweep = move || {
                guarded(round, || Sweeper::new(round, plan, pace, buffer).run());
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
    let list: BlockList = std::mem::take(&mut round.list.lock());
    let figures = status::figures(round);
    let cut_at = status::cut_at(round).unwrap_or_default();
    let manifest =
        Manifest::new(round.geometry, Particulars { cut_at, identity, figures }, list, round.digests.clone())?;
    round.destination.publish(&manifest)?;
    round.digest.get_or_init(|| manifest.header().digest.clone());
    Ok(())
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
