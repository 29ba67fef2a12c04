//! Finding zeroes in memory, so that they need not be written. Knows nothing of blocks or of where bytes come from.

use std::ops::Range;

/// Compared piecewise: small enough to stay in the first cache, large enough that the C library compares at full width.
static ZEROES: [u8; 4096] = [0; 4096];

/// Whether all bytes are zero; stops at the first piece that has another.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROES.len()).all(|piece| *piece == ZEROES[..piece.len()])
}

/// The longest runs of units that are not all zero, ascending. `unit` is a number of bytes above 0; the last unit of
/// `bytes` may be short.
pub fn data_runs(bytes: &[u8], unit: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let is_data = move |at: usize| !is_zero(&bytes[at..bytes.len().min(at + unit)]);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_data(at) {
            at += unit;
        }
        let start = at;
        while at < bytes.len() && is_data(at) {
            at += unit;
        }
        (start < bytes.len()).then(|| start..bytes.len().min(at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_single_bit_anywhere_is_seen() {
        for length in [1, 7, 4095, 4096, 4097, 10_000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length - 1] {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }

    proptest! {
        #[test]
        fn runs_hold_all_data_and_are_maximal(units in prop::collection::vec(any::<bool>(), 0..40), cut in 0usize..8) {
            const UNIT: usize = 8;
            let mut bytes: Vec<u8> = units.iter().flat_map(|&data| [if data { 9 } else { 0 }; UNIT]).collect();
            bytes.truncate(bytes.len().saturating_sub(cut));
            let runs: Vec<_> = data_runs(&bytes, UNIT).collect();
            let inside = |at: usize| runs.iter().any(|run| run.contains(&at));
            for (at, byte) in bytes.iter().enumerate() {
                prop_assert_eq!(*byte != 0, inside(at));
            }
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
