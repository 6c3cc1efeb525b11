//! The bytes of one client connection below its session.
//!
//! A [`Stream`] never blocks. The worker that owns the connection registers it with its poll, is
//! told whenever it may have become readable or writable (edge-triggered), and then reads or writes
//! until the stream has nothing or takes nothing. TCP is the stream of today; a TLS session over
//! TCP is another one: its handshake is carried on by whichever of the operations is called.
//!
//! Calls are dynamic: one costs a nanosecond or two beside a system call of a microsecond.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::event::Source;
use mio::net::TcpStream;

/// A client's connection as a sequence of bytes each way.
pub trait Stream: Source + Send {
    /// Reads once. Returns `None` if there is nothing for now, and 0 if the client has ended its
    /// side.
    fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes once, from the first slice on. Returns how many bytes were taken, at least one unless
    /// all slices are empty; `None` if the stream takes nothing for now.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>>;

    /// Tells the client that nothing more is sent. What was written before arrives.
    fn end_output(&mut self) -> io::Result<()>;

    /// Whether something of the client has arrived that was not read.
    fn has_input(&mut self) -> bool;
}

impl Stream for TcpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        unless_blocked(|| Read::read(self, into))
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let result = match slices {
            // A list of one slice costs the system more than the slice alone.
            [one] => unless_blocked(|| Write::write(self, one)),
            several => unless_blocked(|| self.write_vectored(several)),
        };
        match result? {
            Some(0) if slices.iter().any(|slice| !slice.is_empty()) => {
                Err(ErrorKind::WriteZero.into())
            }
            taken => Ok(taken),
        }
    }

    fn end_output(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn has_input(&mut self) -> bool {
        self.peek(&mut [0]).is_ok_and(|count| count > 0)
    }
}

/// Tries until the call is not interrupted; `None` if it would block.
fn unless_blocked(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        return match call() {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        };
    }
}
