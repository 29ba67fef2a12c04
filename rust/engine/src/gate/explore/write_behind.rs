//! The write-behind, step by step as `container.rs` and `backup/supervisor.rs` take it. A batch is all that is staged.

use super::stores::{Place, Stores};
use super::world::{BLOCKS, Life, Scope, Step, World};
use crate::gate::Room;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum WriteBehind {
    Waits,
    Writes,
    Settles { failed: bool },
    Frees { staging: u8, failed: bool },
    Fails,
    Closes,
    Over,
}

impl WriteBehind {
    /// Room in staging that it is about to give back.
    pub(super) fn to_free(self) -> u32 {
        match self {
            Self::Frees { staging, .. } => staging.into(),
            _ => 0,
        }
    }
}

/// More than half of staging is used. While no slot is free it tries again and again; here it waits for one.
fn has_work(stores: &Stores, scope: &Scope) -> bool {
    staged(stores).count_ones() > scope.limits.staging / 2 && stores.slots() < scope.limits.capacity
}

fn staged(stores: &Stores) -> u8 {
    stores.at(|place| place == Place::Staged) & !stores.taken
}

/// Its next step, which fails if `fault` and it can.
pub(super) fn step(world: &mut World, scope: &Scope, fault: bool) -> Step {
    if fault && (world.write_behind != WriteBehind::Writes || !world.fault()) {
        return Ok(false);
    }
    let now = world.write_behind;
    world.write_behind = match now {
        WriteBehind::Waits if world.stores.closed || !scope.log => WriteBehind::Over,
        WriteBehind::Waits if has_work(&world.stores, scope) => {
            world.stores.batch = staged(&world.stores);
            WriteBehind::Writes
        }
        WriteBehind::Writes if fault => WriteBehind::Settles { failed: true },
        WriteBehind::Writes => {
            for block in 0..BLOCKS {
                let bit = world.stores.batch & 1 << block;
                if bit != 0 && world.stores.slots() < scope.limits.capacity {
                    world.stores.filling |= bit;
                }
            }
            WriteBehind::Settles { failed: false }
        }
        WriteBehind::Settles { failed } => WriteBehind::Frees { staging: settle(&mut world.stores), failed },
        WriteBehind::Frees { staging, failed } => {
            world.freed(scope, Room { slots: 0, staging: staging.into() })?;
            if failed { WriteBehind::Fails } else { WriteBehind::Waits }
        }
        WriteBehind::Fails if scope.fail_write => {
            let woken = world.gate(scope, |gate, _| gate.refuse(libc::EIO));
            world.wake(woken)?;
            WriteBehind::Over
        }
        WriteBehind::Fails if world.end(Life::Broken) => WriteBehind::Closes,
        WriteBehind::Fails => WriteBehind::Over,
        WriteBehind::Closes => {
            world.close(scope)?;
            WriteBehind::Over
        }
        WriteBehind::Waits | WriteBehind::Over => return Ok(false),
    };
    Ok(true)
}

/// The index learns of the slots; a slot for a block that was taken meanwhile is dropped. Returns the places in staging of
/// which nobody else has hold.
fn settle(stores: &mut Stores) -> u8 {
    let mut freed = 0;
    for block in (0..BLOCKS).filter(|block| stores.batch >> block & 1 != 0) {
        let in_index = stores.place[block] == Place::Staged && stores.taken >> block & 1 == 0;
        if in_index && stores.filling >> block & 1 != 0 {
            stores.place[block] = Place::Stored;
        }
        freed += u8::from(stores.place[block] != Place::Staged);
    }
    (stores.batch, stores.filling) = (0, 0);
    freed
}
