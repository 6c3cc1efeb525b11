//! One budget of bytes for the buffers of all clients together.
//!
//! Each connection charges what its session holds: unfinished input, the batch being executed, and
//! unread output. The budget is not a wall but a line: nobody waits for bytes of others, so nothing
//! can deadlock. While it is crossed
//!
//! * a connection with more than [`INPUT_ALLOWANCE_BYTES`] of an unfinished request gives that up:
//!   the rest of it is skipped without being held, then answered `busy, try again`;
//! * a connection with more than [`OUTPUT_ALLOWANCE_BYTES`] of unread output is not read from and
//!   begins no batch until its client has taken half of that;
//! * one whose client takes nothing for [`super::Limits::stall_timeout`] is closed, so that clients
//!   that never read cannot keep it crossed.
//!
//! So small requests of clients that read their replies are served at all times, and what is held
//! is at most the budget, the two allowances for each connection that uses them, and what the
//! workers hold at that moment: a read, or the replies to one batch. What is counted is bytes held;
//! a buffer that grows by doubling may take up to twice as much memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a connection may hold of an unfinished request in any case. One read fits; twice as much
/// for each of 10,000 connections would be five times the default budget.
pub const INPUT_ALLOWANCE_BYTES: usize = 64 * 1024;

/// What a connection may hold of unread output in any case.
pub const OUTPUT_ALLOWANCE_BYTES: usize = 64 * 1024;

/// The bytes charged by all connections.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Budget> {
        let used = AtomicUsize::new(0);
        Arc::new(Budget { used, max })
    }

    /// Whether more is charged than there is.
    pub fn is_crossed(&self) -> bool {
        self.used() > self.max
    }

    /// Bytes charged now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A charge of nothing yet.
    pub fn charge(self: &Arc<Self>) -> Charge {
        let budget = Arc::clone(self);
        Charge { budget, bytes: 0 }
    }
}

/// What one connection charges; given back when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Charges `bytes` from now on, instead of what was charged before.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.budget.used.fetch_add(more, Ordering::Relaxed);
        } else if bytes < self.bytes {
            let less = self.bytes - bytes;
            let before = self.budget.used.fetch_sub(less, Ordering::Relaxed);
            assert!(before >= less, "more was given back than charged");
        }
        self.bytes = bytes;
    }

    /// Whether the budget is crossed.
    pub fn is_crossed(&self) -> bool {
        self.budget.is_crossed()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_add_up_and_are_given_back() {
        let budget = Budget::new(10);
        let (mut a, mut b) = (budget.charge(), budget.charge());
        a.set(6);
        b.set(4);
        assert!(!budget.is_crossed());
        b.set(5);
        assert!(a.is_crossed());
        drop(a);
        assert_eq!(budget.used(), 5);
        b.set(1);
        assert_eq!(budget.used(), 1);
    }
}
