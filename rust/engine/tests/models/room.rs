//! Room in the container: who waits for it is woken when there is some, and passes on what it does not need.

use std::sync::Arc;

use blockcow_engine::gate::Limits;
use blockcow_engine::geometry::BlockRange;

use crate::world::{ONE, World, party};
use crate::{BOUND, explore, explore_within};

fn one(block: u32) -> BlockRange {
    BlockRange::at(block, 1)
}

/// A world in which a block before the others has taken all the room.
fn full(blocks: u32, limits: Limits) -> Arc<World> {
    let world = World::new(BlockRange::at(0, blocks + limits.capacity), limits, true);
    world.admit(BlockRange::at(blocks, limits.capacity)).unwrap();
    world
}

/// A write that copies its block and then frees the room again.
fn copy_and_free(world: &World, block: u32) {
    world.admit(one(block)).unwrap();
    world.store(one(block), 0);
    world.freed(1);
}

#[test]
fn a_write_waits_for_room_that_is_being_freed() {
    explore("a_write_waits_for_room_that_is_being_freed", 9, || {
        let world = full(1, ONE);
        let drain = party(&world, |world| world.freed(1));
        copy_and_free(&world, 0);
        drain.join().unwrap();
        world.assert_all_kept();
        assert_eq!(world.gate.room().used(), 0);
    });
}

#[test]
fn two_writes_take_turns_with_room_for_one() {
    explore("two_writes_take_turns_with_room_for_one", 180, || {
        let world = World::new(BlockRange::at(0, 2), ONE, true);
        let other = party(&world, |world| copy_and_free(world, 1));
        copy_and_free(&world, 0);
        other.join().unwrap();
        world.assert_all_kept();
        assert_eq!((world.gate.room().used(), world.gate.room().peak()), (0, 1));
    });
}

#[test]
fn room_for_two_that_comes_at_once_wakes_both() {
    explore_within(BOUND, "room_for_two_that_comes_at_once_wakes_both", 528, || {
        let two = Limits { capacity: 2, drain: 1, staging: 2 };
        let world = full(2, two);
        let writers = [0, 1].map(|block| party(&world, move |world| world.admit(one(block)).unwrap()));
        world.freed(2);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.assert_all_kept();
    });
}

#[test]
fn one_that_needs_no_room_after_all_passes_the_wake_on() {
    explore_within(BOUND, "one_that_needs_no_room_after_all_passes_the_wake_on", 7_994, || {
        let world = full(2, ONE);
        let writers = [0, 1].map(|block| party(&world, move |world| world.admit(one(block)).unwrap()));
        // The sweep copies the first one's block, which was perhaps woken for room already.
        world.copy(&world.gate.claim(one(0)));
        world.freed(1);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.assert_all_kept();
    });
}

/// Who was woken asks again like any other and may find the room taken; but all come to their turn.
#[test]
fn three_writes_take_turns_with_room_for_one() {
    explore_within(BOUND, "three_writes_take_turns_with_room_for_one", 8_088, || {
        let world = World::new(BlockRange::at(0, 3), ONE, true);
        let others = [0, 1].map(|block| party(&world, move |world| copy_and_free(world, block)));
        copy_and_free(&world, 2);
        others.into_iter().for_each(|other| other.join().unwrap());
        world.assert_all_kept();
        assert_eq!((world.gate.room().used(), world.gate.room().peak()), (0, 1));
    });
}
