//! One client connection: its socket, its session, and when to read, write and close.
//!
//! The socket is non-blocking. The session holds both buffers; a connection reads only when its
//! session has nothing left to execute, so what is held of its input is one unfinished request and
//! one read. With [`Limits::output_bytes_max`] of unread output it is *choked*: not read from, no
//! batch begun, until half of that is taken.
//!
//! Room reserved for replies is kept until the client has taken their last byte: until then a large
//! reply is held as a whole, however much of it is taken.
//!
//! A connection that the server ends gets its last reply first: when all output is written, the
//! writing side is shut down, what still arrives is read and dropped for a bounded while, then the
//! socket is closed. Closed at once with unread input, it would be reset, and the client's system
//! would drop replies that the client has not read yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use bytes::{Buf, Bytes};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::Limits;
use super::budget::{Charge, INPUT_ALLOWANCE_BYTES, OUTPUT_ALLOWANCE_BYTES, Reservation};
use crate::clock::Instant;
use crate::protocol::Session;
use crate::protocol::output::Output;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// The most slices in one write. More than this many waiting chunks mean large payloads, for which
/// another call costs little.
const SLICES_MAX: usize = 16;

/// What a client has to take within [`Limits::stall_timeout`], unless it takes all: a client that
/// takes a byte now and then would keep its replies for ever. 17 kbit/s with 30 s.
const PROGRESS_BYTES: usize = 64 << 10;

/// The most that is read and dropped of a connection that is being closed.
const LINGER_BYTES_MAX: usize = 64 << 20;

/// A client connection. It is owned by whoever works on it, else by its slot.
pub struct Connection {
    stream: TcpStream,
    /// Whether the poller's registry knows the socket.
    is_registered: bool,
    /// The protocol, with both buffers.
    pub session: Box<dyn Session>,
    /// What the session holds, charged to the budget of all.
    charge: Charge,
    /// Room for replies that the client has not taken, each with the number of bytes sent when it
    /// has, in order.
    reserved: VecDeque<(u64, Reservation)>,
    /// Bytes sent to the client so far.
    sent: u64,
    /// Whether the client has ended its side.
    has_ended: bool,
    /// Whether there is too much unread output; see the module.
    is_choked: bool,
    /// Since when the client has taken less than [`PROGRESS_BYTES`] of the output, if there is any.
    stalled_since: Option<Instant>,
    /// Bytes that it has taken since then.
    taken: usize,
    /// Set when nothing more is read for the session.
    is_ending: bool,
    /// Set when all is written and the socket is drained before it is closed.
    linger: Option<Linger>,
}

#[derive(Clone, Copy)]
struct Linger {
    until: Instant,
    bytes_left: usize,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, and perhaps there are more.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The end of the client's side.
    End,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(stream: TcpStream, session: Box<dyn Session>, charge: Charge) -> Connection {
        Connection {
            stream,
            is_registered: false,
            session,
            charge,
            reserved: VecDeque::new(),
            sent: 0,
            has_ended: false,
            is_choked: false,
            stalled_since: None,
            taken: 0,
            is_ending: false,
            linger: None,
        }
    }

    /// Reads once into the session through `scratch`.
    pub fn receive(&mut self, scratch: &mut [u8]) -> io::Result<Received> {
        if self.has_ended {
            return Ok(Received::Nothing);
        }
        let received = read(&mut self.stream, scratch)?;
        match received {
            Received::Bytes(count) => {
                self.session
                    .receive(scratch.get(..count).unwrap_or_default());
                self.recharge();
            }
            Received::End => {
                self.has_ended = true;
                self.session.end_of_input();
            }
            Received::Nothing => {}
        }
        Ok(received)
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self, now: Instant) -> io::Result<()> {
        let output = self.session.output();
        while !output.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = output.chunks_vectored(&mut slices);
            match self
                .stream
                .write_vectored(slices.get(..count).unwrap_or_default())
            {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    output.advance(count);
                    self.sent += count as u64;
                    self.taken += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if output.is_empty() {
            self.stalled_since = None;
        } else if self.stalled_since.is_none() || self.taken >= PROGRESS_BYTES {
            self.stalled_since = Some(now);
            self.taken = 0;
        }
        let sent = self.sent;
        while self.reserved.front().is_some_and(|(end, _)| *end <= sent) {
            self.reserved.pop_front();
        }
        self.recharge();
        Ok(())
    }

    /// Gives the session the replies to its requests, with the room reserved for them.
    pub fn complete(&mut self, replies: Vec<Reply>, room: Option<Reservation>) {
        let before = self.session.output().len();
        self.session.complete(replies);
        let after = self.session.output().len();
        if let Some(mut room) = room {
            room.end_fetches();
            // They are encoded now, and as long as they are.
            room.shrink_to(after.saturating_sub(before));
            self.reserved.push_back((self.sent + after as u64, room));
        }
        self.recharge();
    }

    /// Whether there is unread output.
    pub fn has_output(&mut self) -> bool {
        !self.session.output().is_empty()
    }

    /// Whether there is too much unread output to go on; see the module and [`super::budget`].
    pub fn is_choked(&mut self, limits: &Limits) -> bool {
        let max = if self.charge.is_crossed() {
            limits.output_bytes_max.min(OUTPUT_ALLOWANCE_BYTES)
        } else {
            limits.output_bytes_max
        };
        let length = self.session.output().len();
        self.is_choked = length >= max || (self.is_choked && length > max / 2);
        self.is_choked || self.session.is_paused()
    }

    /// Gives up a large unfinished request while the budget is crossed. To be called when the
    /// session has nothing left to execute: what it holds then is one request.
    pub fn shed_if_crossed(&mut self) {
        if self.session.input_bytes() > INPUT_ALLOWANCE_BYTES && self.charge.is_crossed() {
            self.session.shed();
            self.recharge();
        }
    }

    /// Charges what the session holds now, beyond the room reserved for it.
    pub fn recharge(&mut self) {
        let reserved: usize = self.reserved.iter().map(|(_, room)| room.bytes()).sum();
        let held = self.session.bytes_held();
        self.charge.set(held.saturating_sub(reserved));
    }

    /// Whether the client has taken next to nothing for `timeout`, and the connection may be
    /// dropped for that: its place or its bytes are wanted.
    pub fn is_stalled(&self, now: Instant, timeout: Duration, is_stopping: bool) -> bool {
        let is_due = |since| now.since(since) >= timeout;
        let is_wanted = || is_stopping || self.session.wants_close() || self.charge.is_short(now);
        self.stalled_since.is_some_and(is_due) && is_wanted()
    }

    /// Until when the client has to send more, while it is waited for.
    pub fn input_deadline(&mut self, now: Instant) -> Option<Instant> {
        let is_awaited = !(self.is_choked || self.has_ended || self.is_ending);
        is_awaited.then(|| self.session.input_deadline(now))?
    }

    /// Nothing more is read for the session; its output is still to be written.
    pub fn stop_reading(&mut self) {
        self.is_ending = true;
    }

    /// Begins to close, all output being written: no more is sent.
    pub fn begin_linger(&mut self, now: Instant, limits: &Limits) {
        // An error means that the connection is gone already, which the next read will tell.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.linger = Some(Linger {
            until: now + limits.linger,
            bytes_left: LINGER_BYTES_MAX,
        });
    }

    /// Until when the socket is drained, if it is being closed.
    pub fn lingers_until(&self) -> Option<Instant> {
        self.linger.map(|linger| linger.until)
    }

    /// Reads and drops what has arrived; true when the socket may be closed. Bounded like a turn.
    pub fn drain(&mut self, scratch: &mut [u8], now: Instant) -> bool {
        let Some(linger) = &mut self.linger else {
            return true;
        };
        while !self.has_ended && linger.bytes_left > 0 {
            match read(&mut self.stream, scratch) {
                Ok(Received::Bytes(count)) => {
                    linger.bytes_left = linger.bytes_left.saturating_sub(count);
                }
                Ok(Received::Nothing) => return now >= linger.until,
                Ok(Received::End) | Err(_) => return true,
            }
        }
        true
    }

    /// Whether the client has ended its side, so that there is nothing to drain.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Asks the poller for an event under `token` when one of the conditions that the connection
    /// waits for holds, at once if one does already: registering again re-arms the edge.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let waits_to_write = !self.session.output().is_empty();
        let stops_reading = self.is_choked
            || self.has_ended
            || self.session.is_paused()
            || (self.is_ending && self.linger.is_none());
        let interest = match (stops_reading, waits_to_write) {
            (true, _) => Interest::WRITABLE,
            (false, true) => Interest::READABLE | Interest::WRITABLE,
            (false, false) => Interest::READABLE,
        };
        if self.is_registered {
            return registry.reregister(&mut self.stream, token, interest);
        }
        registry.register(&mut self.stream, token, interest)?;
        self.is_registered = true;
        Ok(())
    }

    /// Since when the client has taken next to nothing of the output that waits for it.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }
}

fn read(stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<Received> {
    loop {
        return match stream.read(scratch) {
            Ok(0) => Ok(Received::End),
            Ok(count) => Ok(Received::Bytes(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) => Err(error),
        };
    }
}

/// The session of a client for which there is no room: it has one thing to say.
pub struct Farewell {
    output: Output,
}

impl Farewell {
    /// Says `refusal`.
    pub fn new(refusal: &Bytes) -> Farewell {
        let mut output = Output::default();
        output.extend(refusal);
        Farewell { output }
    }
}

impl Session for Farewell {
    fn receive(&mut self, _bytes: &[u8]) {}

    fn end_of_input(&mut self) {}

    fn next_batch(&mut self) -> Option<Batch> {
        None
    }

    fn complete(&mut self, _replies: Vec<Reply>) {
        unreachable!("it offers no batch");
    }

    fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn wants_close(&self) -> bool {
        true
    }

    fn bytes_held(&self) -> usize {
        self.output.len()
    }

    fn input_bytes(&self) -> usize {
        0
    }

    fn shed(&mut self) {}

    fn release_buffers(&mut self) {}
}
