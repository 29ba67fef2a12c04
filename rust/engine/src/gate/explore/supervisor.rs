//! The thread that makes the cut, as `driver/cut.rs` does, the one that watches over deadlines and publishes, as
//! `backup/supervisor.rs` does, and whoever cancels.

use super::world::{Life, SWEEPERS, Scope, Step, WRITERS, World};
use super::write_behind::WriteBehind;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cutter {
    Holds,
    WaitsForFlights,
    Arms,
    Releases,
    Starts,
    GivesUp,
    Cancels,
    Closes,
    Over,
}

impl Cutter {
    pub(super) fn woken(&mut self) {
        // It may have given up meanwhile; then nobody hears this.
        if *self == Self::WaitsForFlights {
            *self = Self::Arms;
        }
    }

    /// Its next step; `fault`: the writes in flight do not end in time.
    pub(super) fn step(world: &mut World, scope: &Scope, fault: bool) -> Step {
        if fault && (world.cutter != Self::WaitsForFlights || !world.fault()) {
            return Ok(false);
        }
        let now = world.cutter;
        world.cutter = match now {
            Self::WaitsForFlights if fault => Self::GivesUp,
            Self::Holds if world.hold() => Self::Arms,
            Self::Holds => Self::WaitsForFlights,
            Self::Arms => arm(world)?,
            Self::Releases => {
                world.release();
                Self::Starts
            }
            Self::Starts => {
                world.supervisor = Supervisor::Watches;
                world.sweepers.iter_mut().take(scope.sweepers).for_each(|sweeper| sweeper.start());
                Self::Over
            }
            Self::GivesUp => {
                world.release();
                Self::Cancels
            }
            Self::Cancels if world.end(Life::Cancelled) => Self::Closes,
            Self::Cancels => Self::Over,
            Self::Closes => {
                world.close(scope)?;
                Self::Over
            }
            Self::WaitsForFlights | Self::Over => return Ok(false),
        };
        Ok(true)
    }
}

fn arm(world: &mut World) -> Result<Cutter, String> {
    if world.in_flight > 0 {
        return Err("the cut is made while a write is in flight".into());
    }
    if world.life != Life::Created {
        return Ok(Cutter::GivesUp);
    }
    (world.armed, world.life, world.stores.cut) = (true, Life::Active, world.stores.device);
    Ok(Cutter::Releases)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Supervisor {
    NotStarted,
    Watches,
    /// The deadline has ended the backup.
    Closes,
    Joins,
    Publishes,
    LetsGo,
    Over,
}

impl Supervisor {
    /// Its next step; `fault`: publishing fails.
    pub(super) fn step(world: &mut World, scope: &Scope, fault: bool) -> Step {
        if fault && (world.supervisor != Self::Publishes || !world.fault()) {
            return Ok(false);
        }
        let swept = (0..SWEEPERS).all(|index| world.sweepers[index].is_over());
        world.supervisor = match world.supervisor {
            Self::Closes => {
                world.close(scope)?;
                Self::Watches
            }
            Self::Watches if !world.is_active() || swept => {
                world.stores.closed = true;
                Self::Joins
            }
            Self::Joins if swept && world.write_behind == WriteBehind::Over => {
                if world.is_active() {
                    world.life = Life::Publishing;
                    Self::Publishes
                } else {
                    Self::LetsGo
                }
            }
            Self::Publishes => {
                if !fault && !world.stores.image_is_the_cut() {
                    return Err("the image is published and is not the device at the cut".into());
                }
                world.life = if fault { Life::Broken } else { Life::Complete };
                Self::LetsGo
            }
            Self::LetsGo => {
                world.close(scope)?;
                Self::Over
            }
            Self::NotStarted | Self::Watches | Self::Joins | Self::Over => return Ok(false),
        };
        Ok(true)
    }
}

/// The deadline finds that a writer, or with a number beyond them everybody, has waited for too long.
pub(super) fn enforce(world: &mut World, scope: &Scope, whom: usize) -> Step {
    let asleep = world.asleep();
    let late = |writer: usize| whom == WRITERS || writer == whom;
    if world.late == 0 || world.supervisor != Supervisor::Watches || !asleep.iter().any(|&writer| late(writer)) {
        return Ok(false);
    }
    world.late -= 1;
    if !scope.fail_write {
        if world.end(Life::Broken) {
            world.supervisor = Supervisor::Closes;
        }
        return Ok(true);
    }
    let expelled = world.gate(scope, |gate, _| gate.expel(|&who| usize::from(who) < WRITERS && late(usize::from(who))));
    for writer in expelled.into_iter().map(usize::from) {
        if !world.writers[writer].expel() {
            return Err(format!("writer {writer} is expelled and does not sleep"));
        }
    }
    Ok(true)
}

/// Somebody cancels, in two steps.
pub(super) fn cancel(world: &mut World, scope: &Scope) -> Step {
    if world.closing {
        world.closing = false;
        world.close(scope)?;
        return Ok(true);
    }
    let wanted = std::mem::take(&mut world.cancel);
    world.closing = wanted && world.end(Life::Cancelled);
    Ok(wanted)
}
