//! The `poll` thread: readiness, timers, new connections, and the course of a stop.
//!
//! It never blocks but in the poll itself. It touches a connection only to move it into the job
//! queue, or to serve one that is alone, without waiting.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::listener::Listener;
use super::slots::Shared;
use super::workers::Worker;
use crate::clock::Instant;

/// The listening socket's events; slots count from 0.
const LISTENER: Token = Token(usize::MAX);
/// The wake-ups of other threads.
pub const WAKER: Token = Token(usize::MAX - 1);

/// Events taken from one poll; more come with the next.
const EVENTS_MAX: usize = 1024;

/// The poll and what the thread accepts from.
pub struct Poller {
    poll: Poll,
    /// Gone once the server is stopping.
    listener: Option<Listener>,
}

impl Poller {
    /// Polls for `socket` and for the slots of whoever registers with `poll`.
    pub fn new(poll: Poll, socket: std::net::TcpListener) -> io::Result<Poller> {
        socket.set_nonblocking(true)?;
        let mut socket = mio::net::TcpListener::from_std(socket);
        poll.registry()
            .register(&mut socket, LISTENER, Interest::READABLE)?;
        let listener = Some(Listener::new(socket));
        Ok(Poller { poll, listener })
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
                if self.listener.take().is_some() {
                    shared.sweep_idle();
                }
                if shared.all() == 0 || now >= deadline {
                    break;
                }
            }
            let next_accept = self.listener.as_mut().and_then(|listener| {
                listener.accept(shared, now);
                listener.next()
            });
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
                    LISTENER => {
                        if let Some(listener) = &mut self.listener {
                            listener.ready();
                        }
                    }
                    WAKER => {}
                    Token(slot) => ready.extend(shared.take_ready(slot)),
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
