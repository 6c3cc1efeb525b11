//! One client connection: its socket, its session, and when to read, write and close.
//!
//! Its bytes come from and go to a [`Stream`], which never blocks. The session holds both buffers.
//! A connection reads only when its session has nothing left to execute, so what is held of its
//! input is one unfinished request and one read. Pushes to the session ([`pushing`]) join its
//! output between two replies. With [`Limits::output_bytes_max`] of unread output the connection is
//! *choked*: not read from, no batch begun, until half of that is taken.
//!
//! A large request has its room reserved before all of it is read ([`super::budget`]). While it
//! waits for that the connection is not read from; the room is kept until the request is answered.
//!
//! Room reserved for replies is kept until the client has taken their last byte: until then a large
//! reply is held as a whole, however much of it is taken.
//!
//! A connection that the server ends gets its last reply first: when all output is written, the
//! writing side is shut down, what still arrives is read and dropped for a bounded while, then the
//! socket is closed. Closed at once with unread input, it would be reset, and the client's system
//! would drop replies that the client has not read yet.

mod admission;
mod input_room;
mod pushing;
mod socket;

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Buf;
use mio::{Interest, Registry, Token};

use self::input_room::{Admission, InputRoom};
use self::socket::write;
use super::Limits;
use super::budget::{Charge, INPUT_ALLOWANCE_BYTES, OUTPUT_ALLOWANCE_BYTES, Reservation};
use super::pusher::Outbox;
use super::stream::Stream;
use crate::clock::Instant;
use crate::protocol::Session;
use crate::protocol::admission::{Caller, Offered};
use crate::protocol::output::SHARE_BYTES_MIN;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// What a client has to take within [`Limits::stall_timeout`], unless it takes all: a client that
/// takes a byte now and then would keep its replies for ever. 17 kbit/s with 30 s.
const PROGRESS_BYTES: usize = 64 << 10;

/// Bytes of a request or of replies from which on parsing or encoding them may take longer than a
/// worker should keep its other connections waiting: JSON of so many takes half a millisecond.
/// With twice as many such a turn would be longer than a millisecond; with half as many the way to
/// a helper and back would cost more than it saves.
const LONG_BYTES: usize = 256 << 10;

/// Bytes written in one turn. The system takes up to some MiB at once, which is a copy of a
/// millisecond. With half of it large replies would need twice as many turns, each with a poll.
const TURN_WRITE_BYTES: usize = 256 << 10;

/// The most that is read and dropped of a connection that is being closed.
const LINGER_BYTES_MAX: usize = 64 << 20;

/// A client connection, owned by a worker.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Who its client is.
    caller: Caller,
    accepted_at: Instant,
    /// Whether the worker's poll knows the socket.
    is_registered: bool,
    /// Whether the socket may hold input. If not, the poll reports when some comes. A read that
    /// fills less than its buffer has emptied the socket, except in the next field's cases.
    may_have_input: bool,
    /// Whether a read that fills less than its buffer may leave something in the socket: the end of
    /// the client's side, or bytes that follow urgent data. The poll reported that already, and
    /// will not again. So it is read until the socket has nothing.
    distrusts_short_reads: bool,
    /// Whether the socket may take output. If not, the poll reports when it does.
    may_take_output: bool,
    /// Bytes that may still be written in this turn.
    write_bytes_left: usize,
    /// The protocol, with both buffers.
    pub session: Box<dyn Session>,
    /// A batch that was parsed and not begun yet.
    prepared: Option<Batch>,
    /// Bytes of the unfinished request when the session last looked for a batch and found none; 0
    /// after it found one. Without more bytes than these there is none to be found.
    parsed_in_vain: usize,
    /// The batch under way, as it is counted when it has its replies.
    offered: Option<Offered>,
    /// What is pushed to the session, once somebody has subscribed it.
    outbox: Option<Outbox>,
    /// What the session holds, charged to the budget of all.
    charge: Charge,
    /// Room for replies that the client has not taken, each with the number of bytes sent when it
    /// has, in order.
    reserved: VecDeque<(u64, Reservation)>,
    /// Room for the unfinished request, or for the one that is executed.
    input_room: InputRoom,
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

/// How far a socket is drained that is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// It may be closed.
    Over,
    /// It has nothing for now.
    Nothing,
    /// There may be more.
    Again,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, and perhaps there are more.
    Bytes,
    /// Nothing for now.
    Nothing,
    /// The end of the client's side.
    End,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(
        (stream, caller): (Box<dyn Stream>, Caller),
        session: Box<dyn Session>,
        charge: Charge,
        accepted_at: Instant,
    ) -> Connection {
        Connection {
            stream,
            caller,
            accepted_at,
            is_registered: false,
            may_have_input: true,
            distrusts_short_reads: false,
            may_take_output: true,
            write_bytes_left: TURN_WRITE_BYTES,
            session,
            prepared: None,
            parsed_in_vain: 0,
            offered: None,
            outbox: None,
            charge,
            reserved: VecDeque::new(),
            input_room: InputRoom::None,
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
        if self.has_ended || !self.may_have_input {
            return Ok(Received::Nothing);
        }
        let Some(count) = self.stream.read(scratch)? else {
            (self.may_have_input, self.distrusts_short_reads) = (false, false);
            return Ok(Received::Nothing);
        };
        if count == 0 {
            self.has_ended = true;
            self.session.end_of_input();
            return Ok(Received::End);
        }
        self.may_have_input = count == scratch.len() || self.distrusts_short_reads;
        self.session
            .receive(scratch.get(..count).unwrap_or_default());
        self.recharge();
        Ok(Received::Bytes)
    }

    /// Whether there is output, and the socket was emptied.
    pub fn has_only_to_write(&mut self) -> bool {
        !self.may_have_input && self.has_output()
    }

    /// The poll reported something of the socket, or may have done so while nobody looked. With
    /// `is_special` that was perhaps the end of the client's side, or urgent data.
    pub fn may_be_ready(&mut self, is_special: bool) {
        self.may_have_input = true;
        self.may_take_output = true;
        self.distrusts_short_reads |= is_special;
    }

    /// A turn of the connection begins: it may write [`TURN_WRITE_BYTES`].
    pub fn begin_turn(&mut self) {
        self.write_bytes_left = TURN_WRITE_BYTES;
    }

    /// Whether there is output that the socket may take, but not in this turn.
    pub fn has_more_to_write(&mut self) -> bool {
        self.may_take_output && self.has_output()
    }

    /// Writes what the socket takes, as far as the turn allows.
    pub fn flush(&mut self, now: Instant) -> io::Result<()> {
        let output = self.session.output();
        while !output.is_empty() && self.may_take_output && self.write_bytes_left > 0 {
            let Some(count) = write(&mut *self.stream, output, self.write_bytes_left)? else {
                self.may_take_output = false;
                break;
            };
            output.advance(count);
            self.write_bytes_left -= count;
            self.sent += count as u64;
            self.taken += count;
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

    /// The next batch of the input at hand.
    pub fn next_batch(&mut self) -> Option<Batch> {
        self.prepared.take().or_else(|| self.parse())
    }

    fn parse(&mut self) -> Option<Batch> {
        let batch = self.session.next_batch();
        // A paused session did not look at all of its input.
        let is_in_vain = batch.is_none() && !self.session.is_paused();
        self.parsed_in_vain = match is_in_vain {
            true => self.session.input_bytes(),
            false => 0,
        };
        batch
    }

    /// Whether to have a helper parse: a large request may have come as a whole, and bytes have
    /// come since it was last looked for. Its end may be missing all the same, such as the line end
    /// after a payload: then it is looked for again only when more bytes have come.
    pub fn has_much_to_parse(&self) -> bool {
        let bytes = self.session.input_bytes();
        self.prepared.is_none()
            && bytes > LONG_BYTES
            && bytes > self.parsed_in_vain
            && self.session.may_be_whole()
    }

    /// Whether these replies take long to be encoded: as JSON, or as copies, which small payloads
    /// are.
    pub fn has_much_to_encode(&self, replies: &[Reply]) -> bool {
        if self.session.reply_growth() > 1 {
            return is_long(replies);
        }
        // So few are not counted.
        if replies.len() * SHARE_BYTES_MIN <= LONG_BYTES {
            return false;
        }
        let bytes = replies.iter().map(Reply::payload_len);
        let copied = bytes.filter(|bytes| *bytes < SHARE_BYTES_MIN as u64);
        copied.sum::<u64>() > LONG_BYTES as u64
    }

    /// Parses, so that [`Connection::next_batch`] takes no time.
    pub fn prepare(&mut self) {
        self.prepared = self.parse();
    }

    /// Gives the session the replies to its requests, with the room reserved for them.
    pub fn complete(&mut self, replies: Vec<Reply>, room: Option<Reservation>) {
        let before = self.session.output().len();
        self.session.complete(replies);
        self.input_room = InputRoom::None;
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

    /// Whether its unfinished request is small, as far as it has come: more may be read.
    pub fn has_small_input(&mut self) -> bool {
        let is_small = self.session.input_bytes() <= INPUT_ALLOWANCE_BYTES;
        if is_small {
            self.input_room = InputRoom::None;
        }
        is_small
    }

    /// Whether its unfinished request waits for room.
    pub fn waits_for_room(&self) -> bool {
        self.input_room.waits_until().is_some()
    }

    /// It is not read from at `now` because it is choked: its client cannot send more of a large
    /// request, and is not blamed for that.
    pub fn pause_input(&mut self, now: Instant) {
        self.input_room.pause(now);
    }

    /// Whether more may be read all the same: a large unfinished request has its room, or is given
    /// up after it waited or stalled for `timeout`. Asks for the room, and has `wake` called when
    /// it is there. To be called when the session has nothing left to execute: what it holds then
    /// is one request.
    pub fn admit(
        &mut self,
        now: Instant,
        timeout: Duration,
        wake: impl FnOnce() + Send + 'static,
    ) -> bool {
        let held = self.session.input_bytes();
        let bytes = (held, self.session.input_bytes_expected());
        let time = (now, timeout);
        match self.input_room.admit(bytes, &self.charge, time, wake) {
            Admission::Wait => return false,
            Admission::Read => {}
            Admission::GiveUp => {
                self.session.shed();
                self.input_room = InputRoom::None;
            }
        }
        self.recharge();
        true
    }

    /// Charges what the session holds now, beyond the room reserved for it.
    pub fn recharge(&mut self) {
        let replies: usize = self.reserved.iter().map(|(_, room)| room.bytes()).sum();
        let held = self.session.bytes_held();
        let reserved = replies + self.input_room.bytes();
        self.charge.set_unless_small(held.saturating_sub(reserved));
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
        if let Some(until) = self.input_room.waits_until() {
            return Some(until);
        }
        let is_awaited = !(self.is_choked || self.has_ended || self.is_ending);
        is_awaited.then(|| self.session.input_deadline(now))?
    }

    /// From now on nothing is read from the client or pushed to it; output that the session has is
    /// still written. A request that has arrived in part stays unfinished, so its room is given
    /// back.
    pub fn stop_reading(&mut self) {
        self.is_ending = true;
        self.outbox = None;
        self.input_room = InputRoom::None;
        self.recharge();
    }

    /// Begins to close, all output being written: no more is sent.
    pub fn begin_linger(&mut self, now: Instant, limits: &Limits) {
        // An error means that the connection is gone already, which the next read will tell.
        let _ = self.stream.end_output();
        self.linger = Some(Linger {
            until: now + limits.linger,
            bytes_left: LINGER_BYTES_MAX,
        });
    }

    /// Until when the socket is drained, if it is being closed.
    pub fn lingers_until(&self) -> Option<Instant> {
        self.linger.map(|linger| linger.until)
    }

    /// Reads and drops what has arrived, in `reads` reads at most.
    pub fn drain(&mut self, scratch: &mut [u8], reads: usize, now: Instant) -> Drained {
        let Some(linger) = &mut self.linger else {
            return Drained::Over;
        };
        if self.has_ended || now >= linger.until {
            return Drained::Over;
        }
        for _ in 0..reads {
            match self.stream.read(scratch) {
                Ok(None) => return Drained::Nothing,
                Ok(Some(0)) | Err(_) => return Drained::Over,
                Ok(Some(count)) => {
                    linger.bytes_left = linger.bytes_left.saturating_sub(count);
                }
            }
            if linger.bytes_left == 0 {
                return Drained::Over;
            }
        }
        Drained::Again
    }

    /// Whether the client has ended its side, so that there is nothing to drain.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Has the worker's poll tell under `token` whenever the socket has become readable or
    /// writable.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // Urgent data: see `distrusts_short_reads`.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let interest = interest | Interest::PRIORITY;
        if std::mem::replace(&mut self.is_registered, true) {
            return registry.reregister(&mut *self.stream, token, interest);
        }
        registry.register(&mut *self.stream, token, interest)
    }

    /// Takes the socket from the worker's poll, for another worker.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut *self.stream)?;
        self.is_registered = false;
        // Nothing was reported of what has happened since the last read and write.
        self.may_be_ready(true);
        Ok(())
    }

    /// When it was accepted.
    pub fn accepted_at(&self) -> Instant {
        self.accepted_at
    }

    /// Whether it is between two requests: nothing of one has come, and nothing is to be sent.
    pub fn is_idle(&self) -> bool {
        !self.has_ended && !self.is_ending && self.session.is_idle()
    }

    /// Whether the socket holds bytes of the client.
    pub fn has_input(&mut self) -> bool {
        self.stream.has_input()
    }

    /// Since when the client has taken next to nothing of the output that waits for it, or has sent
    /// next to nothing of a request that has its room.
    pub fn stalled_since(&self) -> Option<Instant> {
        let input = self.input_room.stalled_since();
        self.stalled_since.into_iter().chain(input).min()
    }
}

/// Whether encoding these replies in another form takes long.
pub fn is_long(replies: &[Reply]) -> bool {
    replies.iter().map(Reply::payload_len).sum::<u64>() > LONG_BYTES as u64
}
