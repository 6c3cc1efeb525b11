//! The commands of golden scripts.

/// The commands of a script. Members are named m1, m2, …; `oldest` is the one whose fetch has been
/// open for longest. Times are in milliseconds.
#[derive(goldenscript::Command)]
pub enum Command {
    /// Starts anew with so many connected members. `run` sets how many messages share members,
    /// `part` how many a part of a bulk write has, `fetch` how many bytes a fetch.
    Cluster {
        members: u64,
        #[arg(key)]
        tolerance: Option<u8>,
        #[arg(key)]
        run: Option<usize>,
        #[arg(key)]
        part: Option<usize>,
        #[arg(key)]
        fetch: Option<u64>,
    },
    /// Puts a message into metadata and on members, as if written before.
    Message {
        key: String,
        payload: String,
        members: Vec<String>,
    },
    /// Removes a message from the metadata, as if deleted by another batch.
    Forget(String),
    /// Adds a SET to the next batch of writes. `given` is `absent`, `exists` or a revision like
    /// `r7`, `ttl` in milliseconds.
    Set {
        key: String,
        payload: String,
        #[arg(key)]
        once: Option<String>,
        #[arg(key)]
        given: Option<String>,
        #[arg(key)]
        ttl: Option<u64>,
    },
    /// Adds a DEL to the next batch of writes.
    Del {
        key: String,
        #[arg(key)]
        once: Option<String>,
        #[arg(key)]
        given: Option<String>,
    },
    /// Adds a change of expiry to the next batch of writes; without `ttl` never.
    Expire {
        key: String,
        #[arg(key)]
        ttl: Option<u64>,
    },
    /// Adds a read to the next transaction.
    Read(String),
    /// Starts a transaction of what was added.
    Transaction {
        #[arg(key)]
        atomic: Option<bool>,
        #[arg(key)]
        once: Option<String>,
    },
    /// Asks when a message expires.
    Ttl(String),
    /// Starts the batch of writes.
    Go,
    /// Starts a batch of reads.
    Get(Vec<String>),
    /// Starts a bulk write.
    Bulk {
        count: u64,
        payload: String,
        #[arg(key)]
        once: Option<String>,
    },
    /// Starts a WHERE.
    Where(String),
    /// Starts a COUNT.
    Count,
    /// A member answers its oldest store: `stored` (for all records), or one of `stored`, `full`,
    /// `conflict` for each record.
    Ack {
        member: String,
        #[arg(optional)]
        results: Vec<String>,
    },
    /// All open stores are answered: stored.
    AckAll,
    /// A member answers its oldest fetch with what it should hold, or with `found`, `missing`,
    /// `damaged`, `omitted`, `foreign` for each revision.
    Answer {
        member: String,
        #[arg(optional)]
        results: Vec<String>,
    },
    /// A member refuses its oldest call: `busy`, `full` (no space for the fence) or a fence's term.
    Refuse { member: String, why: String },
    /// The oldest call to a member could not be sent.
    Unsent(String),
    /// The link to a member breaks.
    Lose(String),
    /// The link to a member opens.
    Connect(String),
    /// Other batches have so many MiB more in flight to a member.
    Fill { member: String, mib: u64 },
    /// They have so many less.
    Drain { member: String, mib: u64 },
    /// Time passes.
    Tick(u64),
    /// Leadership is confirmed.
    Confirm,
    /// Leadership could not be confirmed.
    RefuseRead,
    /// The oldest proposal is applied.
    Applied,
    /// The oldest proposal was not proposed: `busy` or `not_leader`.
    NotProposed(String),
    /// Nobody knows what became of the oldest proposal.
    Unknown,
    /// A later term's no-op was applied before the oldest proposal.
    Superseded,
    /// Hands out releases as long as there are some.
    Releases,
    /// A member has executed its release.
    Released(String),
    /// Time, deadline, calls, what is in flight and queued.
    Status,
}
