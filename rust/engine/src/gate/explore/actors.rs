//! Who acts on the gate, step by step as `passage`, `copy`, `sweep`, `container` and `round` do it.

use super::world::{Blocks, Life, Scope, World, bits};
use crate::gate::queue::Ticket;
use crate::gate::{Decision, Room};
use crate::geometry::BlockRange;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Writer(BlockRange),
    Sweeper,
    WriteBehind,
    /// Watches the deadlines, and publishes.
    Supervisor,
    /// May cancel.
    User,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum At {
    /// A writer asks, a sweeper looks for an extent.
    Begin,
    /// A writer copies these runs, whose claims it holds.
    Copying(Vec<BlockRange>),
    Parked,
    /// A writer goes without asking: its copy failed, and the backup is broken.
    Going,
    /// A sweeper looks for blocks of its extent to claim.
    Claiming,
    Reading(Vec<BlockRange>),
    /// Blocks that were taken out of the container: those that were staged, and those in slots.
    Delivering(Blocks, Blocks),
    Done,
}

/// What is left of a step that consists of several calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Call {
    Copied(BlockRange),
    Failed(BlockRange),
    Freed(u32, u32),
    End,
    Record,
    Close,
    Refuse,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Actor {
    role: Role,
    at: At,
    calls: Vec<Call>,
    /// A writer's place in line.
    pub(super) ticket: Option<Ticket>,
    /// A sweeper's extent, the blocks of it that are in the buffer, and those that it took and could not deliver.
    extent: u32,
    buffer: Blocks,
    undelivered: Blocks,
}

impl Actor {
    pub(super) fn new(role: Role) -> Self {
        Self { role, at: At::Begin, calls: Vec::new(), ticket: None, extent: 0, buffer: 0, undelivered: 0 }
    }

    pub(super) fn wake(&mut self) {
        assert_eq!(self.at, At::Parked, "woken although it does not wait");
        self.at = if self.role == Role::Sweeper { At::Claiming } else { At::Begin };
    }

    /// The claims that it holds: of what it copies, and of what it has copied and not yet said so.
    pub(super) fn claims(&self) -> Blocks {
        let of_calls = self.calls.iter().map(|call| match call {
            Call::Copied(run) | Call::Failed(run) => bits(*run),
            _ => 0,
        });
        let of_runs = match &self.at {
            At::Copying(runs) | At::Reading(runs) => runs.iter().map(|&run| bits(run)).sum(),
            _ => 0,
        };
        of_calls.fold(of_runs, |all, some| all | some)
    }

    /// The room that it has reserved, or not given back yet.
    pub(super) fn room(&self) -> u32 {
        let of_calls: u32 =
            self.calls.iter().map(|call| if let Call::Freed(slots, _) = call { *slots } else { 0 }).sum();
        of_calls
            + self.undelivered.count_ones()
            + match &self.at {
                At::Copying(runs) => runs.iter().map(|run| run.len()).sum(),
                At::Delivering(staged, stored) => (staged | stored).count_ones(),
                _ => 0,
            }
    }

    pub(super) fn is_done(&self) -> bool {
        self.calls.is_empty() && self.at == At::Done
    }
}

impl World {
    /// What this actor can do next: 0, that all goes well, or the number of something that goes wrong.
    pub(super) fn choices(&self, scope: &Scope, number: usize) -> Vec<u8> {
        let actor = &self.actors[number];
        let or_fail = if self.faults > 0 { vec![0, 1] } else { vec![0] };
        if !actor.calls.is_empty() {
            return vec![0];
        }
        match (&actor.role, &actor.at) {
            (_, At::Done | At::Parked) => vec![],
            (Role::Writer(_), At::Copying(_)) | (Role::Sweeper, At::Reading(_) | At::Delivering(..)) => or_fail,
            (Role::WriteBehind, _) if self.life != Life::Active || self.container_failed => vec![0],
            (Role::WriteBehind, _) if self.staged.count_ones() > scope.limits.staging / 2 => or_fail,
            (Role::WriteBehind, _) => vec![],
            (Role::Supervisor, _) => (0..=self.overdue().count() as u8).collect(),
            (Role::User, _) => or_fail,
            _ => vec![0],
        }
    }

    /// The writers whose deadline may pass now.
    fn overdue(&self) -> impl Iterator<Item = usize> {
        let late = |actor: &Actor| matches!(actor.role, Role::Writer(_)) && actor.at == At::Parked;
        let may_pass = self.faults > 0 && self.life == Life::Active;
        (0..self.actors.len()).filter(move |&number| may_pass && late(&self.actors[number]))
    }

    pub(super) fn step(&mut self, scope: &Scope, number: usize, choice: u8) {
        if !self.actors[number].calls.is_empty() {
            let call = self.actors[number].calls.remove(0);
            return self.call(scope, number, call);
        }
        let failed = choice == 1;
        match (self.actors[number].role.clone(), self.actors[number].at.clone()) {
            (Role::Writer(write), At::Going) => self.go(number, write),
            (Role::Writer(_), At::Copying(runs)) => self.copy_piece(scope, number, runs, failed),
            (Role::Writer(write), _) => self.ask(scope, number, write),
            (Role::Sweeper, At::Begin) => self.next_extent(scope, number),
            (Role::Sweeper, At::Reading(runs)) => self.read(number, runs, failed),
            (Role::Sweeper, At::Delivering(staged, stored)) => self.deliver(scope, number, staged, stored, failed),
            (Role::Sweeper, _) => self.claim(scope, number),
            (Role::WriteBehind, _) => self.write_behind(scope, number, failed),
            (Role::Supervisor, _) => self.supervise(scope, number, choice),
            (Role::User, _) => self.maybe_cancel(number, failed),
        }
    }

    fn set(&mut self, number: usize, at: At, calls: impl IntoIterator<Item = Call>) {
        let actor = &mut self.actors[number];
        if at == At::Done {
            actor.ticket = None;
        }
        actor.at = at;
        actor.calls.extend(calls);
    }

    fn call(&mut self, scope: &Scope, number: usize, call: Call) {
        match call {
            Call::Copied(run) => self.with_gate(scope, |gate| ((), gate.copied(run))),
            Call::Failed(run) => self.with_gate(scope, |gate| ((), gate.failed(run))),
            Call::Freed(slots, staging) => {
                self.with_gate(scope, |gate| ((), gate.freed(Room { slots, staging }).0.into_iter().collect()));
            }
            Call::End if self.life == Life::Active => {
                self.life = Life::Ended;
                self.actors[number].calls.splice(0..0, [Call::Record, Call::Close]);
            }
            Call::End => {}
            Call::Record => self.recorded = true,
            Call::Close => self.with_gate(scope, |gate| ((), gate.close())),
            Call::Refuse => self.with_gate(scope, |gate| ((), gate.refuse(libc::EIO))),
        }
    }

    // A write: `Driver::pass` and `copy_before_write`.

    fn ask(&mut self, scope: &Scope, number: usize, write: BlockRange) {
        let mut ticket = self.actors[number].ticket;
        let first_hungry = self.first_hungry();
        self.actors[number].at = At::Parked;
        let decision = self.with_gate(scope, |gate| {
            let admission = gate.admit(write, ticket, |given| {
                ticket = Some(given);
                number
            });
            (admission.decision, admission.wake.into_iter().collect())
        });
        self.actors[number].ticket = ticket;
        match decision {
            Decision::Go => self.go(number, write),
            Decision::Copy(runs) => {
                let overtaken = first_hungry.is_some_and(|first| ticket.is_none_or(|own| first < own));
                assert!(!overtaken, "took room before one who waits for it: {self:?}");
                self.set(number, At::Copying(runs), []);
            }
            Decision::Wait { .. } => {}
            Decision::Refuse(_) => {
                assert!(scope.fail_write && self.container_failed, "refused without a reason: {self:?}");
                self.set(number, At::Done, []);
            }
            Decision::Trespass => panic!("the container is elsewhere"),
        }
    }

    fn go(&mut self, number: usize, write: BlockRange) {
        let lost = bits(write) & !self.safe;
        assert!(lost == 0 || self.recorded, "a write went before its old blocks were safe: {self:?}");
        self.set(number, At::Done, []);
    }

    /// Staging has neighbouring places for one block at a time.
    fn copy_piece(&mut self, scope: &Scope, number: usize, mut runs: Vec<BlockRange>, failed: bool) {
        if failed {
            self.faults -= 1;
            let calls = runs.iter().flat_map(|&run| [Call::Failed(run), Call::Freed(run.len(), run.len())]);
            let end: &[Call] = if scope.fail_write { &[] } else { &[Call::End, Call::Record] };
            let at = if scope.fail_write { At::Done } else { At::Going };
            return self.set(number, at, calls.chain(end.iter().cloned()).collect::<Vec<_>>());
        }
        let piece = BlockRange::at(runs[0].start, 1);
        runs[0].start += 1;
        runs.retain(|run| !run.is_empty());
        self.safe |= bits(piece);
        let is_zero = bits(piece) & scope.zeroes != 0;
        if !is_zero {
            self.staged |= bits(piece);
        }
        let at = if runs.is_empty() { At::Begin } else { At::Copying(runs) };
        let freed = is_zero.then_some(Call::Freed(1, 1));
        self.set(number, at, [Call::Copied(piece)].into_iter().chain(freed));
    }

    // The sweep: `Sweeper::sweep`.

    fn next_extent(&mut self, scope: &Scope, number: usize) {
        let next = (0..scope.extents()).find(|&extent| self.planned & 1 << extent == 0);
        let Some(extent) = next.filter(|_| self.life == Life::Active) else { return self.set(number, At::Done, []) };
        // The drain takes the fullest first.
        let held = |extent: &u32| ((self.staged | self.stored) & bits(scope.blocks_of(*extent))).count_ones();
        let free = (0..scope.extents()).filter(|&extent| self.planned & 1 << extent == 0);
        let fullest = free.max_by_key(held).filter(|extent| self.wants_drain() && held(extent) > 0);
        let extent = fullest.unwrap_or(extent);
        self.planned |= 1 << extent;
        (self.actors[number].extent, self.actors[number].buffer) = (extent, 0);
        self.set(number, At::Claiming, []);
    }

    fn claim(&mut self, scope: &Scope, number: usize) {
        let blocks = scope.blocks_of(self.actors[number].extent);
        let runs = self.with_gate(scope, |gate| (gate.claim(blocks), Vec::new()));
        if !runs.is_empty() {
            return self.set(number, At::Reading(runs), []);
        }
        if self.with_gate(scope, |gate| (gate.watch(blocks, || number), Vec::new())) {
            return self.set(number, At::Parked, []);
        }
        if self.life != Life::Active {
            return self.set(number, At::Done, []);
        }
        if self.with_gate(scope, |gate| (gate.map.all_copied(blocks), Vec::new())) {
            let (staged, stored) = (self.staged & bits(blocks), self.stored & bits(blocks));
            (self.staged, self.stored) = (self.staged & !staged, self.stored & !stored);
            self.set(number, At::Delivering(staged, stored), []);
        }
    }

    fn read(&mut self, number: usize, runs: Vec<BlockRange>, failed: bool) {
        if failed {
            self.faults -= 1;
            let calls = runs.into_iter().map(Call::Failed).chain([Call::End]);
            self.actors[number].buffer = 0;
            return self.set(number, At::Done, calls);
        }
        let read: Blocks = runs.iter().map(|&run| bits(run)).sum();
        self.safe |= read;
        self.actors[number].buffer |= read;
        self.set(number, At::Claiming, runs.into_iter().map(Call::Copied));
    }

    fn deliver(&mut self, scope: &Scope, number: usize, staged: Blocks, stored: Blocks, failed: bool) {
        let actor = &mut self.actors[number];
        if failed {
            self.faults -= 1;
            // It keeps its place until the backup is over.
            actor.undelivered = staged | stored;
            return self.set(number, At::Done, [Call::End]);
        }
        let whole = actor.buffer | staged | stored | self.safe & scope.zeroes;
        let lost = bits(scope.blocks_of(actor.extent)) & !whole;
        assert_eq!(lost, 0, "an extent is delivered without blocks of it: {self:?}");
        self.delivered |= 1 << actor.extent;
        actor.buffer = 0;
        let room = Call::Freed((staged | stored).count_ones(), staged.count_ones());
        self.set(number, At::Begin, [room]);
    }

    // The container's write-behind, and the supervisor.

    fn write_behind(&mut self, scope: &Scope, number: usize, failed: bool) {
        if self.life != Life::Active || self.container_failed {
            return self.set(number, At::Done, []);
        }
        if failed {
            self.faults -= 1;
            self.container_failed = true;
            return self.set(number, At::Begin, [if scope.fail_write { Call::Refuse } else { Call::End }]);
        }
        let moved = self.staged.count_ones();
        self.stored |= self.staged;
        self.staged = 0;
        self.set(number, At::Begin, [Call::Freed(0, moved)]);
    }

    fn supervise(&mut self, scope: &Scope, number: usize, late: u8) {
        if late > 0 {
            let overdue = self.overdue().nth(usize::from(late) - 1).expect("one of the choices");
            self.faults -= 1;
            if !scope.fail_write {
                return self.set(number, At::Begin, [Call::End]);
            }
            let expelled = self.with_gate(scope, |gate| (gate.expel(|&waiter| waiter == overdue), Vec::new()));
            assert_eq!(expelled, [overdue], "a late writer could not be found: {self:?}");
            return self.set(overdue, At::Done, []);
        }
        let swept = self.actors.iter().all(|actor| actor.role != Role::Sweeper || actor.is_done());
        if self.life == Life::Ended {
            self.set(number, At::Done, []);
        } else if swept {
            self.life = Life::Complete;
            self.set(number, At::Done, [Call::Record, Call::Close]);
        }
    }

    fn maybe_cancel(&mut self, number: usize, cancels: bool) {
        self.faults -= u8::from(cancels);
        self.set(number, At::Done, cancels.then_some(Call::End));
    }
}
