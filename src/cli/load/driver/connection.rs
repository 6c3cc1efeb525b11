//! One connection of a load: what is due, in flight and written on it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::TcpStream;

use rustix::net::{SendFlags, send};

use super::super::replies::Replies;
use super::super::workload::Requests;
use crate::clock::Instant;

/// Requests are written out ahead of the socket up to this, and read in pieces of this: what a
/// pipeline of 16 small requests or their replies need many times over.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// One connection and what is on its way on it.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) requests: Requests,
    /// Requests that are due and were not sent: their numbers are `due_first`, then each
    /// connections' count later. Only with a schedule.
    pub(super) due: u64,
    pub(super) due_first: u64,
    /// Requests that were sent, or are just being sent, and not answered.
    pub(super) in_flight: VecDeque<Flight>,
    /// The last so many of them are not in `out` yet.
    pub(super) unwritten: usize,
    /// Bytes from `sent` on are to be sent.
    pub(super) out: Vec<u8>,
    pub(super) sent: usize,
    /// What has come of replies.
    pub(super) replies: Replies,
    /// True if the socket took no more at the last write: the driver waits for room too.
    pub(super) waits_for_room: bool,
    pub(super) state: State,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// Its leader leads no more: nothing is sent until it is opened again.
    Leaving,
    /// It is to be opened again.
    Reopening,
    /// For good.
    Closed,
}

/// A request in flight.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    /// When it was meant to be sent: latency counts from here.
    pub(super) meant: Instant,
    /// When it was.
    pub(super) sent: Instant,
    /// Whether it stores something; not known until it was written out.
    pub(super) is_write: bool,
}

impl Connection {
    /// An open one; its first due request is number `due_first`.
    pub(super) fn new(
        stream: TcpStream,
        (requests, replies): (Requests, Replies),
        due_first: u64,
        pipeline: usize,
    ) -> Connection {
        Connection {
            stream,
            requests,
            due: 0,
            due_first,
            in_flight: VecDeque::with_capacity(pipeline),
            unwritten: 0,
            out: Vec::new(),
            sent: 0,
            replies,
            waits_for_room: false,
            state: State::Open,
        }
    }

    /// Forgets what was on its way.
    pub(super) fn forget(&mut self) {
        self.unwritten = 0;
        self.in_flight.clear();
        self.out.clear();
        self.sent = 0;
        self.replies.forget();
        self.waits_for_room = false;
    }

    /// Requests that are neither sent nor due.
    pub(super) fn left(&self) -> u64 {
        let taken = self.due + self.unwritten as u64;
        self.requests.left().saturating_sub(taken)
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state, State::Open | State::Leaving)
    }

    /// Whether nothing will happen on it any more.
    pub(super) fn is_over(&self, is_sending: bool) -> bool {
        let has_more = is_sending && (self.requests.left() > 0 || self.due > 0);
        self.state == State::Closed || (self.in_flight.is_empty() && !has_more)
    }

    /// Sends until all is sent or the socket takes no more. A blocking socket does not block
    /// either: while it is full its replies must be read, or a server that waits for that would
    /// wait forever.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.waits_for_room = false;
        while !self.waits_for_room {
            if self.sent == self.out.len() {
                self.out.clear();
                self.sent = 0;
            }
            while self.unwritten > 0 && self.out.len() < BUFFER_BYTES {
                let next = self.in_flight.len() - self.unwritten;
                self.in_flight[next].is_write = self.requests.write(&mut self.out);
                self.unwritten -= 1;
            }
            if self.out.is_empty() {
                break;
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.stream, &self.out[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.waits_for_room = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
