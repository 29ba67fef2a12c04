//! How many extents are swept at once: one in each lane. What is in flight for the sweep stands in the queue of a disk
//! before the requests of programs, so lanes close for them: half while programs use the device, all but one while they
//! would stand there for long.

use std::time::Duration;

use crate::counters::Counters;
use crate::round::Round;
use crate::state::State;
use crate::sync::{Instant, Mutex};

/// Programs that asked for nothing for so long leave the device to the sweep.
const LULL: Duration = Duration::from_secs(1);
/// Requests of programs stand for too long if none ends while so many extents are swept one after the other, ...
const PATIENCE_EXTENTS: u32 = 2;
/// ... but for no less than this, so that a thread that waits for a processor does not count, ...
const LEAST_PATIENCE: Duration = Duration::from_millis(5);
/// ... and no more than this, whatever an extent takes.
const MOST_PATIENCE: Duration = Duration::from_millis(100);
/// How long but one lane stays closed after that.
const RESPITE: Duration = Duration::from_millis(200);
/// How often a sweeper without a lane looks whether one is open.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The lanes of one backup.
pub struct Lanes {
    count: usize,
    traffic: Mutex<Traffic>,
}

struct Traffic {
    /// How many lanes are taken.
    taken: usize,
    /// How long an extent took lately: a moving average, in which the last one counts an eighth.
    extent: Duration,
    /// How many requests of programs had ended when somebody last looked.
    ended: u64,
    /// Until when they are taken to use the device.
    shared_until: Option<Instant>,
    /// Since when requests of theirs are under way and none has ended.
    standing_since: Option<Instant>,
    /// Until when all lanes but one are closed.
    respite_until: Option<Instant>,
}

/// A lane that is taken, until it is dropped.
pub struct Lane<'a> {
    lanes: &'a Lanes,
    since: Instant,
}

impl Lanes {
    /// A lane for each of `count` sweepers.
    pub fn new(count: usize, round: &Round) -> Self {
        let traffic = Traffic {
            taken: 0,
            extent: Duration::ZERO,
            ended: round.requests_before,
            shared_until: None,
            standing_since: None,
            respite_until: None,
        };
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
        let open = if round.gate.room().draining() {
            traffic.standing_since = None;
            self.count
        } else {
            traffic.look(&round.programs, now);
            traffic.open(self.count, now)
        };
        (traffic.taken < open).then(|| {
            traffic.taken += 1;
            Lane { lanes: self, since: now }
        })
    }
}

impl Traffic {
    fn look(&mut self, programs: &Counters, now: Instant) {
        let ended = programs.ended();
        let under_way = programs.begun() > ended;
        let some_ended = ended != self.ended;
        if under_way || some_ended {
            self.shared_until = Some(now + LULL);
        }
        if !under_way || some_ended {
            self.standing_since = None;
        } else {
            let since = *self.standing_since.get_or_insert(now);
            let patience = (self.extent * PATIENCE_EXTENTS).clamp(LEAST_PATIENCE, MOST_PATIENCE);
            if now.duration_since(since) > patience {
                self.respite_until = Some(now + RESPITE);
            }
        }
        self.ended = ended;
    }

    fn open(&self, count: usize, now: Instant) -> usize {
        let before = |until: Option<Instant>| until.is_some_and(|until| now < until);
        if before(self.respite_until) {
            1
        } else if before(self.shared_until) {
            count.div_ceil(2)
        } else {
            count
        }
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let mut traffic = self.lanes.traffic.lock();
        traffic.taken -= 1;
        traffic.extent = (traffic.extent * 7 + self.since.elapsed()) / 8;
    }
}
