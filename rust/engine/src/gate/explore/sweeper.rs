//! A sweeper, step by step as `sweep.rs` takes it. The pace is left out: it only makes a sweeper late, which is explored anyway.

use super::stores::{Content, Place};
use super::world::{Life, Scope, Step, World, mask_of, runs_of};
use crate::gate::Room;
use crate::geometry::BlockRange;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    NotStarted,
    Chooses,
    LooksAtMap,
    LooksAtContainer,
    Zeroes,
    Claims,
    Reads,
    /// The read failed: gives the claims back, run by run.
    GivesBack,
    Copied,
    Watches,
    Asleep,
    LooksWhetherAllIsCopied,
    Takes,
    ReadsContainer,
    Delivers,
    Releases,
    Frees {
        slots: u8,
        staging: u8,
    },
    Fails,
    Closes,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Sweeper {
    phase: Phase,
    /// The extent at hand.
    extent: u8,
    /// Blocks that it has claimed and that are neither copied nor given back.
    pub claims: u8,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self { phase: Phase::NotStarted, extent: 0, claims: 0 }
    }
}

impl Sweeper {
    pub(super) fn start(&mut self) {
        self.phase = Phase::Chooses;
    }

    pub(super) fn wake(&mut self) -> bool {
        let slept = self.phase == Phase::Asleep;
        self.phase = Phase::Claims;
        slept
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over | Phase::NotStarted)
    }

    /// Room that it is about to give back.
    pub(super) fn to_free(&self) -> (u32, u32) {
        match self.phase {
            Phase::Frees { slots, staging } => (slots.into(), staging.into()),
            _ => (0, 0),
        }
    }
}

/// The next step of a sweeper, which fails if `fault` and it can.
pub(super) fn step(world: &mut World, scope: &Scope, index: usize, fault: bool) -> Step {
    let phase = world.sweepers[index].phase;
    let can_fail = matches!(phase, Phase::Reads | Phase::ReadsContainer | Phase::Delivers | Phase::Zeroes);
    if fault && (!can_fail || !world.fault()) {
        return Ok(false);
    }
    let blocks = scope.extents[usize::from(world.sweepers[index].extent)];
    let mask = mask_of([blocks]);
    let next = match phase {
        Phase::Chooses if !world.is_active() => Phase::Over,
        Phase::Chooses => choose(world, scope, index),
        Phase::LooksAtMap if world.pending & mask != 0 => Phase::Claims,
        Phase::LooksAtMap => Phase::LooksAtContainer,
        Phase::LooksAtContainer if world.stores.indexed(mask) != 0 => Phase::Claims,
        Phase::LooksAtContainer => Phase::Zeroes,
        Phase::Reads if fault => Phase::GivesBack,
        Phase::ReadsContainer | Phase::Delivers | Phase::Zeroes if fault => Phase::Fails,
        Phase::Zeroes => {
            deliver(world, blocks, |_| Content::Zero);
            Phase::Chooses
        }
        Phase::Claims => {
            let claims = mask_of(world.gate(scope, |gate, _| gate.claim(blocks)));
            world.nobody_holds(claims)?;
            world.sweepers[index].claims = claims;
            if claims != 0 { Phase::Reads } else { Phase::Watches }
        }
        Phase::Reads => {
            for block in blocks.blocks().map(|block| block as usize) {
                if world.sweepers[index].claims >> block & 1 != 0 {
                    world.stores.desk[block] = world.stores.device[block];
                }
            }
            Phase::Copied
        }
        Phase::GivesBack | Phase::Copied => {
            let run = runs_of(world.sweepers[index].claims)[0];
            world.sweepers[index].claims &= !mask_of([run]);
            let woken =
                world.gate(scope, |gate, _| if phase == Phase::Copied { gate.copied(run) } else { gate.failed(run) });
            world.wake(woken)?;
            match (world.sweepers[index].claims, phase) {
                (0, Phase::Copied) => Phase::Claims,
                (0, _) => Phase::Fails,
                _ => phase,
            }
        }
        Phase::Watches => {
            let sleeps = world.gate(scope, |gate, _| gate.watch(blocks, || (super::world::WRITERS + index) as u8));
            if sleeps { Phase::Asleep } else { Phase::LooksWhetherAllIsCopied }
        }
        Phase::LooksWhetherAllIsCopied if !world.is_active() => Phase::Chooses,
        Phase::LooksWhetherAllIsCopied if world.pending & mask == 0 => Phase::Takes,
        Phase::LooksWhetherAllIsCopied => Phase::Claims,
        Phase::Takes => {
            world.stores.taken |= world.stores.indexed(mask);
            Phase::ReadsContainer
        }
        Phase::ReadsContainer => {
            for block in blocks.blocks().map(|block| block as usize) {
                if world.stores.taken >> block & 1 != 0 {
                    world.stores.desk[block] = world.stores.kept[block];
                }
            }
            Phase::Delivers
        }
        Phase::Delivers => {
            let desk = world.stores.desk;
            deliver(world, blocks, |block| if desk[block] == Content::Nothing { Content::Zero } else { desk[block] });
            Phase::Releases
        }
        Phase::Releases => release(world, blocks),
        Phase::Frees { slots, staging } => {
            world.freed(scope, Room { slots: slots.into(), staging: staging.into() })?;
            Phase::Chooses
        }
        Phase::Fails if world.end(Life::Broken) => Phase::Closes,
        Phase::Fails => Phase::Over,
        Phase::Closes => {
            world.close(scope)?;
            Phase::Over
        }
        Phase::NotStarted | Phase::Asleep | Phase::Over => return Ok(false),
    };
    world.sweepers[index].phase = next;
    Ok(true)
}

/// As `sweep/plan.rs`: the next in order, or while the container drains the one of which it holds most.
fn choose(world: &mut World, scope: &Scope, index: usize) -> Phase {
    let free = (0..scope.extents.len()).filter(|extent| world.chosen >> extent & 1 == 0);
    let held = |extent: &usize| world.stores.indexed(mask_of([scope.extents[*extent]])).count_ones();
    let wants_drain = world.draining || u32::from(world.used.0) >= scope.limits.soft_mark();
    let fullest = free.clone().filter(|extent| held(extent) > 0).max_by_key(held).filter(|_| wants_drain);
    let Some(extent) = fullest.or_else(|| free.clone().next()) else { return Phase::Over };
    world.chosen |= 1 << extent;
    world.sweepers[index].extent = extent as u8;
    Phase::LooksAtMap
}

fn deliver(world: &mut World, blocks: BlockRange, content: impl Fn(usize) -> Content) {
    for block in blocks.blocks().map(|block| block as usize) {
        world.stores.image[block] = content(block);
        world.stores.desk[block] = Content::Nothing;
    }
}

/// Of a place in staging that the write-behind holds too, the last to let go gives it back.
fn release(world: &mut World, blocks: BlockRange) -> Phase {
    let stores = &mut world.stores;
    let (mut slots, mut staging) = (0, 0);
    for block in blocks.blocks().map(|block| block as usize).filter(|block| stores.taken >> block & 1 != 0) {
        slots += 1;
        staging += u8::from(stores.place[block] == Place::Staged && stores.batch >> block & 1 == 0);
        (stores.place[block], stores.kept[block]) = (Place::Nowhere, Content::Nothing);
    }
    stores.taken &= !mask_of([blocks]);
    // An empty one is given back as well.
    Phase::Frees { slots, staging }
}
