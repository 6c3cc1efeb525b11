//! The wait of a driver for its sockets, as its [generator](Generator) does it.
//!
//! * Epoll: one `epoll_wait` for all connections of the thread.
//! * Blocking: the thread has one connection. While only a reply can bring it forward it blocks in
//!   the read itself, one system call for each piece, as ordinary clients do. It polls the socket
//!   first in two cases: the socket took no more, so that both directions are waited for; or, with
//!   a rate, another request becomes due while fewer than `pipeline` are in flight.

use std::io;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::super::opener::Share;
use super::super::workload::Generator;
use super::connection::Connection;

/// Events taken at a time.
const EVENTS_MAX: usize = 256;

/// How often a thread with many connections looks whether one was opened again.
const OPENED_INTERVAL: Duration = Duration::from_millis(2);

/// How often a thread looks whether it should stop, and at the deadline of its replies.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The same of a thread for each connection, and the longest that one read blocks. A thousand
/// threads whose server stands still wake 2,000 times a second, some percent of a processor.
const BLOCKING_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The sockets of a driver, as they are waited for.
pub(super) enum Waiting {
    Epoll(OwnedFd),
    Blocking,
}

/// A connection whose socket can be read or written.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) place: usize,
    /// There is something to read, an end or an error included. A blocking socket may be named
    /// before that: its read is the wait.
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
}

impl Waiting {
    /// For the connections of one driver; one connection if they block.
    pub(super) fn new(generator: Generator) -> io::Result<Waiting> {
        Ok(match generator {
            Generator::Epoll => Waiting::Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?),
            Generator::Blocking => Waiting::Blocking,
        })
    }

    /// How often the driver looks at what no socket tells.
    pub(super) fn check_interval(&self) -> Duration {
        match self {
            Waiting::Epoll(_) => CHECK_INTERVAL,
            Waiting::Blocking => BLOCKING_CHECK_INTERVAL,
        }
    }

    /// Begins with an open connection.
    pub(super) fn add(&self, stream: &TcpStream, place: usize) -> io::Result<()> {
        match self {
            Waiting::Epoll(epoll) => {
                stream.set_nonblocking(true)?;
                let data = epoll::EventData::new_u64(place as u64);
                Ok(epoll::add(epoll, stream, data, epoll::EventFlags::IN)?)
            }
            Waiting::Blocking => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(BLOCKING_CHECK_INTERVAL))
            }
        }
    }

    /// Waits for room to write too, or no longer.
    pub(super) fn watch_room(&self, connection: &Connection, place: usize) -> io::Result<()> {
        let Waiting::Epoll(epoll) = self else {
            return Ok(()); // Each wait looks at the connection.
        };
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, connection.waits_for_room);
        let data = epoll::EventData::new_u64(place as u64);
        Ok(epoll::modify(epoll, &connection.stream, data, flags)?)
    }

    /// Ends with a connection.
    pub(super) fn remove(&self, stream: &TcpStream) {
        if let Waiting::Epoll(epoll) = self {
            // The socket may be gone already; the poller forgets it when it is dropped.
            _ = epoll::delete(epoll, stream);
        }
    }

    /// Waits until a connection is ready or was opened again, `timeout` at most; gives the ready
    /// ones. A connection with `in_flight_min` requests in flight has nothing to send before a
    /// reply has come.
    pub(super) fn wait(
        &self,
        connections: &[Connection],
        opener: Option<&Share>,
        timeout: Duration,
        in_flight_min: usize,
        ready: &mut Vec<Ready>,
    ) {
        match self {
            Waiting::Epoll(epoll) => {
                let is_opening = opener.is_some_and(Share::is_waiting);
                let timeout = if is_opening {
                    timeout.min(OPENED_INTERVAL)
                } else {
                    timeout
                };
                let mut events = [const { MaybeUninit::uninit() }; EVENTS_MAX];
                let waited = epoll::wait(epoll, &mut events, Some(&timespec(timeout)));
                let (events, _) = passing("epoll_wait", waited).unwrap_or_default();
                ready.extend(events.iter().map(|event| {
                    let (data, flags) = (event.data, event.flags);
                    Ready {
                        place: usize::try_from(data.u64()).unwrap_or(usize::MAX),
                        is_readable: flags != epoll::EventFlags::OUT,
                        is_writable: flags.contains(epoll::EventFlags::OUT),
                    }
                }));
            }
            Waiting::Blocking => {
                let [connection] = connections else {
                    panic!("a thread that blocks has one connection");
                };
                let is_idle = connection.in_flight.len() >= in_flight_min;
                match opener {
                    Some(opener) if !connection.is_connected() => opener.wait(timeout),
                    _ if is_idle && !connection.waits_for_room => ready.push(Ready {
                        place: 0,
                        is_readable: true,
                        is_writable: false,
                    }),
                    _ => ready.extend(poll_one(connection, timeout)),
                }
            }
        }
    }
}

/// Waits for the one connection of a thread.
fn poll_one(connection: &Connection, timeout: Duration) -> Option<Ready> {
    let mut flags = PollFlags::IN;
    flags.set(PollFlags::OUT, connection.waits_for_room);
    let mut fds = [PollFd::new(&connection.stream, flags)];
    passing("poll", poll(&mut fds, Some(&timespec(timeout))));
    let found = fds[0].revents();
    (!found.is_empty()).then_some(Ready {
        place: 0,
        is_readable: found != PollFlags::OUT,
        is_writable: found.contains(PollFlags::OUT),
    })
}

fn timespec(timeout: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    }
}

/// The result of the system call `call`, which waits; `None` if a signal ended the wait.
fn passing<T>(call: &str, waited: Result<T, Errno>) -> Option<T> {
    match waited {
        Ok(found) => Some(found),
        Err(Errno::INTR) => None,
        Err(error) => panic!("{call} fails only if it is used wrongly: {error}"),
    }
}
