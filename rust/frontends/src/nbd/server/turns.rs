//! The threads of one connection: one leads, which is to receive; the others follow, wait their turn, or do odd jobs.
//! Decides who does what; knows nothing of requests.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Threads of one connection, and so its I/O in flight on a slow device.
const MAX_THREADS: usize = 16;
/// A thread that waited so long for a turn is not needed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose turn it is. `L` is what the leader holds, `J` a job.
pub(super) struct Turns<L, J> {
    state: Mutex<State<L, J>>,
    changed: Condvar,
}

struct State<L, J> {
    /// Present while nobody leads.
    lead: Option<L>,
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
    /// Nothing more is received.
    ended: bool,
}

/// What a thread does next.
pub(super) enum Turn<L, J> {
    Lead(L),
    Job(J),
    /// The thread is not needed any more.
    Leave,
}

impl<L, J> Turns<L, J> {
    /// For a connection that has one thread.
    pub(super) fn new(lead: L) -> Self {
        let state = State { lead: Some(lead), jobs: VecDeque::new(), threads: 1, idle: 0, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a turn.
    pub(super) fn next(&self) -> Turn<L, J> {
        let mut state = self.state.lock();
        let mut tired = false;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Turn::Job(job);
            }
            if !state.ended
                && let Some(lead) = state.lead.take()
            {
                return Turn::Lead(lead);
            }
            if tired || state.ended {
                state.threads -= 1;
                return Turn::Leave;
            }
            state.idle += 1;
            tired = self.changed.wait_for(&mut state, PATIENCE).timed_out();
            state.idle -= 1;
        }
    }

    /// Lets another thread lead. `spawn` starts a thread and says whether it could.
    pub(super) fn pass_lead(&self, lead: L, spawn: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        state.lead = Some(lead);
        self.wake_one(state, spawn);
    }

    /// Leaves a job to the threads. Never waits.
    pub(super) fn post(&self, job: J, spawn: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        self.wake_one(state, spawn);
    }

    /// The leader ends: nobody leads any more, and threads leave when the jobs are done.
    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// If all threads are busy and no more are allowed, the first that is done takes the turn.
    fn wake_one(&self, mut state: MutexGuard<'_, State<L, J>>, spawn: impl FnOnce() -> bool) {
        if state.idle > 0 {
            drop(state);
            self.changed.notify_one();
        } else if state.threads < MAX_THREADS {
            state.threads += 1;
            if !spawn() {
                state.threads -= 1;
            }
        }
    }
}
