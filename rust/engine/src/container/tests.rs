//! What the container keeps in memory beside the blocks themselves.

use super::*;
use crate::arena::{Marks, regions};

const BLOCK: usize = 4096;
const EXTENTS: u32 = 64;

fn container() -> (Container, Geometry) {
    let geometry = Geometry::new(u64::from(EXTENTS) << 20, Some(BLOCK as u64), 512).unwrap();
    let mut memory = regions(&[16 * BLOCK, 16 * 4]).unwrap();
    let (marks, staging) = (Marks::new(memory.remove(1)), memory.remove(0));
    let staging = Slab::new(staging, BLOCK, marks);
    (Container::new(geometry, staging, None), geometry)
}

fn store(container: &Container, block: u32, fill: u8) -> Room {
    let mut memory = container.stage(1).unwrap();
    memory.fill(fill);
    container.store(block, memory)
}

#[test]
fn blocks_that_were_taken_leave_nothing_in_the_queue() {
    let (container, geometry) = container();
    for extent in 0..EXTENTS {
        for block in geometry.blocks_of_extent(extent).blocks() {
            assert_eq!(store(&container, block, 1), Room::default());
            // The rest of the extent fits once the staging of these is free again; take them as the sweep would.
            if block % 16 == 15 {
                let taken = container.take(extent);
                assert_eq!(container.release(taken), Room { slots: 16, staging: 16 });
            }
        }
    }
    let queued = container.state.lock().index.queued();
    assert!(queued <= 1024, "{queued} entries for blocks that are gone");
}

#[test]
fn blocks_of_zeroes_take_no_memory() {
    let (container, geometry) = container();
    for block in geometry.all_blocks().blocks() {
        assert_eq!(store(&container, block, 0), Room { slots: 1, staging: 1 });
    }
    assert!((0..EXTENTS).all(|extent| container.holds_none_of(extent)));
    assert_eq!(container.take(0).blocks().count(), 0);
}
