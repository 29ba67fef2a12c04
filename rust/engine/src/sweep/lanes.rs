//! How many extents are swept at once: one in each lane. While programs use the device half of the lanes are closed: all
//! that is in flight for the sweep may stand in the queue of a disk before their requests.

use std::time::Duration;

use crate::round::Round;
use crate::state::State;
use crate::sync::{Instant, Mutex};

/// Programs that asked for nothing for so long leave the device to the sweep.
const LULL: Duration = Duration::from_secs(1);
/// How often a sweeper without a lane looks whether programs have left.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The lanes of one backup.
pub struct Lanes {
    count: usize,
    traffic: Mutex<Traffic>,
}

struct Traffic {
    taken: usize,
    /// How many requests programs had made when somebody last looked.
    requests: u64,
    /// Until when they are taken to use the device.
    shared_until: Option<Instant>,
}

/// A lane that is taken, until it is dropped.
pub struct Lane<'a> {
    lanes: &'a Lanes,
}

impl Lanes {
    /// A lane for each of `count` sweepers.
    pub fn new(count: usize, round: &Round) -> Self {
        let traffic = Traffic { taken: 0, requests: round.requests_before, shared_until: None };
        Self { count, traffic: Mutex::new(traffic) }
    }

    /// Waits for a lane. A drain has all of them, as writes wait for it. `None`: the backup has ended.
    pub fn enter(&self, round: &Round) -> Option<Lane<'_>> {
        let mut lane = None;
        while lane.is_none() && round.is_active() {
            round.life.wait(Some(Instant::now() + LOOK_AGAIN), |state, _| {
                lane = self.try_enter(round, Instant::now());
                lane.is_some() || state != State::Active
            });
        }
        lane
    }

    /// A lane, if one is open now.
    pub fn try_enter(&self, round: &Round, now: Instant) -> Option<Lane<'_>> {
        let mut traffic = self.traffic.lock();
        let shared = traffic.in_use(round.programs.requests(), now) && !round.gate.room().draining();
        let open = if shared { self.count.div_ceil(2) } else { self.count };
        (traffic.taken < open).then(|| {
            traffic.taken += 1;
            Lane { lanes: self }
        })
    }
}

impl Traffic {
    /// Whether programs use the device, which have made so many requests by now.
    fn in_use(&mut self, requests: u64, now: Instant) -> bool {
        if requests != self.requests {
            self.requests = requests;
            self.shared_until = Some(now + LULL);
        }
        self.shared_until.is_some_and(|until| now < until)
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.lanes.traffic.lock().taken -= 1;
    }
}
