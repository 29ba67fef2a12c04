//! Bytes that outlive processes: what is in them, what of that is durable, and what is on its way there.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use blockcow_simulation::Chance;

use crate::cells::CELL;

/// The unit in which a sparse device has holes.
const HOLE: usize = 1024;
/// Bytes that outlive the processes that use them.
pub struct Disk(Mutex<State>);

struct State {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// How many syncs began, and the last of them whose bytes are in `durable`.
    syncs: u64,
    synced: u64,
    allocated: Vec<bool>,
    chance: Chance,
    /// What is under way: the bytes to change, and the cells in which that has not yet happened.
    under_way: Vec<Change>,
    changes: u64,
    /// The instants at which no change was under way, while somebody wants them.
    instants: Option<Vec<Vec<u8>>>,
}

struct Change {
    id: u64,
    at: usize,
    bytes: Vec<u8>,
    cells: Vec<usize>,
    frees: bool,
}

impl Disk {
    pub fn new(bytes: Vec<u8>, seed: u64) -> Arc<Self> {
        let allocated = bytes.chunks(HOLE).map(|piece| piece.iter().any(|&byte| byte != 0)).collect();
        let (durable, chance) = (bytes.clone(), Chance::new(seed));
        let state = State {
            bytes,
            durable,
            syncs: 0,
            synced: 0,
            allocated,
            chance,
            under_way: Vec::new(),
            changes: 0,
            instants: None,
        };
        Arc::new(Self(Mutex::new(state)))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    /// From now on remembers the instants at which no change is under way.
    pub fn watch(&self) {
        let mut state = self.lock();
        state.instants = Some(Vec::new());
        state.quiet();
    }

    /// The instants since then.
    pub fn instants(&self) -> Vec<Vec<u8>> {
        self.lock().instants.take().unwrap_or_default()
    }

    /// The process was killed: each cell of what was under way is changed or not.
    pub fn kill(&self) {
        let mut state = self.lock();
        for change in std::mem::take(&mut state.under_way) {
            let done = change.cells.iter().copied().filter(|_| state.chance.one_in(2)).collect::<Vec<_>>();
            state.change(&change, &done);
        }
    }

    /// Reads the bytes from `start` on, or only one in so many cells, as if the others had been read before.
    pub fn read(&self, buffer: &mut [u8], start: usize, one_in: u64) {
        let state = &mut *self.lock();
        for (index, cell) in buffer.chunks_mut(CELL).enumerate() {
            if state.chance.one_in(one_in) {
                let at = start + index * CELL;
                cell.copy_from_slice(&state.bytes[at..at + cell.len()]);
            }
        }
    }

    /// A sync begins: which, and what it will have made durable.
    pub fn begin_sync(&self) -> (u64, Vec<u8>) {
        let mut state = self.lock();
        state.syncs += 1;
        (state.syncs, state.bytes.clone())
    }

    /// It ends, perhaps after one that began later.
    pub fn end_sync(&self, (number, bytes): (u64, Vec<u8>)) {
        let mut state = self.lock();
        if number > state.synced {
            (state.synced, state.durable) = (number, bytes);
        }
    }

    /// The first stretch of `part` that is no hole.
    pub fn next_data(&self, part: Range<usize>) -> Option<Range<usize>> {
        let state = self.lock();
        let is_data = |at: &usize| state.allocated[at / HOLE];
        let start = part.clone().step_by(CELL).find(is_data)?;
        let end = (start..part.end).step_by(CELL).find(|at| !is_data(at)).unwrap_or(part.end);
        Some(start..end)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }

    /// A change begins; some of its cells may change at once.
    pub fn begin(&self, at: usize, bytes: Vec<u8>, frees: bool) -> u64 {
        let mut state = self.lock();
        state.changes += 1;
        let (id, cells) = (state.changes, (0..bytes.len().div_ceil(CELL)).collect());
        let mut change = Change { id, at, bytes, cells, frees };
        state.happen(&mut change, false);
        state.under_way.push(change);
        id
    }

    /// It ends, as a whole or as far as it came.
    pub fn end(&self, id: u64, whole: bool) {
        let mut state = self.lock();
        let index = state.under_way.iter().position(|change| change.id == id).expect("it is under way");
        let mut change = state.under_way.remove(index);
        state.happen(&mut change, whole);
        state.quiet();
    }
}

impl State {
    /// A few cells change, or all that are left.
    fn happen(&mut self, change: &mut Change, whole: bool) {
        let part = if whole { 1 } else { self.chance.pick(&[1, 2, u64::MAX]) };
        let chance = &mut self.chance;
        let now: Vec<usize> = change.cells.iter().copied().filter(|_| chance.one_in(part)).collect();
        change.cells.retain(|cell| !now.contains(cell));
        self.change(change, &now);
    }

    fn change(&mut self, change: &Change, cells: &[usize]) {
        for cell in cells {
            let piece = cell * CELL..((cell + 1) * CELL).min(change.bytes.len());
            let place = change.at + piece.start..change.at + piece.end;
            self.allocated[place.start / HOLE] |= !change.frees;
            self.bytes[place].copy_from_slice(&change.bytes[piece]);
        }
    }

    fn quiet(&mut self) {
        if let Some(instants) = self.instants.as_mut().filter(|_| self.under_way.is_empty()) {
            instants.push(self.bytes.clone());
        }
    }
}
