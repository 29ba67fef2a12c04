//! What must hold of a history: of each write and flush as it ends, of the cut, of the figures, and of what is there after
//! the end.

use std::collections::BTreeMap;
use std::time::Duration;

use blockcow_engine::backup::Status;
use blockcow_engine::driver::Driver;
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_simulation::Instant;

use crate::cells::{CELL, tags};
use crate::history::History;
use crate::load::Write;
use crate::model::{self, Listed};
use crate::plan::Part;

impl History {
    /// A write has ended, and is judged.
    pub fn end_write(&self, write: &Write, outcome: Result<(), Error>, since: Option<Instant>) {
        self.model().end(&write.begun, outcome.is_ok() && !write.discards);
        let device = self.device(write.part);
        let mut facts = self.facts();
        if outcome.is_ok() && !write.discards && write.sections_are_held {
            facts.foreign[self.cells(write.part, write.bytes)].fill(false);
        }
        if let Err(error) = &outcome {
            let of_device = error.kind == ErrorKind::Device && (device.failed() > 0 || write.fast);
            facts.refused += u64::from(!of_device);
            facts.timed_out += u64::from(error.kind == ErrorKind::Timeout);
            assert!(of_device || self.plan.fail_write, "a write failed without a reason: {error}");
        }
        if let Some(since) = since {
            drop(facts);
            let (took, bound) = (since.elapsed(), self.plan.timeout + self.bound(write.part, write.bytes));
            assert!(took <= bound, "a write took {took:?}, and may take {bound:?}");
        }
    }

    /// The slowest request to any device so far.
    pub fn slowest(&self) -> Duration {
        self.facts().devices.iter().map(|device| device.slowest()).max().unwrap_or_default()
    }

    /// How long a write may take that does not wait for room: it is held by the cut, copies its blocks, and writes.
    fn bound(&self, part: usize, bytes: ByteRange) -> Duration {
        let blocks = bytes.len().div_ceil(self.plan.parts[part].block) as u32;
        self.slowest() * (blocks + 3)
    }

    /// Submitting waits for the device only, or for the container's last write into a place that it must not use any more.
    pub fn judge_submission(&self, part: usize, bytes: ByteRange, took: Duration) {
        let bound = self.bound(part, bytes);
        assert!(took <= bound || self.plan.trespass, "submitting took {took:?}, and may take {bound:?}");
    }

    /// What was acknowledged before a flush is durable after it.
    pub fn flush(&self, driver: &Driver, part: usize) {
        let cells = self.cells(part, ByteRange { start: 0, end: self.plan.parts[part].size });
        let before = self.model().look(cells.clone());
        let foreign = self.facts().foreign[cells.clone()].to_vec();
        if let Err(error) = driver.flush() {
            assert!(self.device(part).failed() > 0, "a flush failed on a sound device: {error}");
            return;
        }
        let durable = self.disk.durable();
        let mut found = tags(&durable[cells.start * CELL..cells.end * CELL], cells.start);
        // Cells of the container are not the model's.
        let possible = before.1.iter().map(|then| then[0]);
        found.iter_mut().zip(foreign).zip(possible).filter(|((_, foreign), _)| *foreign).for_each(
            |((found, _), then)| {
                *found = then;
            },
        );
        self.model().check_read(&found, cells.start, &before);
    }

    /// Whether the cut was made; if not, there must be a reason.
    pub fn judge_cut(&self) -> bool {
        let facts = self.facts();
        let Some(Err(error)) = &facts.cut else { return true };
        match error.kind {
            ErrorKind::Timeout => {
                let slowest = facts.devices.iter().map(|device| device.slowest()).sum::<Duration>();
                assert!(slowest * 2 >= self.plan.cut_timeout, "the cut took too long for {slowest:?}: {error}");
            }
            _ => assert!(facts.trespassed, "no cut: {error}"),
        }
        false
    }

    pub fn judge_status(&self, part: usize, status: &Status) {
        let plan = &self.plan.parts[part];
        let selected = (plan.capacity / plan.block * plan.block).max(plan.block);
        let Status { container_used_bytes: used, container_peak_bytes: peak, .. } = *status;
        assert!(used <= peak && peak <= selected, "the container holds {used} and held {peak} of {selected} bytes");
    }

    /// After the end.
    pub fn judge(&self) {
        let facts = self.facts();
        assert_eq!(facts.submitted, 0, "requests that were never completed");
        self.model().check(&self.disk.bytes(), &facts.foreign);
        let mut images = vec![0; facts.foreign.len() * CELL];
        let mut listed = vec![Listed::Void; facts.foreign.len()];
        for (part, end) in facts.ends.iter().enumerate() {
            let manifest = &self.manifests[part];
            let partial = manifest.with_extension("partial");
            let Some((State::Complete, _)) = end else {
                assert!(!manifest.exists() && !partial.exists(), "a manifest is left of what is not complete: {end:?}");
                let calm = self.plan.is_calm() && matches!(facts.cut, Some(Ok(())));
                assert!(!calm, "not complete, and nothing stood in the way: {end:?}");
                continue;
            };
            self.judge_image(part, &mut images, &mut listed);
        }
        if listed.iter().any(|listed| *listed != Listed::Void) {
            model::check_images(&images, &listed, &facts.instants);
        }
    }

    fn judge_image(&self, part: usize, images: &mut [u8], listed: &mut [Listed]) {
        let Part { size, block, ranges, .. } = &self.plan.parts[part];
        let durable = self.images[part].durable();
        assert!(durable == self.images[part].bytes(), "an image is complete that is not durable");
        let text = std::fs::read_to_string(&self.manifests[part]).expect("a complete backup has a manifest");
        let header: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("it is JSON");
        let extent = header["extent_size"].as_u64().expect("a number") as usize;
        assert_eq!((&header["status"], header["size"].as_u64()), (&"complete".into(), Some(*size)));
        assert_eq!(header["digest"], model::digest(&durable, extent), "the digest");
        let whole = self.cells(part, ByteRange { start: 0, end: *size });
        images[whole.start * CELL..whole.end * CELL].copy_from_slice(&durable);
        let all = vec![ByteRange { start: 0, end: *size }];
        listed[whole].fill(Listed::No);
        for range in ranges.as_ref().unwrap_or(&all) {
            let touched =
                ByteRange { start: range.start / block * block, end: range.end.next_multiple_of(*block).min(*size) };
            listed[self.cells(part, touched)].fill(Listed::Yes);
        }
        for reserved in self.reserved(part) {
            listed[self.cells(part, reserved)].fill(Listed::No);
        }
    }

    pub fn happened(&self) -> BTreeMap<&'static str, bool> {
        let facts = self.facts();
        let state = |state: State| facts.ends.iter().flatten().any(|(end, _)| *end == state);
        let cause = |kind: ErrorKind| {
            facts.ends.iter().flatten().any(|(_, cause)| cause.as_ref().is_some_and(|cause| cause.kind == kind))
        };
        let drained = facts.statuses.iter().any(|status| status.drains > 0);
        let suspended = facts.statuses.iter().any(|status| status.suspended_writes > 0);
        BTreeMap::from([
            ("complete", state(State::Complete)),
            ("broken", state(State::Broken)),
            ("cancelled", state(State::Cancelled)),
            ("resumed", facts.resumed && state(State::Complete)),
            ("suspended", suspended),
            ("drained", drained),
            ("refused", facts.refused > 0),
            ("timed out", facts.timed_out > 0 || cause(ErrorKind::Timeout)),
            ("trespassed", cause(ErrorKind::Trespass)),
        ])
    }
}
