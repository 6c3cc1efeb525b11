//! The `poll` thread: readiness, timers, new connections, and the course of a stop.
//!
//! It never blocks but in the poll itself. It touches a connection only to move it into the job
//! queue, or to serve one that is alone, without waiting.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::listener::Listener;
use super::server::Door;
use super::slots::Shared;
use super::workers::Worker;
use crate::clock::Instant;

/// The wake-ups of other threads.
pub const WAKER: Token = Token(usize::MAX);
/// The events of the first listening socket, and down from there; slots count from 0.
const LISTENER_FIRST: usize = usize::MAX - 1;

/// Events taken from one poll; more come with the next.
const EVENTS_MAX: usize = 1024;

/// The poll and what the thread accepts from.
pub struct Poller {
    poll: Poll,
    /// None once the server is stopping.
    listeners: Vec<Listener>,
}

impl Poller {
    /// Polls for the doors and for the slots of whoever registers with `poll`.
    pub fn new(poll: Poll, doors: Vec<Door>) -> io::Result<Poller> {
        let mut listeners = Vec::new();
        for (number, door) in doors.into_iter().enumerate() {
            door.listener.set_nonblocking(true)?;
            let mut socket = mio::net::TcpListener::from_std(door.listener);
            let token = Token(LISTENER_FIRST - number);
            poll.registry()
                .register(&mut socket, token, Interest::READABLE)?;
            listeners.push(Listener::new(socket, door.sessions));
        }
        Ok(Poller { poll, listeners })
    }

    /// Runs until the stop is over: all connections are closed, or its deadline has passed. Then
    /// the workers are told to end.
    pub fn run(mut self, shared: &Arc<Shared>) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut ready = Vec::new();
        let mut worker = Worker::new(Arc::clone(shared));
        loop {
            let now = shared.clock.now();
            let next_timer = shared.run_timers(now);
            if let Some(deadline) = shared.stop_deadline() {
                if !std::mem::take(&mut self.listeners).is_empty() {
                    shared.sweep_idle();
                }
                if shared.all() == 0 || now >= deadline {
                    break;
                }
            }
            let accept = |listener: &mut Listener| {
                listener.accept(shared, now);
                listener.next()
            };
            let next_accept = self.listeners.iter_mut().filter_map(accept).min();
            let next_gather = shared.gather(&mut ready, now);
            let wake_at = [next_timer, next_accept, next_gather, shared.stop_deadline()];
            let timeout = wake_at.into_iter().flatten().min().map(|at| until(at, now));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("polling cannot go on: {error}"),
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(number) => match self.listeners.get_mut(LISTENER_FIRST - number) {
                        Some(listener) => listener.ready(),
                        None => ready.extend(shared.take_ready(number)),
                    },
                }
            }
            if ready.len() == 1 && !shared.is_stopping() && shared.is_quiet() {
                ready.drain(..).for_each(|seat| worker.serve_here(seat));
            }
        }
        shared.drop_all();
        shared.end_workers();
    }
}

/// Rounded up to the poll's millisecond, so that a timer is due when the poll returns.
fn until(at: Instant, now: Instant) -> Duration {
    let left = at.since(now);
    if left.is_zero() {
        return left;
    }
    left + Duration::from_micros(999)
}
