//! What is not gone on with, because nobody could know what comes of it. In one process: the backup is left as if it had
//! died right after its cut.

use std::sync::Arc;

use blockcow_engine::backup::Kept;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Remains, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::storage::{MemoryStorage, Storage};

use crate::rig::{Chance, PATIENCE, Rig, folder_in_memory};

const SIZE: u64 = 1 << 20;

fn rig() -> Rig {
    Rig::file(folder_in_memory(), SIZE, &mut Chance::new(1))
}

/// What is left of a backup of `device` that died after its cut and `writes`.
pub fn left_after(device: Arc<dyn Storage>, spec: Spec, writes: impl FnOnce(&Driver)) -> Kept {
    let driver = Driver::new(device);
    let backup = driver.prepare(Spec { keep: true, ..spec }).unwrap();
    let kept = backup.kept().unwrap();
    driver.hold(PATIENCE).unwrap().arm(&backup).unwrap();
    writes(&driver);
    // Nothing of it is cleaned up, as after a kill.
    std::mem::forget(backup);
    kept
}

/// What is left of a backup of `device` right after its cut.
fn left(device: Arc<dyn Storage>, spec: Spec) -> Kept {
    left_after(device, spec, |_| ())
}

fn reason(device: Arc<dyn Storage>, remains: Remains) -> String {
    let error = Driver::new(device).resume(remains).err().expect("it is refused");
    assert_eq!(error.kind, ErrorKind::State, "{error}");
    error.to_string()
}

#[test]
fn a_container_or_device_behind_a_network() {
    let rig = rig();
    let container: Arc<dyn Storage> = Arc::new(MemoryStorage::new(64 << 10));
    let kept = left(rig.storage.clone(), Spec { container: ContainerPlace::Storage(container.clone()), ..rig.spec() });
    let mut remains = Remains::adopt(kept.descriptors, kept.note, None).unwrap();
    remains.container = Some(container);
    let said = reason(rig.storage.clone(), remains);
    assert!(said.contains("its container is behind a network"), "{said}");
    rig.assert_nothing_at_destination();

    let device: Arc<dyn Storage> = Arc::new(MemoryStorage::new(SIZE));
    let kept = left(device.clone(), rig.spec());
    let said = reason(device, Remains::adopt(kept.descriptors, kept.note, None).unwrap());
    assert!(said.contains("the device is behind a network"), "{said}");
    rig.assert_nothing_at_destination();
}

#[test]
fn another_device_and_the_note_of_another_backup() {
    let (rig, other) = (rig(), rig());
    let kept = left(rig.storage.clone(), rig.spec());
    let smaller = Rig::file(folder_in_memory(), SIZE - 512, &mut Chance::new(2));
    let said = reason(smaller.storage.clone(), Remains::adopt(kept.descriptors, kept.note, None).unwrap());
    assert!(said.contains("of a device of 1048576 bytes"), "{said}");
    rig.assert_nothing_at_destination();

    let (first, second) = (left(rig.storage.clone(), rig.spec()), left(other.storage.clone(), other.spec()));
    let said = reason(rig.storage.clone(), Remains::adopt(first.descriptors, second.note, None).unwrap());
    assert!(said.contains("another backup's"), "{said}");
}

#[test]
fn what_lacks_its_arena_or_its_image() {
    let rig = rig();
    for missing in ["arena", "image"] {
        let mut kept = left(rig.storage.clone(), rig.spec());
        kept.descriptors.retain(|(name, _)| name != missing);
        let error = Remains::adopt(kept.descriptors, kept.note, None).err().unwrap();
        assert!(error.to_string().contains(&format!("its {missing} was not kept")), "{error}");
        std::fs::remove_file(rig.folder.path().join("image.partial")).unwrap();
    }
}

#[test]
fn an_image_without_descriptors_is_opened_anew() {
    let rig = rig();
    let image: Arc<dyn Storage> = Arc::new(MemoryStorage::new(SIZE));
    let manifest = manifest_path_for(&rig.image());
    let destination = Destination::storage(image.clone(), "nbd://elsewhere".into(), &manifest, SIZE, false).unwrap();
    let kept = left(rig.storage.clone(), Spec { destination, ..rig.spec() });
    let expected = rig.bytes();
    let driver = rig.driver();
    let backup = driver.resume(Remains::adopt(kept.descriptors, kept.note, Some(image.clone())).unwrap()).unwrap();
    driver.write(&[1; SIZE as usize], 0).unwrap();
    crate::rig::finish(&backup);
    let mut found = vec![0; SIZE as usize];
    image.read_at(&mut found, 0).unwrap();
    crate::rig::assert_same(&found, &expected, "the image");
}
