//! The threads of a connection: each reads a request from its own descriptor, has it done, and reads the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blockcow_engine::error::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::channel::{Channel, Reply, RequestBuffer};
use super::file::File;
use super::wire::InHeader;

/// How long a thread rests after an error of the device that should not happen.
const REST: Duration = Duration::from_millis(10);

/// The threads that serve one file.
#[derive(Default)]
pub struct Session {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Session {
    /// Starts one thread for each descriptor. They end when the file is unmounted or the connection aborted.
    ///
    /// # Errors
    /// `State` if a thread cannot be started.
    pub fn start(file: &Arc<File>, channels: &[Arc<Channel>]) -> Result<Arc<Self>> {
        let session = Arc::new(Self::default());
        for channel in channels {
            let (file, channel) = (file.clone(), channel.clone());
            // Before any request is read.
            let mut buffer = RequestBuffer::new();
            let turn = Turn::begin(&session);
            let work = move || {
                let _turn = turn;
                serve(&file, &channel, &mut buffer);
            };
            let started = thread::Builder::new().name("blockcow-fuse".into()).spawn(work);
            started.map_err(|error| Error::io(ErrorKind::State, "start a thread for FUSE", &error))?;
        }
        Ok(session)
    }

    /// Waits until all threads have ended; `false` if the timeout came first.
    pub fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut running = self.running.lock();
        while *running > 0 {
            if self.ended.wait_until(&mut running, until).timed_out() {
                return *running == 0;
            }
        }
        true
    }
}

/// Counts a thread as long as it lives.
struct Turn(Arc<Session>);

impl Turn {
    fn begin(session: &Arc<Session>) -> Self {
        *session.running.lock() += 1;
        Self(session.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.ended.notify_all();
    }
}

fn serve(file: &File, channel: &Arc<Channel>, buffer: &mut RequestBuffer) {
    loop {
        match channel.read(buffer) {
            // The file is unmounted, or its connection was aborted.
            Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => return,
            Ok(length) => answer(file, channel, buffer.bytes(), length),
            // A signal; or the request was taken back before it could be read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            Err(error) => {
                eprintln!("blockcow: read a FUSE request: {}", std::io::Error::from(error));
                thread::sleep(REST);
            }
        }
    }
}

/// A panic answers EIO, by the dropped reply, and the thread goes on.
fn answer(file: &File, channel: &Arc<Channel>, bytes: &mut [u8], length: usize) {
    let Ok((header, _)) = InHeader::read_from_prefix(&bytes[..length]) else { return };
    let reply = Reply::new(channel, header.unique);
    let handled = catch_unwind(AssertUnwindSafe(|| file.handle(header, bytes, length, reply)));
    if handled.is_err() {
        eprintln!("blockcow: a FUSE request of kind {} was answered with an error, see above", header.opcode);
    }
}
