//! A backup under write load by writers that reach the engine without Python, as front-ends do; prints one JSON object.
//!
//! Arguments: device, container, its bytes, image, number of writes. Four threads write 4 KiB at random places at full
//! speed and flush at their end. Times in seconds, from the first write to the end of the backup, and of both.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blockcow_engine::Policy;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Access, FileStorage, Storage};

const WRITERS: u64 = 4;
const BLOCK: u64 = 4096;
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, container, container_bytes, image, writes] = arguments.as_slice() else {
        return Err("device, container, its bytes, image, number of writes".into());
    };
    let (container_bytes, writes): (u64, u64) = (container_bytes.parse()?, writes.parse()?);
    let storage = Arc::new(FileStorage::open(device.as_ref(), Access::ReadWrite, ErrorKind::Device)?);
    let (size, logical_block) = (storage.size(), storage.logical_block());
    let driver = Driver::new(storage);
    let image = PathBuf::from(image);

    let start = Instant::now();
    let (seconds, status) = thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        for writer in 0..WRITERS {
            let driver = &driver;
            scope.spawn(move || {
                write_all(driver, writer, size / BLOCK, writes / WRITERS).expect("no write fails during a backup")
            });
        }
        let backup = driver.prepare(Spec {
            block_size: None,
            logical_block,
            container: ContainerPlace::Storage(Arc::new(FileStorage::create(
                container.as_ref(),
                container_bytes,
                ErrorKind::Container,
            )?)),
            staging_bytes: container_bytes,
            capacity_bytes: container_bytes / 10 * 9,
            drain_bytes: container_bytes / 4,
            destination: Destination::file(&image, &manifest_path_for(&image), size, false)?,
            listing: Listing::Device,
            policy: Policy { cbw_timeout: TIMEOUT, fail_write: false },
            limit_read: None,
            identity: BTreeMap::new(),
            keep: false,
        })?;
        driver.cut(&backup, TIMEOUT)?;
        backup.wait(None);
        Ok((start.elapsed().as_secs_f64(), backup.status()))
    })?;
    let both = start.elapsed().as_secs_f64();
    if status.status != State::Complete {
        return Err(status.error.unwrap_or_default().into());
    }
    println!("{{\"backup\": {seconds}, \"both\": {both}}}");
    Ok(())
}

fn write_all(driver: &Driver, writer: u64, blocks: u64, writes: u64) -> blockcow_engine::error::Result<()> {
    let mut state = (writer + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut data = [0; BLOCK as usize];
    for _ in 0..writes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data[..8].copy_from_slice(&state.to_le_bytes());
        driver.write(&data, state % blocks * BLOCK)?;
    }
    driver.flush()
}
