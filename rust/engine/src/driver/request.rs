//! Requests of front-ends without a thread of their own: a write that must wait is parked, and a small crew resumes it.

use std::borrow::Cow;
use std::io;

use super::passage::{Passage, Passed};
use super::{Driver, device_error};
use crate::counters::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::mutant::planted;
use crate::storage::Zeroing;
use crate::sync::channel::{Sender, unbounded};
use crate::sync::{Arc, Mutex, thread};
use crate::waiter::{Outcome, Waiter};

/// Threads that resume parked requests. They do I/O and never wait at the gate.
const CREW: usize = 2;

/// A write of some kind.
pub enum Request<'a> {
    /// Write the bytes at the offset. Borrowed bytes are copied only if the write must be parked.
    Write(Cow<'a, [u8]>, u64),
    /// Make the range read as zeroes.
    Zero(ByteRange, Zeroing),
    /// Discard the range.
    Discard(ByteRange),
}

impl Request<'_> {
    fn length(&self) -> u64 {
        match self {
            Self::Write(data, _) => data.len() as u64,
            Self::Zero(range, _) | Self::Discard(range) => range.len(),
        }
    }

    fn into_owned(self) -> Request<'static> {
        match self {
            Self::Write(data, offset) => Request::Write(Cow::Owned(data.into_owned()), offset),
            Self::Zero(range, how) => Request::Zero(range, how),
            Self::Discard(range) => Request::Discard(range),
        }
    }
}

/// Called once with the request's outcome, on the submitting thread or on one of the crew's. Must not block.
pub type Completion = Box<dyn FnOnce(Result<()>) + Send>;

struct Parked<'a> {
    driver: Arc<Driver>,
    request: Request<'a>,
    completion: Completion,
    passage: Passage,
}

impl Driver {
    /// Does a write without ever making the caller wait for a backup: if it must be held or suspended it is parked, and
    /// completed later. Otherwise its I/O is done before this returns.
    pub fn submit(self: &Arc<Self>, request: Request<'_>, completion: Completion) {
        let range = match &request {
            Request::Write(data, offset) => self.range("write to the device", *offset, data.len() as u64),
            Request::Zero(range, _) => self.range("zero on the device", range.start, range.len()),
            Request::Discard(range) => self.range("discard on the device", range.start, range.len()),
        };
        self.kind_of(&request).begins();
        match range {
            Err(error) => self.end(&request, completion, Err(error)),
            Ok(bytes) if bytes.is_empty() => self.end(&request, completion, Ok(())),
            Ok(bytes) => {
                let passage = Passage::new(bytes);
                Parked { driver: self.clone(), request, completion, passage }.resume();
            }
        }
    }

    /// Counts a request and tells whoever submitted it.
    fn end(&self, request: &Request<'_>, completion: Completion, outcome: Result<()>) {
        self.kind_of(request).ended(request.length(), outcome.is_ok());
        completion(outcome);
    }

    fn kind_of(&self, request: &Request<'_>) -> &Kind {
        match request {
            Request::Write(..) => &self.counters.writes,
            Request::Zero(..) => &self.counters.zeroes,
            Request::Discard(_) => &self.counters.discards,
        }
    }

    fn perform(&self, request: &Request<'_>) -> Result<()> {
        let (work, operation, offset): (&dyn Fn() -> io::Result<()>, _, _) = match request {
            Request::Write(data, offset) => (&|| self.device.write_at(data, *offset), "write to the device", *offset),
            Request::Zero(range, how) => (&|| self.device.zero(*range, *how), "zero on the device", range.start),
            Request::Discard(range) => (&|| self.device.discard(*range), "discard on the device", range.start),
        };
        self.fly(work).map_err(|error| device_error(operation, &error).at(offset))
    }
}

impl Parked<'_> {
    fn resume(self) {
        let driver = self.driver.clone();
        let passage = self.passage.clone();
        let mut slot = Some(self);
        let passed = driver.pass(passage, |passage| {
            let since = passage.since();
            let parked = slot.take().map(|parked| parked.into_owned(passage));
            Waiter::request(since, Box::new(move |outcome| parked.into_iter().for_each(|parked| parked.woken(outcome))))
        });
        let Some(Self { request, completion, .. }) = slot else { return };
        match passed {
            Ok(Passed::Go) => driver.end(&request, completion, driver.perform(&request)),
            Ok(Passed::Parked) => {}
            Err(error) => driver.end(&request, completion, Err(error)),
        }
    }

    fn into_owned(self, passage: Passage) -> Parked<'static> {
        Parked { driver: self.driver, request: self.request.into_owned(), completion: self.completion, passage }
    }
}

impl Parked<'static> {
    /// Called by whoever wakes the waiter, who has other things to do: the crew takes it from here.
    fn woken(self, outcome: Outcome) {
        let driver = self.driver.clone();
        if planted("parked-request-is-lost") {
            return;
        }
        driver.crew.hand(Box::new(move || match outcome {
            Outcome::AskAgain => self.resume(),
            Outcome::Fail(errno) => {
                let driver = self.driver;
                let error = driver.give_up(self.passage, errno);
                driver.end(&self.request, self.completion, Err(error));
            }
        }));
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads that resume parked requests; started with the first one.
#[derive(Default)]
pub(super) struct Crew {
    jobs: Mutex<Option<Sender<Job>>>,
}

impl Crew {
    fn hand(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        let sender = jobs.get_or_insert_with(start);
        if let Err(lost) = sender.send(job) {
            // No crew thread could be started: the waker does it, late but done.
            drop(jobs);
            (lost.into_inner())();
        }
    }
}

fn start() -> Sender<Job> {
    let (sender, receiver) = unbounded::<Job>();
    for _ in 0..CREW {
        let receiver = receiver.clone();
        let work = move || receiver.into_iter().for_each(|job| job());
        if let Err(error) = thread::Builder::new().name("blockcow-crew".into()).spawn(work) {
            let error = Error::io(ErrorKind::State, "start a thread", &error);
            eprintln!("blockcow: {error}; suspended requests are resumed by fewer threads");
        }
    }
    sender
}
