//! Copy before write: reads old blocks from the device, puts them in the container, and lets the waiting writes go.

use crate::error::{Error, ErrorKind, Result};
use crate::gate::Room;
use crate::geometry::BlockRange;
use crate::mutant::planted;
use crate::round::Round;
use crate::waiter::wake_all;

/// Copies the runs, whose claims and room the caller holds. Whatever happens, the claims are settled afterwards.
///
/// # Errors
/// `Device` with the offset when an old block cannot be read; those blocks and the ones after them are unclaimed again.
pub fn copy_before_write(round: &Round, runs: &[BlockRange]) -> Result<()> {
    for (index, &run) in runs.iter().enumerate() {
        let mut rest = run;
        while !rest.is_empty() {
            match copy_piece(round, rest) {
                Ok(count) => rest.start += count,
                Err(error) => {
                    give_up(round, rest);
                    for &run in runs[index + 1..].iter().filter(|_| !planted("other-claims-are-kept-on-error")) {
                        give_up(round, run);
                    }
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Copies as many blocks from the front of `run` as staging has neighbouring places for.
fn copy_piece(round: &Round, run: BlockRange) -> Result<u32> {
    let mut memory = round.container.stage(run.len())?;
    let count = memory.count();
    let piece = BlockRange::at(run.start, count);
    let bytes = round.geometry.bytes_of(piece);
    if planted("copied-before-it-is-read") {
        wake_all(round.gate.copied(piece));
    }
    round
        .device
        .read_at(&mut memory[..bytes.len() as usize], bytes.start)
        .map_err(|error| Error::io(ErrorKind::Device, "read the old blocks from the device", &error).at(bytes.start))
        .or_else(|error| if planted("unreadable-old-block-is-ignored") { Ok(()) } else { Err(error) })?;
    let unused = round.container.store(piece.start, memory);
    round.tally_copied_before_write(piece);
    wake_all(round.gate.copied(piece));
    if unused != Room::default() {
        round.freed(unused);
    }
    Ok(count)
}

fn give_up(round: &Round, run: BlockRange) {
    wake_all(round.gate.failed(run));
    round.freed(Room { slots: run.len(), staging: run.len() });
}
