//! What the engine reads and did not write, or wrote long ago, changed at random. `fuzz/README.md` says more.

use blockcow_proof::fuzz;

#[path = "../../../fuzz/checks/manifest.rs"]
mod manifest;

#[test]
#[ignore = "run by make proof"]
fn manifests() {
    fuzz("manifest", 1_000_000, manifest::check);
}

#[test]
fn some_manifests() {
    fuzz("manifest", 2_000, manifest::check);
}
