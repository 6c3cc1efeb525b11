//! A hash for digests of the state. Pure.

use crate::metadata::message_index::mix;

/// A hash of a sequence of numbers and texts that is fixed for good.
#[derive(Default)]
pub(in crate::metadata) struct Digest {
    value: u64,
}

impl Digest {
    pub(in crate::metadata) fn number(&mut self, number: u64) {
        self.value = mix(self.value.rotate_left(5) ^ number);
    }

    pub(in crate::metadata) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(in crate::metadata) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.number(u64::from_le_bytes(word));
        }
    }

    pub(in crate::metadata) fn value(&self) -> u64 {
        self.value
    }
}
