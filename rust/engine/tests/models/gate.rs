//! Wait and wake at the gate: no write goes before its old blocks are safe, and nobody sleeps for ever.

use blockcow_engine::geometry::BlockRange;
use blockcow_engine::waiter::wake_all;

use crate::world::{AMPLE, World, party};
use crate::{BOUND, explore, explore_within};

fn one(block: u32) -> BlockRange {
    BlockRange::at(block, 1)
}

#[test]
fn a_write_waits_for_a_block_that_is_being_copied() {
    explore("a_write_waits_for_a_block_that_is_being_copied", 125, || {
        let world = World::new(one(0), AMPLE, true);
        let holder = party(&world, |world| world.copy(&world.gate.claim(one(0))));
        world.admit(one(0)).unwrap();
        world.store(one(0), 0);
        holder.join().unwrap();
        world.assert_all_kept();
    });
}

#[test]
fn two_writes_wait_for_one_block() {
    explore_within(BOUND, "two_writes_wait_for_one_block", 3_699, || {
        let world = World::new(one(0), AMPLE, true);
        let writers = [0, 1].map(|part| {
            party(&world, move |world| {
                world.admit(one(0)).unwrap();
                world.store(one(0), part);
            })
        });
        world.copy(&world.gate.claim(one(0)));
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.assert_all_kept();
    });
}

#[test]
fn a_failed_copy_is_claimed_anew_by_who_waited() {
    explore("a_failed_copy_is_claimed_anew_by_who_waited", 62, || {
        let world = World::new(one(0), AMPLE, true);
        let unlucky = party(&world, |world| {
            for run in world.gate.claim(one(0)) {
                wake_all(world.gate.failed(run));
            }
        });
        world.admit(one(0)).unwrap();
        world.store(one(0), 0);
        unlucky.join().unwrap();
        world.assert_all_kept();
    });
}

#[test]
fn of_two_that_waited_for_a_failed_copy_one_claims_anew() {
    explore_within(BOUND, "of_two_that_waited_for_a_failed_copy_one_claims_anew", 1_695, || {
        let world = World::new(one(0), AMPLE, true);
        let claimed = world.gate.claim(one(0));
        let writers = [0, 1].map(|part| {
            party(&world, move |world| {
                world.admit(one(0)).unwrap();
                world.store(one(0), part);
            })
        });
        wake_all(world.gate.failed(claimed[0]));
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.assert_all_kept();
    });
}

#[test]
fn a_write_waits_for_each_of_several_blocks() {
    explore_within(BOUND, "a_write_waits_for_each_of_several_blocks", 2_572, || {
        let blocks = BlockRange::at(63, 2);
        let world = World::new(blocks, AMPLE, true);
        let holders = [63, 64].map(|block| {
            let runs = world.gate.claim(one(block));
            party(&world, move |world| world.copy(&runs))
        });
        world.admit(blocks).unwrap();
        world.store(blocks, 0);
        holders.into_iter().for_each(|holder| holder.join().unwrap());
        world.assert_all_kept();
    });
}

#[test]
fn two_writes_that_overlap_copy_for_each_other() {
    explore("two_writes_that_overlap_copy_for_each_other", 375, || {
        let world = World::new(BlockRange::at(62, 3), AMPLE, true);
        let other = party(&world, |world| {
            world.admit(BlockRange::at(63, 2)).unwrap();
            world.store(BlockRange::at(63, 2), 1);
        });
        world.admit(BlockRange::at(62, 2)).unwrap();
        world.store(BlockRange::at(62, 2), 0);
        other.join().unwrap();
        world.assert_all_kept();
    });
}

#[test]
fn a_sweeper_meets_a_write() {
    explore("a_sweeper_meets_a_write", 1_259, || {
        let extent = BlockRange::at(63, 2);
        let world = World::new(extent, AMPLE, true);
        let writer = party(&world, |world| {
            world.admit(one(64)).unwrap();
            world.store(one(64), 0);
        });
        world.sweep(extent);
        world.assert_all_kept();
        writer.join().unwrap();
    });
}

#[test]
fn a_sweeper_watches_a_claim_that_is_given_back() {
    explore("a_sweeper_watches_a_claim_that_is_given_back", 202, || {
        let world = World::new(BlockRange::at(0, 2), AMPLE, true);
        let claimed = world.gate.claim(one(1));
        let unlucky = party(&world, move |world| wake_all(world.gate.failed(claimed[0])));
        world.sweep(BlockRange::at(0, 2));
        unlucky.join().unwrap();
        world.assert_all_kept();
    });
}
