//! A frame on its way out, which shares large payloads with whoever else holds them.
//!
//! A message is sent to several members. Were its payload copied into each of their frames, a
//! leader would hold a message of 16 MB once for the client and once for each copy, and once more
//! for each member that takes its frame late.

use bytes::Bytes;

use super::{FRAME_BYTES_MAX, FrameTooLarge, PREFIX_BYTES};

/// Payloads of this size and more are shared. A smaller one may be a part of a buffer several times
/// its size, which would be kept for as long as the frame waits to be written.
const SHARED_BYTES_MIN: usize = 1 << 20;

/// A frame to be written, prefix included.
#[derive(Debug)]
pub struct Frame {
    /// All bytes but those of the shared payloads.
    own: Vec<u8>,
    /// The shared payloads in order, each with the number of bytes of `own` that precede it.
    shared: Vec<(usize, Bytes)>,
    /// Bytes of all shared payloads.
    shared_bytes: usize,
}

impl Frame {
    /// Starts a frame whose body will be `bytes` long; the caller appends the body.
    pub fn begin(bytes: usize) -> Result<Frame, FrameTooLarge> {
        let max = FRAME_BYTES_MAX;
        let prefix = u32::try_from(bytes)
            .ok()
            .filter(|_| bytes <= max)
            .ok_or(FrameTooLarge { bytes, max })?;
        // A body of this size may consist of a payload that is shared.
        let capacity = match bytes < SHARED_BYTES_MIN {
            true => PREFIX_BYTES + bytes,
            false => 0,
        };
        let mut own = Vec::with_capacity(capacity);
        own.extend_from_slice(&prefix.to_be_bytes());
        Ok(Frame {
            own,
            shared: Vec::new(),
            shared_bytes: 0,
        })
    }

    /// What was appended so far but for shared payloads: more may be appended here.
    pub fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends a payload: a large one without a copy.
    pub fn push(&mut self, payload: &Bytes) {
        if payload.len() < SHARED_BYTES_MIN {
            return self.own.extend_from_slice(payload);
        }
        self.shared_bytes += payload.len();
        self.shared.push((self.own.len(), payload.clone()));
    }

    /// Bytes of the frame, prefix included.
    #[expect(clippy::len_without_is_empty, reason = "a frame has a prefix")]
    pub fn len(&self) -> usize {
        self.own.len() + self.shared_bytes
    }

    /// A copy of the bytes of the frame.
    pub fn to_vec(&self) -> Vec<u8> {
        self.parts().collect::<Vec<_>>().concat()
    }

    /// The bytes of the frame, unless payloads are shared.
    pub fn whole(&self) -> Option<&[u8]> {
        self.shared.is_empty().then_some(&self.own)
    }

    /// The bytes of the frame, in order, in one part or more.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.shared.iter().map(|(at, _)| *at));
        let ends = self.shared.iter().map(|(at, _)| *at);
        let owns = starts.zip(ends.chain([self.own.len()]));
        let owns = owns.map(|(start, end)| &self.own[start..end]);
        let shared = self.shared.iter().map(|(_, payload)| Some(&payload[..]));
        let shared = shared.chain([None]);
        let parts = owns
            .zip(shared)
            .flat_map(|(own, shared)| [Some(own), shared]);
        parts.flatten().filter(|part| !part.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_large_payload_is_not_copied() {
        let payload = Bytes::from(vec![7; SHARED_BYTES_MIN]);
        let mut frame = Frame::begin(payload.len() + 4).expect("a frame");
        frame.own().extend(b"ab");
        frame.push(&payload);
        frame.own().extend(b"cd");
        let parts: Vec<_> = frame.parts().collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[1].as_ptr(), payload.as_ptr(), "it was copied");
        assert_eq!(parts.concat().len(), frame.len());
        assert!(frame.own.capacity() < 100, "no room for the payload");
    }

    #[test]
    fn a_small_frame_is_one_part() {
        let mut frame = Frame::begin(5).expect("a frame");
        frame.push(&Bytes::from_static(b"small"));
        let parts: Vec<_> = frame.parts().collect();
        assert_eq!(parts, [b"\0\0\0\x05small"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn parts_are_the_bytes_in_order(
            pieces in prop::collection::vec(
                prop_oneof![0..300usize, SHARED_BYTES_MIN - 1..SHARED_BYTES_MIN + 2], 0..8),
        ) {
            let pieces = pieces.iter().enumerate();
            let pieces: Vec<_> = pieces.map(|(i, len)| Bytes::from(vec![i as u8; *len])).collect();
            let body = pieces.concat();
            let mut frame = Frame::begin(body.len()).expect("a frame");
            pieces.iter().for_each(|piece| frame.push(piece));
            let parts = frame.to_vec();
            prop_assert_eq!(&parts[..PREFIX_BYTES], (body.len() as u32).to_be_bytes());
            prop_assert!(parts[PREFIX_BYTES..] == body);
            prop_assert_eq!(parts.len(), frame.len());
        }
    }
}
