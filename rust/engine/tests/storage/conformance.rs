//! Every storage of the engine passes the suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockcow_engine::buffer::AlignedBuf;
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{
    Access, Alignment, FaultStorage, FileStorage, MemoryStorage, SectionStorage, Storage, ThrottledStorage, Zeroing,
};

use crate::disks::{Loop, Mounted, can};
use crate::suite::{conform, holds};

/// Runs the suite on a new file of each awkward size, and looks again after the file was closed.
fn conform_file(folder: &Mounted, direct: bool) {
    for (seed, size) in [(1, (64 << 20) + 512), (2, (64 << 20) + 77), (3, 300_007), (4, 77), (5, 64 << 20)] {
        let path = folder.path(&format!("image-{size}"));
        let storage = FileStorage::create(&path, size, ErrorKind::Container).unwrap();
        assert_eq!(storage.direct(), direct);
        assert!(!storage.is_block_device());
        let expected = conform(&storage, seed);
        drop(storage);
        assert_eq!(path.metadata().unwrap().len(), size);
        holds(&FileStorage::open(&path, Access::ReadOnly, ErrorKind::Device).unwrap(), &expected);
        let plain = std::fs::read(&path).unwrap();
        assert!(plain == expected, "other programs see something else");
        std::fs::remove_file(&path).unwrap();
    }
}

fn conform_device(sectors: u64, options: &[&str], logical_block: u64) {
    let device = Loop::new(sectors * 512, options);
    let storage = FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Device).unwrap();
    assert!(storage.direct() && storage.is_block_device());
    assert_eq!((storage.logical_block(), storage.size()), (logical_block, sectors * 512));
    let expected = conform(&storage, 6);
    drop(storage);
    holds(&FileStorage::open(&device.path, Access::ReadOnly, ErrorKind::Device).unwrap(), &expected);
}

#[test]
fn memory_conforms() {
    for (seed, size) in [(7, 1), (8, 300_007), (9, (2 << 20) + 77)] {
        let storage = MemoryStorage::new(size);
        let expected = conform(&storage, seed);
        assert!(storage.snapshot() == expected);
    }
}

#[test]
fn section_of_memory_conforms_and_stays_inside() {
    let whole = Arc::new(MemoryStorage::new(1 << 20));
    whole.write_at(&[7; 1 << 20], 0).unwrap();
    let range = ByteRange { start: 1001, end: 900_002 };
    let section = SectionStorage::new(whole.clone(), &[range]).unwrap();
    section.zero(ByteRange { start: 0, end: section.size() }, Zeroing::ANY).unwrap();
    conform(&section, 10);
    let bytes = whole.snapshot();
    let outside = [&bytes[..range.start as usize], &bytes[range.end as usize..]].concat();
    assert!(outside.iter().all(|byte| *byte == 7));
}

#[test]
fn sections_one_behind_the_other_conform_and_stay_inside() {
    let whole = Arc::new(MemoryStorage::new(1 << 20));
    whole.write_at(&[7; 1 << 20], 0).unwrap();
    // In no order, one of a byte, one empty, and two that touch.
    let ranges = [(700_000, 900_002), (1001, 300_000), (5, 6), (400, 400), (300_000, 300_512)];
    let ranges = ranges.map(|(start, end)| ByteRange { start, end });
    let sections = SectionStorage::new(whole.clone(), &ranges).unwrap();
    assert_eq!(sections.size(), ranges.iter().map(|range| range.len()).sum::<u64>());
    sections.zero(ByteRange { start: 0, end: sections.size() }, Zeroing::ANY).unwrap();
    let expected = conform(&sections, 15);
    let mut bytes = whole.snapshot();
    let joined: Vec<u8> =
        ranges.iter().flat_map(|range| bytes[range.start as usize..range.end as usize].to_vec()).collect();
    assert!(joined == expected, "each byte lies where its section says");
    for range in ranges {
        bytes[range.start as usize..range.end as usize].fill(7);
    }
    assert!(bytes.iter().all(|byte| *byte == 7), "nothing else was written");
}

#[test]
fn decorators_conform() {
    let memory = || Arc::new(MemoryStorage::new(300_007));
    conform(&FaultStorage::new(memory()), 11);
    conform(&ThrottledStorage::new(memory(), u64::MAX), 12);
}

#[test]
fn file_on_tmpfs_conforms() {
    if can("file_on_tmpfs_conforms", &["mount"]) {
        conform_file(&Mounted::memory("tmpfs"), false);
    }
}

#[test]
fn file_that_no_fallocate_serves_conforms() {
    if can("file_that_no_fallocate_serves_conforms", &["mount"]) {
        conform_file(&Mounted::memory("ramfs"), false);
    }
}

#[test]
fn file_on_ext4_conforms() {
    if can("file_on_ext4_conforms", &["losetup", "mkfs.ext4"]) {
        conform_file(&Mounted::made("ext4", 256 << 20), true);
    }
}

#[test]
fn file_on_ext2_conforms() {
    if can("file_on_ext2_conforms", &["losetup", "mkfs.ext2"]) {
        conform_file(&Mounted::made("ext2", 256 << 20), true);
    }
}

#[test]
fn section_between_sectors_of_a_file_conforms() {
    if !can("section_between_sectors_of_a_file_conforms", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let folder = Mounted::made("ext4", 64 << 20);
    let file = FileStorage::create(&folder.path("image"), (16 << 20) + 77, ErrorKind::Container).unwrap();
    let size = file.size();
    let whole: Arc<dyn Storage> = Arc::new(file);
    for (seed, start) in [(13, 1001), (14, 1 << 20)] {
        let section = SectionStorage::new(whole.clone(), &[ByteRange { start, end: size - 33 }]).unwrap();
        section.zero(ByteRange { start: 0, end: section.size() }, Zeroing::ANY).unwrap();
        assert_eq!(section.alignment() == Alignment::NONE, start == 1001);
        conform(&section, seed);
    }
}

#[test]
fn loop_device_conforms() {
    if can("loop_device_conforms", &["losetup"]) {
        conform_device(100_003, &[], 512);
    }
}

#[test]
fn loop_device_with_large_sectors_conforms() {
    if can("loop_device_with_large_sectors_conforms", &["losetup"]) {
        conform_device(100_000, &["--sector-size", "4096"], 4096);
    }
}

/// A write of one byte reads and writes back its sector; what comes to the rest of the sector meanwhile must stay.
#[test]
fn a_byte_written_meanwhile_takes_nothing_else_back() {
    if !can("a_byte_written_meanwhile_takes_nothing_else_back", &["losetup"]) {
        return;
    }
    let device = Loop::new(1 << 20, &[]);
    let storage = FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Device).unwrap();
    let sector = ByteRange { start: 512, end: 1024 };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                storage.write_at(&[255], sector.start).unwrap();
            }
        });
        let mut buf = AlignedBuf::new(512);
        let kept = (1..500).all(|round| {
            let value = if round % 2 == 0 { 0 } else { (round % 200) as u8 };
            buf.fill(value);
            if value == 0 { storage.zero(sector, Zeroing::ANY) } else { storage.write_at(&buf, sector.start) }.unwrap();
            storage.read_at(&mut buf, sector.start).unwrap();
            buf[1..].iter().all(|byte| *byte == value)
        });
        done.store(true, Ordering::Relaxed);
        assert!(kept, "a sector was written back as it had been before");
    });
}
