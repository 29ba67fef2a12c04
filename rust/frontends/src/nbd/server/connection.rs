//! One client after negotiation: its threads receive requests, have the driver do them, and send replies.
//!
//! One thread leads: it receives. If the device is quick, or the client waits for each reply, it does the I/O itself.
//! Else it lets another thread lead meanwhile, so that I/O to a disk runs side by side. A write that a backup suspends is
//! parked in the driver and completed by a thread of the driver's crew, which must not wait: what it cannot send at once
//! it leaves to the connection's threads.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use blockcow_engine::error::Result;
use blockcow_engine::mutant::planted;

use super::budget::Budget;
use super::buffers::{Buffer, Buffers};
use super::guests::Guest;
use super::inbox::Inbox;
use super::intake::{self, Received};
use super::lookout::Lookout;
use super::negotiation::Agreed;
use super::outbox::{Outbox, Rest};
use super::perform;
use super::reply::{Answer, Reply};
use super::request::Request;
use super::turns::{Turn, Turns};

/// What a connection keeps in memory; beyond it nothing more is received until something was answered.
const BUDGET: usize = 64 << 20;
/// What a request takes beside its data.
const OVERHEAD: usize = 512;
/// Replies wait for others until there are so many bytes of them.
const CORKED: usize = 128 << 10;
/// After a client had several requests in flight, so many more are handed over before that is doubted.
const EAGER: u32 = 32;

/// A client's connection. Lives until its last request is answered; then the socket closes.
pub(super) struct Connection {
    agreed: Agreed,
    turns: Turns<Lead, Job>,
    outbox: Outbox,
    budget: Budget,
    buffers: Buffers,
    /// Requests in the hands of threads that do not lead.
    handed: AtomicUsize,
    /// Dropped last: when the guest has left, the device is let go of as well.
    guest: Guest,
}

/// What belongs to the thread that leads.
#[derive(Default)]
struct Lead {
    inbox: Box<Inbox>,
    lookout: Lookout,
    eager: u32,
}

/// What the crew leaves to the connection's threads.
enum Job {
    /// The request is done; make it durable, then reply.
    Flush(Work),
    /// Send what is queued.
    Send,
}

/// A request under way, and what it took of the budget.
struct Work {
    request: Request,
    cost: usize,
}

thread_local! {
    /// The connection that this thread works for, by its address.
    static HOME: Cell<usize> = const { Cell::new(0) };
}

impl Connection {
    pub(super) fn new(guest: Guest, agreed: Agreed) -> Arc<Self> {
        Arc::new(Self {
            guest,
            agreed,
            turns: Turns::new(Lead::default()),
            outbox: Outbox::default(),
            budget: Budget::new(BUDGET),
            buffers: Buffers::default(),
            handed: AtomicUsize::new(0),
        })
    }

    /// Works for the connection until there is nothing to do for this thread.
    pub(super) fn run(self: Arc<Self>) {
        HOME.set(self.address());
        loop {
            match self.turns.next() {
                Turn::Lead(lead) => self.lead(lead),
                Turn::Job(Job::Flush(work)) => {
                    let result = self.agreed.export.driver.flush();
                    self.reply(&work, perform::outcome(&result));
                    self.send();
                }
                Turn::Job(Job::Send) => self.send(),
                Turn::Leave => return,
            }
        }
    }

    fn lead(self: &Arc<Self>, mut lead: Lead) {
        loop {
            let received = self.receive(&mut lead.inbox, &mut lead.lookout);
            let (work, payload) = match received {
                Ok(Some(received)) => received,
                Ok(None) => return self.end(false),
                Err(error) => return self.end(error.kind() == io::ErrorKind::InvalidData),
            };
            let slow = self.agreed.export.pace.is_slow(work.request.kind());
            lead.notice(lead.inbox.len() > 0 || self.handed.load(Ordering::Relaxed) > 0);
            if slow && lead.eager > 0 {
                self.handed.fetch_add(1, Ordering::Relaxed);
                self.turns.pass_lead(lead, || self.spawn());
                self.perform(work, payload);
                self.handed.fetch_sub(1, Ordering::Relaxed);
                self.send();
                return;
            }
            if slow {
                // What is ready does not wait for slow I/O.
                self.send();
            }
            self.perform(work, payload);
            if slow && lead.inbox.len() == 0 {
                let socket = self.guest.socket();
                let now = |space: &mut [u8]| Ok(socket.receive_now(&mut [IoSliceMut::new(space)])?.unwrap_or(0));
                let more = lead.inbox.add(now);
                lead.notice(matches!(more, Ok(1..)));
            }
        }
    }

    /// Nothing more is received. After a `violation` nothing more could be understood either, and the client learns at
    /// once; else the requests under way are still answered.
    fn end(&self, violation: bool) {
        self.send();
        self.turns.end();
        if violation {
            self.guest.socket().cut();
        }
    }

    /// The next request that is to be done, with its data; those that may not be done are answered.
    fn receive(&self, inbox: &mut Inbox, lookout: &mut Lookout) -> io::Result<Option<(Work, Option<Buffer>)>> {
        let mut source = Source { connection: self, lookout };
        loop {
            let mut cost = OVERHEAD;
            let reserve = |memory| {
                cost += memory;
                self.reserve(cost);
            };
            match intake::next(inbox, &mut source, &self.agreed, &self.buffers, reserve)? {
                Received::Work(request, payload) => return Ok(Some((Work { request, cost }, payload))),
                Received::Refused(request, refusal) => self.reply(&Work { request, cost }, Answer::Failed(refusal)),
                Received::End => return Ok(None),
            }
        }
    }

    /// Takes of the budget. Waits until that much is there, and sends before.
    fn reserve(&self, cost: usize) {
        if !self.budget.try_take(cost) {
            self.send();
            self.budget.take(cost);
        }
    }

    fn perform(self: &Arc<Self>, work: Work, payload: Option<Buffer>) {
        let request = work.request;
        let began = Instant::now();
        let bytes = payload.as_ref().map_or(&[][..], |buffer| &buffer[..request.payload()]);
        match perform::change(&request, bytes) {
            Some(change) => {
                let connection = self.clone();
                let done = move |result| connection.changed(work, result);
                self.agreed.export.driver.submit(change, Box::new(done));
            }
            None => {
                let answer = perform::look(&self.agreed.export.driver, &request, &self.buffers);
                self.reply(&work, answer);
            }
        }
        self.agreed.export.pace.took(request.kind(), began.elapsed());
        if let Some(buffer) = payload {
            self.buffers.put(buffer);
        }
    }

    /// A change is done, or failed. Runs on a thread of the connection or of the driver's crew.
    fn changed(self: &Arc<Self>, work: Work, mut result: Result<()>) {
        let at_home = HOME.get() == self.address();
        if result.is_ok() && work.request.durable() && !planted("durable-write-is-not-flushed") {
            if !at_home {
                return self.turns.post(Job::Flush(work), || self.spawn());
            }
            result = self.agreed.export.driver.flush();
        }
        self.reply(&work, perform::outcome(&result));
        if !at_home && self.outbox.send(self.guest.socket(), true, |sent| self.sent(sent)) == Rest::More {
            self.turns.post(Job::Send, || self.spawn());
        }
    }

    /// Queues a reply. It is sent when many are queued, or before this thread waits for anything.
    fn reply(&self, work: &Work, answer: Answer) {
        let reply = Reply::new(&self.agreed, &work.request, answer, work.cost);
        match self.outbox.push(reply) {
            Ok(queued) if queued > CORKED && HOME.get() == self.address() => self.send(),
            Ok(_) => {}
            Err(reply) => self.sent([reply].into()),
        }
    }

    fn send(&self) {
        self.outbox.send(self.guest.socket(), false, |sent| self.sent(sent));
    }

    /// Replies are sent, or never will be: what they took is free again.
    fn sent(&self, mut replies: VecDeque<Reply>) {
        for buffer in replies.iter_mut().filter_map(Reply::take_buffer) {
            self.buffers.put(buffer);
        }
        let cost: usize = replies.iter().map(|reply| reply.cost).sum();
        if cost > 0 {
            self.budget.give(cost);
        }
    }

    fn spawn(self: &Arc<Self>) -> bool {
        let connection = self.clone();
        thread::Builder::new().name("blockcow-nbd".into()).spawn(move || connection.run()).is_ok()
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl Lead {
    /// Whether the client was seen to have several requests in flight.
    fn notice(&mut self, several: bool) {
        self.eager = if several { EAGER } else { self.eager.saturating_sub(1) };
    }
}

/// Receives, and before that sends what is queued: the client may be waiting for it.
struct Source<'a> {
    connection: &'a Connection,
    lookout: &'a mut Lookout,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.connection.send();
        let socket = self.connection.guest.socket();
        match self.lookout.watch(|| socket.receive_now(buffers))? {
            Some(count) => Ok(count),
            None => socket.receive(buffers),
        }
    }
}
