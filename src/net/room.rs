//! The queue for room: which read may fetch its payloads next. Pure.
//!
//! A read whose replies are not small states its [`Need`] before it fetches anything: the bytes of
//! its replies as encoded, and the payload bytes that it fetches over each *lane* (the link for
//! large fetches from one member). It is granted when both have room:
//!
//! * all replies reserved, with whatever else clients hold, stay within [`Bounds::bytes_max`];
//! * the bytes being fetched over a lane stay within [`Bounds::lane_bytes_max`].
//!
//! One that is larger than a bound is granted when nothing else takes of it, so that it is served
//! too.
//!
//! # Order
//!
//! A need's rank is the bytes granted before it came plus its own bytes, and the lowest rank is
//! next. So a small need overtakes large ones, and a need of `n` bytes is overtaken for at most `n`
//! more bytes. A client has one need at a time, so no client has more than its turn.
//!
//! A need that lacks a lane keeps that lane from all of higher rank, and lets those of other lanes
//! pass: a silent member delays only what is fetched from it. A need that lacks bytes lets nobody
//! pass.

use std::collections::BTreeMap;

/// What a read needs before it fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes of its replies as encoded, payloads included as long as both are held.
    pub reply_bytes: usize,
    /// Payload bytes for each lane that it fetches over.
    pub fetches: Vec<(u64, u64)>,
}

/// What may be granted at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes held for clients, reserved replies included, up to which a need is granted.
    pub bytes_max: usize,
    /// Payload bytes being fetched over one lane.
    pub lane_bytes_max: u64,
    /// Needs that wait; more are refused.
    pub waiting_max: usize,
}

/// Names a need that waits: its rank, then the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    rank: u64,
    number: u64,
}

/// The needs that wait, each with a `W` of its owner, and what is granted.
#[derive(Debug)]
pub struct Queue<W> {
    bounds: Bounds,
    waiting: BTreeMap<Ticket, (Need, W)>,
    /// Reply bytes of what is granted.
    reserved: usize,
    /// Bytes being fetched over each lane; none is 0.
    lanes: BTreeMap<u64, u64>,
    /// Reply bytes granted so far, which ranks count from.
    granted: u64,
    last_number: u64,
    /// Whether the next need lacks bytes, rather than a lane.
    lacks_bytes: bool,
}

impl<W> Queue<W> {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Queue<W> {
        Queue {
            bounds,
            waiting: BTreeMap::new(),
            reserved: 0,
            lanes: BTreeMap::new(),
            granted: 0,
            last_number: 0,
            lacks_bytes: false,
        }
    }

    /// Takes a need, to be granted by [`Queue::grant`]; `None` if too many wait.
    pub fn enter(&mut self, need: Need, owner: W) -> Option<Ticket> {
        if self.waiting.len() >= self.bounds.waiting_max {
            return None;
        }
        self.last_number += 1;
        let ticket = Ticket {
            rank: self.granted.saturating_add(need.reply_bytes as u64),
            number: self.last_number,
        };
        self.waiting.insert(ticket, (need, owner));
        Some(ticket)
    }

    /// Takes a need back; false if it does not wait any more.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.waiting.remove(&ticket).is_some()
    }

    /// The owners of needs that have room now, while `used` bytes are held for clients, what is
    /// reserved included. They are charged from here on.
    pub fn grant(&mut self, mut used: usize) -> Vec<W> {
        let mut tickets = Vec::new();
        let mut claimed: Vec<u64> = Vec::new();
        self.lacks_bytes = false;
        for (ticket, (need, _)) in &self.waiting {
            let lacks_lane = |(lane, bytes): &(u64, u64)| {
                let taken = self.lanes.get(lane).copied().unwrap_or(0);
                let is_full = taken > 0 && taken + bytes > self.bounds.lane_bytes_max;
                is_full || claimed.contains(lane)
            };
            if need.fetches.iter().any(lacks_lane) {
                claimed.extend(need.fetches.iter().map(|(lane, _)| lane));
                continue;
            }
            let wanted = used.saturating_add(need.reply_bytes);
            if wanted > self.bounds.bytes_max && self.reserved > 0 {
                self.lacks_bytes = true;
                break;
            }
            used = wanted;
            self.reserved += need.reply_bytes;
            self.granted = self.granted.saturating_add(need.reply_bytes as u64);
            for (lane, bytes) in &need.fetches {
                *self.lanes.entry(*lane).or_insert(0) += bytes;
            }
            tickets.push(*ticket);
        }
        let owner = |ticket| Some(self.waiting.remove(&ticket)?.1);
        tickets.into_iter().filter_map(owner).collect()
    }

    /// A granted need has these reply bytes less.
    pub fn give_back(&mut self, reply_bytes: usize) {
        assert!(self.reserved >= reply_bytes, "more than was granted");
        self.reserved -= reply_bytes;
    }

    /// The fetches of a granted need are over.
    pub fn end_fetches(&mut self, fetches: &[(u64, u64)]) {
        for (lane, bytes) in fetches {
            let taken = self.lanes.remove(lane).unwrap_or(0);
            assert!(taken >= *bytes, "more than was granted");
            if taken > *bytes {
                self.lanes.insert(*lane, taken - bytes);
            }
        }
    }

    /// Needs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a need waits for bytes that clients hold.
    pub fn lacks_bytes(&self) -> bool {
        self.lacks_bytes && !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        bytes_max: 100,
        lane_bytes_max: 10,
        waiting_max: 4,
    };

    fn need(reply_bytes: usize, fetches: &[(u64, u64)]) -> Need {
        Need {
            reply_bytes,
            fetches: fetches.to_vec(),
        }
    }

    #[test]
    fn bytes_held_stay_within_the_bound() {
        let mut queue = Queue::new(BOUNDS);
        for name in ["a", "b", "c"] {
            queue.enter(need(40, &[]), name);
        }
        assert_eq!(queue.grant(0), ["a", "b"]);
        assert!(queue.lacks_bytes());
        // Held by others, not reserved.
        queue.give_back(40);
        assert!(queue.grant(40 + 30).is_empty());
        assert_eq!(queue.grant(40 + 20), ["c"]);
        assert!(!queue.lacks_bytes());
    }

    #[test]
    fn what_is_larger_than_a_bound_is_granted_alone() {
        let mut queue = Queue::new(BOUNDS);
        queue.enter(need(500, &[(1, 50)]), "large");
        assert_eq!(queue.grant(99), ["large"]);
        queue.enter(need(1, &[(1, 1)]), "small");
        assert!(queue.grant(500).is_empty());
        queue.end_fetches(&[(1, 50)]);
        assert!(queue.grant(500).is_empty() && queue.lacks_bytes());
        queue.give_back(500);
        assert_eq!(queue.grant(0), ["small"]);
    }

    #[test]
    fn a_full_lane_delays_only_what_is_fetched_over_it() {
        let mut queue = Queue::new(BOUNDS);
        queue.enter(need(8, &[(1, 8)]), "first");
        assert_eq!(queue.grant(0), ["first"]);
        queue.enter(need(8, &[(1, 8), (2, 1)]), "both");
        queue.enter(need(9, &[(2, 9)]), "behind both");
        queue.enter(need(9, &[(3, 9)]), "elsewhere");
        assert_eq!(queue.grant(8), ["elsewhere"]);
        assert!(!queue.lacks_bytes());
        queue.end_fetches(&[(1, 8)]);
        assert_eq!(queue.grant(17), ["both", "behind both"]);
    }

    #[test]
    fn a_small_need_overtakes_and_a_large_one_has_its_turn() {
        let mut queue = Queue::new(BOUNDS);
        queue.enter(need(100, &[]), "now");
        assert_eq!(queue.grant(0), ["now"]);
        queue.enter(need(50, &[]), "large");
        let mut overtaken = 0;
        loop {
            queue.enter(need(10, &[]), "small");
            queue.give_back(if overtaken == 0 { 100 } else { 10 });
            // Room for ten bytes, and in the end for all.
            let is_turn = overtaken * 10 > 50;
            let used = if is_turn { 50 } else { 90 };
            match queue.grant(used).as_slice() {
                ["small"] => overtaken += 1,
                ["large", ..] => break,
                other => panic!("{other:?}"),
            }
            // Keeps the reservation of the one that was granted.
            assert!(overtaken < 10, "never had its turn");
        }
        assert!((4..=6).contains(&overtaken), "{overtaken}");
    }

    #[test]
    fn no_more_than_so_many_wait() {
        let mut queue = Queue::new(BOUNDS);
        let tickets: Vec<_> = (0..5).map(|n| queue.enter(need(1, &[]), n)).collect();
        assert!(tickets[3].is_some() && tickets[4].is_none());
        let first = tickets[0].expect("it waits");
        assert!(queue.leave(first) && !queue.leave(first));
        assert_eq!(queue.grant(0), [1, 2, 3]);
        assert_eq!(queue.waiting(), 0);
    }
}
