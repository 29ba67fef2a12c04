//! The sweep and the drain: one mechanism that moves extents from device and container to the destination, in two
//! orders.
//!
//! An extent is swept once: claim what nobody has copied, read it in one I/O, let its writes go, merge what the
//! container holds, and write data, not zeroes, to the destination. Several sweepers run side by side.

mod desk;
mod lanes;
mod pace;
mod plan;

pub use desk::Desk;
pub use lanes::{Lane, Lanes};
pub use pace::Pace;
pub use plan::Plan;

use crate::digest::digest_of;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{BlockRange, ByteRange, DEFAULT_EXTENT, Geometry};
use crate::mutant::planted;
use crate::round::Round;
use crate::waiter::{Parker, Waiter, wake_all};
use crate::zeroes::data_runs;

/// Claimed runs that are no further apart than this are read in one I/O.
const READ_OVER_BYTES: u64 = DEFAULT_EXTENT / 16;
/// The unit in which zeroes are left out, in bytes; a smaller block size does not make it smaller.
const ZERO_UNIT: u64 = 4096;

/// One of the threads that sweep.
pub struct Sweeper<'a> {
    round: &'a Round,
    plan: &'a Plan,
    lanes: &'a Lanes,
    pace: &'a Pace,
    desk: Desk,
}

impl<'a> Sweeper<'a> {
    /// A sweeper of extents that `plan` chooses, in one of the `lanes`, not faster than `pace`.
    pub fn new(round: &'a Round, plan: &'a Plan, lanes: &'a Lanes, pace: &'a Pace, desk: Desk) -> Self {
        Self { round, plan, lanes, pace, desk }
    }

    /// Sweeps until the plan has no more extents or the backup ends; first what a dead process left on the desk.
    ///
    /// # Errors
    /// `Device`, `Container` or `Destination` with the offset, from the first extent that could not be swept.
    pub fn run(&mut self) -> Result<()> {
        if let Some(extent) = self.desk.extent() {
            self.sweep(extent, None)?;
        }
        while let Some(lane) = self.lanes.enter(self.round) {
            let Some(extent) = self.plan.next(self.round) else { break };
            self.desk.take_up(extent);
            self.sweep(extent, Some(lane))?;
        }
        Ok(())
    }

    /// Sweeps the extent at hand, in a lane unless a dead process had begun it.
    fn sweep(&mut self, extent: u32, lane: Option<Lane<'a>>) -> Result<()> {
        let (round, geometry) = (self.round, self.round.geometry);
        let blocks = geometry.blocks_of_extent(extent);
        let bytes = geometry.bytes_of(blocks);
        // In this order: what a writer copies in between is found.
        let untouched = self.desk.is_empty() && round.gate.map().all_copied(blocks);
        if untouched && round.container.holds_none_of(extent) {
            round.destination.zero(bytes)?;
            self.delivered(extent);
            return Ok(());
        }
        self.wait_for_turn(blocks);
        if !self.copy_pending(extent, blocks)? {
            return Ok(());
        }
        // What goes to another machine stands in no queue here.
        let _lane = lane.filter(|_| round.destination.is_local());
        let taken = round.container.take(extent);
        let length = bytes.len() as usize;
        round.container.read(&taken, blocks.start, &mut self.desk.buffer[..length])?;
        for block in taken.blocks() {
            self.desk.has_now(block - blocks.start);
        }
        self.blank_absent(blocks);
        if planted("slot-is-freed-before-delivery") {
            round.freed(round.container.release(taken));
            self.deliver(extent, bytes)?;
            self.delivered(extent);
            return Ok(());
        }
        if planted("delivered-before-the-data") {
            self.round.journal.deliver(extent);
        }
        self.deliver(extent, bytes)?;
        self.delivered(extent);
        round.freed(round.container.release(taken));
        Ok(())
    }

    /// The extent is at the destination. Only now may what it was made from be let go.
    fn delivered(&self, extent: u32) {
        self.round.delivered(extent);
        self.desk.put_down();
    }

    /// Keeps to the pace. Before anything is claimed, so that no write waits for it, and not while writes wait for a
    /// drain.
    fn wait_for_turn(&self, blocks: BlockRange) {
        if !self.round.gate.room().draining() {
            let pending = u64::from(self.round.gate.map().count_pending(blocks));
            self.pace.wait(pending * self.round.geometry.block_size(), self.round);
        }
    }

    /// Returns when every block of the extent is copied, by this sweeper into the buffer or by writers into the
    /// container. `false`: the backup has ended.
    fn copy_pending(&mut self, extent: u32, blocks: BlockRange) -> Result<bool> {
        loop {
            let runs = self.round.gate.claim(blocks);
            if !runs.is_empty() {
                self.read_claimed(extent, blocks, &runs)?;
                continue;
            }
            let parker = Parker::of_this_thread();
            if self.round.gate.watch(blocks, || Waiter::thread(&parker, None)) {
                parker.park();
                continue;
            }
            let active = self.round.is_active();
            if !active || self.round.gate.map().all_copied(blocks) {
                return Ok(active);
            }
        }
    }

    fn read_claimed(&mut self, extent: u32, blocks: BlockRange, runs: &[BlockRange]) -> Result<()> {
        let (round, geometry) = (self.round, self.round.geometry);
        let origin = geometry.bytes_of(blocks).start;
        // What others could not copy comes later, when some of the extent is in the buffer: never read over that.
        let read_over = if self.desk.is_empty() { READ_OVER_BYTES } else { 0 };
        for span in spans(geometry, runs, read_over) {
            let target = (span.start - origin) as usize..(span.end - origin) as usize;
            if let Err(error) = round.device.read_at(&mut self.desk.buffer[target], span.start)
                && !planted("unreadable-extent-is-ignored")
            {
                for &run in runs {
                    wake_all(round.gate.failed(run));
                }
                return Err(Error::io(ErrorKind::Device, "read from the device", &error).at(span.start));
            }
        }
        for &run in runs {
            for block in run.blocks() {
                self.desk.has_now(block - blocks.start);
            }
            round.stats.swept(extent, run.len());
            wake_all(round.gate.copied(run));
        }
        Ok(())
    }

    /// Blocks that nobody holds are off the list, or were found zero before a write: zero in the image, whatever was read
    /// over.
    fn blank_absent(&mut self, blocks: BlockRange) {
        let geometry = self.round.geometry;
        let origin = geometry.bytes_of(blocks).start;
        for index in 0..blocks.len() {
            if self.desk.has(index) || planted("what-was-read-over-stays") {
                continue;
            }
            let block = geometry.bytes_of(BlockRange::at(blocks.start + index, 1));
            self.desk.buffer[(block.start - origin) as usize..(block.end - origin) as usize].fill(0);
        }
    }

    /// Writes the data in the buffer to the destination, and leaves the zeroes out.
    fn deliver(&self, extent: u32, bytes: ByteRange) -> Result<()> {
        let round = self.round;
        let data = &self.desk.buffer[..bytes.len() as usize];
        let unit = round.geometry.block_size().max(ZERO_UNIT) as usize;
        let mut done = 0;
        for run in data_runs(data, unit) {
            zero_if_any(round, bytes.start, done, run.start)?;
            done = run.end;
            round.destination.write(&data[run.clone()], bytes.start + run.start as u64)?;
        }
        zero_if_any(round, bytes.start, done, data.len())?;
        if done > 0 && !planted("extent-has-no-digest") {
            round.digests.set(extent, &digest_of(data));
        }
        Ok(())
    }
}

fn zero_if_any(round: &Round, origin: u64, from: usize, to: usize) -> Result<()> {
    if from == to {
        return Ok(());
    }
    round.destination.zero(ByteRange { start: origin + from as u64, end: origin + to as u64 })
}

/// The byte ranges to read for claimed runs: those no further apart than `read_over` bytes in one.
fn spans(geometry: Geometry, runs: &[BlockRange], read_over: u64) -> Vec<ByteRange> {
    let mut spans: Vec<ByteRange> = Vec::new();
    for bytes in runs.iter().map(|&run| geometry.bytes_of(run)) {
        match spans.last_mut() {
            Some(last) if bytes.start - last.end <= read_over => last.end = bytes.end,
            _ => spans.push(bytes),
        }
    }
    spans
}
