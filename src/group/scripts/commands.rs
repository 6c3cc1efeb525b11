//! The commands of the golden scripts of a group.

/// The commands of a script.
#[derive(goldenscript::Command)]
pub(super) enum Command {
    /// Starts anew with so many peers, of which the first `voters` (all, if not given) make the
    /// group and the others wait to be added. `ticks` is the election time-out of all. Peers that
    /// start again ask the others and members what these know, if they are to `ask`.
    Cluster {
        peers: u64,
        #[arg(key)]
        ask: Option<bool>,
        #[arg(key)]
        voters: Option<u64>,
        #[arg(key)]
        ticks: Option<usize>,
    },
    /// So many ticks of time pass for the peers named, or for all; nothing is written or delivered.
    Tick {
        count: usize,
        #[arg(optional)]
        peers: Vec<String>,
    },
    /// Journals write and messages arrive in the order of sending, until nothing is left to do.
    Settle,
    /// So many ticks pass for all, and after each of them the group comes to rest.
    Run { ticks: usize },
    /// Journals write what they have.
    Sync(Vec<String>),
    /// Delivers messages that are on their way, in the order in which they were sent: all that
    /// match `from`, `to` and `kind`, or the first `count` of them. Messages that are sent in
    /// answer stay on their way.
    Deliver {
        #[arg(key)]
        from: Option<String>,
        #[arg(key)]
        to: Option<String>,
        #[arg(key)]
        kind: Option<String>,
        #[arg(key)]
        count: Option<usize>,
    },
    /// Loses messages that are on their way, chosen as by `Deliver`.
    Drop {
        #[arg(key)]
        from: Option<String>,
        #[arg(key)]
        to: Option<String>,
        #[arg(key)]
        kind: Option<String>,
        #[arg(key)]
        count: Option<usize>,
    },
    /// Shows the messages that are on their way.
    Messages,
    /// Loses each message that is sent from now on between two peers, or between one and all
    /// others. Messages that are on their way already can still be delivered.
    Partition { one: String, other: Option<String> },
    /// Ends all partitions.
    Heal,
    /// Power fails: what was not written is gone.
    Crash(String),
    /// A peer is told to stop, and so many ticks pass at most until it is ready to, while nothing
    /// that is sent arrives.
    Stop { peer: String, ticks: usize },
    /// Starts again from what the disk kept.
    Restart(String),
    /// Proposes entries in the term of a peer, or in another one; each padded to `size` bytes.
    Propose {
        peer: String,
        texts: Vec<String>,
        #[arg(key)]
        term: Option<u64>,
        #[arg(key)]
        size: Option<usize>,
    },
    /// Keeps a copy of the disk of a peer.
    Keep(String),
    /// A peer that is down starts on the copy that was kept of its disk.
    Rollback(String),
    /// Members tell these peers of a committed entry, and are enough.
    Told {
        #[arg(key)]
        term: u64,
        #[arg(key)]
        index: u64,
        peers: Vec<String>,
    },
    /// Asks for so many reads.
    Read { peer: String, count: Option<u64> },
    /// The first peer adds the second as a learner.
    Add { peer: String, newcomer: String },
    /// The first peer removes the second.
    Remove { peer: String, other: String },
    /// A peer hands over leadership, to another one or to any.
    Transfer { peer: String, to: Option<String> },
    /// A peer takes a snapshot.
    Snapshot(String),
    /// The applied entries leave the memory of a peer, as if very many had followed.
    Forget(String),
    /// Role, term, vote, positions.
    Status(#[arg(optional)] Vec<String>),
    /// The log (behind what is forgotten) and the state made of it.
    Log(#[arg(optional)] Vec<String>),
    /// Who takes part.
    Members(#[arg(optional)] Vec<String>),
    /// How far the others are, as a peer sees it.
    Progress(String),
}
