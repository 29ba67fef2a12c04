//! Devices in cells, each with a number that says which write its bytes are of.

/// Writes take effect a cell at a time; devices, blocks and writes are multiples of it.
pub const CELL: usize = 256;

/// What a cell holds: 0 is zeroes, anything else the number of the write that wrote it.
pub type Tag = u32;

/// The bytes of a cell at its place, so that what comes to stand in a wrong place is seen.
pub fn put(tag: Tag, at: usize, cell: &mut [u8]) {
    let word = if tag == 0 { 0 } else { u64::from(tag) << 32 | at as u64 };
    cell.chunks_exact_mut(8).for_each(|piece| piece.copy_from_slice(&word.to_le_bytes()));
}

/// What was never written to the cell in which it is found.
const STRANGE: Tag = Tag::MAX;

/// What the cells from `first` on hold.
pub fn tags(bytes: &[u8], first: usize) -> Vec<Tag> {
    let tag = |(index, cell): (usize, &[u8])| {
        let word = u64::from_le_bytes(cell[..8].try_into().expect("eight bytes"));
        let (tag, at) = ((word >> 32) as Tag, word as u32 as usize);
        let whole = cell.chunks_exact(8).all(|piece| piece == &cell[..8]);
        if whole && (at == first + index || word == 0) { tag } else { STRANGE }
    };
    bytes.chunks(CELL).enumerate().map(tag).collect()
}
