//! The settings of a leader: their table, and the checked result.
//!
//! Longer than 500 lines because the table of settings stands in one piece.

mod addresses;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::common::{LOG_LEVEL, MEMORY_LIMIT};
use super::{ConfigError, Kind, Loaded, Part, Setting, Sources, Tls, Values};
use crate::ids::{ClusterId, LogPosition};

const MIB: u64 = 1 << 20;

/// The most a payload may be allowed to have: the frame limit of 32 MiB less 1 MiB for its
/// envelope.
pub const PAYLOAD_BYTES_CEILING: u64 = 31 * MIB;

/// The names of the placement strategies.
const STRATEGIES: &[&str] = &["least_loaded", "p2c"];

/// What a follower may do with commands.
const REDIRECTS: &[&str] = &["reply", "forward"];

/// Every setting of a leader, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "name",
        kind: Kind::Name,
        default: "leader-1",
        originals: &[],
        short_flags: &[],
        meaning: "the node's name, as in its certificate",
    },
    Setting {
        name: "base_dir",
        kind: Kind::BaseDir,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "what relative paths start from; empty: the working directory",
    },
    Setting {
        name: "data_dir",
        kind: Kind::Path,
        default: "data/{name}",
        originals: &[],
        short_flags: &[],
        meaning: "the directory this process alone keeps its data in",
    },
    Setting {
        name: "cluster_id",
        kind: Kind::Cluster,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "the cluster this node belongs to; empty: as at its last start, or by the key of \
                  tls.ca",
    },
    Setting {
        name: "bootstrap",
        kind: Kind::Switch,
        default: "false",
        originals: &[],
        short_flags: &[],
        meaning: "make a new group in an empty data directory; nothing is done where one exists",
    },
    Setting {
        name: "join",
        kind: Kind::Switch,
        default: "false",
        originals: &[],
        short_flags: &[],
        meaning: "in an empty data directory, wait to be added to a group, under a new id; nothing \
                  is done where one exists",
    },
    Setting {
        name: "accept_loss",
        kind: Kind::Entry,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "committed entries of the leaders' log up to this one may be missing: only when \
                  all leaders of a group are on older copies of their directories",
    },
    Setting {
        name: "hatokuse_bind",
        kind: Kind::Bind,
        default: "127.0.0.1:6666",
        originals: &[
            ("LEADER_TCP_BIND", Part::Host),
            ("LEADER_TCP_PORT", Part::Port),
        ],
        short_flags: &[("tcp-port", Part::Port)],
        meaning: "where clients of the text protocol are served",
    },
    Setting {
        name: "hatokuse_advertise",
        kind: Kind::Advertise,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "the address clients are told; empty: as bound",
    },
    Setting {
        name: "http_bind",
        kind: Kind::BindOrNone,
        default: "127.0.0.1:8080",
        originals: &[],
        short_flags: &[],
        meaning: "where clients are served over HTTP; empty: nowhere",
    },
    Setting {
        name: "http_advertise",
        kind: Kind::Advertise,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "the address HTTP clients are told; empty: as bound",
    },
    Setting {
        name: "http_hosts",
        kind: Kind::Hosts,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "further names to serve HTTP under; in a file a list, elsewhere with commas",
    },
    Setting {
        name: "insecure",
        kind: Kind::Switch,
        default: "false",
        originals: &[],
        short_flags: &[],
        meaning: "allow a client port outside loopback although clients do not authenticate",
    },
    Setting {
        name: "rpc_bind",
        kind: Kind::Bind,
        default: "127.0.0.1:5555",
        originals: &[("LEADER_GRPC_PORT", Part::Port)],
        short_flags: &[("port", Part::Port)],
        meaning: "where members and other leaders connect",
    },
    Setting {
        name: "rpc_advertise",
        kind: Kind::Advertise,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "the address other leaders are told; empty: as bound",
    },
    Setting {
        name: "metrics_bind",
        kind: Kind::BindOrNone,
        default: "",
        originals: &[("LEADER_METRICS_PORT", Part::Port)],
        short_flags: &[("metrics", Part::Port)],
        meaning: "where metrics will be served; accepted, not served yet",
    },
    Setting {
        name: "redirect",
        kind: Kind::OneOf(REDIRECTS),
        default: "reply",
        originals: &[],
        short_flags: &[],
        meaning: "what a follower does with commands about messages: reply says who leads, forward \
                  passes them on to the active leader, once",
    },
    Setting {
        name: "strategy",
        kind: Kind::OneOf(STRATEGIES),
        default: "least_loaded",
        originals: &[("BALANCER_STRATEGY", Part::Whole)],
        short_flags: &[],
        meaning: "how members are chosen for a message; re-read on SIGHUP",
    },
    Setting {
        name: "tolerance_conf",
        kind: Kind::Path,
        default: "config/tolerance.conf",
        originals: &[("TOLERANCE_CONF", Part::Whole)],
        short_flags: &[],
        meaning: "the file with TOLERANCE=n, read by a new group and on SIGHUP",
    },
    Setting {
        name: "workers",
        kind: Kind::Count(0, 4096),
        default: "0",
        originals: &[],
        short_flags: &[],
        meaning: "threads that serve clients, none of which ever waits; 0: one for each processor",
    },
    Setting {
        name: "connections_max",
        kind: Kind::Count(1, 1_000_000),
        default: "16384",
        originals: &[],
        short_flags: &[],
        meaning: "client connections at a time, an eighth or 64 of them for \
                  health checks and status; one more takes the place of one idle for 10 s, or is \
                  refused",
    },
    Setting {
        name: "write_timeout",
        kind: Kind::Time(10, 600_000),
        default: "2s",
        originals: &[],
        short_flags: &[],
        meaning: "a write is answered within it, plus the time its bytes need",
    },
    Setting {
        name: "copy_timeout",
        kind: Kind::Time(1, 600_000),
        default: "300ms",
        originals: &[],
        short_flags: &[],
        meaning: "a member later than this is replaced within the write; below write_timeout",
    },
    Setting {
        name: "read_timeout",
        kind: Kind::Time(10, 600_000),
        default: "2s",
        originals: &[],
        short_flags: &[],
        meaning: "a read is answered within it, plus 1 s for each 10 MB of a reply above 64 KiB",
    },
    Setting {
        name: "dedup_window",
        kind: Kind::Time(1_000, 24 * 3_600_000),
        default: "2min",
        originals: &[],
        short_flags: &[],
        meaning: "for how long the token of a write is remembered; the active leader's counts",
    },
    Setting {
        name: "read_hedge",
        kind: Kind::Time(1, 600_000),
        default: "300ms",
        originals: &[],
        short_flags: &[],
        meaning: "after this the next replica is asked as well; below read_timeout",
    },
    Setting {
        name: "payload_bytes_max",
        kind: Kind::Size(1, PAYLOAD_BYTES_CEILING),
        default: "16MiB",
        originals: &[],
        short_flags: &[],
        meaning: "the largest message",
    },
    Setting {
        name: "unread_reply_bytes_max",
        kind: Kind::Size(1024, 1024 * MIB),
        default: "4MiB",
        originals: &[],
        short_flags: &[],
        meaning: "replies a client may leave unread before it is no longer read from",
    },
    Setting {
        name: "client_buffer_bytes_max",
        kind: Kind::Size(MIB, 1024 * 1024 * MIB),
        default: "256MiB",
        originals: &[],
        short_flags: &[],
        meaning: "memory for the input and output of all clients; at least payload_bytes_max",
    },
    Setting {
        name: "cache_bytes",
        kind: Kind::Size(0, 1024 * 1024 * MIB),
        default: "64MiB",
        originals: &[],
        short_flags: &[],
        meaning: "memory for payloads read often; 0 switches the cache off",
    },
    MEMORY_LIMIT,
    Setting {
        name: "snapshot_bytes",
        kind: Kind::Size(64 << 10, 1024 * 1024 * MIB),
        default: "64MiB",
        originals: &[],
        short_flags: &[],
        meaning: "a snapshot of the metadata is taken when the journal behind the last one is \
                  longer than this and than that snapshot",
    },
    LOG_LEVEL,
    Setting {
        name: "expected_leader_cn",
        kind: Kind::Text,
        default: "leader",
        originals: &[],
        short_flags: &[],
        meaning: "the CN of a leader's certificate, this one's included",
    },
    Setting {
        name: "tls.ca",
        kind: Kind::Path,
        default: "certs/ca.crt",
        originals: &[],
        short_flags: &[],
        meaning: "certificate of the cluster's authority; re-read on SIGHUP",
    },
    Setting {
        name: "tls.cert",
        kind: Kind::Path,
        default: "certs/{name}.crt",
        originals: &[],
        short_flags: &[],
        meaning: "this node's certificate; re-read on SIGHUP",
    },
    Setting {
        name: "tls.key",
        kind: Kind::Path,
        default: "certs/{name}.key",
        originals: &[],
        short_flags: &[],
        meaning: "the key of that certificate; re-read on SIGHUP",
    },
];

/// How members are picked among equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The one with the fewest records.
    LeastLoaded,
    /// The better of two random ones.
    P2c,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::LeastLoaded => "least_loaded",
            Strategy::P2c => "p2c",
        })
    }
}

/// What a follower does with commands about messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// Says who leads.
    Reply,
    /// Passes them on to the active leader.
    Forward,
}

/// The checked settings of a leader. Each field is the setting of its name; see [`SETTINGS`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The table says what each of them means.
pub struct LeaderConfig {
    pub name: String,
    pub data_dir: PathBuf,
    pub cluster_id: Option<ClusterId>,
    pub bootstrap: bool,
    pub join: bool,
    pub accept_loss: LogPosition,
    pub hatokuse_bind: SocketAddr,
    pub hatokuse_advertise: Option<String>,
    pub http_bind: Option<SocketAddr>,
    pub http_advertise: Option<String>,
    pub http_hosts: Vec<String>,
    pub insecure: bool,
    pub rpc_bind: SocketAddr,
    pub rpc_advertise: Option<String>,
    pub metrics_bind: Option<SocketAddr>,
    pub redirect: Redirect,
    pub strategy: Strategy,
    pub tolerance_conf: PathBuf,
    pub workers: usize,
    pub connections_max: usize,
    pub write_timeout: Duration,
    pub copy_timeout: Duration,
    pub read_timeout: Duration,
    pub dedup_window: Duration,
    pub read_hedge: Duration,
    pub payload_bytes_max: usize,
    pub unread_reply_bytes_max: usize,
    pub client_buffer_bytes_max: usize,
    pub cache_bytes: usize,
    pub memory_limit: u64,
    pub snapshot_bytes: u64,
    pub expected_leader_cn: String,
    pub log_level: LevelFilter,
    pub tls: Tls,
}

impl LeaderConfig {
    /// Reads and checks all settings.
    pub fn load(sources: &Sources) -> Result<Loaded<LeaderConfig>, ConfigError> {
        let mut values = Values::resolve(SETTINGS, sources);
        check(&mut values);
        values.finish(build)
    }
}

/// What a single value cannot show.
fn check(values: &mut Values) {
    use super::Value::{Bind, Number, Switch, Time};
    addresses::check(values);
    for name in ["hatokuse_bind", "http_bind"] {
        if let (Some(Bind(bind)), Some(Switch(false))) =
            (values.find(name), values.find("insecure"))
            && !bind.ip().is_loopback()
        {
            let what = format!(
                "is {bind}, outside loopback, where clients would not authenticate; accepted: a \
                 loopback address, or any with insecure = true"
            );
            values.problem(name, what);
        }
    }
    for (shorter, longer) in [
        ("copy_timeout", "write_timeout"),
        ("read_hedge", "read_timeout"),
    ] {
        if let (Some(Time(short)), Some(Time(long))) = (values.find(shorter), values.find(longer))
            && short >= long
        {
            let long = super::units::show_time(*long);
            let what = format!("is not below {longer} ({long}); accepted: a shorter time");
            values.problem(shorter, what);
        }
    }
    if let (Some(Number(buffers)), Some(Number(payload))) = (
        values.find("client_buffer_bytes_max"),
        values.find("payload_bytes_max"),
    ) && buffers < payload
    {
        let payload = super::units::show_bytes(*payload);
        let what =
            format!("cannot hold one message; accepted: payload_bytes_max ({payload}) or more");
        values.problem("client_buffer_bytes_max", what);
    }
}

fn build(values: &Values) -> LeaderConfig {
    LeaderConfig {
        name: values.text("name"),
        data_dir: values.path("data_dir"),
        cluster_id: values.cluster("cluster_id"),
        bootstrap: values.switch("bootstrap"),
        join: values.switch("join"),
        accept_loss: values.entry("accept_loss"),
        hatokuse_bind: values.bind("hatokuse_bind"),
        hatokuse_advertise: values.addresses("hatokuse_advertise").pop(),
        http_bind: values.bind_or_none("http_bind"),
        http_advertise: values.addresses("http_advertise").pop(),
        http_hosts: values.addresses("http_hosts"),
        insecure: values.switch("insecure"),
        rpc_bind: values.bind("rpc_bind"),
        rpc_advertise: values.addresses("rpc_advertise").pop(),
        metrics_bind: values.bind_or_none("metrics_bind"),
        redirect: match values.text("redirect").as_str() {
            "reply" => Redirect::Reply,
            "forward" => Redirect::Forward,
            other => panic!("redirect {other} is not in the table"),
        },
        strategy: match values.text("strategy").as_str() {
            "least_loaded" => Strategy::LeastLoaded,
            "p2c" => Strategy::P2c,
            other => panic!("strategy {other} is not in the table"),
        },
        tolerance_conf: values.path("tolerance_conf"),
        workers: values.count("workers"),
        connections_max: values.count("connections_max"),
        write_timeout: values.time("write_timeout"),
        copy_timeout: values.time("copy_timeout"),
        read_timeout: values.time("read_timeout"),
        dedup_window: values.time("dedup_window"),
        read_hedge: values.time("read_hedge"),
        payload_bytes_max: values.count("payload_bytes_max"),
        unread_reply_bytes_max: values.count("unread_reply_bytes_max"),
        client_buffer_bytes_max: values.count("client_buffer_bytes_max"),
        cache_bytes: values.count("cache_bytes"),
        memory_limit: values.number("memory_limit"),
        snapshot_bytes: values.number("snapshot_bytes"),
        expected_leader_cn: values.text("expected_leader_cn"),
        log_level: values.level("log_level"),
        tls: values.tls(),
    }
}
