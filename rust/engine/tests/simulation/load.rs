//! The programs: threads that write, zero, discard, read and flush, and one that submits requests and never waits.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use blockcow_engine::driver::{Driver, Request};
use blockcow_engine::error::Error;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::Zeroing;
use blockcow_simulation::{Chance, Instant, thread};

use crate::cells::{CELL, put, tags};
use crate::history::History;
use crate::model::Begun;

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Write,
    Zero,
    Discard,
}

/// A write that the model knows of.
pub struct Write {
    pub part: usize,
    pub bytes: ByteRange,
    pub begun: Begun,
    /// Whether it leaves open what is there afterwards.
    pub discards: bool,
    /// Whether it began when the containers had their places.
    pub sections_are_held: bool,
    /// Whether it may be refused as slow.
    pub fast: bool,
}

/// One program's view of the devices.
pub struct Program {
    pub history: Arc<History>,
    pub drivers: Vec<Arc<Driver>>,
    pub chance: Chance,
}

impl Program {
    /// Does what a program does, for a while.
    pub fn run(mut self) {
        for _ in 0..self.history.plan.operations {
            let part = self.chance.below(self.drivers.len() as u64) as usize;
            match self.chance.below(10) {
                0 => self.read(part),
                1 => self.history.flush(&self.drivers[part], part),
                2 => self.write(part, What::Zero),
                3 => self.write(part, What::Discard),
                _ => self.write(part, What::Write),
            }
            self.rest();
        }
    }

    /// The same without ever waiting.
    pub fn submit(mut self) {
        for _ in 0..self.history.plan.operations {
            let part = self.chance.below(self.drivers.len() as u64) as usize;
            let what = self.chance.pick(&[What::Write, What::Write, What::Zero, What::Discard]);
            let how = Zeroing { keep_space: self.chance.one_in(2), fast: self.chance.one_in(4) };
            if let Some(write) = self.begin(part, what, how.fast && what == What::Zero) {
                let (history, data, bytes) = (self.history.clone(), self.data(&write), write.bytes);
                history.count(|facts| facts.submitted += 1);
                let done = move |outcome: Result<(), Error>| {
                    history.count(|facts| facts.submitted -= 1);
                    history.end_write(&write, outcome, None);
                };
                let request = match what {
                    What::Write => Request::Write(Cow::Borrowed(&data), bytes.start),
                    What::Zero => Request::Zero(bytes, how),
                    What::Discard => Request::Discard(bytes),
                };
                let since = Instant::now();
                self.drivers[part].submit(request, Box::new(done));
                self.history.judge_submission(part, bytes, since.elapsed());
            }
            self.rest();
        }
    }

    fn rest(&mut self) {
        let rest = self.history.plan.rest.as_nanos() as u64;
        if rest > 0 {
            thread::sleep(Duration::from_nanos(self.chance.below(2 * rest)));
        }
    }

    fn write(&mut self, part: usize, what: What) {
        let Some(write) = self.begin(part, what, false) else { return };
        let (driver, bytes, since) = (&self.drivers[part], write.bytes, Instant::now());
        let outcome = match what {
            What::Write => driver.write(&self.data(&write), bytes.start),
            What::Zero => driver.zero(bytes.start, bytes.len()),
            What::Discard => driver.discard(bytes.start, bytes.len()),
        };
        self.history.end_write(&write, outcome, Some(since));
    }

    fn read(&mut self, part: usize) {
        let Some(bytes) = self.range(part) else { return };
        let cells = self.history.cells(part, bytes);
        let before = self.history.model().look(cells.clone());
        let (mut buffer, since) = (vec![0; bytes.len() as usize], Instant::now());
        match self.drivers[part].read(&mut buffer, bytes.start) {
            Ok(()) => self.history.model().check_read(&tags(&buffer, cells.start), cells.start, &before),
            Err(error) => assert!(self.history.device(part).failed() > 0, "a read failed on a sound device: {error}"),
        }
        let (took, slowest) = (since.elapsed(), self.history.slowest());
        assert!(took <= slowest, "a read took {took:?}, and the slowest request to a device {slowest:?}");
    }

    /// Some bytes of a device, not of the container's; `None` if there are none near.
    fn range(&mut self, part: usize) -> Option<ByteRange> {
        let history = self.history.clone();
        let size = history.plan.parts[part].size / CELL as u64;
        let start = self.chance.below(size);
        let length = 1 + self.chance.below((history.plan.largest / CELL as u64).min(size - start));
        let bytes = ByteRange { start: start * CELL as u64, end: (start + length) * CELL as u64 };
        let foreign = history.reserved(part).iter().any(|reserved| reserved.overlaps(bytes));
        (!foreign).then_some(bytes)
    }

    fn begin(&mut self, part: usize, what: What, fast: bool) -> Option<Write> {
        let trespasses = self.history.plan.trespass && self.chance.one_in(20);
        let bytes = match self.history.reserved(part).first().filter(|_| trespasses) {
            Some(reserved) => {
                self.history.count(|facts| facts.trespassed = true);
                ByteRange { start: reserved.start, end: reserved.start + CELL as u64 }
            }
            None => self.range(part)?,
        };
        let zeroes = what != What::Write || self.chance.one_in(8);
        let mut sections_are_held = false;
        self.history.count(|facts| sections_are_held = facts.prepared);
        let begun = self.history.begin(self.history.cells(part, bytes), zeroes);
        Some(Write { part, bytes, begun, discards: what == What::Discard, sections_are_held, fast })
    }

    fn data(&self, write: &Write) -> Vec<u8> {
        let mut data = vec![0; write.bytes.len() as usize];
        let first = self.history.cells(write.part, write.bytes).start;
        data.chunks_mut(CELL).enumerate().for_each(|(index, cell)| put(write.begun.tag, first + index, cell));
        data
    }
}
