//! The engine's threads under a scheduler: whole backups of a few blocks, each in 10,000 schedules, half of them random, half
//! by PCT of depth three. What the memory orderings allow is not explored here; `tests/models` does that.
//!
//! `cargo test -p blockcow-engine --features shuttle --test schedules -- --ignored`, with every debug assertion.
//!
//! A schedule that fails is written to a file, whose name is printed; `BLOCKCOW_SCHEDULE=<that file>` before the command, and
//! the test's name after it, run it again.

mod failing;
mod world;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs};

use blockcow_engine::sync::InTime;
use blockcow_proof::Tally;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// How many schedules each test is run in.
const SCHEDULES: usize = 10_000;
const SEED: u64 = 0x0b10_c4c0_4000_0004;
const PREEMPTIONS: usize = 3;
/// Time goes on only when all wait.
const NO_HASTE: u64 = 0;

/// Runs a test in all of its schedules. Of `haste` steps, one lets time go on to the next deadline before it must. What a run
/// returns is how often it came to what the test is about; it must not be 0 in all of them.
fn explore(test: &'static str, haste: u64, run: impl Fn() -> u64 + Send + Sync + 'static) {
    let seen = Arc::new(AtomicU64::new(0));
    let tally = Arc::new(Tally::new("shuttle", test, SCHEDULES as u64));
    let counted = {
        let (seen, tally) = (seen.clone(), tally.clone());
        Arc::new(move || {
            seen.fetch_add(run(), Ordering::Relaxed);
            tally.executed(1);
        })
    };
    if let Some(schedule) = env::var_os("BLOCKCOW_SCHEDULE") {
        under(ReplayScheduler::new_from_file(schedule).expect("a schedule"), counted);
        return;
    }
    under(InTime::new(RandomScheduler::new_from_seed(SEED, SCHEDULES / 2), haste), counted.clone());
    under(InTime::new(PctScheduler::new_from_seed(SEED, PREEMPTIONS, SCHEDULES / 2), haste), counted);
    assert_eq!(tally.count(), SCHEDULES as u64);
    assert!(seen.load(Ordering::Relaxed) > 0, "no schedule came to what this test is about");
}

fn under(scheduler: impl Scheduler + 'static, run: Arc<impl Fn() + Send + Sync + 'static>) {
    let schedules = env!("CARGO_TARGET_TMPDIR");
    fs::create_dir_all(schedules).expect("a folder for schedules that fail");
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.failure_persistence = FailurePersistence::File(Some(schedules.into()));
    config.max_steps = MaxSteps::FailAfter(100_000);
    Runner::new(scheduler, config).run(move || run());
}
