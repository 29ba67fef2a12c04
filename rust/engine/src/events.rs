//! Events of a backup: suspended writes, drains, changes of state. A bounded queue; what does not fit is counted.

use std::time::Duration;

use serde::Serialize;

use crate::state::State;
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};
use crate::sync::{AtomicU64, Instant, Mutex, Ordering};

const QUEUE: usize = 16 << 10;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Seconds since the backup was created.
    pub at_s: f64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The backup changed its state.
    State {
        /// The state before.
        from: State,
        /// The state now.
        to: State,
    },
    /// A write was suspended.
    Suspended {
        /// The first block that it touches.
        first_block: u32,
        /// Number of blocks that it touches.
        blocks: u32,
    },
    /// The selected capacity was reached: writes that need a slot wait.
    DrainBegins {
        /// Blocks in the container.
        held_blocks: u32,
    },
    /// The selected amount was drained: writes go on.
    DrainEnds {
        /// Blocks in the container.
        held_blocks: u32,
    },
}

/// The queue of one backup.
pub struct Events {
    born: Instant,
    sender: Mutex<Option<Sender<Event>>>,
    receiver: Receiver<Event>,
    dropped: AtomicU64,
}

impl Default for Events {
    fn default() -> Self {
        let (sender, receiver) = bounded(QUEUE);
        Self { born: Instant::now(), sender: Mutex::new(Some(sender)), receiver, dropped: AtomicU64::new(0) }
    }
}

impl Events {
    /// Adds an event, or counts it as dropped when nobody reads and the queue is full. Never waits.
    pub fn emit(&self, what: What) {
        let event = Event { at_s: self.born.elapsed().as_secs_f64(), what };
        let Some(sender) = &*self.sender.lock() else { return };
        if let Err(TrySendError::Full(_)) = sender.try_send(event) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// No more events will come.
    pub fn close(&self) {
        self.sender.lock().take();
    }

    /// Events that did not fit.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits for an event and returns all that are queued, at most `most`; nothing at the timeout. `None`: no more.
    pub fn next(&self, timeout: Duration, most: usize) -> Option<Vec<Event>> {
        let first = match self.receiver.recv_timeout(timeout) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let mut events = vec![first];
        while events.len() < most {
            match self.receiver.try_recv() {
                Ok(event) => events.push(event),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        Some(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_then_end_and_overflow_is_counted() {
        let events = Events::default();
        for block in 0..QUEUE as u32 + 5 {
            events.emit(What::Suspended { first_block: block, blocks: 1 });
        }
        events.close();
        let mut seen = Vec::new();
        while let Some(batch) = events.next(Duration::ZERO, 1000) {
            seen.extend(batch);
        }
        assert_eq!((seen.len(), events.dropped()), (QUEUE, 5));
        assert_eq!(seen[7].what, What::Suspended { first_block: 7, blocks: 1 });
    }

    #[test]
    fn an_event_is_one_flat_json_object() {
        let event = Event { at_s: 1.5, what: What::State { from: State::Active, to: State::Complete } };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"at_s":1.5,"event":"state","from":"active","to":"complete"}"#);
    }
}
