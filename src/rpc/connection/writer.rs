//! The writing side of a connection: the writer thread, and the thread that writes in its place.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{DIRECT_BYTES_MAX, Receiver, Sender, Writer};
use crate::clock::Instant;
use crate::rpc::frame::Frame;
use crate::threads::pace::Pace;
use crate::threads::wakeups::Sleeper;

/// Plaintext encrypted and written at once. Small enough that the reader is not kept from the
/// session for long (some 0.1 ms), large enough that system calls do not count.
const UNIT_BYTES: usize = 256 << 10;

/// What TLS adds to such a frame: a header and a tag for each of two records at most.
const TLS_OVERHEAD_BYTES: usize = 64;

/// What the writer does next.
enum Work {
    /// Write the frames taken and what the session has.
    Write { finishing: bool },
    /// Ask the receiver for its next time.
    Wake,
    /// Nothing more.
    End,
}

impl Sender {
    /// Writes frames in place of the writer thread, then gives its part back.
    pub(super) fn write_now(&self, plain: &[u8]) {
        let mut cipher = Vec::with_capacity(plain.len() + TLS_OVERHEAD_BYTES);
        self.session.lock().send(plain, &mut cipher);
        self.writes.fetch_add(1, Ordering::Relaxed);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let written = match rustix::net::send(&self.socket, &cipher, flags) {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => {
                self.close(format!("writing: {error}"));
                cipher.len()
            }
        };
        let leftover = cipher.split_off(written);
        let mut out = self.out.lock();
        out.leftover = leftover;
        out.writer = Writer::Waits;
        if out.has_work() {
            self.wake_writer(out);
        }
    }

    /// The writer thread.
    pub(super) fn write_all(&self, receiver: &dyn Receiver, pace: Option<Pace>) {
        _ = self.writer.set(thread::current().id());
        if let Err(error) = self.write_until_end(receiver, pace) {
            self.close(format!("writing: {error}"));
        }
    }

    fn write_until_end(&self, receiver: &dyn Receiver, mut pace: Option<Pace>) -> io::Result<()> {
        let mut frames = VecDeque::new();
        let (mut plain, mut cipher) = (Vec::new(), Vec::new());
        loop {
            let wake_at = receiver.wake(self.clock.now());
            let finishing = match self.wait_for_work(wake_at, &mut frames) {
                Work::Write { finishing } => finishing,
                Work::Wake => continue,
                Work::End => return Ok(()),
            };
            let leftover = std::mem::take(&mut self.out.lock().leftover);
            self.write_cipher(&leftover, receiver)?;
            while let Some(frame) = frames.pop_front() {
                for mut rest in frame.parts() {
                    while let room @ 1.. = rest.len().min(UNIT_BYTES - plain.len()) {
                        plain.extend_from_slice(&rest[..room]);
                        rest = &rest[room..];
                        if plain.len() == UNIT_BYTES {
                            self.write_unit(&mut plain, &mut cipher, receiver)?;
                            pace.iter_mut().for_each(Pace::rest);
                            receiver.wake(self.clock.now());
                        }
                    }
                }
            }
            self.write_unit(&mut plain, &mut cipher, receiver)?;
            pace.iter_mut().for_each(Pace::rest);
            if finishing {
                self.session.lock().close_notify();
                self.write_unit(&mut plain, &mut cipher, receiver)?;
                self.socket.shutdown(Shutdown::Write)?;
                self.wait_for_peer();
                return Ok(());
            }
            // After a large frame, do not keep its size for good.
            plain.shrink_to(UNIT_BYTES);
            cipher.shrink_to(UNIT_BYTES);
        }
    }

    fn wait_for_work(&self, wake_at: Option<Instant>, frames: &mut VecDeque<Frame>) -> Work {
        let mut out = self.out.lock();
        loop {
            if out.writer != Writer::Lent {
                out.writer = Writer::Awake;
                if out.closed.is_some() {
                    return Work::End;
                }
                if out.has_work() {
                    std::mem::swap(&mut out.frames, frames);
                    out.flush = false;
                    let finishing = out.finishing.is_some();
                    return Work::Write { finishing };
                }
                out.writer = Writer::Waits;
            }
            out.wake_at = wake_at;
            match wake_at {
                None => self.ready.wait(&mut out),
                Some(at) => {
                    let wait = at.since(self.clock.now());
                    if self.ready.wait_for(&mut out, wait).timed_out() {
                        return Work::Wake;
                    }
                }
            }
        }
    }

    /// Encrypts and writes `plain`, and whatever else the session has to send.
    fn write_unit(
        &self,
        plain: &mut Vec<u8>,
        cipher: &mut Vec<u8>,
        receiver: &dyn Receiver,
    ) -> io::Result<()> {
        cipher.clear();
        self.session.lock().send(plain, cipher);
        self.write_cipher(cipher, receiver)?;
        self.out.lock().bytes -= plain.len();
        plain.clear();
        Ok(())
    }

    /// Writes what is encrypted, however long that takes.
    fn write_cipher(&self, mut rest: &[u8], receiver: &dyn Receiver) -> io::Result<()> {
        while !rest.is_empty() {
            self.writes.fetch_add(1, Ordering::Relaxed);
            match (&self.socket).write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => rest = rest.get(bytes..).unwrap_or_default(),
                // The peer does not read. The kernel gives up after a while, calls earlier.
                Err(error) if is_pause(error.kind()) => (),
                Err(error) => return Err(error),
            }
            if !rest.is_empty() {
                let now = self.clock.now();
                receiver.wake(now);
                let finishing = self.out.lock().finishing.clone();
                if finishing.is_some_and(|(_, give_up)| now >= give_up) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        Ok(())
    }

    /// The last step of an orderly end: until the reader has seen the peer's, or time is up.
    fn wait_for_peer(&self) {
        let mut out = self.out.lock();
        while let Some((_, give_up)) = &out.finishing
            && !out.reader_ended
        {
            let wait = give_up.since(self.clock.now());
            out.writer = Writer::Waits;
            if self.ready.wait_for(&mut out, wait).timed_out() {
                break;
            }
        }
        out.writer = Writer::Awake;
        drop(out);
        self.close("finished");
    }
}

impl Sleeper for Sender {
    /// Frames were sent while the wake-ups of their thread were held: writes them if they are
    /// small, and has the writer thread write them otherwise.
    fn wake_up(self: Arc<Self>) {
        let mut out = self.out.lock();
        if out.writer != Writer::Waits || !out.has_work() {
            // Whoever writes has them, or looks at them before it rests.
            return;
        }
        let is_only = !out.flush && out.finishing.is_none() && out.closed.is_none();
        if !is_only || out.bytes > DIRECT_BYTES_MAX {
            return self.wake_writer(out);
        }
        let frames = std::mem::take(&mut out.frames);
        out.bytes = 0;
        out.writer = Writer::Lent;
        drop(out);
        // They are too small to share payloads.
        let small = frames.iter().filter_map(Frame::whole).collect::<Vec<_>>();
        match small.as_slice() {
            [frame] => self.write_now(frame),
            frames => self.write_now(&frames.concat()),
        }
    }
}

/// Whether a write may be tried again.
fn is_pause(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(kind, Interrupted | TimedOut | WouldBlock)
}
