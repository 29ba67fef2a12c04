//! Reads the data of a client's options. Pure: bytes in, fields or `None` for malformed data out.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::nbd::protocol::MAX_STRING;

/// The data of `INFO` and `GO`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    /// The export.
    pub name: &'a str,
    /// What the client asks about it, from `protocol::info`.
    pub infos: Vec<u16>,
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contexts<'a> {
    /// The export.
    pub name: &'a str,
    pub queries: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    pub(super) fn read(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.take::<U16>()?.get();
        let infos = (0..count).map(|_| fields.take::<U16>().map(U16::get)).collect::<Option<_>>()?;
        fields.0.is_empty().then_some(Self { name, infos })
    }
}

impl<'a> Contexts<'a> {
    pub(super) fn read(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.take::<U32>()?.get();
        // Ends with the data, whatever the count says.
        let queries = (0..count).map(|_| fields.string()).collect::<Option<_>>()?;
        fields.0.is_empty().then_some(Self { name, queries })
    }
}

/// What is left of the data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<T: FromBytes + Unaligned + KnownLayout + Immutable>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = self.take::<U32>()?.get() as usize;
        let (bytes, rest) = (length <= MAX_STRING).then(|| self.0.split_at_checked(length))??;
        self.0 = rest;
        std::str::from_utf8(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_read_and_nothing_else() {
        let whole = [&[0, 0, 0, 1, b'a'][..], &[0, 2, 0, 3, 0, 0]].concat();
        assert_eq!(Wanted::read(&whole), Some(Wanted { name: "a", infos: vec![3, 0] }));
        for length in 0..whole.len() {
            assert_eq!(Wanted::read(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(Wanted::read(&[&whole[..], &[0]].concat()), None, "a byte too many");
        assert_eq!(Wanted::read(&[0, 0, 0, 1, 0xff, 0, 0]), None, "not UTF-8");
        assert_eq!(Contexts::read(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None, "more queries than data");
        let contexts = [&[0; 4][..], &[0, 0, 0, 1, 0, 0, 0, 2, b'b', b':']].concat();
        assert_eq!(Contexts::read(&contexts), Some(Contexts { name: "", queries: vec!["b:"] }));
    }

    #[test]
    fn a_string_longer_than_the_protocol_allows_is_malformed() {
        let data = |length: usize| [&(length as u32).to_be_bytes()[..], &vec![b'a'; length], &[0, 0]].concat();
        assert!(Wanted::read(&data(MAX_STRING)).is_some());
        assert!(Wanted::read(&data(MAX_STRING + 1)).is_none());
    }
}
