//! A thread that sends a load on its share of the connections and records the replies.
//!
//! Its share is many connections, for which it waits in epoll, or a single blocking one: see
//! [`Generator`](super::workload::Generator). With epoll one thread serves many connections, and
//! one system call carries a whole pipeline: the generator usually shares the machine with the
//! servers it measures, so what it burns is taken from them. A thread for each connection costs two
//! more thread switches a request; it is what most clients do. All but the wait is the same in
//! both, see [`waiting`].
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
mod waiting;

use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use self::connection::{BUFFER_BYTES, Connection, Flight, State};
use self::waiting::{Ready, Waiting};
use super::opener::Share;
use super::recorder::Recorder;
use super::replies::{Refusal, Replies, Reply};
use super::workload::{Load, Requests, Schedule, Times};
use crate::clock::{Clock, Instant};

/// How long a reply may take. The servers' own deadlines (two seconds, and the time the bytes need,
/// 6.4 s for all that may be in flight to a member) end well before it.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

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

/// One thread's part of a load.
pub struct Driver {
    connections: Vec<Connection>,
    /// Requests in flight on each connection.
    pipeline: usize,
    schedule: Option<Schedule>,
    /// The number of the schedule's next request.
    next: u64,
    /// Known when the load starts.
    times: Times,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    waiting: Waiting,
    /// Opens connections again; `None`: they stay closed.
    opener: Option<Share>,
    recorder: Recorder,
    /// When the last reply came.
    last_reply: Instant,
    /// The buffer into which a socket is read; its length is the most that one read returns.
    scratch: Vec<u8>,
}

impl Driver {
    /// Takes connections that have been greeted, with what each is to send, and what opens them
    /// again.
    pub fn new(
        connections: Vec<(TcpStream, Requests)>,
        load: &Load,
        schedule: Option<Schedule>,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        opener: Option<Share>,
    ) -> io::Result<Driver> {
        let waiting = Waiting::new(load.generator)?;
        let mut taken = Vec::with_capacity(connections.len());
        for (place, (stream, requests)) in connections.into_iter().enumerate() {
            waiting.add(&stream, place)?;
            let parts = (requests, Replies::new(load.protocol));
            taken.push(Connection::new(stream, parts, place as u64, load.pipeline));
        }
        Ok(Driver {
            connections: taken,
            pipeline: load.pipeline,
            schedule,
            next: 0,
            times: Times::default(),
            clock,
            shared,
            waiting,
            opener,
            recorder: Recorder::default(),
            last_reply: Instant::default(),
            scratch: vec![0; BUFFER_BYTES],
        })
    }

    /// Sends until the end; gives what was recorded, and when the last reply came.
    pub fn run(mut self, times: Times) -> (Recorder, Instant) {
        self.times = times;
        self.last_reply = times.start;
        if self.schedule.is_some() {
            // Without it a wait for the next request's time takes 50 µs more. A refusal costs that.
            _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        }
        let mut ready = Vec::new();
        let mut is_sending = true;
        let mut next_check = self.times.start;
        self.fill_all();
        loop {
            let now = self.clock.now();
            if is_sending && self.is_ended(now) {
                is_sending = false;
                self.take_due(now, is_sending);
                self.give_up_unsent(now);
            }
            if is_sending {
                self.take_opened();
                self.take_due(now, is_sending);
            }
            if self
                .connections
                .iter()
                .all(|connection| connection.is_over(is_sending))
            {
                return (self.recorder, self.last_reply);
            }
            if now >= next_check {
                next_check = now + self.waiting.check_interval();
                self.fail_late(now);
            }
            let timeout = self.wait_at_most(is_sending, next_check).since(now);
            let (connections, opener) = (&self.connections, self.opener.as_ref());
            let has_due = is_sending && self.schedule.is_some();
            let in_flight_min = if has_due { self.pipeline } else { 0 };
            self.waiting
                .wait(connections, opener, timeout, in_flight_min, &mut ready);
            for ready in ready.drain(..) {
                self.ready(ready, is_sending);
            }
        }
    }

    /// Whether nothing is to be sent any more.
    fn is_ended(&self, now: Instant) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || now >= self.times.until
    }

    fn wait_at_most(&self, is_sending: bool, next_check: Instant) -> Instant {
        if !is_sending {
            return next_check;
        }
        let until = next_check.min(self.times.until);
        match &self.schedule {
            Some(schedule) => until.min(self.due(schedule, self.next)),
            None => until,
        }
    }

    fn due(&self, schedule: &Schedule, number: u64) -> Instant {
        self.times.start + schedule.due_after(number)
    }

    /// The first requests of a closed loop.
    fn fill_all(&mut self) {
        for place in 0..self.connections.len() {
            self.send_more(place);
        }
    }

    /// Hands requests whose time has come to the connections.
    fn take_due(&mut self, now: Instant, is_sending: bool) {
        let Some(schedule) = self.schedule else {
            return;
        };
        let count = self.connections.len() as u64;
        while self.due(&schedule, self.next) <= now.min(self.times.until) {
            let place = (self.next % count) as usize;
            self.next += 1;
            let connection = &mut self.connections[place];
            if connection.state == State::Closed {
                self.recorder
                    .failed(1, || "the connection is closed".to_owned());
            } else if connection.left() > 0 {
                connection.due += 1;
                if is_sending && connection.in_flight.len() < self.pipeline {
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
                let meant = self.times.start + schedule.due_after(connection.due_first);
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
        let waited = connection.waits_for_room;
        let mut written = connection.write();
        if written.is_ok() && connection.waits_for_room != waited {
            written = self.waiting.watch_room(connection, place);
        }
        if let Err(error) = written {
            self.close(place, &error);
        }
    }

    /// Does what a connection is ready for.
    fn ready(&mut self, ready: Ready, is_sending: bool) {
        let place = ready.place;
        if !self.connections[place].is_connected() {
            return;
        }
        if ready.is_writable {
            self.write(place);
        }
        if ready.is_readable {
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
        // A read that blocks may return long after the end.
        if is_sending && !self.is_ended(self.last_reply) {
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
        self.waiting.remove(&connection.stream);
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
            if let Err(error) = self.waiting.add(&stream, place) {
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
                let due = self.times.start + schedule.due_after(connection.due_first);
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
