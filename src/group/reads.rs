//! One ReadIndex for many reads (DESIGN.md §5, R4). Pure.
//!
//! A read may use the state machine once (1) leadership was confirmed by a request issued *after*
//! the read arrived, and (2) the index that the request returned is applied. At most one request is
//! out; reads that arrive meanwhile wait for the next, so a thousand reads cost one round of
//! heartbeats. The `raft` crate drops a request silently when there is no leader or nothing of its
//! term is committed: whatever is unanswered for [`REISSUE_TICKS`] is asked again under a fresh
//! context. An answer to any of its contexts counts, as all were issued after the reads arrived:
//! were only the last one's to count, there would be none where a round trip takes longer than
//! those ticks. Answers to the contexts of earlier requests are ignored.
//!
//! A group of one does not come here: its handle looks at the serving flag.
//!
//! Invariant: at most [`WAITING_MAX`] reads wait (A8). Source: Raft thesis 6.4.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// How many reads may wait; more are refused as busy. As many as proposals.
pub const WAITING_MAX: usize = 16_384;

/// After how many ticks an unanswered request is issued again: two heartbeats, so that one lost
/// message costs a read 100 ms of its 2 s.
pub const REISSUE_TICKS: u32 = 2;

/// A request that is out.
struct Issued<W> {
    /// What names the request: the contexts under which it was issued, the first and the last.
    contexts: RangeInclusive<u64>,
    /// Ticks since it was issued.
    age: u32,
    /// The reads it confirms.
    waiters: Vec<W>,
}

/// Reads that wait.
pub struct Reads<W> {
    /// Arrived, and not covered by a request yet.
    arrived: Vec<W>,
    /// Covered by the request that is out.
    issued: Option<Issued<W>>,
    /// Confirmed at an index that is not applied yet; the indices never fall.
    confirmed: VecDeque<(u64, Vec<W>)>,
    /// The last context used.
    context: u64,
    /// How many wait in all of the above.
    waiting: usize,
}

impl<W> Default for Reads<W> {
    fn default() -> Reads<W> {
        Reads {
            arrived: Vec::new(),
            issued: None,
            confirmed: VecDeque::new(),
            context: 0,
            waiting: 0,
        }
    }
}

impl<W> Reads<W> {
    /// Takes in a read, or hands it back when too many wait.
    pub fn insert(&mut self, waiter: W) -> Result<(), W> {
        if self.waiting >= WAITING_MAX {
            return Err(waiter);
        }
        self.waiting += 1;
        self.arrived.push(waiter);
        Ok(())
    }

    /// The context of a ReadIndex request to issue now, if one is due.
    pub fn issue(&mut self) -> Option<u64> {
        if self.issued.is_some() || self.arrived.is_empty() {
            return None;
        }
        self.context += 1;
        self.issued = Some(Issued {
            contexts: self.context..=self.context,
            age: 0,
            waiters: std::mem::take(&mut self.arrived),
        });
        Some(self.context)
    }

    /// Time passes: the context of a request to issue again, if the one that is out is overdue.
    pub fn tick(&mut self) -> Option<u64> {
        let issued = self.issued.as_mut()?;
        issued.age += 1;
        if issued.age < REISSUE_TICKS {
            return None;
        }
        self.context += 1;
        issued.contexts = *issued.contexts.start()..=self.context;
        issued.age = 0;
        Some(self.context)
    }

    /// What was issued under `context` was answered: leadership held, and all that was committed
    /// then is at or below `index`.
    pub fn confirm(&mut self, context: u64, index: u64) {
        let is_its = |issued: &mut Issued<W>| issued.contexts.contains(&context);
        if let Some(issued) = self.issued.take_if(is_its) {
            self.confirmed.push_back((index, issued.waiters));
        }
    }

    /// Entries up to `applied` are applied: the reads that may go on.
    pub fn release(&mut self, applied: u64) -> Vec<W> {
        let mut released = Vec::new();
        while self
            .confirmed
            .front()
            .is_some_and(|(index, _)| *index <= applied)
        {
            let (_, waiters) = self.confirmed.pop_front().expect("it has a front");
            released.extend(waiters);
        }
        self.waiting -= released.len();
        released
    }

    /// All that wait, for a term that ends: none of them was confirmed.
    pub fn drain(&mut self) -> Vec<W> {
        let mut all = std::mem::take(&mut self.arrived);
        all.extend(self.issued.take().into_iter().flat_map(|i| i.waiters));
        all.extend(self.confirmed.drain(..).flat_map(|(_, waiters)| waiters));
        self.waiting = 0;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_joins_only_a_request_issued_after_it_arrived() {
        let mut reads = Reads::default();
        assert_eq!(reads.issue(), None);
        reads.insert('a').unwrap();
        reads.insert('b').unwrap();
        let first = reads.issue().unwrap();
        reads.insert('c').unwrap();
        assert_eq!(reads.issue(), None);
        reads.confirm(first, 7);
        assert_eq!(reads.release(6), vec![]);
        assert_eq!(reads.release(7), vec!['a', 'b']);
        let second = reads.issue().unwrap();
        assert_ne!(first, second);
        reads.confirm(second, 7);
        assert_eq!(reads.release(7), vec!['c']);
    }

    #[test]
    fn a_dropped_request_is_issued_again_under_a_fresh_context() {
        let mut reads = Reads::default();
        reads.insert('a').unwrap();
        let first = reads.issue().unwrap();
        assert_eq!(reads.tick(), None);
        let second = reads.tick().unwrap();
        assert_ne!(first, second);
        reads.confirm(second, 4);
        assert_eq!(reads.release(9), vec!['a']);
        assert_eq!(reads.tick(), None);
    }

    #[test]
    fn a_late_answer_counts_for_the_reads_that_it_was_issued_for_and_no_others() {
        let mut reads = Reads::default();
        reads.insert('a').unwrap();
        let first = reads.issue().unwrap();
        reads.insert('b').unwrap();
        for _ in 0..3 * REISSUE_TICKS {
            reads.tick();
        }
        reads.confirm(first, 3);
        assert_eq!(reads.release(9), vec!['a']);
        // All of its later contexts are answered as well, and mean nothing to the next request.
        let next = reads.issue().unwrap();
        (first..next).for_each(|late| reads.confirm(late, 3));
        assert_eq!(reads.release(9), vec![]);
        reads.confirm(next, 4);
        assert_eq!(reads.release(9), vec!['b']);
    }

    #[test]
    fn the_end_of_a_term_hands_all_reads_back() {
        let mut reads = Reads::default();
        reads.insert('a').unwrap();
        let context = reads.issue().unwrap();
        reads.confirm(context, 9);
        reads.insert('b').unwrap();
        reads.issue().unwrap();
        reads.insert('c').unwrap();
        let mut all = reads.drain();
        all.sort_unstable();
        assert_eq!(all, vec!['a', 'b', 'c']);
        for _ in 0..WAITING_MAX {
            reads.insert('d').unwrap();
        }
        assert_eq!(reads.insert('e'), Err('e'));
    }
}
