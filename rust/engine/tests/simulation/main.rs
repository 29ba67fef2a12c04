//! The real engine in virtual time: histories that a seed decides, over storages that reorder, delay and fail, against a
//! model of what must come of it.

mod cells;
mod disk;
mod history;
mod judge;
mod life;
mod load;
mod model;
mod plan;
mod seeds;
mod storage;

use std::env;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blockcow_proof::Tally;

use seeds::Report;

const BUDGET: u64 = 200_000;
/// How long a soak takes, such as 10m; `make soak` sets it.
const SOAK: &str = "BLOCKCOW_SOAK";

#[test]
fn some_histories() {
    let report = seeds::run_here(0..1000);
    report.print();
    assert!(report.failed.is_empty());
    report.assert_covers();
}

#[test]
fn the_same_seed_does_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = || (0..200).map(|seed| history::run(seed, folder.path())).collect::<Vec<_>>();
    let (first, again) = (run(), run());
    assert_eq!(first, again);
    assert!(first.iter().enumerate().all(|(index, one)| first[..index].iter().all(|other| other.trace != one.trace)));
}

#[test]
#[ignore = "run by make proof"]
fn histories_of_many_seeds() {
    if seeds::run_part() {
        return;
    }
    let tally = Tally::new("simulation", "histories_of_many_seeds", BUDGET);
    let total = Mutex::new(Report::default());
    let first = seeds::named().unwrap_or(0);
    seeds::run_many(first..first + BUDGET, "histories_of_many_seeds", &|report| {
        tally.executed(report.runs);
        report.failed.iter().for_each(|_| tally.violated());
        total.lock().unwrap().add(report);
        true
    });
    let total = total.into_inner().unwrap();
    total.print();
    assert!(total.failed.is_empty());
    assert_eq!(total.runs, BUDGET);
    total.assert_covers();
}

/// With `BLOCKCOW_SEED`: what a seed that failed does.
#[test]
#[ignore = "for a seed that failed"]
fn one_history() {
    let seed = seeds::named().unwrap_or(0);
    println!("{:#?}", plan::Plan::of(seed));
    let folder = tempfile::tempdir().unwrap();
    println!("{:?}", history::run(seed, folder.path()));
}

/// Goes on with seeds that were never tried until the time is over or one fails.
#[test]
#[ignore = "run by make soak"]
fn soak() {
    if seeds::run_part() {
        return;
    }
    let given = env::var(SOAK).map(|text| humantime::parse_duration(&text).expect("a time such as 10m"));
    let time = given.unwrap_or(Duration::from_secs(10));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = seeds::named().unwrap_or(now.as_secs() * 1_000_000);
    let (begin, total) = (Instant::now(), Mutex::new(Report::default()));
    seeds::run_many(first..u64::MAX, "soak", &|report| {
        let mut total = total.lock().unwrap();
        total.add(report);
        println!("simulation: seeds from {first}, {:.0} s", begin.elapsed().as_secs_f64());
        total.print();
        total.failed.is_empty() && begin.elapsed() < time
    });
    let total = total.into_inner().unwrap();
    println!("simulation: the end after {:.0} s, seeds from {first}", begin.elapsed().as_secs_f64());
    total.print();
    assert!(total.runs > 0 && total.failed.is_empty());
}
