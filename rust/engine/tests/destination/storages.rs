//! Images on any storage: written in place, found complete by their manifest alone, verified and restored from there.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use blockcow_engine::destination::Destination;
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::manifest::Manifest;
use blockcow_engine::restore::{Target, restore_image};
use blockcow_engine::scan::Image;
use blockcow_engine::storage::{Fault, FaultStorage, MemoryStorage, Operation, Storage};
use blockcow_engine::verify::verify_image;

use crate::backup::{MIB, SIZE, content, fill, geometry, names, on};

const NAME: &str = "elsewhere";

/// A storage larger than the image, and full of what was there before.
fn used() -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new(8 * MIB));
    storage.write_at(&[0xff; 8 << 20], 0).unwrap();
    storage
}

fn destination(storage: Arc<dyn Storage>, sheet: &Path, overwrite: bool) -> Result<Destination, Error> {
    Destination::storage(storage, NAME.into(), sheet, SIZE, overwrite)
}

fn image(storage: Arc<dyn Storage>, sheet: &Path) -> Result<Image, Error> {
    Image::of(storage, NAME.into(), Manifest::load(sheet)?)
}

#[test]
fn an_image_is_written_in_place_verified_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet");
    let storage = used();
    let written = destination(storage.clone(), &sheet, false).unwrap();
    written.publish(&fill(&written, geometry(), &content(1)).unwrap()).unwrap();
    let found = storage.snapshot();
    assert!(found[..SIZE as usize] == content(1), "zeroes are written too");
    assert!(found[SIZE as usize..].iter().all(|&byte| byte == 0xff), "what lies behind it is not touched");
    assert_eq!(names(folder.path()), ["sheet".to_string()].into());

    let source = image(storage.clone(), &sheet).unwrap();
    assert!(verify_image(&source, &on).unwrap().damaged.is_empty());
    let target = used();
    let report = restore_image(&source, Target::storage(target.clone(), "there".into()), false, &|_, _, _| {
        ControlFlow::Continue(())
    });
    assert!(!report.unwrap().created);
    assert!(target.snapshot()[..SIZE as usize] == content(1));

    storage.write_at(&[1], 3 * MIB + 7).unwrap();
    assert_eq!(verify_image(&source, &on).unwrap().damaged, [3 * MIB]);
    let untouched = used();
    let target = Target::storage(untouched.clone(), "there".into());
    let error = restore_image(&source, target, false, &|_, _, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!((error.kind, error.offset), (ErrorKind::Mismatch, Some(3 * MIB)));
    assert!(untouched.snapshot().iter().all(|&byte| byte == 0xff));
}

#[test]
fn an_old_manifest_is_kept_or_goes_before_the_first_write() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet");
    fs::write(&sheet, "an old manifest").unwrap();
    assert_eq!(destination(used(), &sheet, false).err().unwrap().kind, ErrorKind::Exists);
    assert_eq!(fs::read(&sheet).unwrap(), b"an old manifest");
    let again = destination(used(), &sheet, true).unwrap();
    assert!(!sheet.exists());
    again.abandon().unwrap();
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_is_too_small_is_refused_and_the_old_manifest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet");
    let good = used();
    let written = destination(good, &sheet, false).unwrap();
    written.publish(&fill(&written, geometry(), &content(1)).unwrap()).unwrap();
    let small = || Arc::new(MemoryStorage::new(SIZE - 1));
    let error = destination(small(), &sheet, true).err().unwrap();
    assert_eq!((error.kind, error.operation.as_str()), (ErrorKind::Invalid, "use elsewhere"));
    assert!(sheet.exists());
    let error = image(small(), &sheet).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.reason.contains(&SIZE.to_string()), "{error}");
}

/// An error with words around it, as a storage behind a protocol reports what the other side said.
#[derive(Debug, thiserror::Error)]
#[error("the other side says: {0}")]
struct Told(#[source] io::Error);

#[test]
fn a_failed_sync_publishes_nothing_and_the_number_inside_an_error_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet");
    let storage = Arc::new(FaultStorage::new(used()));
    storage.inject(Fault { operation: Operation::Sync, errno: libc::EIO, range: None, after: 0, times: None });
    let written = destination(storage, &sheet, false).unwrap();
    let error = written.publish(&fill(&written, geometry(), &content(1)).unwrap()).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Destination, Some(libc::EIO)));
    assert_eq!(error.operation, "sync to the destination elsewhere");
    assert!(names(folder.path()).is_empty());

    let told = io::Error::other(Told(io::Error::from_raw_os_error(libc::ENOSPC)));
    let error = Error::io(ErrorKind::Destination, "write", &told);
    assert_eq!(error.errno, Some(libc::ENOSPC));
    assert!(error.reason.starts_with("the other side says"), "{error}");
}
