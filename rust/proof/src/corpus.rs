//! The seeds that fuzzing begins with.

use std::fs;
use std::path::Path;

/// The inputs in `fuzz/corpus/<target>`, in the order of their names.
///
/// # Panics
/// If they cannot be read.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("the corpus is there").map(|entry| entry.expect("a seed").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed can be read")).collect()
}
