//! The end of a backup, refusals and deadlines: whoever waits is told, however late it came.

use blockcow_engine::geometry::BlockRange;
use blockcow_engine::waiter::{Outcome, wake_all};

use crate::explore;
use crate::world::{AMPLE, ONE, World, party};

const BLOCK: BlockRange = BlockRange { start: 0, end: 1 };
const OTHER: BlockRange = BlockRange { start: 1, end: 2 };

#[test]
fn a_write_that_parks_meets_the_end() {
    explore("a_write_that_parks_meets_the_end", 3, || {
        let world = World::new(BLOCK, AMPLE, true);
        // Held for ever.
        assert_eq!(world.gate.claim(BLOCK), [BLOCK]);
        let writer = party(&world, |world| world.admit(BLOCK).unwrap());
        wake_all(world.gate.close());
        writer.join().unwrap();
        assert_eq!(world.gate.parked(), 0);
    });
}

#[test]
fn a_sweeper_and_a_hungry_write_meet_the_end() {
    explore("a_sweeper_and_a_hungry_write_meet_the_end", 2_385, || {
        let world = World::new(BlockRange::at(0, 3), ONE, true);
        world.admit(BLOCK).unwrap();
        let held = BlockRange::at(2, 1);
        assert_eq!(world.gate.claim(held), [held]);
        let writer = party(&world, |world| world.admit(OTHER).unwrap());
        let watcher = party(&world, move |world| world.watch_until_the_end(held));
        wake_all(world.gate.close());
        [writer, watcher].into_iter().for_each(|party| party.join().unwrap());
        assert_eq!(world.gate.parked(), 0);
    });
}

#[test]
fn a_refusal_meets_a_write_that_waits_for_room() {
    explore("a_refusal_meets_a_write_that_waits_for_room", 3, || {
        let world = World::new(BlockRange::at(0, 2), ONE, true);
        world.admit(BLOCK).unwrap();
        let writer = party(&world, |world| assert_eq!(world.admit(OTHER), Err(5)));
        wake_all(world.gate.refuse(5));
        writer.join().unwrap();
        assert_eq!(world.gate.parked(), 0);
    });
}

#[test]
fn a_deadline_meets_the_copy_that_was_waited_for() {
    explore("a_deadline_meets_the_copy_that_was_waited_for", 2_331, || {
        let world = World::new(BLOCK, AMPLE, true);
        let claimed = world.gate.claim(BLOCK);
        let writer = party(&world, |world| {
            if world.admit(BLOCK).is_ok() {
                world.store(BLOCK, 0);
            }
        });
        let holder = party(&world, move |world| world.copy(&claimed));
        for late in world.gate.expel(|_| true) {
            late.wake(Outcome::Fail(110));
        }
        [writer, holder].into_iter().for_each(|party| party.join().unwrap());
        world.assert_all_kept();
    });
}

#[test]
fn the_device_closes_while_a_write_is_suspended() {
    explore("the_device_closes_while_a_write_is_suspended", 424, || {
        let world = World::new(BLOCK, AMPLE, true);
        assert_eq!(world.gate.claim(BLOCK), [BLOCK]);
        let writer = party(&world, |world| world.write(BLOCK, 0));
        // As `Driver::settle`: the backup ends, then no write is in flight.
        world.armed.store(false, loom::sync::atomic::Ordering::Release);
        wake_all(world.gate.close());
        world.hold();
        world.read(0);
        wake_all(world.flights.release());
        writer.join().unwrap();
        assert_eq!(world.read(0)[0], 1);
    });
}
