//! The network: who can reach whom, how long it takes, and the data links from leaders to members.
//!
//! Nodes are numbered: leaders first, then members, then clients. What is on its way is an event in
//! the queue of the world. Between two nodes what is sent arrives in order, as over TCP, except for
//! Raft messages where the plan says that they overtake each other. A cut holds back what is on a
//! data link until it is over or the link breaks; of a broken link a first part still arrives.

use fastrand::Rng;
use tolerex::ids::MemberId;

/// A millisecond, in the world's time.
pub const MS: u64 = 1_000_000;

/// A data link from a leader to a member.
pub struct DataLink {
    /// The leader.
    pub leader: usize,
    /// Its start.
    pub leader_epoch: u32,
    /// The member.
    pub member: usize,
    /// Its id.
    pub id: MemberId,
    /// Its start.
    pub member_epoch: u32,
    /// The number in its fences.
    pub number: u64,
    /// Whether the leader's side is open.
    pub is_open: bool,
    /// Of a broken link: what comes later is lost.
    pub drains_until: u64,
}

/// The state of the network.
pub struct Net {
    nodes: usize,
    /// For each direction: nothing passes before.
    blocked_until: Vec<u64>,
    /// For each direction: what is added to the delay, and until when.
    clogged: Vec<(u64, u64)>,
    /// For each direction: when the last thing arrives that was sent in order.
    last: Vec<u64>,
    /// All data links there ever were.
    pub links: Vec<DataLink>,
    delay_us: u64,
    rng: Rng,
}

impl Net {
    /// Between so many nodes.
    pub fn new(nodes: usize, delay_us: u64, seed: u64) -> Net {
        Net {
            nodes,
            blocked_until: vec![0; nodes * nodes],
            clogged: vec![(0, 0); nodes * nodes],
            last: vec![0; nodes * nodes],
            links: Vec::new(),
            delay_us,
            rng: Rng::with_seed(seed),
        }
    }

    fn at(&self, from: usize, to: usize) -> usize {
        from * self.nodes + to
    }

    /// When what is sent now arrives, behind all that was sent before it if `in_order`.
    pub fn arrival(&mut self, from: usize, to: usize, now: u64, in_order: bool) -> u64 {
        let at = self.at(from, to);
        let mut delay = self.rng.u64(self.delay_us / 10..=self.delay_us) * 1_000;
        let (extra, until) = self.clogged[at];
        if now < until {
            delay += self.rng.u64(..=extra);
        }
        let arrival = now + delay;
        if !in_order {
            return arrival;
        }
        self.last[at] = self.last[at].max(arrival);
        self.last[at]
    }

    /// Until when nothing passes from one to the other; a time past if it passes.
    pub fn blocked_until(&self, from: usize, to: usize) -> u64 {
        self.blocked_until[self.at(from, to)]
    }

    /// Nothing passes in this direction before `until`.
    pub fn block(&mut self, from: usize, to: usize, until: u64) {
        let at = self.at(from, to);
        self.blocked_until[at] = self.blocked_until[at].max(until);
    }

    /// What is sent in this direction before `until` takes up to so much longer.
    pub fn clog(&mut self, from: usize, to: usize, extra: u64, until: u64) {
        let at = self.at(from, to);
        self.clogged[at] = (extra, until);
    }

    /// All is well again.
    pub fn heal(&mut self) {
        self.blocked_until.fill(0);
        self.clogged.fill((0, 0));
    }
}
