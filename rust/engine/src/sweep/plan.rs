//! Which extent is swept next: in order, or while the container wants to drain, the one that holds most slots.

use crate::round::Round;
use crate::sync::Mutex;

/// The extents of one backup, each given out once.
pub struct Plan {
    state: Mutex<State>,
}

struct State {
    cursor: u32,
    extents: u32,
    chosen: Vec<u64>,
}

impl Plan {
    /// All of `extents` extents, none given out.
    pub fn new(extents: u32) -> Self {
        Self { state: Mutex::new(State { cursor: 0, extents, chosen: vec![0; extents.div_ceil(64) as usize] }) }
    }

    /// This extent is not given out: it is at the destination, or on a sweeper's desk. Before anybody asks.
    pub fn leave_out(&self, extent: u32) {
        self.state.lock().choose(extent);
    }

    /// The next extent to sweep, `None` when all have been given out.
    pub fn next(&self, round: &Round) -> Option<u32> {
        let mut state = self.state.lock();
        let fullest = match round.gate.room().wants_drain() {
            true => round.container.fullest(|extent| !state.is_chosen(extent)),
            false => None,
        };
        let extent = fullest.or_else(|| state.next_in_order())?;
        state.choose(extent);
        Some(extent)
    }
}

impl State {
    fn is_chosen(&self, extent: u32) -> bool {
        self.chosen[(extent / 64) as usize] & (1 << (extent % 64)) != 0
    }

    fn choose(&mut self, extent: u32) {
        self.chosen[(extent / 64) as usize] |= 1 << (extent % 64);
    }

    fn next_in_order(&mut self) -> Option<u32> {
        while self.cursor < self.extents && self.is_chosen(self.cursor) {
            self.cursor += 1;
        }
        (self.cursor < self.extents).then_some(self.cursor)
    }
}
