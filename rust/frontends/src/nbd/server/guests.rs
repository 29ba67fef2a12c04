//! Who is connected: counted, limited, and sent home when the server closes. Knows nothing of the protocol.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::socket::Socket;

/// After sockets are cut, how long their threads may take to notice.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The sockets of all clients.
pub(super) struct Guests {
    limit: usize,
    register: Mutex<Register>,
    left: Condvar,
}

#[derive(Default)]
struct Register {
    sockets: HashMap<u64, Arc<Socket>>,
    next: u64,
    closed: bool,
}

/// One client. Its socket closes when this is dropped.
pub(super) struct Guest {
    guests: Arc<Guests>,
    number: u64,
    socket: Arc<Socket>,
}

impl Guests {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, register: Mutex::default(), left: Condvar::new() })
    }

    /// `None`: there are too many, or the server is closed; the socket is closed.
    pub(super) fn admit(self: &Arc<Self>, socket: Socket) -> Option<Guest> {
        let mut register = self.register.lock();
        if register.closed || register.sockets.len() >= self.limit {
            return None;
        }
        let (number, socket) = (register.next, Arc::new(socket));
        register.next += 1;
        register.sockets.insert(number, socket.clone());
        Some(Guest { guests: self.clone(), number, socket })
    }

    pub(super) fn count(&self) -> usize {
        self.register.lock().sockets.len()
    }

    pub(super) fn closed(&self) -> bool {
        self.register.lock().closed
    }

    /// Admits nobody any more, and receives nothing more from those who are there.
    pub(super) fn close(&self) {
        let mut register = self.register.lock();
        register.closed = true;
        register.sockets.values().for_each(|socket| socket.stop_receiving());
    }

    /// Waits until all have left; at the deadline they are thrown out.
    pub(super) fn leave_by(&self, deadline: Instant) {
        if !self.wait_until(deadline) {
            self.register.lock().sockets.values().for_each(|socket| socket.cut());
            self.wait_until(Instant::now() + AFTERMATH);
        }
    }

    fn wait_until(&self, deadline: Instant) -> bool {
        let mut register = self.register.lock();
        while !register.sockets.is_empty() && !self.left.wait_until(&mut register, deadline).timed_out() {}
        register.sockets.is_empty()
    }
}

impl Guest {
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.register.lock().sockets.remove(&self.number);
        self.guests.left.notify_all();
    }
}
