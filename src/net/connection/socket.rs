//! Single writes of output to a stream.

use std::io::{self, IoSlice};

use bytes::Buf;

use crate::net::stream::Stream;
use crate::protocol::output::Output;

/// The most slices in one write. More than this many waiting chunks mean large payloads, for which
/// another call costs little.
const SLICES_MAX: usize = 16;

/// Writes once, at most `bytes_max` of the output.
pub(super) fn write(
    stream: &mut dyn Stream,
    output: &Output,
    bytes_max: usize,
) -> io::Result<Option<usize>> {
    let first = output.chunk();
    if first.len() >= bytes_max {
        return stream.write(&[IoSlice::new(first.get(..bytes_max).unwrap_or_default())]);
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
    stream.write(slices.get(..count).unwrap_or_default())
}
