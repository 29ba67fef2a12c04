//! What a backup does to the device it backs up: nothing. So a power cut leaves there what it would have left without.

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::AtomicBool;

use crate::kernel::watched;
use crate::record::{Op, Recorder};
use crate::rig::folder_in_memory;
use crate::run::{SECTION, Scene, Target, backup, contents, device_in, write_sparse};

#[test]
fn the_device_is_sent_what_programs_write_and_only_the_containers_place_is_written_beside() {
    for (seed, inside) in [(1, false), (2, true), (3, true)] {
        let folder = folder_in_memory();
        let path = folder.path().to_owned();
        for place in ["device", "container", "destination"] {
            fs::create_dir(path.join(place)).unwrap();
        }
        write_sparse(&device_in(&path), &contents(seed));
        let recorder = Recorder::new(&path.join("device"), &["disk".into()]);
        let scene = Scene { inside, target: Target::Fresh, fail_write: false, direct: false };
        let (outcome, seen) = watched(recorder, move || backup(&path, scene, &AtomicBool::new(false))).unwrap();
        assert!(seen.unknown.is_empty(), "{:?}", seen.unknown);
        let writers = outcome.writers.iter().map(|writer| writer.writes.iter().collect());
        let mut programs: Vec<VecDeque<_>> = writers.collect();
        let mut behind = 0;
        for op in &seen.ops {
            let Op::Data { at, bytes, .. } = op else { panic!("nobody asked for {op:?}") };
            let next = programs
                .iter_mut()
                .find(|writes| writes.front().is_some_and(|write| (write.range.start, &write.data) == (*at, bytes)));
            match next {
                Some(writes) => drop(writes.pop_front()),
                None => {
                    let ours = inside && *at >= SECTION.start && at + bytes.len() as u64 <= SECTION.end;
                    assert!(ours, "{} bytes at {at} that no program wrote, seed {seed}", bytes.len());
                    behind += 1;
                }
            }
        }
        assert!(programs.iter().all(VecDeque::is_empty), "every write is there, in the order of its program");
        assert_eq!(behind > 0, inside, "the container was used");
    }
}
