//! One established connection: a reader thread and a writer thread around one TLS session.
//!
//! Owns the socket, the session, and the out queue: `OUT_BYTES_MAX` plus one frame; when it is
//! full, `SendError::Busy`; small answers have some more room. The session's mutex is held to
//! encrypt or decrypt at most `UNIT_BYTES`, never over a system call: the reader reads the socket
//! before, the writer alone writes it, after.
//!
//! The writer takes all frames that wait and writes them in units, each one TLS flush and one
//! `write(2)`; it is woken only when it sleeps. A small frame that finds it asleep is written by
//! the thread that sends it, as far as the socket takes it without waiting: a wake-up costs more
//! than the write, 20 us where the other processor must be woken for it. Frames that a thread sends
//! while it holds its wake-ups (`threads::wakeups`) leave in one such write when it lets go. The
//! reader holds them while it gives the frames of one read to the `Receiver`. The writer also wakes
//! the `Receiver` at the time that it asked for, even while the peer does not read: writes block
//! for `WRITE_WAIT` at most.
//!
//! # End
//!
//! `Sender::close` shuts the socket down at once; what waits is lost. `Sender::finish` takes no
//! more frames, lets those that wait leave, says so, and gives the peer until `FINISH_TIMEOUT` to
//! close too (closing at once, with input unread, would make the kernel discard what was sent).
//! Either way the reader thread calls `Receiver::closed`, once and last.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::clock::{Clock, Instant};
use crate::logging;
use crate::rpc::PeerInfo;
use crate::rpc::frame::{Decoder, Frame};
use crate::rpc::greeting::Greeted;
use crate::rpc::message::Purpose;
use crate::rpc::tls::session::Session;
use crate::rpc::unfinished::{InputLimits, Unfinished};
use crate::threads::pace::{Pace, note_small};
use crate::threads::wakeups;
use crate::threads::{self, Thread};

mod writer;

/// Bytes that may wait to be written; one frame more may be added to less. It is what may be in
/// flight to one member, too; half of it would refuse what placement allows.
pub const OUT_BYTES_MAX: usize = 64 << 20;

/// Bytes of small answers that may wait beyond that: all calls of a link are refused in it. With
/// half of it they are not.
const SMALL_ANSWERS_BYTES: usize = 16 << 20;

/// What a small answer has at most. The results of a batch of stores fit.
const SMALL_ANSWER_BYTES_MAX: usize = 64 << 10;

/// The longest frame that the thread which sends it writes itself. Encrypting it takes some 5 us;
/// much more would hold up a worker that has other members to send to.
const DIRECT_BYTES_MAX: usize = 16 << 10;

/// Read at once from the socket.
const READ_BYTES: usize = 128 << 10;

/// How long a write may block before expired calls are looked for.
const WRITE_WAIT: Duration = Duration::from_millis(50);

/// How long an orderly end may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// What the owner of a connection does with it.
pub(crate) trait Receiver: Send + Sync {
    /// A frame, on the reader thread, in order. An error ends the connection with this reason.
    fn frame(&self, sender: &Arc<Sender>, body: Bytes) -> Result<(), String>;
    /// All frames of one read were given, on the reader thread. Wake-ups are held no longer.
    fn read_ended(&self) {}
    /// Called by the writer thread at the time returned last, and whenever it was woken: gives the
    /// time of the next call.
    fn wake(&self, now: Instant) -> Option<Instant>;
    /// The connection has ended: the reader thread's last act.
    fn closed(&self, reason: &Arc<str>);
}

/// Why a frame was not queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    /// The out queue is full.
    Busy,
    /// The connection is closed, for this reason.
    Closed(Arc<str>),
}

/// The half that takes frames; shared by the threads and all that send.
pub(crate) struct Sender {
    /// Who is at the other end.
    pub(crate) peer: PeerInfo,
    socket: TcpStream,
    /// Guards the TLS state; see the header.
    session: Mutex<Session>,
    /// Guards the queue and how the connection ends; held for a few instructions.
    out: Mutex<Out>,
    /// The writer waits here when it has nothing to write.
    ready: Condvar,
    clock: Arc<dyn Clock>,
    /// How often `write(2)` was called.
    writes: AtomicU64,
    reader: OnceLock<ThreadId>,
    writer: OnceLock<ThreadId>,
}

#[derive(Default)]
struct Out {
    /// Whole frames that the writer has not taken.
    frames: VecDeque<Frame>,
    /// What a sender encrypted and the socket did not take: before everything else.
    leftover: Vec<u8>,
    /// Bytes of `frames` and of what the writer has taken and not written.
    bytes: usize,
    /// The session has something to send of its own.
    flush: bool,
    /// Who may write to the socket.
    writer: Writer,
    /// The time at which the writer wakes by itself, if it waits.
    wake_at: Option<Instant>,
    /// An orderly end has begun, and when it is given up.
    finishing: Option<(Arc<str>, Instant)>,
    /// The reader reads no more.
    reader_ended: bool,
    /// The connection is over, and why.
    closed: Option<Arc<str>>,
}

/// Who may write to the socket, and take from the session what is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    /// The writer thread, which is awake.
    #[default]
    Awake,
    /// Nobody: the writer thread waits, and must be woken or lend its part.
    Waits,
    /// A thread that sends. The writer thread waits, and is woken by that one if need be.
    Lent,
}

/// A connection with its threads. Dropping it closes it and joins them.
pub(crate) struct Connection {
    sender: Arc<Sender>,
    threads: Mutex<Vec<(Thread, Half)>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Reader,
    Writer,
}

impl Connection {
    /// Starts the threads. If this fails, `receiver.closed` is not called.
    pub(crate) fn start(
        greeted: Greeted,
        clock: Arc<dyn Clock>,
        receiver: Arc<dyn Receiver>,
    ) -> io::Result<Connection> {
        let Greeted {
            socket,
            session,
            decoder,
            peer,
            limits,
        } = greeted;
        socket.set_write_timeout(Some(WRITE_WAIT))?;
        log::info!("link up: {peer}");
        let name = peer.name.clone();
        let is_yielding = peer.purpose == Purpose::Fetches;
        let pace = move || is_yielding.then(Pace::of_this_thread);
        let sender = Arc::new(Sender {
            peer,
            socket,
            session: Mutex::new(session),
            out: Mutex::new(Out::default()),
            ready: Condvar::new(),
            clock,
            writes: AtomicU64::new(0),
            reader: OnceLock::new(),
            writer: OnceLock::new(),
        });
        let writer = {
            let (sender, receiver) = (sender.clone(), receiver.clone());
            let body = move || sender.write_all(&*receiver, pace());
            threads::spawn(format!("tx-{name}"), body)?
        };
        let reader = {
            let sender = sender.clone();
            let body = move || sender.read_all((decoder, limits), &*receiver, pace());
            threads::spawn(format!("rx-{name}"), body)
        };
        let reader = match reader {
            Ok(reader) => reader,
            Err(error) => {
                sender.close("no thread for it");
                writer.join();
                return Err(error);
            }
        };
        let threads = Mutex::new(vec![(reader, Half::Reader), (writer, Half::Writer)]);
        Ok(Connection { sender, threads })
    }

    pub(crate) fn sender(&self) -> &Arc<Sender> {
        &self.sender
    }

    /// Whether both threads have ended or were taken.
    pub(crate) fn is_finished(&self) -> bool {
        self.threads.lock().iter().all(|(t, _)| t.is_finished())
    }

    /// The threads, for an owner that joins them with a deadline.
    pub(crate) fn take_threads(&self) -> Vec<Thread> {
        let threads = std::mem::take(&mut *self.threads.lock());
        threads.into_iter().map(|(thread, _)| thread).collect()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.sender.close("no longer used");
        let here = Some(thread::current().id());
        for (thread, half) in std::mem::take(&mut *self.threads.lock()) {
            let id = match half {
                Half::Reader => self.sender.reader.get().copied(),
                Half::Writer => self.sender.writer.get().copied(),
            };
            // A callback may hold the last reference. A thread cannot join itself; it is about to
            // end.
            if id != here {
                thread.join();
            }
        }
    }
}

impl Sender {
    /// Queues a whole frame, or writes it if that needs no waiting. `deadline` is when the receiver
    /// wants to be woken for it, if at all.
    pub(crate) fn send(
        self: &Arc<Self>,
        frame: Frame,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        self.send_within(OUT_BYTES_MAX, frame, deadline)
    }

    /// As [`Sender::send`], of an answer: for a small one there is more room.
    pub(crate) fn answer(self: &Arc<Self>, frame: Frame) -> Result<(), SendError> {
        let room = match frame.len() <= SMALL_ANSWER_BYTES_MAX {
            true => OUT_BYTES_MAX + SMALL_ANSWERS_BYTES,
            false => OUT_BYTES_MAX,
        };
        self.send_within(room, frame, None)
    }

    fn send_within(
        self: &Arc<Self>,
        room: usize,
        frame: Frame,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        let mut out = self.out.lock();
        if let Some(reason) = &out.closed {
            return Err(SendError::Closed(reason.clone()));
        }
        if let Some((reason, _)) = &out.finishing {
            return Err(SendError::Closed(reason.clone()));
        }
        if out.bytes >= room {
            return Err(SendError::Busy);
        }
        // The writer thread must wake in time for it.
        let is_minded = deadline.is_none_or(|at| out.wake_at.is_some_and(|wake| wake <= at));
        let is_first = out.writer == Writer::Waits && out.frames.is_empty() && !out.flush;
        let is_held = wakeups::are_held();
        if is_minded
            && is_first
            && !is_held
            && let Some(whole) = frame.whole()
            && whole.len() <= DIRECT_BYTES_MAX
        {
            out.writer = Writer::Lent;
            drop(out);
            self.write_now(whole);
            return Ok(());
        }
        out.bytes += frame.len();
        out.frames.push_back(frame);
        if is_minded && is_held && out.writer == Writer::Waits {
            drop(out);
            wakeups::wake(self);
        } else {
            self.wake_writer(out);
        }
        Ok(())
    }

    /// Ends the connection at once. Only the first reason counts.
    pub(crate) fn close(&self, reason: impl Into<Arc<str>>) {
        let mut out = self.out.lock();
        if out.closed.is_some() {
            return;
        }
        let reason = match out.finishing.take() {
            Some((earlier, _)) => earlier,
            None => reason.into(),
        };
        out.closed = Some(reason);
        let dropped = std::mem::take(&mut out.frames);
        self.wake_writer(out);
        drop(dropped);
        // It fails when the peer closed it first: closed is what was wanted.
        _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends the connection after what is queued has left, soon. Does not block.
    pub(crate) fn finish(&self, reason: impl Into<Arc<str>>) {
        let give_up = self.clock.now() + FINISH_TIMEOUT;
        let mut out = self.out.lock();
        if out.closed.is_none() && out.finishing.is_none() {
            out.finishing = Some((reason.into(), give_up));
            self.wake_writer(out);
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        let out = self.out.lock();
        out.closed.is_none() && out.finishing.is_none()
    }

    /// Bytes that wait to be written.
    pub(crate) fn bytes_queued(&self) -> usize {
        self.out.lock().bytes
    }

    /// How often `write(2)` was called.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    fn wake_writer(&self, mut out: parking_lot::MutexGuard<'_, Out>) {
        if out.writer == Writer::Waits {
            out.writer = Writer::Awake;
            drop(out);
            self.ready.notify_one();
        }
    }

    /// The reader thread.
    fn read_all(
        self: &Arc<Self>,
        (mut decoder, limits): (Decoder, InputLimits),
        receiver: &dyn Receiver,
        pace: Option<Pace>,
    ) {
        _ = self.reader.set(thread::current().id());
        let end = self.read_until_end((&mut decoder, limits), receiver, pace);
        // What it holds of a frame.
        drop(decoder);
        receiver.read_ended();
        match end {
            ReadEnd::Gone(reason) => self.close(reason),
            ReadEnd::Violation(reason) => {
                if let Some(more) = logging::seldom("rpc violation") {
                    log::warn!("closing the link with {}: {reason}{more}", self.peer);
                }
                self.finish(reason);
                self.discard_input();
            }
        }
        let mut out = self.out.lock();
        out.reader_ended = true;
        let reason = match (&out.closed, &out.finishing) {
            (Some(reason), _) | (None, Some((reason, _))) => reason.clone(),
            (None, None) => unreachable!("both ways of ending set one"),
        };
        self.wake_writer(out);
        log::info!("link down: {}: {reason}", self.peer);
        receiver.closed(&reason);
    }

    /// Reads until the peer ends too, or the writer gives that up. A socket that is closed with
    /// input unread would take back what it sent, the reason of a refusal perhaps.
    fn discard_input(&self) {
        let mut buffer = [0; 4096];
        while (&self.socket).read(&mut buffer).is_ok_and(|n| n > 0) {}
    }

    fn read_until_end(
        self: &Arc<Self>,
        (decoder, limits): (&mut Decoder, InputLimits),
        receiver: &dyn Receiver,
        mut pace: Option<Pace>,
    ) -> ReadEnd {
        let mut unfinished = Unfinished::new(&self.socket, &*self.clock, limits);
        let mut buffer = vec![0; READ_BYTES];
        let mut peer_closed = false;
        loop {
            let held = wakeups::hold();
            loop {
                let body = match decoder.next_frame() {
                    Ok(Some(body)) => body,
                    Ok(None) => break,
                    Err(error) => return ReadEnd::Violation(error.to_string()),
                };
                unfinished.end();
                // While we finish, input is read only so that the peer gets our last frames.
                if self.is_open()
                    && let Err(reason) = receiver.frame(self, body)
                {
                    return ReadEnd::Violation(reason);
                }
            }
            drop(held);
            receiver.read_ended();
            if peer_closed {
                return ReadEnd::Gone("closed by the peer".to_owned());
            }
            if let Err(reason) = unfinished.look(decoder.unfinished()) {
                return ReadEnd::Violation(reason);
            }
            match &mut pace {
                Some(pace) => pace.rest(),
                None => note_small(),
            }
            let bytes = match (&self.socket).read(&mut buffer) {
                Ok(0) => return ReadEnd::Gone("closed by the peer".to_owned()),
                Ok(bytes) => bytes,
                // Of a frame that has begun there is no more yet.
                Err(error) if is_passing(&error) => continue,
                Err(error) => return ReadEnd::Gone(format!("reading: {error}")),
            };
            let cipher = buffer.get(..bytes).unwrap_or_default();
            let received = self.session.lock().receive(cipher, decoder);
            match received {
                Ok(received) => {
                    peer_closed = received.closed;
                    if received.flush {
                        let mut out = self.out.lock();
                        out.flush = true;
                        self.wake_writer(out);
                    }
                }
                Err(error) => return ReadEnd::Violation(error.to_string()),
            }
        }
    }
}

impl Out {
    /// Whether there is something for the writer thread.
    fn has_work(&self) -> bool {
        !self.frames.is_empty()
            || !self.leftover.is_empty()
            || self.flush
            || self.finishing.is_some()
            || self.closed.is_some()
    }
}

/// Whether a read can be tried again. The end of a read's own time is `WouldBlock`; `TimedOut` is
/// the kernel's word for a peer that is gone.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

/// Why the reader stopped.
enum ReadEnd {
    /// The connection is gone.
    Gone(String),
    /// The peer broke the contract: it is told what waits, and then nothing.
    Violation(String),
}
