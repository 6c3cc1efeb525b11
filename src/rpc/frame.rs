//! Frames: a length prefix, then that many bytes. Pure.
//!
//! | offset | size | type            | meaning                                    |
//! |--------|------|-----------------|--------------------------------------------|
//! | 0      | 4    | u32, big-endian | length `n` of the body, without the prefix |
//! | 4      | `n`  | bytes           | one encoded `Envelope`                     |
//!
//! A [`Decoder`] holds what has arrived of at most one incomplete frame, [`FRAME_BYTES_MAX`] at
//! most (plus what one read brought). A frame is split off its buffer without copying; as long as
//! any part of it lives, so does the buffer it came in.

mod outgoing;

use bytes::{Bytes, BytesMut};

pub use outgoing::Frame;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// The largest body of a frame. Twice of it doubles what one connection may hold, half of it would
/// not carry the largest payload (16 MiB by default) with room to spare.
pub const FRAME_BYTES_MAX: usize = 32 << 20;

/// Frames above this size get a buffer of their own where possible. Below it, keeping one saves
/// allocations; above it, it would be memory that is rarely used again.
const LARGE_BYTES: usize = 1 << 20;

/// A frame's prefix named more bytes than the limit. The stream has no next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {bytes} bytes is larger than {max}")]
pub struct FrameTooLarge {
    /// What the prefix says.
    pub bytes: usize,
    /// The limit in force.
    pub max: usize,
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    /// What has arrived and not been returned, beginning with a prefix.
    buffer: BytesMut,
    /// The largest body accepted.
    max: usize,
}

impl Decoder {
    /// A decoder for bodies of up to `max` bytes.
    pub fn new(max: usize) -> Decoder {
        assert!(max <= FRAME_BYTES_MAX, "limit {max} above the format's");
        Decoder {
            buffer: BytesMut::new(),
            max,
        }
    }

    /// Changes the limit, for what has not been returned yet.
    pub fn set_max(&mut self, max: usize) {
        assert!(max <= FRAME_BYTES_MAX, "limit {max} above the format's");
        self.max = max;
    }

    /// Adds bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The size of the frame of which a part is held, prefix included, once `next_frame` gave
    /// `None`; that of the prefix as long as that is not complete either.
    pub fn unfinished(&self) -> Option<usize> {
        let bytes = match self.buffer.first_chunk::<PREFIX_BYTES>() {
            Some(prefix) => u32::from_be_bytes(*prefix) as usize,
            None => 0,
        };
        (!self.buffer.is_empty()).then_some(PREFIX_BYTES + bytes)
    }

    /// The body of the next frame, `None` when it has not arrived completely. After an error every
    /// further call gives it again.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameTooLarge> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_be_bytes(*prefix) as usize;
        if bytes > self.max {
            let max = self.max;
            return Err(FrameTooLarge { bytes, max });
        }
        let whole = PREFIX_BYTES + bytes;
        if self.buffer.len() < whole {
            // Once, instead of doubling several times while a large frame arrives.
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(whole).freeze();
        if whole > LARGE_BYTES && self.buffer.is_empty() {
            // Otherwise the buffer's size would stay for the life of the connection.
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame.split_off(PREFIX_BYTES)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut frame = Frame::begin(body.len()).expect("a small frame");
        frame.own().extend_from_slice(body);
        frame.to_vec()
    }

    #[test]
    fn frames_come_out_one_by_one() {
        let mut decoder = Decoder::new(16);
        decoder.push(&[framed(b"one"), framed(b""), framed(b"three")].concat());
        for body in [&b"one"[..], b"", b"three"] {
            assert_eq!(decoder.next_frame(), Ok(Some(Bytes::from(body))));
        }
        assert_eq!((decoder.next_frame(), decoder.buffered()), (Ok(None), 0));
    }

    #[test]
    fn a_frame_over_the_limit_is_an_error_and_stays_one() {
        let mut decoder = Decoder::new(4);
        decoder.push(&framed(b"12345"));
        let error = Err(FrameTooLarge { bytes: 5, max: 4 });
        assert_eq!(
            (decoder.next_frame(), decoder.next_frame()),
            (error.clone(), error)
        );
        let begins = |bytes| Frame::begin(bytes).is_ok();
        assert!(begins(FRAME_BYTES_MAX) && !begins(FRAME_BYTES_MAX + 1));
    }

    #[test]
    fn a_body_is_not_copied() {
        let mut decoder = Decoder::new(1024);
        decoder.push(&framed(&[7; 1000]));
        let place = decoder.buffer.as_ptr() as usize;
        let body = decoder.next_frame().expect("valid").expect("complete");
        assert_eq!(body.as_ptr() as usize, place + PREFIX_BYTES);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8)
        }

        fn decode(stream: &[u8], cuts: &[usize]) -> (Vec<Vec<u8>>, Option<FrameTooLarge>) {
            let mut decoder = Decoder::new(256);
            let (mut bodies, mut rest) = (Vec::new(), stream);
            let ends = cuts.iter().copied().chain([usize::MAX]);
            for end in ends {
                let (now, later) = rest.split_at(end.min(rest.len()));
                rest = later;
                decoder.push(now);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(body)) => bodies.push(body.to_vec()),
                        Ok(None) => break,
                        Err(error) => return (bodies, Some(error)),
                    }
                }
            }
            (bodies, None)
        }

        proptest! {
            #[test]
            fn any_split_gives_the_same_frames(
                bodies in frames(), cuts in proptest::collection::vec(0usize..50, 0..40),
            ) {
                let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
                prop_assert_eq!(decode(&stream, &cuts), (bodies, None));
            }

            #[test]
            fn a_truncated_stream_gives_a_prefix(bodies in frames(), keep in 0usize..1600) {
                let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
                let (got, error) = decode(&stream[..keep.min(stream.len())], &[]);
                prop_assert_eq!(error, None);
                prop_assert!(bodies.starts_with(&got));
            }

            #[test]
            fn any_bytes_are_frames_or_an_error(
                stream in proptest::collection::vec(any::<u8>(), 0..600),
                cuts in proptest::collection::vec(0usize..50, 0..20),
            ) {
                prop_assert_eq!(decode(&stream, &cuts), decode(&stream, &[]));
            }
        }
    }
}
