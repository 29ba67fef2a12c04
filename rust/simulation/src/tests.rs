//! What a simulation promises: one thread at a time, every choice from the seed, time that jumps, and ends that say why.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64 as Plain, Ordering};
use std::time::Duration;

use crate::channel::{RecvTimeoutError, TrySendError, bounded, unbounded};
use crate::{Arc, AtomicU64, Condvar, End, Habits, Instant, Mutex, Report, RwLock, kill_after, simulate, thread};

thread_local! {
    static REAL: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

crate::thread_local! {
    static OWN: std::cell::Cell<u64> = std::cell::Cell::new(0);
}

fn run(seed: u64, main: impl FnOnce() + Send + 'static) -> Report {
    let favourites = seed.is_multiple_of(2);
    simulate(Habits { seed, calm: 2, favourites, most_points: 10_000 }, main)
}

/// Adds to a counter in two steps, as two threads would that forgot the lock.
fn add(counter: &AtomicU64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before + 1, Ordering::Relaxed);
}

fn sum_of_two(seed: u64, locked: bool) -> u64 {
    let sum = Arc::new(Plain::new(0));
    let told = sum.clone();
    let report = run(seed, move || {
        let (counter, lock) = (AtomicU64::new(0), Mutex::new(()));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let guard = locked.then(|| lock.lock());
                    add(&counter);
                    drop(guard);
                });
            }
        });
        told.store(counter.load(Ordering::Relaxed), Ordering::Relaxed);
    });
    assert_eq!(report.end, End::Finished);
    sum.load(Ordering::Relaxed)
}

#[test]
fn a_race_is_found_and_a_lock_ends_it() {
    let lost = (0..100).filter(|&seed| sum_of_two(seed, false) == 1).count();
    assert!((5..95).contains(&lost), "{lost} of 100");
    assert!((0..100).all(|seed| sum_of_two(seed, true) == 2));
}

#[test]
fn the_same_seed_is_the_same_run_and_others_are_others() {
    let busy = || {
        let (sender, receiver) = bounded(2);
        thread::scope(|scope| {
            for number in 0..3 {
                let sender = sender.clone();
                scope.spawn(move || (0..5).for_each(|step| sender.send(number * 10 + step).unwrap()));
            }
            drop(sender);
            receiver.into_iter().for_each(crate::note);
        });
    };
    let traces: BTreeSet<u64> = (0..50).map(|seed| run(seed, busy).trace).collect();
    assert_eq!(traces.len(), 50);
    assert!((0..50).all(|seed| traces.contains(&run(seed, busy).trace)));
}

#[test]
fn time_jumps_to_what_is_waited_for_and_counts_nothing_else() {
    let report = run(1, || {
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| thread::sleep(Duration::from_secs(3600)));
            scope.spawn(|| thread::sleep(Duration::from_secs(10)));
        });
        assert_eq!(begin.elapsed(), Duration::from_secs(3600));
        let (lock, condition) = (Mutex::new(()), Condvar::new());
        let waited = condition.wait_until(&mut lock.lock(), begin + Duration::from_secs(3601));
        assert!(waited.timed_out());
        assert!(begin.checked_sub(Duration::from_secs(1)).is_some_and(|before| before < begin));
    });
    assert_eq!((report.end, report.elapsed), (End::Finished, Duration::from_secs(3601)));
}

#[test]
fn who_waits_for_ever_is_named() {
    let report = run(0, || {
        let lock = Arc::new(Mutex::new(()));
        let held = lock.lock();
        let other = lock.clone();
        let thread = thread::Builder::new().name("other".into()).spawn(move || drop(other.lock())).unwrap();
        thread.join().unwrap();
        drop(held);
    });
    let End::Stuck(text) = report.end else { panic!("{:?}", report.end) };
    assert!(text.contains("other (a lock)") && text.contains("main (a condition)"), "{text}");
}

#[test]
fn a_loop_without_end_is_stuck() {
    for both in [false, true] {
        let report = run(0, move || {
            let stop = Arc::new(AtomicU64::new(0));
            let other = stop.clone();
            if both {
                thread::spawn(move || while other.load(Ordering::Relaxed) == 0 {});
            }
            while stop.load(Ordering::Relaxed) == 0 {}
        });
        assert!(matches!(report.end, End::Stuck(text) if text.starts_with("no end after 10000 scheduling points")));
    }
}

#[test]
fn a_panic_is_told_even_if_somebody_catches_it() {
    for caught in [false, true] {
        let report = run(0, move || {
            let thread = thread::spawn(|| panic!("as told"));
            assert!(thread.join().is_err() || caught);
        });
        assert!(matches!(report.end, End::Panicked(text) if text.contains("as told")));
        assert_eq!(run(0, || ()).end, End::Finished);
    }
}

#[test]
fn killed_threads_neither_go_on_nor_clean_up() {
    struct Tell(Arc<Plain>);
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.fetch_add(1000, Ordering::Relaxed);
        }
    }
    let steps = Arc::new(Plain::new(0));
    let told = steps.clone();
    let report = run(3, move || {
        let _tell = Tell(told.clone());
        kill_after(20);
        let counter = AtomicU64::new(0);
        for _ in 0..100 {
            add(&counter);
            told.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!((report.end, steps.load(Ordering::Relaxed)), (End::Killed, 10));
}

#[test]
fn thread_locals_are_the_simulated_threads_own() {
    let report = run(0, || {
        thread::scope(|scope| {
            for number in 1..4 {
                scope.spawn(move || {
                    OWN.with(|own| own.set(number));
                    REAL.set(number);
                    thread::sleep(Duration::from_millis(1));
                    assert_eq!(OWN.with(std::cell::Cell::get), number);
                });
            }
        });
        assert_eq!(OWN.with(std::cell::Cell::get), 0);
    });
    assert_eq!(report.end, End::Finished);
    assert_ne!(REAL.get(), 0, "the real ones are everybody's");
}

#[test]
fn channels_end_and_overflow_as_the_real_ones_do() {
    let report = run(0, || {
        let (sender, receiver) = bounded(1);
        sender.send(1).unwrap();
        assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
        assert_eq!(receiver.recv(), Ok(1));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(1)), Err(RecvTimeoutError::Timeout));
        drop(sender);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(1)), Err(RecvTimeoutError::Disconnected));
        let (sender, receiver) = unbounded();
        drop(receiver);
        assert_eq!(sender.send(7).unwrap_err().into_inner(), 7);
    });
    assert_eq!((report.end, report.elapsed), (End::Finished, Duration::from_secs(1)));
}

#[test]
fn many_read_and_one_changes() {
    for seed in 0..50 {
        let report = run(seed, || {
            let (value, readers) = (RwLock::new(0), AtomicU64::new(0));
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        let found = value.read();
                        readers.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(*found % 2, 0, "no reader sees half a change");
                        readers.fetch_sub(1, Ordering::Relaxed);
                    });
                    scope.spawn(|| {
                        let mut change = value.write();
                        *change += 1;
                        assert_eq!(readers.load(Ordering::Relaxed), 0);
                        *change += 1;
                    });
                }
            });
            assert_eq!(*value.read(), 6);
        });
        assert_eq!(report.end, End::Finished);
    }
}
