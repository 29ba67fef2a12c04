//! Faults, deadlines and ends of every kind, at any moment: a program's write goes or fails as the policy says, and what looks
//! complete is right.

use std::sync::Arc;
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::driver::{ContainerPlace, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Fault, FaultStorage, MemoryStorage, Operation};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::world::{BLOCK, PATIENCE, SIZE, World, Writer, join};
use crate::{NO_HASTE, explore};

const FAIL_WRITE: Policy = Policy { cbw_timeout: PATIENCE, fail_write: true };

/// One call of this kind fails, the first, second or third.
fn fault(operation: Operation, times: Option<u64>) -> Fault {
    Fault { operation, errno: libc::EIO, range: None, after: thread_rng().gen_range(0..3), times }
}

/// A backup while two write, which is complete or broken by `cause`. Returns whether it is broken, and how many writes failed.
fn ended_under(world: &World, spec: Spec, cause: ErrorKind) -> (bool, u64) {
    let writers = vec![Writer::first(), Writer::second()];
    let backup = world.driver.prepare(spec).unwrap();
    let threads = world.start(&writers);
    let cut = world.cut(&backup, &writers);
    assert!(backup.wait(None));
    // What has failed by now is left out of the image too: a write that fails does so before it has begun.
    join(threads);
    match backup.state() {
        State::Complete => world.assert_image(&backup, &writers, &cut),
        state => {
            world.assert_no_backup(&backup, State::Broken);
            assert_eq!(backup.cause().map(|error| error.kind), Some(cause), "{state:?}: {:?}", backup.cause());
        }
    }
    world.assert_device(&writers);
    (backup.state() == State::Broken, failed(&writers))
}

fn failed(writers: &[Arc<Writer>]) -> u64 {
    writers.iter().map(|writer| writer.failed() as u64).sum()
}

#[test]
#[ignore = "run by make proof"]
fn a_block_that_cannot_be_read_breaks_the_backup() {
    explore("a_block_that_cannot_be_read_breaks_the_backup", NO_HASTE, || {
        let device = Arc::new(MemoryStorage::new(SIZE));
        let faulty = Arc::new(FaultStorage::new(device.clone()));
        let world = World::through(device, faulty.clone());
        faulty.inject(fault(Operation::Read, Some(1)));
        let (broken, failed) = ended_under(&world, world.spec(), ErrorKind::Device);
        assert_eq!(failed, 0);
        u64::from(broken)
    });
}

#[test]
#[ignore = "run by make proof"]
fn a_block_that_cannot_be_read_fails_the_write() {
    explore("a_block_that_cannot_be_read_fails_the_write", NO_HASTE, || {
        let device = Arc::new(MemoryStorage::new(SIZE));
        let faulty = Arc::new(FaultStorage::new(device.clone()));
        let world = World::through(device, faulty.clone());
        faulty.inject(fault(Operation::Read, Some(1)));
        let spec = Spec { policy: FAIL_WRITE, ..world.spec() };
        let (broken, failed) = ended_under(&world, spec, ErrorKind::Device);
        // The one read that failed was the write's or the sweep's.
        assert!(u64::from(broken) + failed <= 1);
        failed
    });
}

fn faulty_container(world: &World, policy: Policy) -> Spec {
    let log = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new(4 * BLOCK))));
    log.inject(fault(Operation::Write, None));
    Spec { container: ContainerPlace::Storage(log), staging_bytes: BLOCK, policy, ..world.spec() }
}

#[test]
#[ignore = "run by make proof"]
fn a_container_that_cannot_be_written_breaks_the_backup() {
    explore("a_container_that_cannot_be_written_breaks_the_backup", NO_HASTE, || {
        let world = World::new();
        let spec = faulty_container(&world, Policy { fail_write: false, ..FAIL_WRITE });
        let (broken, failed) = ended_under(&world, spec, ErrorKind::Container);
        assert_eq!(failed, 0);
        u64::from(broken)
    });
}

#[test]
#[ignore = "run by make proof"]
fn a_container_that_cannot_be_written_fails_writes() {
    explore("a_container_that_cannot_be_written_fails_writes", NO_HASTE, || {
        let world = World::new();
        let spec = faulty_container(&world, FAIL_WRITE);
        let (broken, failed) = ended_under(&world, spec, ErrorKind::Container);
        assert!(!broken);
        failed
    });
}

#[test]
#[ignore = "run by make proof"]
fn a_destination_that_cannot_be_written_breaks_the_backup() {
    explore("a_destination_that_cannot_be_written_breaks_the_backup", NO_HASTE, || {
        let world = World::new();
        let mut spec = world.spec_of_one_slot();
        spec.destination = spec.destination.decorate(|image| {
            let faulty = FaultStorage::new(image);
            faulty.inject(fault(Operation::Write, Some(1)));
            Arc::new(faulty)
        });
        let (broken, failed) = ended_under(&world, spec, ErrorKind::Destination);
        assert_eq!(failed, 0);
        u64::from(broken)
    });
}

/// One step in so many is a deadline that comes too early.
const HASTE: u64 = 60;

fn late(test: &'static str, fail_write: bool) {
    explore(test, HASTE, move || {
        let world = World::new();
        let policy = Policy { cbw_timeout: Duration::from_secs(1), fail_write };
        let writers = vec![Writer::first(), Writer::second()];
        let backup = world.driver.prepare(Spec { policy, ..world.spec_of_one_slot() }).unwrap();
        let threads = world.start(&writers);
        let done: Vec<_> = writers.iter().map(|writer| writer.done()).collect();
        if let Err(error) = world.driver.cut(&backup, PATIENCE) {
            // A write in flight took longer than the cut has patience.
            assert_eq!(error.kind, ErrorKind::Timeout);
            backup.cancel();
        }
        let cut: Vec<_> = done.into_iter().zip(&writers).map(|(done, writer)| done..=writer.begun()).collect();
        // Waiting for the cleaning up has a deadline too, which may come too early.
        while !backup.at_rest() {
            thread::yield_now();
        }
        join(threads);
        match backup.state() {
            State::Complete => world.assert_image(&backup, &writers, &cut),
            State::Cancelled => world.assert_no_backup(&backup, State::Cancelled),
            _ => {
                world.assert_no_backup(&backup, State::Broken);
                assert!(!fail_write);
                assert_eq!(backup.cause().map(|error| error.kind), Some(ErrorKind::Timeout));
            }
        }
        assert!(fail_write || failed(&writers) == 0);
        world.assert_device(&writers);
        if fail_write { failed(&writers) } else { u64::from(backup.state() == State::Broken) }
    });
}

#[test]
#[ignore = "run by make proof"]
fn a_write_that_waits_too_long_breaks_the_backup() {
    late("a_write_that_waits_too_long_breaks_the_backup", false);
}

#[test]
#[ignore = "run by make proof"]
fn a_write_that_waits_too_long_fails() {
    late("a_write_that_waits_too_long_fails", true);
}

#[test]
#[ignore = "run by make proof"]
fn a_cancel_comes_at_any_moment() {
    explore("a_cancel_comes_at_any_moment", NO_HASTE, || {
        let (world, writers) = (World::new(), vec![Writer::first(), Writer::second()]);
        let log = Arc::new(MemoryStorage::new(4 * BLOCK));
        let container = ContainerPlace::Storage(log);
        let spec = Spec { container, staging_bytes: BLOCK, ..world.spec() };
        let backup = Arc::new(world.driver.prepare(spec).unwrap());
        let threads = world.start(&writers);
        let cancelled = backup.clone();
        let canceller = thread::spawn(move || cancelled.cancel());
        let done: Vec<_> = writers.iter().map(|writer| writer.done()).collect();
        let cut = world.driver.cut(&backup, PATIENCE);
        let shown: Vec<_> = done.into_iter().zip(&writers).map(|(done, writer)| done..=writer.begun()).collect();
        assert!(cut.is_ok() || backup.state() == State::Cancelled);
        canceller.join().unwrap();
        assert!(backup.wait(None));
        match backup.state() {
            State::Complete => world.assert_image(&backup, &writers, &shown),
            _ => world.assert_no_backup(&backup, State::Cancelled),
        }
        join(threads);
        world.assert_device(&writers);
        assert_eq!(failed(&writers), 0);
        u64::from(backup.state() == State::Cancelled)
    });
}

/// The device is closed while programs write: no write is in flight when that is done, nor is a backup.
#[test]
#[ignore = "run by make proof"]
fn the_device_settles_while_programs_write() {
    explore("the_device_settles_while_programs_write", NO_HASTE, || {
        let (world, writers) = (World::new(), vec![Writer::first(), Writer::second()]);
        let backup = world.driver.prepare(world.spec_of_one_slot()).unwrap();
        let threads = world.start(&writers);
        let cut = world.cut(&backup, &writers);
        world.driver.settle();
        match backup.state() {
            State::Complete => world.assert_image(&backup, &writers, &cut),
            _ => world.assert_no_backup(&backup, State::Cancelled),
        }
        join(threads);
        world.assert_device(&writers);
        assert_eq!(failed(&writers), 0);
        u64::from(backup.state() == State::Cancelled)
    });
}
