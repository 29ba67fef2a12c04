//! What must hold in every state, and when nobody can go on any more.

use super::stores::{Content, Place};
use super::world::{Life, Scope, World};

impl World {
    /// Whoever is given these claims is their only holder, and nobody has copied the blocks before.
    pub(super) fn nobody_holds(&self, mask: u8) -> Result<(), String> {
        let writers = self.writers.iter().map(|writer| writer.claims);
        let held = writers.chain(self.sweepers.iter().map(|sweeper| sweeper.claims)).fold(0, |all, held| all | held);
        let stores = &self.stores;
        let there = |block: usize| {
            [stores.desk[block], stores.kept[block], stores.image[block]] != [Content::Nothing; 3]
                || stores.found_zero >> block & 1 != 0
        };
        let copied: u8 = (0..stores.desk.len()).filter(|&block| there(block)).map(|block| 1 << block).sum();
        if mask & (held | copied) != 0 {
            return Err(format!("blocks {mask:b} are claimed; {held:b} are held already, {copied:b} copied"));
        }
        Ok(())
    }

    /// The gate's account of the container is exact, and within the limits.
    pub(super) fn check(&self, scope: &Scope) -> Result<(), String> {
        let stores = &self.stores;
        let reserved: u32 = self.writers.iter().map(|writer| writer.reserved(stores)).sum();
        let to_free = self.sweepers.iter().map(|sweeper| sweeper.to_free());
        let (slots, staging) = to_free.fold((reserved, reserved), |sum, free| (sum.0 + free.0, sum.1 + free.1));
        let slots = slots + stores.at(|place| place != Place::Nowhere).count_ones();
        let staging = staging + stores.in_staging().count_ones() + self.write_behind.to_free();
        let (used, used_staging) = (u32::from(self.used.0), u32::from(self.used.1));
        if (used, used_staging) != (slots, staging) {
            return Err(format!(
                "the gate counts {used} slots, {used_staging} staged; there are {slots} and {staging}"
            ));
        }
        if used > scope.limits.capacity || used_staging > scope.limits.staging {
            return Err("more is held than the limits allow".into());
        }
        Ok(())
    }

    /// Nobody can take a step of its own.
    pub(super) fn check_rest(&self) -> Result<(), String> {
        if let Some(writer) = self.writers.iter().position(|writer| !writer.is_over()) {
            return Err(format!("writer {writer} sleeps for ever"));
        }
        if !self.sweepers.iter().all(|sweeper| sweeper.is_over()) {
            return Err("a sweeper sleeps for ever".into());
        }
        if !matches!(self.life, Life::Complete | Life::Broken | Life::Cancelled) || self.armed || !self.closed {
            return Err(format!("the backup has not come to its end: {:?}", self.life));
        }
        if self.life == Life::Complete && self.used != (0, 0) {
            return Err(format!("room was not given back: {:?}", self.used));
        }
        if !self.asleep().is_empty() || self.in_flight > 0 || self.holding {
            return Err("the gate or the flights know of somebody who is gone".into());
        }
        Ok(())
    }
}
