//! Small buffers that sessions use by turns. Pure, but for the spare buffers of each thread.
//!
//! A session gives its buffers up whenever its connection waits for the client, so that an idle
//! connection holds no memory. Most connections wait after each request; without spare buffers each
//! request would allocate its buffers anew and let them grow step by step.
//!
//! A spare buffer is empty, so it makes no difference to a session which one it gets. The spare
//! buffers belong to the thread: a lock would cost as much as an allocation.
//!
//! Memory: a thread has at most [`SPARE_MAX`] buffers of [`SPARE_BYTES_MAX`] bytes and as many
//! blocks of [`BLOCK_BYTES`], 1.25 MiB together.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Spare buffers of a thread. A worker rarely serves more connections in a turn; those beyond this
/// allocate.
const SPARE_MAX: usize = 64;

/// The capacity up to which a buffer is kept: 16 requests with messages of 1,000 bytes.
const SPARE_BYTES_MAX: usize = 16 << 10;

/// The capacity of the blocks of [`Payloads`]: some 40 messages of 100 bytes. A payload that is
/// kept keeps its block, so it is small.
const BLOCK_BYTES: usize = 4 << 10;

/// The longest payload that goes into a block. Longer ones waste what is left of a block.
const BLOCK_PAYLOAD_BYTES_MAX: usize = 512;

thread_local! {
    /// Empty buffers with room for 1 to [`SPARE_BYTES_MAX`] bytes.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };

    /// Blocks of [`BLOCK_BYTES`] without payloads.
    static BLOCKS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Appends `bytes` to `buffer`. If `buffer` is empty and too small, a spare one takes its place.
pub fn extend(buffer: &mut BytesMut, bytes: &[u8]) {
    if buffer.is_empty() && buffer.capacity() < bytes.len() && !buffer.try_reclaim(bytes.len()) {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        *buffer = spare.unwrap_or_default();
    }
    buffer.extend_from_slice(bytes);
}

/// Takes an empty buffer away from a session; it is kept as a spare one if it is small. Nothing may
/// have been split off from it: what it would keep of that memory cannot be told.
pub fn give_back(buffer: &mut BytesMut) {
    debug_assert!(buffer.is_empty(), "it holds what is still needed");
    let mut buffer = std::mem::take(buffer);
    // Its capacity is what is left behind the bytes that were consumed; all of it comes back when
    // it is asked for.
    if buffer.try_reclaim(SPARE_BYTES_MAX + 1) || !buffer.try_reclaim(1) {
        return;
    }
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    });
}

/// Copies small payloads out of a session's input, several into one block of memory.
#[derive(Debug, Default)]
pub struct Payloads {
    /// Where the next payloads go; what was handed out is no longer in it.
    block: BytesMut,
}

impl Payloads {
    /// A copy of these bytes.
    pub fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > BLOCK_PAYLOAD_BYTES_MAX {
            return Bytes::copy_from_slice(bytes);
        }
        if self.block.capacity() < bytes.len() && !self.block.try_reclaim(bytes.len()) {
            let block = BLOCKS.with_borrow_mut(Vec::pop);
            self.block = block.unwrap_or_else(|| BytesMut::with_capacity(BLOCK_BYTES));
        }
        self.block.extend_from_slice(bytes);
        self.block.split().freeze()
    }

    /// Gives up the block. If payloads in it are still used, it goes with the last of them.
    pub fn release(&mut self) {
        let mut block = std::mem::take(&mut self.block);
        // All of it is there only if no payload is.
        if block.try_reclaim(BLOCK_BYTES) {
            BLOCKS.with_borrow_mut(|blocks| {
                if blocks.len() < SPARE_MAX {
                    blocks.push(block);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare_bytes() -> usize {
        SPARE.with_borrow(|spare| spare.iter().map(BytesMut::capacity).sum())
    }

    #[test]
    fn a_buffer_that_was_given_back_is_used_again() {
        let mut buffer = BytesMut::new();
        extend(&mut buffer, &[7; 1000]);
        let place = buffer.as_ptr();
        bytes::Buf::advance(&mut buffer, 1000);
        give_back(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        assert!(spare_bytes() >= 1000);
        let mut other = BytesMut::new();
        extend(&mut other, &[8; 900]);
        assert_eq!(other.as_ptr(), place);
        assert_eq!((other.as_ref(), spare_bytes()), (&[8; 900][..], 0));
    }

    #[test]
    fn spare_buffers_are_few_and_small() {
        for bytes in [SPARE_BYTES_MAX, SPARE_BYTES_MAX + 1] {
            for _ in 0..=SPARE_MAX {
                give_back(&mut BytesMut::with_capacity(bytes));
            }
        }
        assert_eq!(spare_bytes(), SPARE_MAX * SPARE_BYTES_MAX);
    }

    #[test]
    fn a_large_buffer_is_not_kept_when_little_of_it_is_left() {
        let mut buffer = BytesMut::new();
        extend(&mut buffer, &[7; 2 * SPARE_BYTES_MAX]);
        bytes::Buf::advance(&mut buffer, 2 * SPARE_BYTES_MAX - 10);
        buffer.clear();
        assert!(buffer.capacity() < SPARE_BYTES_MAX);
        give_back(&mut buffer);
        assert_eq!(spare_bytes(), 0);
    }

    #[test]
    fn payloads_share_a_block_which_is_used_again_when_none_is_left() {
        let mut payloads = Payloads::default();
        let mut block = None;
        for round in 0..100u8 {
            let copies: Vec<Bytes> = (0..20)
                .map(|one| payloads.copy(&[round ^ one; 100]))
                .collect();
            let is_whole = |(one, copy): (u8, &Bytes)| copy == &[round ^ one; 100][..];
            assert!((0..20).zip(&copies).all(is_whole));
            let first = copies[0].as_ptr().addr();
            let block = block.get_or_insert(first..first + BLOCK_BYTES);
            assert!(block.contains(&first), "round {round} is in another block");
        }
        payloads.release();
        assert_eq!(BLOCKS.with_borrow(Vec::len), 1);
        let kept = payloads.copy(b"kept");
        payloads.release();
        assert_eq!(
            (BLOCKS.with_borrow(Vec::len), kept.as_ref()),
            (0, &b"kept"[..])
        );
        let long = payloads.copy(&[1; BLOCK_PAYLOAD_BYTES_MAX + 1]);
        assert!(payloads.copy(b"").is_empty() && long.len() == BLOCK_PAYLOAD_BYTES_MAX + 1);
    }
}
