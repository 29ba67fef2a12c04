//! Channels with crossbeam's interface, as far as the engine uses it.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Instant;
use super::{Arc, Condvar, Mutex};

pub use crossbeam_channel::{RecvTimeoutError, SendError, TryRecvError, TrySendError};

struct Channel<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

/// As crossbeam's.
pub struct Sender<T>(Arc<Channel<T>>);

/// As crossbeam's.
pub struct Receiver<T>(Arc<Channel<T>>);

/// As crossbeam's.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

/// As crossbeam's, for those who never wait to send.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { queue: VecDeque::new(), senders: 1, receivers: 1 });
    let channel = Arc::new(Channel { state, changed: Condvar::new(), capacity });
    (Sender(channel.clone()), Receiver(channel))
}

impl<T> Sender<T> {
    /// As crossbeam's, for a channel without bound.
    ///
    /// # Errors
    /// The value, if nobody is left to receive it.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.try_send(value).map_err(|error| SendError(error.into_inner()))
    }

    /// As crossbeam's.
    ///
    /// # Errors
    /// The value, if it does not fit or nobody is left to receive it.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let mut state = self.0.state.lock();
        if state.receivers == 0 {
            return Err(TrySendError::Disconnected(value));
        }
        if state.queue.len() == self.0.capacity {
            return Err(TrySendError::Full(value));
        }
        state.queue.push_back(value);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Result<T, TryRecvError> {
        let nothing = if self.senders == 0 { TryRecvError::Disconnected } else { TryRecvError::Empty };
        self.queue.pop_front().ok_or(nothing)
    }
}

impl<T> Receiver<T> {
    /// As crossbeam's.
    ///
    /// # Errors
    /// If there is nothing, now or for ever.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.0.state.lock().take()
    }

    /// As crossbeam's.
    ///
    /// # Errors
    /// If there was nothing until the deadline, or for ever.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        loop {
            match state.take() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if Instant::now() >= deadline => return Err(RecvTimeoutError::Timeout),
                Err(TryRecvError::Empty) => drop(self.0.changed.wait_until(&mut state, deadline)),
            }
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().receivers += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.state.lock().receivers -= 1;
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

/// Whatever comes, until no sender is left.
pub struct IntoIter<T>(Receiver<T>);

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let channel = &self.0.0;
        let mut state = channel.state.lock();
        loop {
            match state.take() {
                Ok(value) => return Some(value),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => channel.changed.wait(&mut state),
            }
        }
    }
}
