//! Sending: replies that are ready together go out in one call, by one thread at a time; the others leave theirs with it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use parking_lot::Mutex;

use super::reply::Reply;
use super::socket::Socket;

/// Replies in one call, and bytes after which no further one is added.
const MAX_REPLIES: usize = 64;
const MAX_BYTES: usize = 1 << 20;

/// Replies on their way to a client.
#[derive(Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    replies: VecDeque<Reply>,
    bytes: usize,
    /// How much of the first reply is sent already.
    sent: usize,
    /// Somebody is sending.
    busy: bool,
    /// The client is gone.
    dead: bool,
}

/// What is left to do after sending.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// More is queued, for somebody who may wait.
    More,
}

impl Outbox {
    /// Queues a reply, to be sent by a later [`Outbox::send`]; returns the bytes that wait for one. Gives the reply back
    /// if the client is gone.
    pub(super) fn push(&self, reply: Reply) -> Result<usize, Reply> {
        let mut queue = self.queue.lock();
        if queue.dead {
            return Err(reply);
        }
        queue.bytes += reply.len();
        queue.replies.push_back(reply);
        Ok(queue.bytes)
    }

    /// Sends what is queued, unless another thread is at it, which then sends all. With `now` it never waits for the
    /// client, and sends no more than one call takes. `sent` gets the replies that are done with.
    pub(super) fn send(&self, socket: &Socket, now: bool, mut sent: impl FnMut(VecDeque<Reply>)) -> Rest {
        let mut queue = self.queue.lock();
        if queue.busy {
            return Rest::Nothing;
        }
        while !queue.replies.is_empty() {
            let mut batch = take_batch(&mut queue);
            let mut skip = queue.sent;
            queue.busy = true;
            drop(queue);
            let result = send_batch(socket, &mut batch, &mut skip, now, &mut sent);
            queue = self.queue.lock();
            queue.busy = false;
            match result {
                Ok(()) => queue.sent = 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.sent = skip;
                    while let Some(reply) = batch.pop_back() {
                        queue.bytes += reply.len();
                        queue.replies.push_front(reply);
                    }
                }
                Err(_) => {
                    queue.dead = true;
                    queue.bytes = 0;
                    batch.extend(queue.replies.drain(..));
                    drop(queue);
                    sent(batch);
                    // Whoever receives notices, too.
                    socket.cut();
                    return Rest::Nothing;
                }
            }
            if now {
                return if queue.replies.is_empty() { Rest::Nothing } else { Rest::More };
            }
        }
        Rest::Nothing
    }
}

fn take_batch(queue: &mut Queue) -> VecDeque<Reply> {
    let (mut count, mut bytes) = (0, 0);
    for reply in queue.replies.iter().take(MAX_REPLIES) {
        if bytes >= MAX_BYTES {
            break;
        }
        count += 1;
        bytes += reply.len();
    }
    queue.bytes -= bytes;
    if count == queue.replies.len() {
        return std::mem::take(&mut queue.replies);
    }
    queue.replies.drain(..count).collect()
}

/// Sends a batch, of whose first reply `skip` bytes are gone already. What is sent leaves the batch.
fn send_batch(
    socket: &Socket,
    batch: &mut VecDeque<Reply>,
    skip: &mut usize,
    now: bool,
    sent: &mut impl FnMut(VecDeque<Reply>),
) -> io::Result<()> {
    while !batch.is_empty() {
        let mut left_out = *skip;
        let mut slices = Vec::with_capacity(batch.len() * 2);
        for part in batch.iter().flat_map(Reply::parts) {
            let gone = left_out.min(part.len());
            left_out -= gone;
            if gone < part.len() {
                slices.push(IoSlice::new(&part[gone..]));
            }
        }
        *skip += socket.send(&slices, now)?;
        let mut whole = 0;
        while whole < batch.len() && batch[whole].len() <= *skip {
            *skip -= batch[whole].len();
            whole += 1;
        }
        if whole == batch.len() {
            sent(std::mem::take(batch));
        } else {
            sent(batch.drain(..whole).collect());
        }
    }
    Ok(())
}
