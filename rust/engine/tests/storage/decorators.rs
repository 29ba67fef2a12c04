//! Faults and throttles: they hit exactly the calls they are told to.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Fault, FaultStorage, MemoryStorage, Operation, Storage, ThrottledStorage, Zeroing};

const ALL: [Operation; 5] = [Operation::Read, Operation::Write, Operation::Zero, Operation::Discard, Operation::Sync];

fn call(storage: &dyn Storage, operation: Operation, offset: u64) -> io::Result<()> {
    let range = ByteRange { start: offset, end: offset + 512 };
    match operation {
        Operation::Read => storage.read_at(&mut [0; 512], offset),
        Operation::Write => storage.write_at(&[1; 512], offset),
        Operation::Zero => storage.zero(range, Zeroing::ANY),
        Operation::Discard => storage.discard(range),
        Operation::Sync => storage.sync(),
    }
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn fault(operation: Operation, errno: i32) -> Fault {
    Fault { operation, errno, range: None, after: 0, times: None }
}

#[test]
fn a_fault_strikes_its_operation_alone_until_it_is_cleared() {
    for struck in ALL {
        let storage = FaultStorage::new(Arc::new(MemoryStorage::new(4096)));
        storage.inject(fault(struck, libc::EIO));
        for _ in 0..3 {
            for operation in ALL {
                let expected = (operation == struck).then_some(libc::EIO);
                assert_eq!(errno(call(&storage, operation, 0)), expected, "{operation:?} with a fault of {struck:?}");
            }
        }
        storage.clear();
        assert!(call(&storage, struck, 0).is_ok());
        assert_eq!(ALL.map(|operation| storage.calls(operation)), ALL.map(|other| if other == struck { 4 } else { 3 }));
    }
}

#[test]
fn a_fault_keeps_to_its_range_its_start_and_its_number() {
    let memory = Arc::new(MemoryStorage::new(8192));
    let storage = FaultStorage::new(memory.clone());
    let range = Some(ByteRange { start: 4607, end: 5000 });
    storage.inject(Fault { range, after: 1, times: Some(2), ..fault(Operation::Write, libc::ENOSPC) });
    let answers = |offset| errno(call(&storage, Operation::Write, offset));
    assert_eq!(answers(0), None);
    assert_eq!(answers(5000), None);
    assert_eq!(answers(4096), None, "the first that touches it passes");
    memory.zero(ByteRange { start: 0, end: 8192 }, Zeroing::ANY).unwrap();
    assert_eq!(answers(4096), Some(libc::ENOSPC));
    assert_eq!(answers(4999), Some(libc::ENOSPC));
    assert!(memory.snapshot().iter().all(|byte| *byte == 0), "a write that failed changes nothing");
    assert_eq!(answers(4096), None);
}

#[test]
fn a_fault_can_come_while_calls_are_under_way() {
    let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new(4096))));
    let (started, wait) = mpsc::channel();
    let writer = {
        let storage = storage.clone();
        thread::spawn(move || {
            let mut failed = errno(call(&*storage, Operation::Write, 0));
            started.send(()).unwrap();
            while failed.is_none() {
                failed = errno(call(&*storage, Operation::Write, 0));
            }
            failed
        })
    };
    wait.recv().unwrap();
    storage.inject(fault(Operation::Write, libc::EIO));
    assert_eq!(writer.join().unwrap(), Some(libc::EIO));
}

#[test]
fn writes_take_their_time() {
    let storage = ThrottledStorage::new(Arc::new(MemoryStorage::new(4096)), 10_000);
    let start = std::time::Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| call(&storage, Operation::Write, 0).unwrap());
        }
    });
    // A lower bound only: 2048 bytes at 10,000 a second cannot be done sooner on any machine.
    assert!(start.elapsed().as_micros() >= 204_800);
}

#[test]
fn a_stall_holds_writes_and_nothing_else() {
    let memory = Arc::new(MemoryStorage::new(4096));
    let storage = Arc::new(ThrottledStorage::new(memory.clone(), u64::MAX));
    storage.stall();
    let (done, outcome) = mpsc::channel();
    let writer = {
        let storage = storage.clone();
        thread::spawn(move || done.send(call(&*storage, Operation::Write, 0)).unwrap())
    };
    for operation in ALL.into_iter().filter(|operation| *operation != Operation::Write) {
        call(&*storage, operation, 0).unwrap();
    }
    let early = outcome.recv_timeout(std::time::Duration::from_millis(100));
    assert_eq!(early.err(), Some(mpsc::RecvTimeoutError::Timeout), "a stalled write went through");
    assert_eq!(memory.snapshot(), vec![0; 4096]);
    storage.resume();
    outcome.recv().unwrap().unwrap();
    writer.join().unwrap();
    assert_eq!(memory.snapshot()[0], 1);
}
