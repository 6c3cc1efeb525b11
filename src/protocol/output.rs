//! Bytes for a client: small ones copied together, large payloads kept as they are. Pure.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::buffers;

/// From this length on a payload is queued as it is. Copying 16 KiB costs about as much as handing
/// one more slice to the kernel.
pub const SHARE_BYTES_MIN: usize = 16 * 1024;

/// A queue of bytes: written at its end, drained at its front through [`Buf`].
#[derive(Debug, Default)]
pub struct Output {
    /// What leaves before `tail`; none is empty.
    chunks: VecDeque<Bytes>,
    /// What was written last.
    tail: BytesMut,
    /// The bytes in `chunks`.
    chunks_len: usize,
    /// Whether a chunk was split off from `tail` since the buffers were released.
    is_split: bool,
}

impl Output {
    /// Appends a copy of `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) {
        buffers::extend(&mut self.tail, bytes);
    }

    /// Appends a payload, without copying it when it is large.
    pub fn push(&mut self, payload: Bytes) {
        if payload.len() < SHARE_BYTES_MIN {
            self.extend(&payload);
            return;
        }
        if !self.tail.is_empty() {
            self.chunks_len += self.tail.len();
            self.chunks.push_back(self.tail.split().freeze());
            self.is_split = true;
        }
        self.chunks_len += payload.len();
        self.chunks.push_back(payload);
    }

    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.chunks_len + self.tail.len()
    }

    /// Whether nothing is in the queue.
    pub fn is_empty(&self) -> bool {
        self.chunks_len == 0 && self.tail.is_empty()
    }

    /// Gives the buffers back when the queue is empty. All of them: how much a drained buffer
    /// still holds cannot be told from its capacity.
    pub fn release_buffers(&mut self) {
        if self.is_empty() {
            if !self.is_split {
                buffers::give_back(&mut self.tail);
            }
            *self = Output::default();
        }
    }
}

impl std::fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.extend(text.as_bytes());
        Ok(())
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        match self.chunks.front() {
            Some(chunk) => chunk,
            None => &self.tail,
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let all = self.chunks.iter().map(|chunk| &chunk[..]).chain(tail);
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(chunk) = self.chunks.front_mut() {
            if count < chunk.len() {
                chunk.advance(count);
                self.chunks_len -= count;
                return;
            }
            count -= chunk.len();
            self.chunks_len -= chunk.len();
            self.chunks.pop_front();
        }
        self.tail.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_in_any_steps() {
        let large = Bytes::from(vec![7u8; SHARE_BYTES_MIN]);
        for step in [1usize, 3, 1000, 1 << 20] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for part in [&b"ab"[..], &large, b"", b"cd", &large, &large, b"e"] {
                output.push(Bytes::copy_from_slice(part));
                expected.extend_from_slice(part);
            }
            assert_eq!(output.len(), expected.len());
            let mut taken = Vec::new();
            while !output.is_empty() {
                let mut slices = [IoSlice::new(&[]); 3];
                let count = output.chunks_vectored(&mut slices);
                assert!(count > 0 && slices[0].starts_with(output.chunk()));
                // No more than a step's bytes are looked at, or this would be quadratic.
                let bytes = slices[..count].iter().flat_map(|slice| slice.iter());
                let seen: Vec<u8> = bytes.copied().take(step).collect();
                let count = seen.len();
                taken.extend_from_slice(&seen);
                output.advance(count);
            }
            assert_eq!(taken, expected);
        }
    }
}
