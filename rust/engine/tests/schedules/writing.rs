//! Programs write while a backup is cut, swept and published.

use std::sync::Arc;

use blockcow_engine::backup::Status;
use blockcow_engine::driver::{ContainerPlace, Request, Spec, cut_together};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::events::What;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_engine::storage::{FaultStorage, MemoryStorage, Operation, Storage};
use shuttle::thread;

use crate::world::{BLOCK, PATIENCE, World, Writer, join};
use crate::{NO_HASTE, explore};

fn two() -> Vec<Arc<Writer>> {
    vec![Writer::first(), Writer::second()]
}

/// A whole backup while writers write.
fn backed_up(world: &World, writers: &[Arc<Writer>], spec: Spec) -> Status {
    let backup = world.driver.prepare(spec).unwrap();
    let threads = world.start(writers);
    let cut = world.cut(&backup, writers);
    world.assert_image(&backup, writers, &cut);
    join(threads);
    world.assert_device(writers);
    backup.status()
}

#[test]
#[ignore = "run by make proof"]
fn writes_meet_the_sweep() {
    explore("writes_meet_the_sweep", NO_HASTE, || {
        let world = World::new();
        backed_up(&world, &two(), world.spec()).blocks_copied_before_write
    });
}

#[test]
#[ignore = "run by make proof"]
fn three_writers_meet_the_cut() {
    explore("three_writers_meet_the_cut", NO_HASTE, || {
        let world = World::new();
        let writers = [Writer::first(), Writer::second(), Writer::third()];
        backed_up(&world, &writers, world.spec()).suspended_writes
    });
}

#[test]
#[ignore = "run by make proof"]
fn a_container_of_one_slot_drains() {
    explore("a_container_of_one_slot_drains", NO_HASTE, || {
        let world = World::new();
        backed_up(&world, &two(), world.spec_of_one_slot()).drains
    });
}

#[test]
#[ignore = "run by make proof"]
fn staging_is_written_behind_and_taken() {
    explore("staging_is_written_behind_and_taken", NO_HASTE, || {
        let world = World::new();
        let log = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new(4 * BLOCK))));
        let spec = Spec { container: ContainerPlace::Storage(log.clone()), ..world.spec() };
        backed_up(&world, &two(), spec);
        // Written behind, and read back.
        log.calls(Operation::Write).min(log.calls(Operation::Read))
    });
}

/// A front-end without threads of its own: each request is completed once, whoever resumes it.
#[test]
#[ignore = "run by make proof"]
fn parked_requests_are_completed_once() {
    explore("parked_requests_are_completed_once", NO_HASTE, || {
        let (world, writers) = (World::new(), two());
        let backup = world.driver.prepare(world.spec_of_one_slot()).unwrap();
        let threads = writers.iter().map(|writer| {
            let (driver, writer) = (world.driver.clone(), writer.clone());
            thread::spawn(move || {
                for number in 1..=writer.writes() {
                    let (sender, receiver) = shuttle::sync::mpsc::channel();
                    let request = Request::Write(writer.data(number).into(), writer.offset(number));
                    writer.begin();
                    driver.submit(request, Box::new(move |outcome| sender.send(outcome.is_ok()).unwrap()));
                    writer.end(receiver.recv().unwrap());
                    assert!(receiver.recv().is_err(), "completed once");
                }
            })
        });
        let threads = threads.collect();
        let cut = world.cut(&backup, &writers);
        world.assert_image(&backup, &writers, &cut);
        join(threads);
        world.assert_device(&writers);
        assert!(writers.iter().all(|writer| writer.failed() == 0));
        backup.status().suspended_writes
    });
}

/// Programs write to one device and then to another: the images show one instant.
#[test]
#[ignore = "run by make proof"]
fn two_devices_are_cut_at_one_instant() {
    explore("two_devices_are_cut_at_one_instant", NO_HASTE, || {
        let worlds = [World::new(), World::new()];
        let backups = [0, 1].map(|world: usize| worlds[world].driver.prepare(worlds[world].spec()).unwrap());
        let drivers = [0, 1].map(|world: usize| worlds[world].driver.clone());
        let writer = thread::spawn(move || {
            for number in 1..=3 {
                drivers.iter().for_each(|driver| driver.write(&[number; 100], 700).unwrap());
            }
        });
        let group = [(&*worlds[1].driver, &backups[1]), (&*worlds[0].driver, &backups[0])];
        cut_together(&group, PATIENCE).unwrap();
        for backup in &backups {
            assert!(backup.wait(None));
            assert_eq!(backup.state(), State::Complete, "{:?}", backup.cause());
        }
        writer.join().unwrap();
        let [first, second] = [0, 1].map(|world: usize| worlds[world].image.snapshot()[700]);
        assert!(first == second || first == second + 1, "{first} in the first image, {second} in the second");
        u64::from(first != second)
    });
}

/// Of two who cut backups of one device at a time, one is told that the other is under way.
#[test]
#[ignore = "run by make proof"]
fn of_two_backups_one_is_cut() {
    explore("of_two_backups_one_is_cut", NO_HASTE, || {
        let (world, writers) = (World::new(), vec![Writer::first()]);
        let other = World::new();
        let backup = world.driver.prepare(world.spec()).unwrap();
        let late = world.driver.prepare(other.spec()).unwrap();
        let threads = world.start(&writers);
        let driver = world.driver.clone();
        let second = thread::spawn(move || match driver.cut(&late, PATIENCE) {
            // The first one was over, or comes too late itself.
            Ok(_) => assert!(late.wait(None) && late.state() == State::Complete),
            Err(error) => assert_eq!(error.kind, ErrorKind::State),
        });
        let done = writers[0].done();
        let outcome = world.driver.cut(&backup, PATIENCE);
        match &outcome {
            Ok(_) => world.assert_image(&backup, &writers, &[done..=writers[0].begun()]),
            Err(error) => assert_eq!(error.kind, ErrorKind::State),
        }
        second.join().unwrap();
        join(threads);
        world.assert_device(&writers);
        u64::from(outcome.is_err())
    });
}

/// The container lies on the device, and a program writes into it: the backup ends, and the program's bytes stay.
#[test]
#[ignore = "run by make proof"]
fn what_is_written_into_the_containers_place_stays() {
    explore("what_is_written_into_the_containers_place_stays", NO_HASTE, || {
        let (world, writers) = (World::new(), vec![Writer::second()]);
        let place = ByteRange { start: 0, end: 2 * BLOCK };
        let spec = Spec { container: ContainerPlace::Sections(vec![place]), staging_bytes: BLOCK, ..world.spec() };
        let backup = world.driver.prepare(spec).unwrap();
        let threads = world.start(&writers);
        world.driver.cut(&backup, PATIENCE).unwrap();
        let driver = world.driver.clone();
        let trespasser = thread::spawn(move || driver.write(&[77; 2 * BLOCK as usize], 0).unwrap());
        assert!(backup.wait(None));
        let cause = backup.cause().map(|cause| cause.kind);
        assert!(cause.is_none() || cause == Some(ErrorKind::Trespass), "{cause:?}");
        trespasser.join().unwrap();
        join(threads);
        let mut now = [0; 2 * BLOCK as usize];
        world.device.read_at(&mut now, 0).unwrap();
        assert!(now.iter().all(|&byte| byte == 77));
        u64::from(cause.is_some())
    });
}

/// Whoever reads the events sees the states in their order, and an end.
#[test]
#[ignore = "run by make proof"]
fn events_come_in_order_and_end() {
    explore("events_come_in_order_and_end", NO_HASTE, || {
        let (world, writers) = (World::new(), vec![Writer::first()]);
        let backup = Arc::new(world.driver.prepare(world.spec_of_one_slot()).unwrap());
        let read = backup.clone();
        let reader = thread::spawn(move || {
            let mut states = vec![State::Created];
            while let Some(events) = read.next_events(PATIENCE, 3) {
                for event in events {
                    if let What::State { from, to } = event.what {
                        assert_eq!(states.last(), Some(&from));
                        states.push(to);
                    }
                }
            }
            assert_eq!(states, [State::Created, State::Active, State::Complete]);
        });
        let threads = world.start(&writers);
        let cut = world.cut(&backup, &writers);
        world.assert_image(&backup, &writers, &cut);
        reader.join().unwrap();
        join(threads);
        world.assert_device(&writers);
        backup.status().drains
    });
}
