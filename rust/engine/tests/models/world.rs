//! What the models of the gate share: a device and a copy of it in cells that two threads cannot touch at a time without loom
//! saying so, and between them the parts that the driver and the sweep play in the engine.

use std::sync::Arc;

use blockcow_engine::copied::{CopiedMap, words_for};
use blockcow_engine::flights::Flights;
use blockcow_engine::gate::{Decision, Gate, Limits, Reserved, Room};
use blockcow_engine::geometry::BlockRange;
use blockcow_engine::waiter::{Outcome, Parker, Waiter, wake_all};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread::{self, JoinHandle};

/// Room for whatever a model does.
pub const AMPLE: Limits = Limits { capacity: 8, drain: 1, staging: 8 };
/// Room for one block.
pub const ONE: Limits = Limits { capacity: 1, drain: 1, staging: 1 };

/// Programs write to a block side by side, each to its own part of it.
const PARTS: usize = 3;
type Block = [u8; PARTS];

/// One device, and the gate of one backup of it.
pub struct World {
    pub gate: Gate<Waiter, Vec<AtomicU64>>,
    pub flights: Flights<Waiter>,
    /// The backup is under way: writes ask the gate.
    pub armed: AtomicBool,
    first: u32,
    device: Vec<[UnsafeCell<u8>; PARTS]>,
    kept: Vec<UnsafeCell<Option<Block>>>,
}

// SAFETY: loom sees every access to the cells, and fails a model in which two of them are not in order.
unsafe impl Sync for World {}

impl World {
    /// A device of zeroes whose blocks are all on the list, numbered from the first of them.
    pub fn new(blocks: BlockRange, limits: Limits, armed: bool) -> Arc<Self> {
        let words = || (0..words_for(blocks.end)).map(|_| AtomicU64::new(0)).collect();
        let map = CopiedMap::new(words(), words());
        map.list(blocks);
        Arc::new(Self {
            gate: Gate::new(map, Reserved::none(), limits),
            flights: Flights::default(),
            armed: AtomicBool::new(armed),
            first: blocks.start,
            device: blocks.blocks().map(|_| Default::default()).collect(),
            kept: blocks.blocks().map(|_| UnsafeCell::new(None)).collect(),
        })
    }

    fn at(&self, block: u32) -> usize {
        (block - self.first) as usize
    }

    /// The old bytes of a claimed block, kept once and for ever.
    fn keep(&self, block: u32) {
        let old = self.read(block);
        self.kept[self.at(block)].with_mut(|kept| {
            // SAFETY: loom panics if somebody else is here.
            let before = unsafe { (*kept).replace(old) };
            assert_eq!(before, None, "block {block} is copied twice");
        });
    }

    /// The bytes of a block. loom panics if a program is writing them.
    pub fn read(&self, block: u32) -> Block {
        // SAFETY: as above.
        std::array::from_fn(|part| self.device[self.at(block)][part].with(|byte| unsafe { *byte }))
    }

    /// What the backup has of a block.
    pub fn kept(&self, block: u32) -> Option<Block> {
        // SAFETY: as above.
        self.kept[self.at(block)].with(|kept| unsafe { *kept })
    }

    /// Copies runs whose claims the caller holds, and lets their writes go.
    pub fn copy(&self, runs: &[BlockRange]) {
        for &run in runs {
            run.blocks().for_each(|block| self.keep(block));
            wake_all(self.gate.copied(run));
        }
    }

    /// Room came back.
    pub fn freed(&self, blocks: u32) {
        wake_all(self.gate.freed(Room { slots: blocks, staging: blocks }).0);
    }

    /// Takes a write to where it may go. What the gate refuses, or the deadline, is an error.
    pub fn admit(&self, blocks: BlockRange) -> Result<(), i32> {
        let mut place = None;
        loop {
            let parker = Parker::of_this_thread();
            let admission = self.gate.admit(blocks, place, |ticket| {
                place = Some(ticket);
                Waiter::thread(&parker, None)
            });
            wake_all(admission.wake);
            match admission.decision {
                Decision::Go => return Ok(()),
                Decision::Copy(runs) => self.copy(&runs),
                Decision::Wait { .. } => {
                    if let Outcome::Fail(errno) = parker.park() {
                        return Err(errno);
                    }
                }
                Decision::Refuse(errno) => return Err(errno),
                Decision::Trespass => unreachable!("the container is elsewhere"),
            }
        }
    }

    /// Writes `part` of every block.
    pub fn store(&self, blocks: BlockRange, part: usize) {
        for block in blocks.blocks() {
            // SAFETY: as above: whoever still copied this block would be seen here.
            self.device[self.at(block)][part].with_mut(|byte| unsafe { *byte += 1 });
        }
    }

    /// A write as the driver takes it: counted in, admitted if a backup is under way, done, counted out.
    pub fn write(&self, blocks: BlockRange, part: usize) {
        self.enter();
        if self.armed.load(Ordering::Acquire) {
            self.admit(blocks).unwrap();
        }
        self.store(blocks, part);
        self.leave();
    }

    /// Counts a write in, however long a hold makes it wait.
    pub fn enter(&self) {
        let parker = Parker::of_this_thread();
        while !self.flights.enter(|| Waiter::thread(&parker, None)) {
            parker.park();
        }
    }

    /// Counts it out.
    pub fn leave(&self) {
        wake_all(self.flights.leave());
    }

    /// Holds new writes and waits for those in flight.
    pub fn hold(&self) {
        let parker = Arc::new(Parker::default());
        if !self.flights.hold(|| Waiter::thread(&parker, None)) {
            parker.park();
        }
    }

    /// Makes the cut. Returns what the device is at that instant.
    pub fn cut(&self) -> Vec<Block> {
        self.hold();
        let now = (self.first..self.first + self.device.len() as u32).map(|block| self.read(block)).collect();
        self.armed.store(true, Ordering::Release);
        wake_all(self.flights.release());
        now
    }

    /// Sweeps an extent: copies what nobody has, and waits for what others are copying.
    pub fn sweep(&self, blocks: BlockRange) {
        loop {
            let runs = self.gate.claim(blocks);
            if !runs.is_empty() {
                self.copy(&runs);
                continue;
            }
            let parker = Parker::of_this_thread();
            if self.gate.watch(blocks, || Waiter::thread(&parker, None)) {
                parker.park();
            } else if self.gate.map().all_copied(blocks) {
                return;
            }
        }
    }

    /// Waits for blocks that others are copying until there is nothing to wait for.
    pub fn watch_until_the_end(&self, blocks: BlockRange) {
        let parker = Parker::of_this_thread();
        while self.gate.watch(blocks, || Waiter::thread(&parker, None)) {
            parker.park();
        }
    }

    /// Nobody waits any more, all is copied, and each block as it was: zero, for what began with the cut.
    pub fn assert_all_kept(&self) {
        let blocks = BlockRange::at(self.first, self.device.len() as u32);
        assert!(self.gate.map().all_copied(blocks) && self.gate.parked() == 0);
        blocks.blocks().for_each(|block| assert_eq!(self.kept(block), Some([0; PARTS]), "block {block}"));
    }
}

/// Runs one party on a thread.
pub fn party(world: &Arc<World>, part: impl FnOnce(&World) + 'static) -> JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || part(&world))
}
