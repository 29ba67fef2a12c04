//! What can be asked of a backup at any time: its figures, and where its blocks are.

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::geometry::BlockRange;
use crate::round::Round;
use crate::state::State;
use crate::stats::Percentiles;
use crate::sync::Ordering;

/// Stretches of the device of which the record of an ended backup remembers the blocks.
const REMEMBERED_CELLS: u32 = 4096;

/// The figures of a backup, with the keys of the summary. Sizes in bytes, unless a name says otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The state.
    pub status: State,
    /// Size of the device.
    pub device_bytes: u64,
    /// Size of a block.
    pub block_size: u64,
    /// Bytes of the device with which the sweep is done.
    pub done_bytes: u64,
    /// Blocks on the list.
    pub blocks_listed: u64,
    /// Blocks that the sweep copied straight from the device.
    pub blocks_swept: u64,
    /// Blocks that were copied before a write.
    pub blocks_copied_before_write: u64,
    /// Writes that were suspended and have gone on.
    pub suspended_writes: u64,
    /// Writes that are suspended now, other than those that copy their own blocks.
    pub suspended_now: u64,
    /// For how long writes were suspended.
    pub suspended_us: Percentiles,
    /// For how long the cut held writes.
    pub hold_us: u64,
    /// The selected capacity.
    pub container_capacity_bytes: u64,
    /// What the container holds now.
    pub container_used_bytes: u64,
    /// The most that it held.
    pub container_peak_bytes: u64,
    /// How often the selected capacity was reached.
    pub drains: u64,
    /// Whether writes wait for a drain now.
    pub draining: bool,
    /// Bytes written to the destination.
    pub dest_written_bytes: u64,
    /// Bytes found zero, or off the list, and not written.
    pub zero_bytes: u64,
    /// The cut, RFC 3339 in UTC.
    pub cut_at: Option<String>,
    /// Seconds since the cut, until the end.
    pub duration_s: f64,
    /// The digest of the backup, when it is complete.
    pub digest: Option<String>,
    /// The first cause, when it is broken or cancelled.
    pub error: Option<String>,
    /// How often the process that made the backup died and another went on with it.
    pub worker_restarts: u64,
    /// Events that nobody read in time.
    pub events_dropped: u64,
}

/// Where the blocks of one stretch of the device are. Blocks off the list are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cell {
    /// Not yet copied.
    pub to_do: u64,
    /// Copied before a write and held by the container.
    pub in_container: u64,
    /// Copied before a write and on the way to, or at, the destination.
    pub copied_before_write: u64,
    /// Copied by the sweep.
    pub swept: u64,
}

impl std::ops::AddAssign for Cell {
    fn add_assign(&mut self, other: Self) {
        self.to_do += other.to_do;
        self.in_container += other.in_container;
        self.copied_before_write += other.copied_before_write;
        self.swept += other.swept;
    }
}

/// What is remembered of a backup after its end.
pub(super) struct Record {
    pub(super) status: Status,
    cells: Vec<Cell>,
}

impl Record {
    pub(super) fn of(round: &Round) -> Self {
        Self { status: status(round), cells: block_map(round, REMEMBERED_CELLS) }
    }

    pub(super) fn block_map(&self, cells: u32) -> Vec<Cell> {
        let stretches = stretches(self.cells.len() as u32, cells);
        let sum = |stretch: Range<u32>| {
            let mut sum = Cell::default();
            stretch.for_each(|cell| sum += self.cells[cell as usize]);
            sum
        };
        stretches.map(sum).collect()
    }
}

/// The blocks in `cells` equal stretches of the device; fewer if it has fewer extents.
pub(super) fn block_map(round: &Round, cells: u32) -> Vec<Cell> {
    stretches(round.geometry.extent_count(), cells).map(|extents| cell_of(round, extents)).collect()
}

/// `things` in so many stretches of nearly equal length, none of them empty.
fn stretches(things: u32, stretches: u32) -> impl Iterator<Item = Range<u32>> {
    let stretches = stretches.clamp(1, things);
    let edge = move |at: u32| (u64::from(at) * u64::from(things) / u64::from(stretches)) as u32;
    (0..stretches).map(move |at| edge(at)..edge(at + 1))
}

fn cell_of(round: &Round, extents: Range<u32>) -> Cell {
    let first = round.geometry.blocks_of_extent(extents.start).start;
    let last = round.geometry.blocks_of_extent(extents.end - 1).end;
    let in_container = u64::from(round.container.held(extents.clone()));
    let (swept, before) = round.stats.tally(extents);
    Cell {
        to_do: u64::from(round.gate.map().count_pending(BlockRange { start: first, end: last })),
        in_container,
        copied_before_write: before.saturating_sub(in_container),
        swept,
    }
}

/// The time of the cut, RFC 3339 in UTC.
pub(super) fn cut_at(round: &Round) -> Option<String> {
    round.cut.lock().map(|cut| humantime::format_rfc3339_micros(cut.at).to_string())
}

/// The figures that the manifest records.
pub(super) fn figures(round: &Round) -> Map<String, Value> {
    let mut figures = match serde_json::to_value(status(round)) {
        Ok(Value::Object(figures)) => figures,
        _ => Map::new(),
    };
    for only_while_it_runs in
        ["status", "digest", "error", "cut_at", "suspended_now", "container_used_bytes", "draining"]
    {
        figures.remove(only_while_it_runs);
    }
    figures
}

pub(super) fn status(round: &Round) -> Status {
    let block_size = round.geometry.block_size();
    let room = round.gate.room();
    let (suspended_writes, suspended_us) = round.stats.suspensions();
    let state = round.life.state();
    let cut = *round.cut.lock();
    Status {
        status: state,
        device_bytes: round.geometry.device_bytes(),
        block_size,
        done_bytes: round.stats.done_bytes.load(Ordering::Relaxed),
        blocks_listed: round.listed.load(Ordering::Relaxed),
        blocks_swept: round.stats.blocks_swept.load(Ordering::Relaxed),
        blocks_copied_before_write: round.stats.blocks_copied_before_write.load(Ordering::Relaxed),
        suspended_writes,
        suspended_now: round.gate.parked() as u64,
        suspended_us,
        hold_us: cut.map_or(0, |cut| cut.held.as_micros() as u64),
        container_capacity_bytes: u64::from(room.capacity()) * block_size,
        container_used_bytes: u64::from(room.used()) * block_size,
        container_peak_bytes: u64::from(room.peak()) * block_size,
        drains: room.drains(),
        draining: room.draining(),
        dest_written_bytes: round.destination.written_bytes(),
        zero_bytes: round.destination.zero_bytes(),
        cut_at: cut_at(round),
        duration_s: cut
            .map_or(Duration::ZERO, |cut| {
                round.life.ended_at().map_or_else(|| cut.instant.elapsed(), |end| end.duration_since(cut.instant))
            })
            .as_secs_f64(),
        digest: round.digest.get().cloned(),
        error: round.life.cause().map(|cause| cause.to_string()),
        worker_restarts: round.journal.restarts(),
        events_dropped: round.events.dropped(),
    }
}
