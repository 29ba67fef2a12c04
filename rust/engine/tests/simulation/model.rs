//! The reference: what device and image must hold, whatever the schedule was. Knows nothing of how blockcow does it.

use std::ops::Range;

use crate::cells::{Tag, tags};

/// A value that a cell may have, and when the write of it ended.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    tag: Tag,
    /// When the write of it began, which no other did.
    began: u64,
    ended: Option<u64>,
}

/// A write under way.
#[derive(Debug, Clone)]
pub struct Begun {
    cells: Range<usize>,
    pub tag: Tag,
    at: u64,
}

/// All devices of a run, one behind the other.
pub struct Model {
    cells: Vec<Vec<Candidate>>,
    begun: Vec<Begun>,
    under_way: Vec<Begun>,
    clock: u64,
}

impl Model {
    /// Devices that hold this.
    pub fn new(tags: &[Tag]) -> Self {
        let cells = tags.iter().map(|&tag| vec![Candidate { tag, began: 0, ended: Some(0) }]).collect();
        Self { cells, begun: Vec::new(), under_way: Vec::new(), clock: 0 }
    }

    /// A write begins: from now on each of its cells may be old or new.
    pub fn begin(&mut self, cells: Range<usize>, tag: Tag) -> Begun {
        self.clock += 1;
        let candidate = Candidate { tag, began: self.clock, ended: None };
        self.cells[cells.clone()].iter_mut().for_each(|cell| cell.push(candidate));
        let begun = Begun { cells, tag, at: self.clock };
        self.begun.push(begun.clone());
        self.under_way.push(begun.clone());
        begun
    }

    /// It ends. If it was acknowledged, nothing that had ended before it began is there any more; after a failure, a discard
    /// or a kill its cells may be either.
    pub fn end(&mut self, begun: &Begun, acknowledged: bool) {
        self.clock += 1;
        self.under_way.retain(|other| other.at != begun.at);
        for cell in &mut self.cells[begun.cells.clone()] {
            if acknowledged {
                cell.retain(|other| other.ended.is_none_or(|ended| ended > begun.at));
            }
            let own = cell.iter_mut().find(|candidate| candidate.began == begun.at);
            own.expect("it is the last to go").ended = Some(self.clock);
        }
    }

    /// The process died: what was under way took place or not.
    pub fn kill(&mut self) {
        std::mem::take(&mut self.under_way).iter().for_each(|begun| self.end(begun, false));
    }

    /// For a read: when it began, and what was possible then.
    pub fn look(&self, cells: Range<usize>) -> (u64, Vec<Vec<Tag>>) {
        (self.clock, cells.map(|cell| self.cells[cell].iter().map(|candidate| candidate.tag).collect()).collect())
    }

    /// What a read found must have been there between its beginning and now.
    pub fn check_read(&self, found: &[Tag], first: usize, (since, then): &(u64, Vec<Vec<Tag>>)) {
        for (index, tag) in found.iter().enumerate() {
            let cell = first + index;
            let later =
                self.begun.iter().any(|write| write.at > *since && write.tag == *tag && write.cells.contains(&cell));
            assert!(
                then[index].contains(tag) || later,
                "cell {cell} was read as {tag}; possible were {:?}",
                then[index]
            );
        }
    }

    /// What the devices hold now, but for cells that are `another`'s.
    pub fn check(&self, devices: &[u8], another: &[bool]) {
        for (cell, tag) in tags(devices, 0).into_iter().enumerate().filter(|(cell, _)| !another[*cell]) {
            let candidates = &self.cells[cell];
            let possible = candidates.iter().any(|candidate| candidate.tag == tag);
            assert!(possible, "cell {cell} of the devices holds {tag}; possible are {candidates:?}");
        }
    }
}

/// What the backup makes of a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Listed {
    Yes,
    No,
    /// It has not become complete.
    Void,
}

/// The images must be the devices as they were at one instant of the cut at which no write was under way: the same for all
/// devices of a group, on the listed cells, and zero elsewhere.
pub fn check_images(images: &[u8], listed: &[Listed], instants: &[Vec<u8>]) {
    let found = tags(images, 0);
    let differs = |instant: &Vec<u8>| {
        let then = tags(instant, 0);
        let expected = |cell: usize| if listed[cell] == Listed::Yes { then[cell] } else { 0 };
        let differs = |cell: &usize| listed[*cell] != Listed::Void && found[*cell] != expected(*cell);
        (0..found.len()).find(differs).map(|cell| (cell, found[cell], expected(cell)))
    };
    let first: Vec<_> = instants.iter().map(differs).collect();
    assert!(
        first.contains(&None),
        "images of no instant of the cut; first differences (cell, image, device): {first:?}"
    );
}

/// The digest that the manifest must have, as docs/formats.md says.
pub fn digest(image: &[u8], extent: usize) -> String {
    let mut all = blake3::Hasher::new();
    for bytes in image.chunks(extent) {
        let zero = bytes.iter().all(|&byte| byte == 0);
        all.update(&if zero { [0; 32] } else { *blake3::hash(bytes).as_bytes() });
    }
    all.finalize().to_hex().to_string()
}
