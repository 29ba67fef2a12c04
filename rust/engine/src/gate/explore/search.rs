//! Visits every state that can be reached in a scope, depth first, each once. What broke a promise is shown with the steps
//! that led there.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use super::supervisor::{Cutter, Supervisor, cancel, enforce};
use super::world::{Life, SWEEPERS, Scope, Step, WRITERS, World};
use super::{sweeper, write_behind, writer};

/// Somebody's next step. The flag says that it fails.
#[derive(Debug, Clone, Copy)]
enum Move {
    Writer(usize, bool),
    Sweeper(usize, bool),
    WriteBehind(bool),
    Cutter(bool),
    Supervisor(bool),
    Late(usize),
    Cancel,
}

/// All moves; those that somebody must make at some time come first.
fn moves() -> Vec<Move> {
    let of_all = |fault| {
        let writers = (0..WRITERS).map(move |index| Move::Writer(index, fault));
        let sweepers = (0..SWEEPERS).map(move |index| Move::Sweeper(index, fault));
        let others = [Move::WriteBehind(fault), Move::Cutter(fault), Move::Supervisor(fault)];
        writers.chain(sweepers).chain(others)
    };
    of_all(false).chain(of_all(true)).chain((0..=WRITERS).map(Move::Late)).chain([Move::Cancel]).collect()
}

impl Move {
    /// Whether a promise may be kept by it: nobody can count on a fault, a deadline or somebody who cancels. One who has
    /// begun to cancel goes on.
    fn is_due(self, world: &World) -> bool {
        match self {
            Self::Writer(_, fault) | Self::Sweeper(_, fault) => !fault,
            Self::WriteBehind(fault) | Self::Cutter(fault) | Self::Supervisor(fault) => !fault,
            Self::Late(_) => false,
            Self::Cancel => world.closing,
        }
    }

    fn make(self, world: &mut World, scope: &Scope) -> Step {
        match self {
            Self::Writer(index, fault) => writer::step(world, scope, index, fault),
            Self::Sweeper(index, fault) => sweeper::step(world, scope, index, fault),
            Self::WriteBehind(fault) => write_behind::step(world, scope, fault),
            Self::Cutter(fault) => Cutter::step(world, scope, fault),
            Self::Supervisor(fault) => Supervisor::step(world, scope, fault),
            Self::Late(whom) => enforce(world, scope, whom),
            Self::Cancel => cancel(world, scope),
        }
    }
}

/// A state on the way from the first one to the present one.
struct Stop {
    world: World,
    /// Of all moves, those up to here have been tried.
    tried: usize,
    can_go_on: bool,
}

/// The way to the present state; tells it when a promise is broken, also by a panic of the gate.
struct Way<'a> {
    scope: &'a Scope,
    moves: Vec<Move>,
    stops: Vec<Stop>,
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{:?}", self.scope);
            self.stops.iter().for_each(|stop| println!("{:?}", self.moves[stop.tried.saturating_sub(1)]));
            println!("{:#?}", self.stops.last().map(|stop| &stop.world));
        }
    }
}

/// Visits all states of `scope` and returns how many there are.
///
/// # Panics
/// When a promise is broken.
pub(super) fn explore(scope: &Scope) -> u64 {
    let mut way = Way { scope, moves: moves(), stops: Vec::new() };
    let first = World::new(scope);
    let mut seen: HashSet<World, BuildHasherDefault<Mix>> = HashSet::default();
    seen.insert(first.clone());
    way.stops.push(Stop { world: first, tried: 0, can_go_on: false });
    while let Some(stop) = way.stops.last_mut() {
        let Some(&next) = way.moves.get(stop.tried) else {
            let rests = if stop.can_go_on { Ok(()) } else { stop.world.check_rest() };
            rests.unwrap_or_else(|broken| panic!("{broken}"));
            way.stops.pop();
            continue;
        };
        stop.tried += 1;
        let mut world = stop.world.clone();
        let stepped = next.make(&mut world, scope).and_then(|stepped| world.check(scope).map(|()| stepped));
        if !stepped.unwrap_or_else(|broken| panic!("{broken}")) {
            continue;
        }
        if matches!(world.life, Life::Broken | Life::Cancelled) {
            world.stores.forget_contents();
        }
        stop.can_go_on |= next.is_due(&stop.world);
        if !seen.contains(&world) {
            seen.insert(world.clone());
            way.stops.push(Stop { world, tried: 0, can_go_on: false });
        }
    }
    seen.len() as u64
}

/// Multiplies and rotates; states are many and small.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}
