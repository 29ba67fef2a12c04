//! A seat between a program and the kernel: every system call on files that a piece of work and its threads make comes by
//! here, and is carried out, changed or refused. Judges nothing.
//!
//! The kernel hands the calls over (seccomp's user notification), so it is the product's own code, unchanged, that makes
//! them. They are carried out on a thread of the same process, with the same memory and descriptors, one after the other.
//! What is no call on files goes by; what is not known at all is carried out too, and told.

mod call;
mod filter;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

pub use call::{Call, Kind};
use filter::{Listener, Reply};

/// Long enough for the slowest machine, short enough to see a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out.
    Go,
    /// It fails with this error number, and nothing is done.
    Fail(i32),
    /// A transfer of so many bytes instead of all.
    Short(u64),
}

/// Whoever sits there.
pub trait Watch: Send + 'static {
    /// A call is about to be carried out.
    fn before(&mut self, call: &Call) -> Fate;

    /// It was carried out, or refused, with this outcome: as the kernel gives it, errors below zero.
    fn after(&mut self, _call: &Call, _outcome: i64) {}

    /// A call whose number nobody here knows.
    fn unknown(&mut self, number: i64);
}

/// Does a piece of work whose calls, and those of all threads that it starts, come by `watch`. Returns when all of these
/// threads have ended.
///
/// # Errors
/// What hangs or panicked. What hangs is left to itself.
pub fn watched<T: Send + 'static, W: Watch>(
    watch: W,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, W), String> {
    let (seat, taken) = channel();
    let (done, ended) = channel();
    let (over, last) = channel();
    thread::spawn(move || {
        let listener = Listener::of_this_thread();
        if seat.send(listener).is_ok() {
            let _ = done.send(work());
        }
    });
    thread::spawn(move || {
        let Ok(listener) = taken.recv() else { return };
        let mut seat = Seat { watch, paths: HashMap::new() };
        while let Some(number) = listener.next() {
            let reply = seat.serve(&number);
            listener.answer(&number, reply);
        }
        let _ = over.send(seat.watch);
    });
    let outcome = ended.recv_timeout(PATIENCE).map_err(|error| format!("the work {}", how(error)))?;
    let watch = last.recv_timeout(PATIENCE).map_err(|error| format!("a thread that it started {}", how(error)))?;
    Ok((outcome, watch))
}

fn how(error: RecvTimeoutError) -> &'static str {
    match error {
        RecvTimeoutError::Timeout => "hangs",
        RecvTimeoutError::Disconnected => "panicked",
    }
}

struct Seat<W> {
    watch: W,
    /// The paths under which descriptors were opened.
    paths: HashMap<i32, Arc<Path>>,
}

impl<W: Watch> Seat<W> {
    fn serve(&mut self, request: &filter::Request) -> Reply {
        let Some(call) = Call::decode(request, &self.paths) else {
            self.watch.unknown(request.number());
            return call::carry_out(request.number(), request.args());
        };
        let reply = match self.watch.before(&call) {
            Fate::Go => call.carry_out(),
            Fate::Fail(errno) => -i64::from(errno),
            Fate::Short(bytes) => call.carry_out_short(bytes),
        };
        match call.kind {
            Kind::Open if reply >= 0 => drop(self.paths.insert(reply as i32, call.path.clone())),
            Kind::Close => drop(self.paths.remove(&(call.args[0] as i32))),
            _ => {}
        }
        self.watch.after(&call, reply);
        reply
    }
}

/// What is open below a folder in this process, by path.
pub fn open_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    // Another test's descriptors may be closed meanwhile.
    let paths = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    paths.filter(|path| path.starts_with(folder)).collect()
}
