//! The memory of a table of digests. Alone in its process, because it looks at the memory of all of it.

use blockcow_engine::digest::{DigestTable, digest_of};

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
}

#[test]
fn extents_without_data_take_no_memory() {
    let before = resident_bytes();
    let table = DigestTable::new(1 << 22);
    for extent in [0, 1 << 21, (1 << 22) - 1] {
        table.set(extent, &digest_of(b"data"));
    }
    table.root();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "a table of 128 MiB in which three digests are set grew the process by {grown} bytes");
}
