//! What a seed decides before the run begins: sizes, speeds, and which kinds of faults there are.
//!
//! # Fault budget
//!
//! Each promise of the design, and what may be done to it:
//!
//! * a synced write survives anything but the loss of the disk: any number of crashes, of all
//!   at once, that lose or tear what is unsynced.
//! * a message survives the loss of all copies but one: bits are turned on the disk of one member
//!   at most, in its log, and only where each message has two copies. There is no repair yet.
//! * the disk of one member at most, the same one, is not mounted at starts, or loses a segment of
//!   its log, the latter only where each message has two copies.
//! * a leader's disk is never lost or changed, except when the group knows nothing of it any more,
//!   and in the seeds with an older copy (`copies.rs`), a sixteenth: there the disk of one leader
//!   goes back once, at a moment when all others have what is committed, and no leader is lost
//!   besides. The only leader then loses what is behind the copy, and nothing else.
//! * tokens are remembered for two minutes by the leaders' clocks: these differ by some seconds.
//! * a failed sync is final: any number: the process ends.
//! * the same of a directory: any number: the process ends, and the machine with it, as a file
//!   system that cannot write its names takes nothing more.
//! * no two leaders of a term, whatever the network does: any number of cuts, breaks, delays.
//! * safety never rests on time (A9): clocks that drift by a tenth, wall clocks that jump,
//!   pauses.
//! * no message of a peer ends a process: any number of absurd ones, of one peer.
//! * it serves again: when the faults have stopped, and only then.

use fastrand::Rng;

/// A kind of faults that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Cuts, clogged and broken links, lost messages.
    Net,
    /// Failed, slow and full disks.
    Disk,
    /// Crashes.
    Crash,
    /// Processes that stand still.
    Pause,
    /// Clocks that drift and jump.
    Clock,
    /// Changes of the group, handing leadership over.
    Group,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [
        Kind::Net,
        Kind::Disk,
        Kind::Crash,
        Kind::Pause,
        Kind::Clock,
        Kind::Group,
    ];

    /// Its name, as in `WITHOUT=net,disk`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Net => "net",
            Kind::Disk => "disk",
            Kind::Crash => "crash",
            Kind::Pause => "pause",
            Kind::Clock => "clock",
            Kind::Group => "group",
        }
    }
}

/// The decisions.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Leaders, with those that wait to be added.
    pub leaders: usize,
    /// Those of them that have a vote from the start.
    pub voters: usize,
    /// Whether two leaders stand for election after the same time.
    pub has_rivals: bool,
    /// Members.
    pub members: usize,
    /// Copies of each message.
    pub tolerance: u8,
    /// Clients.
    pub clients: usize,
    /// Requests or batches of each client.
    pub operations: usize,
    /// Keys that clients share.
    pub keys: usize,
    /// The longest pause between two requests of a client, in ms.
    pub think_ms: u64,
    /// A snapshot is taken when the journal has grown by this.
    pub snapshot_bytes: u64,
    /// Of journal and logs.
    pub segment_bytes: u64,
    /// The usual delay of the network, at most, in µs.
    pub delay_us: u64,
    /// How many Raft messages of a thousand are lost.
    pub loss: u32,
    /// Whether Raft messages overtake each other, as over links that break often.
    pub reorders: bool,
    /// How many Raft messages of a thousand come twice.
    pub duplicates: u32,
    /// How long a client waits for a reply, in ms.
    pub patience_ms: u64,
    /// Whether clients send tokens with some writes, and repeat these until they know.
    pub has_tokens: bool,
    /// Whether messages expire.
    pub has_ttl: bool,
    /// The member on whose disk bits may be turned.
    pub rotten: usize,
    /// The leader that sends absurd Raft messages beside its own, if one does: an eighth of all
    /// seeds, none of those that find the deliberate faults.
    pub hostile: Option<usize>,
    /// Whether the rotten member starts on an empty disk, or loses a segment, or another process
    /// registers under its name: a sixteenth of all seeds, none of those that find the other
    /// deliberate faults.
    pub loses_disks: bool,
    /// Whether a leader's disk is replaced by an older copy of itself: a sixteenth of all seeds,
    /// none of those that find the other deliberate faults. Only in these seeds leaders ask each
    /// other and members what they know.
    pub has_older_copy: bool,
    /// The time between two faults, at most, in ms.
    pub fault_ms: u64,
    /// For how long there are faults, in ms.
    pub faults_until_ms: u64,
    /// Kinds of faults that the seed chose.
    pub drawn: Vec<Kind>,
    /// Those of them that are not switched off.
    pub kinds: Vec<Kind>,
}

impl Plan {
    /// The plan of a seed, without the kinds of faults that are switched off.
    pub fn new(seed: u64, without: &[Kind]) -> Plan {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let voters = rng.choice([1, 3, 3, 3, 3, 3, 5]).unwrap_or(3);
        let leaders = voters + rng.usize(0..=1);
        let members = rng.usize(3..=5);
        let tolerance = rng.u8(1..=3);
        let mut plan = Plan {
            seed,
            leaders,
            voters,
            has_rivals: rng.u32(..3) == 0,
            members,
            tolerance,
            clients: rng.usize(2..=4),
            operations: rng.usize(20..=50),
            keys: rng.usize(2..=8),
            think_ms: rng.u64(5..=150),
            snapshot_bytes: rng.u64(2..=24) << 10,
            segment_bytes: rng.u64(8..=32) << 10,
            delay_us: rng.choice([200, 1_000, 5_000, 20_000]).unwrap_or(1_000),
            loss: rng.choice([0, 0, 10, 50, 200]).unwrap_or(0),
            reorders: rng.u32(..4) == 0,
            duplicates: rng.choice([0, 0, 10, 200]).unwrap_or(0),
            patience_ms: rng.choice([400, 1_000, 5_000]).unwrap_or(1_000),
            has_tokens: rng.bool(),
            has_ttl: rng.bool(),
            rotten: rng.usize(..3),
            hostile: (seed % 8 == 6).then_some((seed / 8) as usize % leaders),
            loses_disks: seed % 16 == 7,
            has_older_copy: seed % 16 == 15,
            fault_ms: rng.u64(50..=1_000),
            faults_until_ms: rng.u64(1_500..=5_000),
            drawn: Kind::ALL.into_iter().filter(|_| rng.bool()).collect(),
            kinds: Vec::new(),
        };
        let is_in_budget = |kind: &Kind| match kind {
            Kind::Group | Kind::Disk => !plan.has_older_copy,
            Kind::Crash => !plan.has_older_copy || plan.voters == 1,
            Kind::Net | Kind::Pause | Kind::Clock => true,
        };
        let is_on = |kind: &Kind| !without.contains(kind) && is_in_budget(kind);
        plan.kinds = plan.drawn.iter().copied().filter(is_on).collect();
        if !plan.has(Kind::Net) {
            (plan.loss, plan.duplicates) = (0, 0);
        }
        plan
    }

    /// Whether there are faults of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}
