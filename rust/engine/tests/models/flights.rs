//! The hold and the cut against writes in flight: a write is wholly before the cut or wholly after it.

use std::sync::Arc;

use blockcow_engine::flights::Flights;
use blockcow_engine::geometry::BlockRange;
use blockcow_engine::waiter::{Parker, Waiter, wake_all};
use loom::sync::atomic::Ordering;
use loom::thread;

use crate::world::{AMPLE, World, party};
use crate::{BOUND, explore, explore_within};

const BLOCK: BlockRange = BlockRange { start: 0, end: 1 };

#[test]
fn one_write_meets_the_cut() {
    explore("one_write_meets_the_cut", 30_009, || {
        let world = World::new(BLOCK, AMPLE, false);
        let writer = party(&world, |world| world.write(BLOCK, 0));
        let now = world.cut();
        world.sweep(BLOCK);
        assert_eq!(world.kept(0), Some(now[0]));
        writer.join().unwrap();
    });
}

#[test]
fn two_writes_meet_the_cut() {
    explore_within(BOUND, "two_writes_meet_the_cut", 19_100, || {
        let world = World::new(BLOCK, AMPLE, false);
        let writers = [0, 1].map(|part| party(&world, move |world| world.write(BLOCK, part)));
        let now = world.cut();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.sweep(BLOCK);
        assert_eq!(world.kept(0), Some(now[0]));
    });
}

#[test]
fn one_that_leaves_late_does_not_answer_for_those_of_the_next_hold() {
    explore("one_that_leaves_late_does_not_answer_for_those_of_the_next_hold", 35, || {
        let flights = Arc::new(Flights::default());
        assert!(flights.enter(|| "first") && !flights.hold(|| "cut"));
        let late = {
            let flights = flights.clone();
            thread::spawn(move || assert_ne!(flights.leave(), Some("next cut")))
        };
        // The hold is given up, another write comes in, and another hold waits for that one.
        assert!(flights.release().is_empty());
        assert!(flights.enter(|| "second") && !flights.hold(|| "next cut"));
        late.join().unwrap();
        assert_eq!(flights.leave(), Some("next cut"));
    });
}

/// Holds, and looks only once whether the writes in flight have ended, as if the deadline were there.
fn hold_without_patience(world: &World) -> bool {
    let parker = Arc::new(Parker::default());
    world.flights.hold(|| Waiter::thread(&parker, None)) || parker.park_until(std::time::Instant::now()).is_some()
}

#[test]
fn a_hold_that_is_given_up_leaves_the_next_one_its_own_writes() {
    // One switch less than elsewhere: with three there are 300,000.
    explore_within(BOUND - 1, "a_hold_that_is_given_up_leaves_the_next_one_its_own_writes", 12_791, || {
        let world = World::new(BLOCK, AMPLE, false);
        let writers = [0, 1].map(|part| party(&world, move |world| world.write(BLOCK, part)));
        if hold_without_patience(&world) {
            world.read(0);
        }
        wake_all(world.flights.release());
        let now = world.cut();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.sweep(BLOCK);
        assert_eq!(world.kept(0), Some(now[0]));
    });
}

#[test]
fn two_holds_one_after_the_other_are_quiet_both() {
    explore("two_holds_one_after_the_other_are_quiet_both", 8_580, || {
        let world = World::new(BLOCK, AMPLE, false);
        let writer = party(&world, |world| {
            world.write(BLOCK, 0);
            world.write(BLOCK, 0);
        });
        for _ in 0..2 {
            world.hold();
            world.read(0);
            wake_all(world.flights.release());
        }
        writer.join().unwrap();
        assert_eq!(world.read(0)[0], 2);
        assert!(!world.flights.holding() && !world.armed.load(Ordering::Relaxed));
    });
}
