//! Opens what a path or an NBD URI names: a container, a destination, an image, the target of a restore.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use blockcow_engine::destination::Destination;
use blockcow_engine::driver::ContainerPlace;
use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::manifest::Manifest;
use blockcow_engine::restore::Target;
use blockcow_engine::scan::Image;
use blockcow_engine::storage::{Access, SectionStorage, Storage};
use blockcow_frontends::nbd::client::{NbdStorage, Patience, Uri};

/// What tells whether two places are one.
const MARK_BYTES: usize = 4096;

/// The URI, if `path` is meant as one.
pub fn uri_of(path: &Path) -> Result<Option<Uri>> {
    match path.to_str() {
        Some(text) if Uri::is_meant(text) => Uri::parse(text).map(Some),
        _ => Ok(None),
    }
}

/// An export in use. `silence`: after how long without any sign of the server it is given up.
pub fn open(uri: &Uri, access: Access, silence: Option<Duration>, role: ErrorKind) -> Result<NbdStorage> {
    let default = Patience::default();
    NbdStorage::open(uri, access, Patience { silence: silence.unwrap_or(default.silence), ..default }, role)
}

/// The first `bytes` of an export, as a container; 0 takes all of it.
pub fn container(export: Arc<NbdStorage>, bytes: u64) -> Result<Arc<dyn Storage>> {
    let size = export.size();
    let end = if bytes == 0 { size } else { bytes };
    Ok(Arc::new(SectionStorage::new(export, &[ByteRange { start: 0, end }])?))
}

/// An export as a destination, apart from the container.
pub fn destination(
    export: Arc<NbdStorage>,
    manifest: &Path,
    size: u64,
    overwrite: bool,
    container: &ContainerPlace,
) -> Result<Destination> {
    let uri = export.uri().to_string();
    require_sync(&export, format!("use {uri} as the destination"))?;
    if let ContainerPlace::Storage(other) = container {
        refuse_one_place(&uri, &export, &**other)?;
    }
    Destination::storage(export, uri, manifest, size, overwrite)
}

fn require_sync(export: &NbdStorage, operation: String) -> Result<()> {
    if export.can_sync() {
        return Ok(());
    }
    let reason = "its server offers neither FLUSH nor FUA, so nothing tells when data are safe there; use another";
    Err(Error::new(ErrorKind::Invalid, operation, reason))
}

/// Two URIs may lead to one disk, and many servers do not look at the export's name. So a mark is left in the container,
/// whose content means nothing yet, and looked for in the destination.
fn refuse_one_place(uri: &str, destination: &NbdStorage, container: &dyn Storage) -> Result<()> {
    let length = MARK_BYTES.min(destination.size().min(container.size()) as usize);
    let (mut before, mut after) = (vec![0; length], vec![0; length]);
    let operation = || format!("see whether {uri} and the container are one place");
    let failed = |role| move |error: std::io::Error| Error::io(role, operation(), &error);
    container.read_at(&mut before, 0).map_err(failed(ErrorKind::Container))?;
    let mark = mark(length);
    container.write_at(&mark, 0).map_err(failed(ErrorKind::Container))?;
    destination.read_at(&mut after, 0).map_err(failed(ErrorKind::Destination))?;
    if after != mark {
        return Ok(());
    }
    container.write_at(&before, 0).map_err(failed(ErrorKind::Container))?;
    let reason = "the container lies on the same disk: what is written to one is in the other; name another place";
    Err(Error::new(ErrorKind::Invalid, format!("use {uri} as the destination"), reason))
}

/// Bytes that are nowhere by chance.
fn mark(length: usize) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let seed = format!("blockcow {} {now}", std::process::id());
    seed.bytes().cycle().take(length).collect()
}

/// An image and its manifest.
pub fn image(path: &Path, manifest: &Path) -> Result<Image> {
    let Some(uri) = uri_of(path)? else { return Image::open(path, manifest) };
    let manifest = Manifest::load(manifest)?;
    let storage = open(&uri, Access::ReadOnly, None, ErrorKind::Destination)?;
    Image::of(Arc::new(storage), uri.to_string(), manifest)
}

/// Where an image of `size` bytes is restored to; `None`: a path, which the engine opens.
pub fn target(path: &Path) -> Result<Option<Target>> {
    let Some(uri) = uri_of(path)? else { return Ok(None) };
    let storage = open(&uri, Access::ReadWrite, None, ErrorKind::Device)?;
    require_sync(&storage, format!("restore to {uri}"))?;
    Ok(Some(Target::storage(Arc::new(storage), uri.to_string())))
}
