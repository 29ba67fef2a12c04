//! Backups of every form that a manifest takes. Makes none of them.

use std::collections::BTreeMap;

use blockcow_engine::manifest::Particulars;

/// What a backup is made of.
pub struct Shape {
    /// Sizes of the device, of a block and of an extent.
    pub sizes: (u64, u64, u64),
    /// Runs of blocks on the list: the first, and how many.
    pub list: Vec<(u32, u32)>,
    /// Extents that hold data; those that are not listed are zero.
    pub data: Vec<u32>,
    pub particulars: Particulars,
}

/// Every form that a manifest takes: no list and no digests, lists and digests of one line and of several, with gaps and
/// without, short last blocks and extents, and text of all kinds.
pub fn shapes() -> Vec<Shape> {
    let identity = [("path", "/dev/sdb1"), ("serial", "a\"b\\\n\u{fc}\u{1f980}"), ("", "")];
    let identity: BTreeMap<_, _> = identity.map(|(key, value)| (key.to_string(), value.to_string())).into();
    let figures = r#"{"drains":3,"suspended_us":{"p50":1,"max":18446744073709551615},"rate":-0.5,"x":[null,true,[]]}"#;
    let known = Particulars {
        cut_at: "2026-01-02T03:04:05.678901234Z".into(),
        identity,
        figures: serde_json::from_str(figures).unwrap(),
    };
    let shape = |sizes, list: &[(u32, u32)], data: &[u32]| Shape {
        sizes,
        list: list.to_vec(),
        data: data.to_vec(),
        particulars: known.clone(),
    };
    vec![
        Shape { particulars: Particulars::default(), ..shape((1, 512, 512), &[], &[]) },
        shape((511, 512, 512), &[(0, 1)], &[0]),
        shape((300_000, 4096, 16_384), &[(0, 10), (30, 44)], &[0, 1, 8, 17, 18]),
        shape((262_144 + 512, 512, 8192), &[(0, 1), (16, 17), (40, 473)], &[0, 2, 4, 6, 32]),
        shape((1 << 20, 1 << 20, 1 << 20), &[(0, 1)], &[0]),
        // 1300 runs: two lines of them; digests of 150 extents in three lines, and one more after a gap.
        Shape {
            list: (0..1300).map(|run| (run * 2, 1)).chain([(2600, 5)]).collect(),
            ..shape((2604 * 512 + 7, 512, 4096), &[], &(0..150).chain([320]).collect::<Vec<_>>())
        },
    ]
}
