//! A program's write, step by step as `driver/passage.rs` and `copy.rs` take it: counted in, admitted, copying, suspended,
//! written, counted out.

use super::stores::{Content, Place, Stores};
use super::world::{Life, Scope, Step, World, mask_of, run_of, runs_of};
use crate::gate::{Decision, Room};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Enters,
    Held,
    Asks,
    Asleep,
    /// Reads the lowest block of what it has claimed and not copied.
    Reads,
    Stores(Content),
    Copied,
    /// A zero needs no room.
    FreesUnused,
    /// The read failed: gives back what it claimed, run by run.
    GivesBack,
    FreesFailed(u8),
    Failed,
    Closes,
    /// It has been refused, or expelled.
    GivesUp,
    Writes,
    Leaves,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Writer {
    phase: Phase,
    /// The rank of its ticket among those that live; 0 is none.
    pub ticket: u8,
    /// Blocks that it has claimed and that are neither copied nor given back.
    pub claims: u8,
    /// Whether it was told to wait because of room: it wants a block that nobody has claimed.
    wants_room: bool,
    /// Its place among those who ever waited, as the model counts them.
    came: u8,
}

impl Writer {
    pub(super) fn new(exists: bool) -> Self {
        let phase = if exists { Phase::Enters } else { Phase::Over };
        Self { phase, ticket: 0, claims: 0, wants_room: false, came: 0 }
    }

    pub(super) fn let_in(&mut self) {
        self.phase = Phase::Enters;
    }

    pub(super) fn wake(&mut self) -> bool {
        let slept = self.phase == Phase::Asleep;
        (self.phase, self.wants_room) = (Phase::Asks, false);
        slept
    }

    /// The deadline found it late.
    pub(super) fn expel(&mut self) -> bool {
        let slept = self.wake();
        self.phase = Phase::GivesUp;
        slept
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Room that the gate has reserved for it and that the container does not hold.
    pub(super) fn reserved(&self, stores: &Stores) -> u32 {
        let claims = self.claims.count_ones();
        match self.phase {
            Phase::FreesUnused => claims + 1,
            Phase::FreesFailed(blocks) => claims + u32::from(blocks),
            // The container has the block, but it is still claimed; unless it is zero.
            Phase::Copied if stores.place[self.claims.trailing_zeros() as usize] != Place::Nowhere => claims - 1,
            _ => claims,
        }
    }
}

/// The next step of a writer, which fails if `fault` and it can.
pub(super) fn step(world: &mut World, scope: &Scope, index: usize, fault: bool) -> Step {
    let phase = world.writers[index].phase;
    if fault && (phase != Phase::Reads || !world.fault()) {
        return Ok(false);
    }
    let next = match phase {
        Phase::Enters if world.enter(index) => Phase::Asks,
        Phase::Enters => Phase::Held,
        Phase::Asks if world.armed => ask(world, scope, index)?,
        Phase::Asks => Phase::Writes,
        Phase::Reads if fault => Phase::GivesBack,
        Phase::Reads => {
            if world.stores.in_staging().count_ones() + pieces(world) >= scope.limits.staging {
                return Err("no free place in staging although one was reserved".into());
            }
            Phase::Stores(world.stores.device[lowest(world, index)])
        }
        Phase::Stores(content) => {
            store(world, lowest(world, index), content);
            Phase::Copied
        }
        Phase::Copied => {
            let block = lowest(world, index);
            world.writers[index].claims &= !(1 << block);
            let woken = world.gate(scope, |gate, _| gate.copied(run_of(block)));
            world.wake(woken)?;
            match world.stores.place[block] {
                Place::Nowhere => Phase::FreesUnused,
                _ => go_on_copying(world, index),
            }
        }
        Phase::FreesUnused => {
            world.freed(scope, Room { slots: 1, staging: 1 })?;
            go_on_copying(world, index)
        }
        Phase::GivesBack => {
            let run = runs_of(world.writers[index].claims)[0];
            world.writers[index].claims &= !mask_of([run]);
            let woken = world.gate(scope, |gate, _| gate.failed(run));
            world.wake(woken)?;
            Phase::FreesFailed(run.len() as u8)
        }
        Phase::FreesFailed(blocks) => {
            world.freed(scope, Room { slots: blocks.into(), staging: blocks.into() })?;
            if world.writers[index].claims != 0 { Phase::GivesBack } else { Phase::Failed }
        }
        Phase::Failed if scope.fail_write => Phase::GivesUp,
        Phase::Failed if world.end(Life::Broken) => Phase::Closes,
        Phase::Failed => Phase::Writes,
        Phase::Closes => {
            world.close(scope)?;
            Phase::Writes
        }
        Phase::Writes => {
            write(world, scope, index)?;
            Phase::Leaves
        }
        Phase::GivesUp | Phase::Leaves => {
            world.leave();
            Phase::Over
        }
        Phase::Held | Phase::Asleep | Phase::Over => return Ok(false),
    };
    let writer = &mut world.writers[index];
    writer.phase = next;
    if matches!(next, Phase::Writes | Phase::Over) {
        (writer.ticket, writer.came) = (0, 0);
    }
    Ok(true)
}

fn lowest(world: &World, index: usize) -> usize {
    world.writers[index].claims.trailing_zeros() as usize
}

/// Places of staging that writers have filled and not stored yet.
fn pieces(world: &World) -> u32 {
    world.writers.iter().filter(|writer| matches!(writer.phase, Phase::Stores(_))).count() as u32
}

fn go_on_copying(world: &World, index: usize) -> Phase {
    if world.writers[index].claims != 0 { Phase::Reads } else { Phase::Asks }
}

fn ask(world: &mut World, scope: &Scope, index: usize) -> Result<Phase, String> {
    let blocks = scope.writes[index];
    let unclaimed = world.unclaimed() & mask_of([blocks]);
    let closed = world.closed;
    let admission = world.gate(scope, |gate, tickets| {
        gate.admit(blocks, tickets[index], |ticket| {
            tickets[index] = Some(ticket);
            index as u8
        })
    });
    let next = match admission.decision {
        Decision::Go => Phase::Writes,
        _ if closed => return Err("the gate is closed and a write does not go".into()),
        Decision::Copy(runs) => {
            claimed(world, index, mask_of(runs))?;
            Phase::Reads
        }
        Decision::Wait { .. } => {
            let last = world.writers.iter().map(|writer| writer.came).max().unwrap_or(0);
            let writer = &mut world.writers[index];
            // It was given none of the blocks that nobody has, so it lacks room.
            writer.wants_room = unclaimed != 0;
            if writer.came == 0 {
                writer.came = last + 1;
            }
            Phase::Asleep
        }
        Decision::Refuse(_) if scope.fail_write => Phase::GivesUp,
        other => return Err(format!("a write is told {other:?}")),
    };
    // It sleeps before the next in line is woken, or it could not be woken itself.
    world.writers[index].phase = next;
    world.wake(admission.wake)?;
    Ok(world.writers[index].phase)
}

/// What a writer may claim: what nobody has, and not before those who came earlier and sleep for want of room.
fn claimed(world: &mut World, index: usize, mask: u8) -> Result<(), String> {
    world.nobody_holds(mask)?;
    let came = |writer: &Writer| if writer.came == 0 { u8::MAX } else { writer.came };
    let mine = came(&world.writers[index]);
    if let Some(other) = world.writers.iter().position(|other| other.wants_room && came(other) < mine) {
        return Err(format!("writer {index} overtakes writer {other}, which waits for room"));
    }
    world.writers[index].claims = mask;
    Ok(())
}

fn store(world: &mut World, block: usize, content: Content) {
    if content == Content::Zero {
        world.stores.found_zero |= 1 << block;
        return;
    }
    (world.stores.place[block], world.stores.kept[block]) = (Place::Staged, content);
}

fn write(world: &mut World, scope: &Scope, index: usize) -> Result<(), String> {
    for block in scope.writes[index].blocks().map(|block| block as usize) {
        if matches!(world.life, Life::Active | Life::Publishing) && !world.stores.is_safe(block) {
            return Err(format!("writer {index} goes, and what block {block} held at the cut is lost"));
        }
        world.stores.device[block] = if world.life == Life::Created { Content::Early } else { Content::Late };
    }
    Ok(())
}
