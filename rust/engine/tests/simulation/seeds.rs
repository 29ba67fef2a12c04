//! Runs many seeds: in processes of their own, as a killed history leaves memory behind, one for each processor at a time.

use std::collections::BTreeMap;
use std::env;
use std::ops::Range;
use std::panic::catch_unwind;
use std::process::{Command, Output, Stdio};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::history;

/// Names the first seed, or the only one.
const SEED: &str = "BLOCKCOW_SEED";
/// Tells a process which seeds are its part: the first, and one past the last.
const PART: &str = "BLOCKCOW_SEEDS";
const REPORT: &str = "report: ";
/// How many seeds a process runs.
const AT_A_TIME: u64 = 1000;

/// What many histories came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub runs: u64,
    /// In how many of them it happened, by name.
    pub happened: BTreeMap<String, u64>,
    pub failed: Vec<u64>,
}

impl Report {
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.failed.extend(other.failed);
        other.happened.into_iter().for_each(|(name, runs)| *self.happened.entry(name).or_default() += runs);
    }

    /// Everything that can happen must go on to, or the histories prove less than they seem to.
    pub fn assert_covers(&self) {
        let rare: Vec<_> = self.happened.iter().filter(|&(_, &runs)| runs * 100 < self.runs).collect();
        assert!(rare.is_empty(), "in less than one history of a hundred: {rare:?}");
    }

    pub fn print(&self) {
        let happened = self.happened.iter().map(|(name, runs)| format!("{name} {runs}")).collect::<Vec<_>>().join(", ");
        println!("simulation: {} runs: {happened}; failed: {:?}", self.runs, self.failed);
    }
}

/// The seed that the environment names.
pub fn named() -> Option<u64> {
    env::var(SEED).ok().map(|text| text.parse().expect("a seed is a number"))
}

/// Runs seeds in this process, up to the first that fails.
pub fn run_here(seeds: Range<u64>) -> Report {
    let folder =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is room for manifests");
    let mut report = Report::default();
    for seed in seeds {
        report.runs += 1;
        match catch_unwind(|| history::run(seed, folder.path())) {
            Ok(outcome) => outcome.happened.into_iter().for_each(|(name, happened)| {
                *report.happened.entry(name.into()).or_default() += u64::from(happened);
            }),
            Err(_) => {
                println!(
                    "seed {seed} failed; again: {SEED}={seed} cargo test -p blockcow-engine --features simulation \
                     --test simulation -- --ignored --nocapture one_history"
                );
                report.failed.push(seed);
                break;
            }
        }
    }
    report
}

/// If this process is one for a part of the seeds: runs them and tells what came of it.
pub fn run_part() -> bool {
    let Ok(part) = env::var(PART) else { return false };
    let (first, end) = part.split_once(' ').expect("two numbers");
    let report = run_here(first.parse().expect("a number")..end.parse().expect("a number"));
    println!("{REPORT}{}", serde_json::to_string(&report).expect("plain data"));
    true
}

/// Runs seeds in processes that run `test`; `tell` hears of each that ends, and says whether to go on.
pub fn run_many(seeds: Range<u64>, test: &str, tell: &(impl Fn(Report) -> bool + Sync)) {
    let lanes = thread::available_parallelism().map_or(1, |lanes| lanes.get() as u64);
    thread::scope(|scope| {
        for lane in 0..lanes {
            let mut parts = seeds.clone().step_by(AT_A_TIME as usize).skip(lane as usize).step_by(lanes as usize);
            let end = seeds.end;
            let all = move || parts.all(|first| tell(run_process(first..end.min(first + AT_A_TIME), test)));
            scope.spawn(all);
        }
    });
}

fn run_process(seeds: Range<u64>, test: &str) -> Report {
    let program = env::current_exe().expect("this program has a name");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(PART, format!("{} {}", seeds.start, seeds.end)).env("RUST_BACKTRACE", "0").stderr(Stdio::inherit());
    let Output { status, stdout, .. } = command.output().expect("a process can be had");
    let text = String::from_utf8_lossy(&stdout);
    text.lines().filter(|line| line.contains(" failed; again: ")).for_each(|line| println!("{line}"));
    let report = text.lines().find_map(|line| line.split_once(REPORT)).filter(|_| status.success());
    let (_, report) = report.unwrap_or_else(|| panic!("a process with seeds {seeds:?} died: {status}\n{text}"));
    serde_json::from_str(report).expect("its report is JSON")
}
