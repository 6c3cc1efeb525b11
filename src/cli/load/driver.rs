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
use super::workload::{Requests, is_done};
use crate::client::Answer;
use crate::clock::{Clock, Instant};

/// How long a reply may take. The servers' own deadlines (two seconds, and the time the bytes need,
/// 6.4 s for all that may be in flight to a member) end well before it.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a thread looks whether a connection was opened again.
const OPENED_INTERVAL: Duration = Duration::from_millis(2);

/// How often a thread looks whether it should stop, and at [`REPLY_TIMEOUT`].
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The longest reply line: the largest payload that a leader may be configured for, and more.
const LINE_BYTES_MAX: usize = 40 << 20;

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
        pipeline: usize,
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
            taken.push(Connection::new(stream, requests, place as u64, pipeline));
        }
        Ok(Driver {
            connections: taken,
            pipeline,
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

    /// Takes the reply lines that end in the first `count` bytes of `scratch`.
    fn take_replies(&mut self, place: usize, count: usize) {
        let now = self.clock.now();
        self.last_reply = now;
        let is_measured = now >= self.times.measured_from;
        let connection = &mut self.connections[place];
        let bytes = &self.scratch[..count];
        let (mut start, mut answered, mut failed) = (0, 0, 0);
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = if connection.partial.is_empty() {
                &bytes[start..end]
            } else {
                connection.partial.extend_from_slice(&bytes[start..end]);
                &connection.partial
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            start = end + 1;
            let Some(Flight {
                meant, is_write, ..
            }) = connection.in_flight.pop_front()
            else {
                return self.close(place, &io::Error::other("a reply to no request"));
            };
            answered += 1;
            if is_done(line) {
                if is_measured {
                    self.recorder.done(now.since(meant));
                }
            } else {
                failed += 1;
                let (count, answer) = (u64::from(is_measured), Answer::of(line));
                let reason = || String::from_utf8_lossy(line).into_owned();
                if answer == Answer::Unknown && is_write {
                    self.recorder.unknown(count, reason);
                } else {
                    self.recorder.failed(count, reason);
                }
                if matches!(answer, Answer::NotLeader(_)) && self.opener.is_some() {
                    connection.state = State::Leaving;
                }
            }
            connection.partial.clear();
        }
        connection.partial.extend_from_slice(&bytes[start..]);
        self.shared.answered.fetch_add(answered, Ordering::Relaxed);
        self.shared.failed.fetch_add(failed, Ordering::Relaxed);
        if connection.partial.len() > LINE_BYTES_MAX {
            self.close(place, &io::Error::other("a reply without end"));
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
mod tests {
    use super::*;
    use crate::cli::load::opener::Opener;
    use crate::cli::load::workload::{End, Load};
    use crate::client::Client;
    use crate::clock::{SystemClock, sleep};
    use crate::threads;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    const LOAD: Load = Load {
        connections: 1,
        pipeline: 1,
        size: 10,
        rate: None,
        end: End::Count(300),
        get_ratio: 0.0,
        keys: 1000,
    };

    /// Drives a load against a server that handles each piece it reads as `serve` says, until that
    /// is false.
    fn drive(
        load: &Load,
        serve: impl FnMut(&mut TcpStream, usize) -> bool + Send + 'static,
    ) -> Recorder {
        drive_with(load, None, serve)
    }

    /// The same with what opens connections again.
    fn drive_with(
        load: &Load,
        opener: Option<Share>,
        mut serve: impl FnMut(&mut TcpStream, usize) -> bool + Send + 'static,
    ) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("taken");
        let server = threads::spawn("server", move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let lines = buffer[..count]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count();
                if !serve(&mut stream, lines) {
                    return;
                }
            }
        });
        let clock = SystemClock::shared();
        let start = clock.now();
        let times = Times {
            start,
            measured_from: start,
            until: start + Duration::from_secs(20),
        };
        let schedule = load.rate.map(|rate| Schedule {
            first: start,
            interval: 1e9 / rate,
        });
        let connections = vec![(stream, load.requests(0, 1))];
        let shared = Arc::new(Shared::default());
        let driver = Driver::new(
            connections,
            load.pipeline,
            schedule,
            times,
            clock,
            shared,
            opener,
        );
        let (recorder, _) = driver.expect("a poller").run();
        server.expect("a thread").join();
        recorder
    }

    #[test]
    fn a_server_that_stands_still_is_charged_for_all_that_waited() {
        let stall = |mut replies: usize| {
            move |stream: &mut TcpStream, lines: usize| {
                if replies < 20 && replies + lines >= 20 {
                    sleep(Duration::from_millis(200));
                }
                replies += lines;
                stream.write_all("OK\r\n".repeat(lines).as_bytes()).is_ok()
            }
        };
        let open = Load {
            rate: Some(1000.0),
            ..LOAD
        };
        let recorder = drive(&open, stall(0));
        assert_eq!((recorder.ops(), recorder.errors()), (300, 0));
        // 200 requests were due while it stood still: more than a third waited for 50 ms or more.
        let late = recorder.quantile_us(0.66);
        assert!(late > 50_000, "{late}");
        // Without a rate it is a single one.
        let recorder = drive(&LOAD, stall(0));
        assert_eq!(recorder.ops(), 300);
        let (late, max) = (recorder.quantile_us(0.66), recorder.max_us());
        assert!(late < 50_000 && max >= 200_000, "{late} {max}");
    }

    #[test]
    fn replies_may_come_in_any_pieces_and_errors_are_counted() {
        let mut count = 0;
        let deep = Load {
            pipeline: 16,
            ..LOAD
        };
        let recorder = drive(&deep, move |stream, lines| {
            for _ in 0..lines {
                count += 1;
                let reply = if count % 3 == 0 {
                    "ERROR: no\r\n"
                } else {
                    "OK\r\n"
                };
                let (first, second) = reply.split_at(1);
                stream.write_all(first.as_bytes()).expect("sent");
                stream.write_all(second.as_bytes()).expect("sent");
            }
            true
        });
        assert_eq!((recorder.ops(), recorder.errors()), (200, 100));
        assert_eq!(recorder.first_error(), Some("ERROR: no"));
    }

    #[test]
    fn a_connection_that_breaks_fails_what_it_carried() {
        let deep = Load {
            pipeline: 16,
            ..LOAD
        };
        let recorder = drive(&deep, |stream, _| {
            stream.write_all(b"OK\r\nOK\r\n").expect("sent");
            false
        });
        assert_eq!((recorder.ops(), recorder.errors()), (2, 14));
        let error = recorder.first_error().expect("an error");
        assert!(error.starts_with("a connection broke: "), "{error}");
    }

    /// A leader that takes one connection after the other and does all that it is asked.
    fn next_leader() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        (listener, address)
    }

    fn lead(listener: &TcpListener, connections: usize) {
        for _ in 0..connections {
            let (stream, _) = listener.accept().expect("a client");
            let mut lines = BufReader::new(stream);
            let mut line = String::new();
            while let Ok(1..) = lines.read_line(&mut line) {
                let reply: &[u8] = match line.trim_end() {
                    "PROMPT OFF" => b"tolerex> OK\r\n",
                    "COUNT" => b"0\r\n",
                    _ => b"OK\r\n",
                };
                if lines.get_mut().write_all(reply).is_err() {
                    break;
                }
                line.clear();
            }
        }
    }

    #[test]
    fn a_load_goes_on_with_the_next_leader_and_counts_what_was_lost() {
        let deep = Load {
            pipeline: 16,
            ..LOAD
        };
        let refusal = "ERROR: not leader, leader is h:1\r\n".repeat(16);
        for (reply, lost, unknown) in [("OK\r\nOK\r\n", 14, 14), (refusal.as_str(), 16, 0)] {
            let (listener, address) = next_leader();
            // That of whoever looks for the leader, held open, comes first.
            let leader = threads::spawn("next", move || {
                let looking = listener.try_clone().expect("a descriptor");
                let first = threads::spawn("looking", move || lead(&looking, 1));
                lead(&listener, 1);
                first.expect("a thread").join();
            });
            let client = Client::new([address]).expect("a client");
            let shared = Arc::new(Shared::default());
            let (opener, thread) = Opener::start(client, 1, shared).expect("a thread");
            let share = opener.share(1);
            drop(opener);
            let reply = reply.to_owned();
            let recorder = drive_with(&deep, Some(share), move |stream, _| {
                stream.write_all(reply.as_bytes()).expect("sent");
                reply.len() > 100 // Whoever refuses stays there.
            });
            thread.join();
            leader.expect("a thread").join();
            assert_eq!((recorder.ops(), recorder.errors()), (300 - lost, lost));
            assert_eq!((recorder.unknowns(), recorder.reopenings()), (unknown, 1));
        }
    }
}
