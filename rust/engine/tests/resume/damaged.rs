//! What a dead process left, damaged: the backup goes on, or is refused or broken with a reason; nobody panics or hangs.
//!
//! An input is a list of edits of 11 bytes: a page of the arena, a word of it, a value; numbers with their lowest byte
//! first. Page 10 stands for the numbers of the note. `docs/architecture.md` says what lies where.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{Driver, Remains, Spec};
use blockcow_engine::state::State;
use blockcow_engine::storage::{MemoryStorage, Storage};
use blockcow_proof::fuzz;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use crate::refused::left_after;
use crate::rig::{Chance, PATIENCE, Rig, assert_same, folder_in_memory};

const SIZE: u64 = 128 << 10;
const PAGE: u64 = 4096;
/// Header, pending, tally, digests, delivered, staging's marks, three of the list, and the record of the first desk. The
/// log has no marks.
const PAGES: u8 = 10;
const NUMBERS: [&str; 9] = [
    "device_bytes",
    "block_size",
    "extent_size",
    "log_slots",
    "staging_slots",
    "capacity_slots",
    "drain_slots",
    "cbw_timeout_us",
    "limit_read",
];

/// A backup that died right after its cut, and the writes that came then.
struct Scene {
    rig: Rig,
    expected: Vec<u8>,
    arena: Vec<u8>,
    note: String,
}

impl Scene {
    fn new() -> Self {
        let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(3));
        let expected = rig.bytes();
        let kept =
            left_after(rig.storage.clone(), Spec { destination: destination(&rig, image()), ..rig.spec() }, |driver| {
                for block in [0, 7, 9] {
                    driver.write(&[0x5a; 4096], block * 4096).unwrap();
                }
            });
        let (_, arena) = kept.descriptors.into_iter().find(|(name, _)| name == "arena").unwrap();
        let arena = File::from(arena);
        let mut bytes = vec![0; arena.metadata().unwrap().len() as usize];
        arena.read_exact_at(&mut bytes, 0).unwrap();
        Self { rig, expected, arena: bytes, note: kept.note }
    }

    fn check(&self, edits: &[u8]) {
        let (mut arena, mut note) = (self.arena.clone(), serde_json::from_str(&self.note).unwrap());
        for edit in edits.chunks_exact(11) {
            let (page, word) = (edit[0] % (PAGES + 1), u16::from_le_bytes([edit[1], edit[2]]));
            let value = u64::from_le_bytes(edit[3..].try_into().unwrap());
            if page == PAGES {
                let note: &mut Value = &mut note;
                note[NUMBERS[usize::from(word) % NUMBERS.len()]] = value.into();
            } else {
                let at = u64::from(page) * PAGE + u64::from(word) * 8 % PAGE;
                arena[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let is_ours = note == serde_json::from_str::<Value>(&self.note).unwrap();
        let note = if is_ours { self.note.clone() } else { note.to_string() };
        let file = File::from(memfd_create("arena", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&arena, 0).unwrap();
        self.go_on(Remains { arena: file.into(), note, image: image(), container: None }, is_ours, arena == self.arena);
        let _ = fs::remove_file(manifest_path_for(&self.rig.image()));
    }

    fn go_on(&self, remains: Remains, is_ours: bool, untouched: bool) {
        let (driver, image) = (Driver::new(self.rig.storage.clone()), remains.image.clone());
        let backup = match driver.resume(remains) {
            Ok(backup) => backup,
            Err(error) => {
                assert!(!error.reason.is_empty());
                assert!(!is_ours || !untouched, "{error}");
                return;
            }
        };
        assert!(is_ours, "a note that is not the arena's is gone on with");
        assert!(backup.wait(Some(PATIENCE)), "it ends");
        if untouched {
            assert_eq!(backup.state(), State::Complete);
            let mut found = vec![0; SIZE as usize];
            image.read_at(&mut found, 0).unwrap();
            assert_same(&found, &self.expected, "the image");
        }
    }
}

fn image() -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new(SIZE))
}

fn destination(rig: &Rig, image: Arc<dyn Storage>) -> Destination {
    Destination::storage(image, "nbd://elsewhere".into(), &manifest_path_for(&rig.image()), SIZE, false).unwrap()
}

#[test]
fn some_arenas() {
    let scene = Scene::new();
    fuzz("arena", 200, |edits| scene.check(edits));
}

#[test]
#[ignore = "run by make proof"]
fn arenas() {
    let scene = Scene::new();
    fuzz("arena", 1_500, |edits| scene.check(edits));
}
