//! Single reads and writes of a socket that does not block.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use bytes::Buf;
use mio::net::TcpStream;

use crate::protocol::output::Output;

/// The most slices in one write. More than this many waiting chunks mean large payloads, for which
/// another call costs little.
const SLICES_MAX: usize = 16;

/// Writes once, at most `bytes_max` of the output.
pub(super) fn write(
    stream: &mut TcpStream,
    output: &Output,
    bytes_max: usize,
) -> io::Result<usize> {
    let first = output.chunk();
    if first.len() >= bytes_max {
        return stream.write(first.get(..bytes_max).unwrap_or_default());
    }
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = output.chunks_vectored(&mut slices);
    let slices = slices.get(..count).unwrap_or_default();
    let mut bytes = 0;
    let fitting = slices.iter().take_while(|slice| {
        bytes += slice.len();
        bytes <= bytes_max
    });
    let count = fitting.count();
    stream.write_vectored(slices.get(..count).unwrap_or_default())
}

/// Reads once; `None` if there is nothing now, and 0 at the end.
pub(super) fn read(stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        return match stream.read(scratch) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        };
    }
}
