//! A thread that sends a load on its share of the connections and records the replies.
//!
//! One thread serves many connections by readiness, and one system call carries a whole pipeline:
//! the generator usually shares the machine with the servers it measures, so what it burns is taken
//! from them. A thread for each connection costs two more thread switches a request.
//!
//! * Without a rate a connection sends `pipeline` requests in one piece, waits for all the replies,
//!   and sends the next ones (as `redis-benchmark -P` does).
//! * With a rate a thread's requests are due at equal intervals and go to its connections in turn;
//!   a connection that has `pipeline` of them in flight keeps the others waiting.
//!
//! **When the leader changes** a connection that breaks fails what it has in flight: of a SET that
//! was sent the outcome is unknown. One that is told to go elsewhere waits for the replies it is
//! owed. Then [`super::opener`] looks for the active leader, the connection is opened again, and
//! the load goes on; nothing is sent twice. With a rate all that was due meanwhile waits and is
//! charged for it. Where no leader is found a connection stays closed.
//!
//! At the end what is in flight is waited for, [`REPLY_TIMEOUT`] at most.

mod connection;

use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use self::connection::{BUFFER_BYTES, Connection, Flight, State};
use super::opener::Share;
use super::recorder::Recorder;
use super::replies::{Refusal, Replies, Reply};
use super::workload::{Load, Requests};
use crate::clock::{Clock, Instant};

/// How long a reply may take. The servers' own deadlines (two seconds, and the time the bytes need,
/// 6.4 s for all that may be in flight to a member) end well before it.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a thread looks whether a connection was opened again.
const OPENED_INTERVAL: Duration = Duration::from_millis(2);

/// How often a thread looks whether it should stop, and at [`REPLY_TIMEOUT`].
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Events taken at a time.
const EVENTS_MAX: usize = 256;

/// What the threads of a load and whoever watches them share.
#[derive(Default)]
pub struct Shared {
    /// Ends the load early.
    pub stop: AtomicBool,
    /// Requests answered so far, warm-up included.
    pub answered: AtomicU64,
    /// Those of them that were not done.
    pub failed: AtomicU64,
}

/// When a thread does what.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The first request is sent.
    pub start: Instant,
    /// Replies count that come then or later.
    pub measured_from: Instant,
    /// No request is sent any more.
    pub until: Instant,
}

/// The requests of an open loop: request `n` is due at `first + n * interval`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// When the first request is due.
    pub first: Instant,
    /// Nanoseconds between two requests.
    pub interval: f64,
}

impl Schedule {
    fn due(&self, number: u64) -> Instant {
        self.first + Duration::from_nanos((number as f64 * self.interval) as u64)
    }
}

/// One thread's part of a load.
pub struct Driver {
    connections: Vec<Connection>,
    /// Requests in flight on each connection.
    pipeline: usize,
    schedule: Option<Schedule>,
    /// The number of the schedule's next request.
    next: u64,
    times: Times,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    epoll: OwnedFd,
    /// Opens connections again; `None`: they stay closed.
    opener: Option<Share>,
    recorder: Recorder,
    /// When the last reply came.
    last_reply: Instant,
    /// What one read takes.
    scratch: Vec<u8>,
}

impl Driver {
    /// Takes connections that have been greeted, with what each is to send, and what opens them
    /// again.
    pub fn new(
        connections: Vec<(TcpStream, Requests)>,
        load: &Load,
        schedule: Option<Schedule>,
        times: Times,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        opener: Option<Share>,
    ) -> io::Result<Driver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut taken = Vec::with_capacity(connections.len());
        for (place, (stream, requests)) in connections.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(place as u64);
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
            let parts = (requests, Replies::new(load.protocol));
            taken.push(Connection::new(stream, parts, place as u64, load.pipeline));
        }
        Ok(Driver {
            connections: taken,
            pipeline: load.pipeline,
            schedule,
            next: 0,
            times,
            clock,
            shared,
            epoll,
            opener,
            recorder: Recorder::default(),
            last_reply: times.start,
            scratch: vec![0; BUFFER_BYTES],
        })
    }

    /// Sends until the end; gives what was recorded, and when the last reply came.
    pub fn run(mut self) -> (Recorder, Instant) {
        if self.schedule.is_some() {
            // Without it a wait for the next request's time takes 50 µs more. A refusal costs that.
            _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        }
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut is_sending = true;
        let mut next_check = self.times.start;
        self.fill_all();
        loop {
            let now = self.clock.now();
            let is_told = self.shared.stop.load(Ordering::Relaxed);
            if is_sending && (is_told || now >= self.times.until) {
                is_sending = false;
                self.give_up_unsent(now);
            }
            if is_sending {
                self.take_opened();
                self.take_due(now);
            }
            if self
                .connections
                .iter()
                .all(|connection| connection.is_over(is_sending))
            {
                return (self.recorder, self.last_reply);
            }
            if now >= next_check {
                next_check = now + CHECK_INTERVAL;
                self.fail_late(now);
            }
            let wait = self.wait_at_most(now, is_sending, next_check);
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll_wait fails only if it is used wrongly: {error}"),
            }
            for event in &events {
                let place = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                self.ready(place, event.flags, is_sending);
            }
        }
    }

    fn wait_at_most(&self, now: Instant, is_sending: bool, next_check: Instant) -> Timespec {
        let mut until = next_check;
        if is_sending {
            until = until.min(self.times.until);
            if let Some(schedule) = &self.schedule {
                until = until.min(schedule.due(self.next));
            }
            if self.opener.as_ref().is_some_and(Share::is_waiting) {
                until = until.min(now + OPENED_INTERVAL);
            }
        }
        let wait = until.since(now);
        Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        }
    }

    /// The first requests of a closed loop.
    fn fill_all(&mut self) {
        for place in 0..self.connections.len() {
            self.send_more(place);
        }
    }

    /// Hands requests whose time has come to the connections.
    fn take_due(&mut self, now: Instant) {
        let Some(schedule) = self.schedule else {
            return;
        };
        let count = self.connections.len() as u64;
        while schedule.due(self.next) <= now.min(self.times.until) {
            let place = (self.next % count) as usize;
            self.next += 1;
            let connection = &mut self.connections[place];
            if connection.state == State::Closed {
                self.recorder
                    .failed(1, || "the connection is closed".to_owned());
            } else if connection.left() > 0 {
                connection.due += 1;
                if connection.in_flight.len() < self.pipeline {
                    self.send_more(place);
                }
            }
        }
    }

    /// Sends what a connection may send now.
    fn send_more(&mut self, place: usize) {
        let count = self.connections.len() as u64;
        let sent = self.clock.now();
        let connection = &mut self.connections[place];
        if connection.state != State::Open {
            return;
        }
        let is_write = true;
        if let Some(schedule) = &self.schedule {
            while connection.due > 0 && connection.in_flight.len() < self.pipeline {
                let meant = schedule.due(connection.due_first);
                connection.due -= 1;
                connection.due_first += count;
                connection.in_flight.push_back(Flight {
                    meant,
                    sent,
                    is_write,
                });
                connection.unwritten += 1;
            }
        } else if connection.in_flight.is_empty() {
            let batch = connection.requests.left().min(self.pipeline as u64) as usize;
            let flight = Flight {
                meant: sent,
                sent,
                is_write,
            };
            connection
                .in_flight
                .extend(std::iter::repeat_n(flight, batch));
            connection.unwritten = batch;
        }
        self.write(place);
    }

    fn write(&mut self, place: usize) {
        let connection = &mut self.connections[place];
        if let Err(error) = connection.write(&self.epoll, place) {
            self.close(place, &error);
        }
    }

    /// Does what a connection is ready for.
    fn ready(&mut self, place: usize, flags: epoll::EventFlags, is_sending: bool) {
        if !self.connections[place].is_connected() {
            return;
        }
        if flags.contains(epoll::EventFlags::OUT) {
            self.write(place);
        }
        if flags != epoll::EventFlags::OUT {
            let read = self.connections[place].stream.read(&mut self.scratch);
            match read {
                Ok(0) => {
                    let error = io::Error::other("the server has closed the connection");
                    self.close(place, &error);
                }
                Ok(count) => self.take_replies(place, count),
                Err(error) if is_passing(&error) => {}
                Err(error) => self.close(place, &error),
            }
        }
        let connection = &self.connections[place];
        if connection.state == State::Leaving && connection.in_flight.is_empty() {
            self.disconnect(place);
        }
        if is_sending {
            self.send_what_may(place);
        }
    }

    /// Sends if there is something to send.
    fn send_what_may(&mut self, place: usize) {
        let connection = &self.connections[place];
        let may_send = match self.schedule {
            Some(_) => connection.due > 0,
            None => connection.in_flight.is_empty() && connection.requests.left() > 0,
        };
        if may_send {
            self.send_more(place);
        }
    }

    /// Takes the replies that end in the first `count` bytes of `scratch`.
    fn take_replies(&mut self, place: usize, count: usize) {
        let now = self.clock.now();
        self.last_reply = now;
        let is_measured = now >= self.times.measured_from;
        let can_leave = self.opener.is_some();
        let recorder = &mut self.recorder;
        let Connection {
            replies,
            in_flight,
            state,
            ..
        } = &mut self.connections[place];
        let (mut answered, mut failed) = (0, 0);
        let taken = replies.take(&self.scratch[..count], |reply| {
            let Some(flight) = in_flight.pop_front() else {
                return Err("a reply to no request");
            };
            answered += 1;
            let Reply::Refused(refusal, why) = reply else {
                if is_measured {
                    recorder.done(now.since(flight.meant));
                }
                return Ok(());
            };
            failed += 1;
            let (count, reason) = (u64::from(is_measured), || why.into_owned());
            match refusal {
                Refusal::Unknown if flight.is_write => recorder.unknown(count, reason),
                Refusal::Failed | Refusal::Unknown | Refusal::NotLeader => {
                    recorder.failed(count, reason);
                }
            }
            if refusal == Refusal::NotLeader && can_leave {
                *state = State::Leaving;
            }
            Ok(())
        });
        self.shared.answered.fetch_add(answered, Ordering::Relaxed);
        self.shared.failed.fetch_add(failed, Ordering::Relaxed);
        if let Err(why) = taken {
            self.close(place, &io::Error::other(why));
        }
    }

    /// Ends a connection: what was sent and not answered is not done, or unknown.
    fn close(&mut self, place: usize, error: &io::Error) {
        let connection = &mut self.connections[place];
        if !connection.is_connected() {
            return; // Writing and reading have failed both.
        }
        let written = connection.in_flight.len() - connection.unwritten;
        let sent = connection.in_flight.iter().take(written);
        let writes = sent.filter(|flight| flight.is_write).count();
        let reason = || format!("a connection broke: {error}");
        self.recorder.unknown(writes as u64, reason);
        // Without another one to come, one that breaks idle is worth being told too.
        let is_silent = written == 0 && self.opener.is_none();
        let failed = (written - writes).max(usize::from(is_silent));
        self.recorder.failed(failed as u64, reason);
        self.shared
            .failed
            .fetch_add(written as u64, Ordering::Relaxed);
        self.disconnect(place);
    }

    /// Leaves a connection to be opened again, if that can be. What is due waits.
    fn disconnect(&mut self, place: usize) {
        let count = self.connections.len() as u64;
        let connection = &mut self.connections[place];
        if self.schedule.is_some() {
            let unwritten = connection.unwritten as u64;
            connection.due += unwritten;
            connection.due_first -= unwritten * count;
        }
        connection.forget();
        // The socket may be gone already; the poller forgets it when it is dropped.
        _ = epoll::delete(&self.epoll, &connection.stream);
        // It is dropped when another one comes; its leader need not wait for that.
        _ = connection.stream.shutdown(Shutdown::Both);
        connection.state = State::Reopening;
        match &mut self.opener {
            Some(opener) => opener.ask(place),
            None => self.close_for_good(place, 0, "the connection is closed"),
        }
    }

    /// What waits on a connection that is not opened again is not done: as many errors at least.
    fn close_for_good(&mut self, place: usize, errors_min: u64, why: &str) {
        let connection = &mut self.connections[place];
        let due = std::mem::take(&mut connection.due);
        connection.state = State::Closed;
        self.shared.failed.fetch_add(due, Ordering::Relaxed);
        self.recorder.failed(due.max(errors_min), || why.to_owned());
    }

    /// Goes on with the connections that were opened again.
    fn take_opened(&mut self) {
        while let Some((place, opened)) = self.opener.as_mut().and_then(Share::take) {
            let stream = match opened {
                Ok(stream) => stream,
                Err(error) => {
                    self.close_for_good(place, 1, &error.to_string());
                    continue;
                }
            };
            let data = epoll::EventData::new_u64(place as u64);
            let watched = stream.set_nonblocking(true).and_then(|()| {
                Ok(epoll::add(
                    &self.epoll,
                    &stream,
                    data,
                    epoll::EventFlags::IN,
                )?)
            });
            if let Err(error) = watched {
                self.close_for_good(place, 1, &error.to_string());
                continue;
            }
            self.recorder.reopened();
            let connection = &mut self.connections[place];
            connection.stream = stream;
            connection.state = State::Open;
            self.send_what_may(place);
        }
    }

    /// Ends the connections whose oldest request waits for too long.
    fn fail_late(&mut self, now: Instant) {
        for place in 0..self.connections.len() {
            let oldest = self.connections[place].in_flight.front();
            // One that is not connected has nothing in flight.
            if oldest.is_some_and(|flight| now.since(flight.sent) > REPLY_TIMEOUT) {
                let text = format!("no answer within {} s", REPLY_TIMEOUT.as_secs());
                self.close(place, &io::Error::other(text));
            }
        }
    }

    /// Nothing is sent any more: what is due and was not sent has waited until now at least.
    fn give_up_unsent(&mut self, now: Instant) {
        let count = self.connections.len() as u64;
        let Some(schedule) = self.schedule else {
            return;
        };
        for connection in &mut self.connections {
            for _ in 0..connection.due {
                let due = schedule.due(connection.due_first);
                connection.due_first += count;
                self.recorder.never_sent(now.since(due));
            }
            connection.due = 0;
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
