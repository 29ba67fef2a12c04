//! Switches between simulated threads, at the points where that may be. Who is next is decided in `order`.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::chance::Chance;
use crate::order::State;
use crate::panics;
use crate::task::{Switch, Task};

/// How a simulation goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Every choice follows from it.
    pub seed: u64,
    /// A thread that could go on loses its turn once in so many times that it might.
    pub calm: u64,
    /// The same few threads run for long, and others starve; else any of those who can may be next.
    pub favourites: bool,
    /// More scheduling points than this are taken for a loop without end.
    pub most_points: u64,
}

/// How a simulation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Every thread came to its end.
    Finished,
    /// All threads vanished, as [`kill_after`] said.
    Killed,
    /// No thread could go on, or they went on for ever: who waits for what.
    Stuck(String),
    /// A thread panicked, even if somebody caught it.
    Panicked(String),
}

/// What is known of a simulation after its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// A hash of all that happened: who ran when, and what was noted.
    pub trace: u64,
    /// How often another thread had its turn.
    pub switches: u64,
    /// The virtual time that it took.
    pub elapsed: Duration,
}

struct World {
    habits: Habits,
    current: Cell<usize>,
    /// Where the current thread can be switched; null while none runs.
    switch: Cell<*const Switch>,
    points: Cell<u64>,
    kill_at: Cell<Option<u64>>,
    killed: Cell<bool>,
    state: RefCell<State>,
}

thread_local! {
    static WORLD: Cell<*const World> = const { Cell::new(std::ptr::null()) };
}

fn with<R>(act: impl FnOnce(&World) -> R) -> Option<R> {
    let world = WORLD.get();
    // SAFETY: set by `simulate` on this OS thread to its own world, and cleared before that goes.
    unsafe { world.as_ref() }.map(act)
}

/// Runs `main` and all threads that it starts, on this OS thread. Returns when all have ended, or none can go on.
///
/// # Panics
/// Inside another simulation.
pub fn simulate(habits: Habits, main: impl FnOnce() + Send + 'static) -> Report {
    assert!(WORLD.get().is_null(), "a simulation inside a simulation");
    panics::keep(|| with(|world| !world.switch.get().is_null()).unwrap_or(false));
    panics::take();
    let world = World::new(habits);
    WORLD.set(&raw const world);
    world.spawn("main".into(), Box::new(main));
    let end = world.run();
    let state = world.state.take();
    let report = Report { end, trace: state.trace, switches: state.switches, elapsed: state.now };
    state.tasks.into_iter().for_each(Task::vanish);
    WORLD.set(std::ptr::null());
    report
}

/// All threads vanish at the scheduling point that comes after so many others.
pub fn kill_after(points: u64) {
    with(|world| world.kill_at.set(Some(world.points.get() + points + 1)));
}

/// Makes something part of the trace.
pub fn note(what: u64) {
    with(|world| world.state.borrow_mut().note(what));
}

/// The virtual time since the beginning.
pub fn elapsed() -> Duration {
    with(|world| world.state.borrow().now).unwrap_or_default()
}

/// Another thread may run here.
#[inline]
pub(crate) fn point() {
    with(World::point);
}

/// Waits at `address` until [`wake`] or until the time `until`. `false`: the time came first.
pub(crate) fn wait(address: usize, what: &'static str, until: Option<Duration>) -> bool {
    let waited = with(|world| world.wait(address, what, until));
    waited.unwrap_or_else(|| panic!("this waits for {what}, and no simulation is under way in which it could end"))
}

/// Ends the wait of all who wait at `address`, or of any one of them.
pub(crate) fn wake(address: usize, all: bool) {
    with(|world| world.state.borrow_mut().wake(address, all));
}

/// Starts a thread.
pub(crate) fn spawn(name: String, work: Box<dyn FnOnce()>) {
    let spawned = with(|world| world.spawn(name, work));
    spawned.expect("threads are started inside a simulation");
    point();
}

/// The current thread's value for a key; `None` outside a simulation.
pub(crate) fn local(key: usize, make: impl FnOnce() -> Rc<dyn Any>) -> Option<Rc<dyn Any>> {
    with(|world| {
        let mut state = world.state.borrow_mut();
        let locals = &mut state.tasks[world.current.get()].locals;
        if let Some((_, value)) = locals.iter().find(|(other, _)| *other == key) {
            return value.clone();
        }
        let value = make();
        locals.push((key, value.clone()));
        value
    })
}

impl World {
    fn new(habits: Habits) -> Self {
        let state = State { chance: Chance::new(habits.seed), ..State::default() };
        Self {
            habits,
            current: Cell::new(0),
            switch: Cell::new(std::ptr::null()),
            points: Cell::new(0),
            kill_at: Cell::new(None),
            killed: Cell::new(false),
            state: RefCell::new(state),
        }
    }

    fn spawn(&self, name: String, work: Box<dyn FnOnce()>) {
        let mut state = self.state.borrow_mut();
        let favour = state.chance.draw();
        let started = move |switch: &Switch| {
            with(|world| {
                world.state.borrow_mut().tasks[world.current.get()].switch = switch;
                world.switch.set(switch);
            });
            work();
        };
        let id = state.tasks.len();
        state.tasks.push(Task::new(name, favour, Box::new(started)));
        state.ready.push(id);
        state.alive += 1;
    }

    fn run(&self) -> End {
        loop {
            let next = self.state.borrow_mut().next(self.habits.favourites);
            let Some(next) = next else { return self.state.borrow().end_of_all() };
            self.turn(next);
            if let Some(panic) = panics::take() {
                return End::Panicked(panic);
            }
            if self.killed.get() {
                return End::Killed;
            }
            if self.points.get() > self.habits.most_points {
                let waits = self.state.borrow().waits();
                return End::Stuck(format!("no end after {} scheduling points: {waits}", self.habits.most_points));
            }
        }
    }

    /// Lets a thread run until it waits, loses its turn, or ends.
    fn turn(&self, next: usize) {
        let mut state = self.state.borrow_mut();
        self.current.set(next);
        self.switch.set(state.tasks[next].switch);
        let Some(mut coroutine) = state.tasks[next].coroutine.take() else { return };
        drop(state);
        let ended = coroutine.resume(()).as_return().is_some();
        self.switch.set(std::ptr::null());
        let mut state = self.state.borrow_mut();
        state.tasks[next].coroutine = Some(coroutine);
        if ended {
            state.alive -= 1;
        }
    }

    fn suspend(&self) {
        // SAFETY: it is that of the coroutine on whose stack this runs, and lives as long as that.
        let switch = unsafe { self.switch.get().as_ref() };
        switch.expect("only a simulated thread waits").suspend(());
    }

    #[inline]
    fn point(&self) {
        if self.switch.get().is_null() || std::thread::panicking() {
            return;
        }
        let points = self.points.get() + 1;
        self.points.set(points);
        self.killed.set(self.kill_at.get() == Some(points));
        if self.killed.get() || points > self.habits.most_points {
            self.suspend();
        }
        let mut state = self.state.borrow_mut();
        if state.ready.is_empty() || !state.chance.one_in(self.habits.calm) {
            return;
        }
        state.ready.push(self.current.get());
        drop(state);
        self.suspend();
    }

    fn wait(&self, address: usize, what: &'static str, until: Option<Duration>) -> bool {
        let current = self.current.get();
        self.state.borrow_mut().park(current, address, what, until);
        self.suspend();
        let mut state = self.state.borrow_mut();
        let left = state.parked.iter().position(|&parked| parked == (address, current));
        left.map(|index| state.parked.remove(index)).is_none()
    }
}
