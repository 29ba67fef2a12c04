//! One test's record: what it tried, how often, and how often a promise did not hold.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs, thread};

use serde::Serialize;

/// Counts what one test tries. Its record is written when it is dropped, also by a panic, which counts as a violation.
#[derive(Debug)]
pub struct Tally {
    technique: &'static str,
    test: &'static str,
    budget: u64,
    executed: AtomicU64,
    violations: AtomicU64,
}

/// What `scripts/proof_table.py` reads.
#[derive(Serialize)]
struct Record<'a> {
    technique: &'a str,
    test: &'a str,
    budget: u64,
    executed: u64,
    violations: u64,
}

impl Tally {
    /// For `test`, which does its share of `technique`: at least `budget` times. A test has one tally for each technique.
    pub fn new(technique: &'static str, test: &'static str, budget: u64) -> Self {
        Self { technique, test, budget, executed: AtomicU64::new(0), violations: AtomicU64::new(0) }
    }

    /// Something was tried so many times.
    pub fn executed(&self, times: u64) {
        self.executed.fetch_add(times, Ordering::Relaxed);
    }

    /// A promise did not hold, and the test goes on to look for more.
    pub fn violated(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    /// How often something was tried so far.
    pub fn count(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let violations = self.violations.load(Ordering::Relaxed) + u64::from(thread::panicking());
        let (technique, test, budget) = (self.technique, self.test, self.budget);
        let record = Record { technique, test, budget, executed: self.count(), violations };
        let text = serde_json::to_string(&record).expect("a record is plain data");
        let folder = folder();
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join(format!("{technique}--{test}.json")), text + "\n"));
        println!("proof: {technique}: {test}: {} of {budget}, {violations} violations", self.count());
        if let Err(error) = written {
            eprintln!("proof: the record of {test} cannot be written: {error}");
        }
    }
}

/// Where records are kept: `target/proof` of the workspace, or what `BLOCKCOW_PROOF` says.
fn folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    env::var_os("BLOCKCOW_PROOF").map_or_else(|| workspace.join("target/proof"), PathBuf::from)
}
