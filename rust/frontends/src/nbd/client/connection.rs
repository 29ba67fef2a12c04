//! One connection to an NBD server, shared by many threads with a request in flight each.
//!
//! There is no thread of its own: of the threads that wait for replies one leads and reads the socket. It passes the lead,
//! with the header that it has read, to the thread whose reply comes next, which reads straight into its own buffer. Every
//! wait has an end, and a connection that has failed once fails for ever, with the first cause.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32, U64};

use super::answer::{Answer, Header, Source};
use super::cause::Cause;
use super::handshake::{Agreed, Wire, negotiate};
use super::socket::{Socket, silent};
use super::uri::Uri;
use crate::nbd::protocol::{REQUEST_MAGIC, Request, command};

/// How much is read ahead of what is asked for, so that small replies come in one system call.
const READ_AHEAD: usize = 16 << 10;
/// A request waits for so many times its patience at most, however busy the connection is with others.
const LONGEST_WAIT: u32 = 5;

/// Why a request has no good answer.
#[derive(Debug)]
pub enum Failed {
    /// The server refused it, and goes on with others.
    Request(Cause),
    /// The connection cannot be used any more; what became of the request is not known.
    Connection(Cause),
}

/// What is asked of the server.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Of `protocol::command`.
    pub command: u16,
    /// Of `protocol::flag`.
    pub flags: u16,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u32,
    /// What a write carries.
    pub payload: &'a [u8],
    /// How long nothing at all may come from the server while this request waits.
    pub patience: Duration,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    structured: bool,
    sending: Mutex<()>,
    incoming: Mutex<Incoming>,
    state: Mutex<State>,
    load: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    next_cookie: u64,
    /// The requests that have no whole reply yet, oldest first.
    waiting: BTreeMap<u64, Waiting>,
    /// Whether a thread reads the socket, or was told to.
    led: bool,
    broken: Option<Cause>,
}

#[derive(Debug)]
struct Waiting {
    signal: Arc<Condvar>,
    /// Whether the request is out: before that its thread cannot lead.
    sent: bool,
    /// The lead, and the header that its last holder read.
    turn: Option<Option<Header>>,
}

/// Bytes that have come and that nobody has taken yet.
#[derive(Debug)]
struct Incoming {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The connection's incoming bytes, and until when to wait for them.
struct Reading<'a> {
    socket: &'a Socket,
    incoming: &'a mut Incoming,
    until: &'a dyn Fn() -> Instant,
}

impl Source for Reading<'_> {
    fn fill(&mut self, mut buf: &mut [u8]) -> Result<(), Cause> {
        while !buf.is_empty() {
            let Incoming { buf: ahead, start, end } = &mut *self.incoming;
            if start < end {
                let count = buf.len().min(*end - *start);
                buf[..count].copy_from_slice(&ahead[*start..*start + count]);
                *start += count;
                buf = &mut buf[count..];
            } else if buf.len() >= ahead.len() {
                let count = self.socket.receive(buf, self.until)?;
                buf = &mut buf[count..];
            } else {
                (*start, *end) = (0, 0);
                *end = self.socket.receive(ahead, self.until)?;
            }
        }
        Ok(())
    }
}

impl Wire for Reading<'_> {
    fn say(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        self.socket.send(bytes, b"", self.until)
    }
}

impl Connection {
    /// Connects and negotiates, all of it before `until`. `silence`: see `Socket::connect`.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn open(uri: &Uri, until: Instant, silence: Duration) -> Result<(Self, Agreed), Cause> {
        let socket = Socket::connect(&uri.place, until, silence)?;
        let mut incoming = Incoming { buf: vec![0; READ_AHEAD].into(), start: 0, end: 0 };
        let mut wire = Reading { socket: &socket, incoming: &mut incoming, until: &|| until };
        let agreed = negotiate(&mut wire, &uri.export)?;
        let connection = Self {
            socket,
            structured: agreed.structured,
            sending: Mutex::new(()),
            incoming: Mutex::new(incoming),
            state: Mutex::default(),
            load: AtomicUsize::new(0),
        };
        Ok((connection, agreed))
    }

    /// Where it leads; see `Socket::peer`.
    pub fn peer(&self) -> &str {
        self.socket.peer()
    }

    /// How many requests are in flight.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Sends a request and waits for all of its answer.
    ///
    /// # Errors
    /// See `Failed`.
    pub fn call(&self, call: Call<'_>, mut answer: Answer<'_>) -> Result<(), Failed> {
        self.load.fetch_add(1, Ordering::Relaxed);
        let done = self.exchange(call, &mut answer);
        self.load.fetch_sub(1, Ordering::Relaxed);
        done.map_err(|cause| Failed::Connection(self.fail(cause)))?;
        answer.outcome().map_err(Failed::Request)
    }

    fn exchange(&self, call: Call<'_>, answer: &mut Answer<'_>) -> Result<(), Cause> {
        let (cookie, signal) = self.register()?;
        let start = Instant::now();
        let last = start + call.patience * LONGEST_WAIT;
        let until = || (self.socket.last_progress().max(start) + call.patience).min(last);
        let request = Request {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(call.flags),
            command: U16::new(call.command),
            cookie: U64::new(cookie),
            offset: U64::new(call.offset),
            length: U32::new(call.length),
        };
        {
            let _turn = self.sending.lock();
            self.check_whole()?;
            self.socket.send(request.as_bytes(), call.payload, &until)?;
        }
        self.receive(cookie, &signal, answer, &until)
    }

    fn register(&self) -> Result<(u64, Arc<Condvar>), Cause> {
        let mut state = self.state.lock();
        if let Some(cause) = &state.broken {
            return Err(cause.clone());
        }
        let cookie = state.next_cookie;
        state.next_cookie += 1;
        let signal = Arc::new(Condvar::new());
        state.waiting.insert(cookie, Waiting { signal: signal.clone(), sent: false, turn: None });
        Ok((cookie, signal))
    }

    fn check_whole(&self) -> Result<(), Cause> {
        self.state.lock().broken.clone().map_or(Ok(()), Err)
    }

    fn receive(
        &self,
        cookie: u64,
        signal: &Condvar,
        answer: &mut Answer<'_>,
        until: &dyn Fn() -> Instant,
    ) -> Result<(), Cause> {
        loop {
            let mut header = self.wait_for_lead(cookie, signal, until)?;
            let mut incoming = self.incoming.lock();
            let mut source = Reading { socket: &self.socket, incoming: &mut incoming, until };
            loop {
                let next = match header.take() {
                    Some(header) => header,
                    None => Header::read(&mut source, self.structured)?,
                };
                if next.cookie() != cookie {
                    drop(incoming);
                    self.pass_lead(next)?;
                    break;
                }
                if answer.take(&next, &mut source)? {
                    drop(incoming);
                    self.leave(cookie);
                    return Ok(());
                }
            }
        }
    }

    /// Returns when this thread is to read the socket, with the header that was read already.
    fn wait_for_lead(
        &self,
        cookie: u64,
        signal: &Condvar,
        until: &dyn Fn() -> Instant,
    ) -> Result<Option<Header>, Cause> {
        let mut state = self.state.lock();
        loop {
            if let Some(cause) = &state.broken {
                return Err(cause.clone());
            }
            let led = state.led;
            let waiting = state.waiting.get_mut(&cookie).ok_or_else(|| Cause::breach("a second reply to a request"))?;
            waiting.sent = true;
            if let Some(header) = waiting.turn.take() {
                return Ok(header);
            }
            if !led {
                state.led = true;
                return Ok(None);
            }
            let deadline = until();
            if signal.wait_until(&mut state, deadline).timed_out() && until() <= Instant::now() {
                return Err(silent());
            }
        }
    }

    /// Gives the lead to the thread that waits for this reply.
    fn pass_lead(&self, header: Header) -> Result<(), Cause> {
        let mut state = self.state.lock();
        let whose = state.waiting.get_mut(&header.cookie());
        let whose = whose.ok_or_else(|| Cause::breach("a reply to a request that was not made"))?;
        whose.turn = Some(Some(header));
        whose.signal.notify_one();
        Ok(())
    }

    /// Ends a request whose reply is whole, and gives the lead to the oldest that can take it.
    fn leave(&self, cookie: u64) {
        let mut state = self.state.lock();
        state.waiting.remove(&cookie);
        state.led = give_lead(&mut state);
    }

    /// Breaks the connection, unless it is broken: all who wait are woken. Returns the first cause.
    pub fn fail(&self, cause: Cause) -> Cause {
        let mut state = self.state.lock();
        if let Some(first) = &state.broken {
            return first.clone();
        }
        state.broken = Some(cause.clone());
        self.socket.hang_up();
        for waiting in state.waiting.values() {
            waiting.signal.notify_one();
        }
        cause
    }
}

fn give_lead(state: &mut MutexGuard<'_, State>) -> bool {
    let Some(next) = state.waiting.values_mut().find(|waiting| waiting.sent) else { return false };
    next.turn = Some(None);
    next.signal.notify_one();
    true
}

impl Drop for Connection {
    /// Says good-bye, if that takes no waiting.
    fn drop(&mut self) {
        if self.state.get_mut().broken.is_some() {
            return;
        }
        let request = Request {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(0),
            command: U16::new(command::DISC),
            cookie: U64::new(u64::MAX),
            offset: U64::new(0),
            length: U32::new(0),
        };
        let now = Instant::now();
        // A server that does not listen notices the end of the connection.
        let _ = self.socket.send(request.as_bytes(), b"", &|| now);
    }
}
