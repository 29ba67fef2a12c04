//! Opening, creating and allocating files and devices: who is let in, and what the others are told.

use std::fs::File;
use std::io;
use std::path::Path;

use blockcow_engine::buffer::AlignedBuf;
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Access, FileStorage, Storage};

use crate::disks::{Loop, Mounted, can, run, text};

const MIB: u64 = 1 << 20;

fn refused(path: &Path, access: Access) -> Error {
    FileStorage::open(path, access, ErrorKind::Device).unwrap_err()
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = refused(&folder.path().join("missing"), Access::ReadOnly);
    assert_eq!((missing.kind, missing.errno), (ErrorKind::NotFound, Some(libc::ENOENT)));
    assert!(missing.operation.starts_with("open /"), "{missing}");

    let pipe = folder.path().join("pipe");
    run("mkfifo", &[text(&pipe)]);
    for (path, word) in [(folder.path(), "directory"), (Path::new("/dev/null"), "character"), (&pipe, "pipe")] {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = refused(path, access);
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.reason.contains(word), "{error}");
        }
    }
}

#[test]
fn create_makes_a_private_file_of_zeroes_and_never_takes_an_existing_one() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    drop(FileStorage::create(&path, 4099, ErrorKind::Container).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; 4099]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(FileStorage::create(&path, 1, ErrorKind::Container).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let nowhere = folder.path().join("no/such/folder");
    assert_eq!(FileStorage::create(&nowhere, 1, ErrorKind::Container).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_file_without_a_name_leaves_nothing_behind_and_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("container");
    std::fs::write(&path, "precious").unwrap();
    let storage = FileStorage::create_unnamed(&path, 4099, ErrorKind::Container).unwrap();
    storage.write_at(b"old blocks", 4089).unwrap();
    let mut found = [1; 4099];
    storage.read_at(&mut found, 0).unwrap();
    assert!(found[..4089].iter().all(|&byte| byte == 0) && found[4089..] == *b"old blocks");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let nowhere = folder.path().join("no/such/folder");
    assert_eq!(FileStorage::create_unnamed(&nowhere, 1, ErrorKind::Container).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn create_leaves_nothing_behind_when_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let error = FileStorage::create(&path, i64::MAX as u64, ErrorKind::Container).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Container, Some(libc::EFBIG)));
    assert!(!path.exists());
}

#[test]
fn block_device_is_held_and_a_mounted_one_is_refused() {
    if !can("block_device_is_held_and_a_mounted_one_is_refused", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let folder = Mounted::made("ext4", 16 * MIB);
    let error = refused(folder.device(), Access::ReadOnly);
    assert_eq!((error.kind, error.errno), (ErrorKind::Busy, Some(libc::EBUSY)));
    assert!(error.reason.contains("mounted"), "{error}");

    let device = Loop::new(MIB, &[]);
    let held = FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Device).unwrap();
    assert_eq!(refused(&device.path, Access::ReadWrite).kind, ErrorKind::Busy);
    drop(held);
    FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Device).unwrap();
}

#[test]
fn other_failures_bear_the_kind_of_the_role() {
    if !can("other_failures_bear_the_kind_of_the_role", &["losetup", "mkfs.ext4", "chattr"]) {
        return;
    }
    let folder = Mounted::made("ext4", 16 * MIB);
    let path = folder.path("immutable");
    std::fs::write(&path, [7; 4096]).unwrap();
    run("chattr", &["+i", text(&path)]);
    for role in [ErrorKind::Device, ErrorKind::Destination] {
        let error = FileStorage::open(&path, Access::ReadWrite, role).unwrap_err();
        assert_eq!((error.kind, error.errno), (role, Some(libc::EPERM)), "{error}");
    }
    let storage = FileStorage::open(&path, Access::ReadOnly, ErrorKind::Device).unwrap();
    let mut bytes = [0; 600];
    storage.read_at(&mut bytes, 100).unwrap();
    assert_eq!(bytes, [7; 600]);
    assert_eq!(storage.write_at(&[1; 600], 100).unwrap_err().raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_read_only_device_is_refused_before_the_first_write() {
    if !can("a_read_only_device_is_refused_before_the_first_write", &["losetup"]) {
        return;
    }
    let device = Loop::new(MIB, &["--read-only"]);
    let error = FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Destination).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Destination, Some(libc::EROFS)), "{error}");
    assert!(error.reason.contains("read-only"), "{error}");
    FileStorage::open(&device.path, Access::ReadOnly, ErrorKind::Device).unwrap();
}

#[test]
fn a_file_that_was_truncated_under_us_is_an_error_not_zeroes() {
    if !can("a_file_that_was_truncated_under_us_is_an_error_not_zeroes", &["losetup", "mkfs.ext4"]) {
        return;
    }
    for folder in [Mounted::made("ext4", 32 * MIB), Mounted::memory("tmpfs")] {
        let path = folder.path("image");
        let storage = FileStorage::create(&path, 4 * MIB + 77, ErrorKind::Container).unwrap();
        let mut buf = AlignedBuf::new(2 << 20);
        for size in [MIB + 1000, MIB, 3 * MIB + 512] {
            File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
            storage.read_at(&mut buf[..1000], size - 2000).unwrap();
            for offset in [size - 512, size, MIB, 3 * MIB] {
                if offset + buf.len() as u64 <= size {
                    continue;
                }
                let length = buf.len().min((storage.size() - offset) as usize);
                let error = storage.read_at(&mut buf[..length], offset).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{size} {offset}");
            }
        }
    }
}

#[test]
fn allocation_is_complete_or_refused() {
    use std::os::unix::fs::MetadataExt;
    if !can("allocation_is_complete_or_refused", &["losetup", "mkfs.ext4", "mkfs.ext2"]) {
        return;
    }
    let ext4 = Mounted::made("ext4", 32 * MIB);
    let storage = FileStorage::create(&ext4.path("fits"), 8 * MIB + 77, ErrorKind::Container).unwrap();
    storage.allocate().unwrap();
    let stat = ext4.path("fits").metadata().unwrap();
    assert!(stat.blocks() * 512 >= storage.size());
    assert_eq!(stat.len(), storage.size());
    let storage = FileStorage::create(&ext4.path("too-large"), 64 * MIB, ErrorKind::Container).unwrap();
    assert_eq!(storage.allocate().unwrap_err().kind(), io::ErrorKind::StorageFull);

    let ext2 = Mounted::made("ext2", 32 * MIB);
    let storage = FileStorage::create(&ext2.path("image"), MIB, ErrorKind::Container).unwrap();
    assert_eq!(storage.allocate().unwrap_err().kind(), io::ErrorKind::Unsupported);
}

#[test]
fn what_was_allocated_ahead_and_stays_zero_takes_no_space() {
    use std::os::unix::fs::MetadataExt;

    let name = "what_was_allocated_ahead_and_stays_zero_takes_no_space";
    if !can(name, &["losetup", "mkfs.ext4", "mkfs.xfs"]) {
        return;
    }
    for filesystem in ["ext4", "xfs"] {
        let mounted = Mounted::made(filesystem, 400 * MIB);
        let path = mounted.path("image");
        let storage = FileStorage::create(&path, 64 * MIB, ErrorKind::Destination).unwrap();
        let mut data = AlignedBuf::new(MIB as usize);
        data.fill(1);
        let is_data = |number: u64| number < 32 || number.is_multiple_of(4);
        for number in 0..64 {
            let extent = ByteRange { start: number * MIB, end: (number + 1) * MIB };
            if is_data(number) {
                storage.will_write(extent).unwrap();
                storage.write_at(&data, extent.start).unwrap();
            } else {
                storage.stays_zero(extent).unwrap();
            }
        }
        let used = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!((40 * MIB..41 * MIB).contains(&used), "{filesystem}: {used}");
        for number in 0..64 {
            storage.read_at(&mut data, number * MIB).unwrap();
            assert!(data.iter().all(|&byte| byte == u8::from(is_data(number))), "{filesystem}: {number}");
        }
    }
}

#[test]
fn a_file_gets_what_it_needs_where_there_is_no_room_to_allocate_ahead() {
    if !can("a_file_gets_what_it_needs_where_there_is_no_room_to_allocate_ahead", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let mounted = Mounted::made("ext4", 32 * MIB);
    let storage = FileStorage::create(&mounted.path("image"), 1024 * MIB, ErrorKind::Destination).unwrap();
    let free = rustix::fs::statvfs(mounted.path("image")).map(|free| free.f_bavail * free.f_frsize).unwrap();
    let data = AlignedBuf::new(MIB as usize);
    let extents = (0..1024).map(|number| ByteRange { start: number * MIB, end: (number + 1) * MIB });
    let write = |extent: ByteRange| storage.will_write(extent).and_then(|()| storage.write_at(&data, extent.start));
    let written = extents.map(write).take_while(Result::is_ok).count() as u64 * MIB;
    assert!(written > free - 2 * MIB, "{written} of {free} bytes");
}

#[test]
fn a_full_file_system_fails_the_write() {
    if !can("a_full_file_system_fails_the_write", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let folder = Mounted::made("ext4", 16 * MIB);
    let storage = FileStorage::create(&folder.path("image"), 64 * MIB, ErrorKind::Destination).unwrap();
    let buf = AlignedBuf::new(1 << 20);
    let error = (0..64).find_map(|piece| storage.write_at(&buf, piece * MIB).err()).expect("64 MiB do not fit in 16");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn holes_are_skipped() {
    if !can("holes_are_skipped", &["losetup", "mkfs.ext4"]) {
        return;
    }
    for folder in [Mounted::made("ext4", 32 * MIB), Mounted::memory("tmpfs")] {
        let storage = FileStorage::create(&folder.path("image"), 1 << 40, ErrorKind::Container).unwrap();
        assert_eq!(storage.next_data(0).unwrap(), None);
        storage.write_at(&[1; 8192], 1 << 30).unwrap();
        let data = ByteRange { start: 1 << 30, end: (1 << 30) + 8192 };
        assert_eq!(storage.next_data(77).unwrap(), Some(data));
        assert_eq!(storage.next_data(data.end).unwrap(), None);
        storage.discard(data).unwrap();
        assert_eq!(storage.next_data(0).unwrap(), None);
    }
}
