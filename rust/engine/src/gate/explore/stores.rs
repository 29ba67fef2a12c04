//! What device, container and destination hold, a letter a block: the model by which the image is judged. Knows nothing of
//! the gate.

use super::world::BLOCKS;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Content {
    Zero,
    /// From before all writes.
    Old,
    /// Of a write before the cut.
    Early,
    /// Of a write after it.
    Late,
    /// No bytes here.
    Nothing,
}

/// Where the container has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Nowhere,
    Staged,
    Stored,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stores {
    pub device: [Content; BLOCKS],
    /// The device at the cut.
    pub cut: [Content; BLOCKS],
    pub image: [Content; BLOCKS],
    /// On a sweeper's desk.
    pub desk: [Content; BLOCKS],
    pub kept: [Content; BLOCKS],
    pub place: [Place; BLOCKS],
    /// Out of the index, in a sweeper's hands.
    pub taken: u8,
    /// In the hands of the write-behind.
    pub batch: u8,
    /// Slots that the write-behind has filled and not yet handed to the index.
    pub filling: u8,
    /// Blocks of zeroes that a writer found; they are kept nowhere.
    pub found_zero: u8,
    /// The container is closed.
    pub closed: bool,
}

impl Stores {
    /// A device of the blocks in one mask, of which those in the other are zero.
    pub(super) fn new(blocks: u8, zero: u8) -> Self {
        let device = std::array::from_fn(|block| match (blocks >> block & 1, zero >> block & 1) {
            (0, _) => Content::Nothing,
            (_, 0) => Content::Old,
            _ => Content::Zero,
        });
        let nothing = [Content::Nothing; BLOCKS];
        Self {
            device,
            cut: nothing,
            image: nothing,
            desk: nothing,
            kept: nothing,
            place: [Place::Nowhere; BLOCKS],
            taken: 0,
            batch: 0,
            filling: 0,
            found_zero: 0,
            closed: false,
        }
    }

    /// Blocks that the index knows, of a mask.
    pub(super) fn indexed(&self, mask: u8) -> u8 {
        self.at(|place| place != Place::Nowhere) & !self.taken & mask
    }

    pub(super) fn at(&self, wanted: impl Fn(Place) -> bool) -> u8 {
        (0..BLOCKS).filter(|&block| wanted(self.place[block])).map(|block| 1 << block).sum()
    }

    /// Blocks whose bytes are in staging: the index or a sweeper has them there, or the write-behind.
    pub(super) fn in_staging(&self) -> u8 {
        self.at(|place| place == Place::Staged) | self.batch
    }

    /// Slots of the log that are taken.
    pub(super) fn slots(&self) -> u32 {
        self.at(|place| place == Place::Stored).count_ones() + self.filling.count_ones()
    }

    /// Whether what the block held at the cut can still come into the image.
    pub(super) fn is_safe(&self, block: usize) -> bool {
        let old = self.cut[block];
        let places = [self.desk[block], self.kept[block], self.image[block]];
        places.contains(&old) || (old == Content::Zero && self.found_zero >> block & 1 != 0)
    }

    /// What is where means nothing any more, only whether it takes room: many states become one.
    pub(super) fn forget_contents(&mut self) {
        let nothing = [Content::Nothing; BLOCKS];
        (self.device, self.cut, self.image, self.desk, self.kept) = (nothing, nothing, nothing, nothing, nothing);
        self.found_zero = 0;
    }

    pub(super) fn image_is_the_cut(&self) -> bool {
        self.image == self.cut
    }
}
