//! Who runs next, who waits for what, and what time it is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write;
use std::time::Duration;

use crate::chance::{Chance, mix};
use crate::scheduler::End;
use crate::task::Task;

/// The time, whose wait ends then (a number for equal times before it), and which of its waits.
type Timer = Reverse<(Duration, u64, usize, u64)>;

/// All threads of a simulation.
pub(crate) struct State {
    pub(crate) chance: Chance,
    pub(crate) now: Duration,
    pub(crate) tasks: Vec<Task>,
    pub(crate) alive: usize,
    pub(crate) ready: Vec<usize>,
    /// Who waits at which address.
    pub(crate) parked: Vec<(usize, usize)>,
    pub(crate) timers: BinaryHeap<Timer>,
    pub(crate) timers_set: u64,
    pub(crate) trace: u64,
    pub(crate) switches: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            chance: Chance::new(0),
            now: Duration::ZERO,
            tasks: Vec::new(),
            alive: 0,
            ready: Vec::new(),
            parked: Vec::new(),
            timers: BinaryHeap::new(),
            timers_set: 0,
            trace: 0,
            switches: 0,
        }
    }
}

impl State {
    pub(crate) fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ what);
    }

    /// Who runs next: of those who can, else whoever waits for the nearest time.
    pub(crate) fn next(&mut self, favourites: bool) -> Option<usize> {
        if self.alive == 0 {
            return None;
        }
        if self.ready.is_empty() {
            self.let_time_pass();
        }
        let count = self.ready.len() as u64;
        let chosen = match count {
            0 => return None,
            1 => 0,
            _ if favourites => self.favourite(),
            _ => self.chance.below(count) as usize,
        };
        let next = self.ready.swap_remove(chosen);
        self.switches += 1;
        self.note(next as u64);
        Some(next)
    }

    fn favourite(&mut self) -> usize {
        let tasks = &self.tasks;
        let best = (0..self.ready.len()).max_by_key(|&index| tasks[self.ready[index]].favour);
        let best = best.expect("somebody can run");
        // Favours change, or else one that only ever gives way would keep the others from running.
        if self.chance.one_in(8) {
            self.tasks[self.ready[best]].favour = self.chance.draw();
        }
        best
    }

    fn let_time_pass(&mut self) {
        while let Some(&Reverse((at, _, task, wait))) = self.timers.peek() {
            let of_now = self.tasks[task].waits.is_some() && self.tasks[task].wait == wait;
            if of_now && !self.ready.is_empty() && at > self.now {
                return;
            }
            self.timers.pop();
            if of_now {
                self.now = self.now.max(at);
                self.tasks[task].waits = None;
                self.ready.push(task);
            }
        }
    }

    pub(crate) fn park(&mut self, current: usize, address: usize, what: &'static str, until: Option<Duration>) {
        self.parked.push((address, current));
        let task = &mut self.tasks[current];
        task.waits = Some(what);
        task.wait += 1;
        if let Some(until) = until {
            self.timers.push(Reverse((until, self.timers_set, current, task.wait)));
            self.timers_set += 1;
        }
    }

    pub(crate) fn wake(&mut self, address: usize, all: bool) {
        loop {
            let there = self.parked.iter().filter(|(at, _)| *at == address).count() as u64;
            if there == 0 {
                return;
            }
            let chosen = if all || there == 1 { 0 } else { self.chance.below(there) as usize };
            let index = (0..self.parked.len()).filter(|&index| self.parked[index].0 == address).nth(chosen);
            let (_, task) = self.parked.remove(index.expect("it was counted"));
            // Its time may have come just before: then it can run already.
            if self.tasks[task].waits.take().is_some() {
                self.ready.push(task);
            }
            if !all {
                return;
            }
        }
    }

    pub(crate) fn end_of_all(&self) -> End {
        if self.alive == 0 { End::Finished } else { End::Stuck(format!("all wait for ever: {}", self.waits())) }
    }

    /// Who is there, and waits for what.
    pub(crate) fn waits(&self) -> String {
        let mut text = String::new();
        let alive = self.tasks.iter().filter(|task| task.coroutine.as_ref().is_some_and(|coroutine| !coroutine.done()));
        for task in alive {
            let _ = write!(text, "{} ({}); ", task.name, task.waits.unwrap_or("can run"));
        }
        text
    }
}
