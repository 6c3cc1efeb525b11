//! The settings of a member: their table, and the checked result.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use log::LevelFilter;

use super::common::{LOG_LEVEL, MEMORY_LIMIT};
use super::{ConfigError, Kind, Loaded, Part, Setting, Sources, Tls, Values};
use crate::ids::ClusterId;

const MIB: u64 = 1 << 20;

/// Every setting of a member, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "name",
        kind: Kind::Name,
        default: "member-1",
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
        name: "leaders",
        kind: Kind::Addresses,
        default: "127.0.0.1:5555",
        originals: &[("LEADER_ADDR", Part::Whole)],
        short_flags: &[],
        meaning: "every leader's address for members; in a file a list, elsewhere with commas",
    },
    Setting {
        name: "rpc_bind",
        kind: Kind::Bind,
        default: "127.0.0.1:5556",
        originals: &[("MEMBER_GRPC_PORT", Part::Port)],
        short_flags: &[("port", Part::Port)],
        meaning: "where leaders connect",
    },
    Setting {
        name: "rpc_advertise",
        kind: Kind::Advertise,
        default: "",
        originals: &[("MEMBER_ADDR", Part::Whole)],
        short_flags: &[],
        meaning: "the address leaders are told to connect to; empty: as bound",
    },
    Setting {
        name: "metrics_bind",
        kind: Kind::BindOrNone,
        default: "",
        originals: &[("MEMBER_METRICS_PORT", Part::Port)],
        short_flags: &[("metrics", Part::Port)],
        meaning: "where metrics will be served; accepted, not served yet",
    },
    Setting {
        name: "expected_leader_cn",
        kind: Kind::Filled,
        default: "leader",
        originals: &[("MEMBER_EXPECTED_LEADER_CN", Part::Whole)],
        short_flags: &[],
        meaning: "the CN of a leader's certificate: only it may store, retrieve or release here",
    },
    Setting {
        name: "zone",
        kind: Kind::Text,
        default: "",
        originals: &[],
        short_flags: &[],
        meaning: "where this member stands; copies are spread over zones",
    },
    Setting {
        name: "replace",
        kind: Kind::Switch,
        default: "false",
        originals: &[],
        short_flags: &[],
        meaning: "for one start: take the name over from another data directory that holds \
                  messages, whose copies are given up",
    },
    Setting {
        name: "engine",
        kind: Kind::OneOf(ENGINES),
        default: "log",
        originals: &[],
        short_flags: &[],
        meaning: "how payloads are kept on disk: log = in large files, files = one file for each \
                  message; fixed once the data directory holds any",
    },
    Setting {
        name: "io",
        kind: Kind::OneOf(WRITE_MODES),
        default: "sync",
        originals: &[("MEMBER_IO_MODE", Part::Whole)],
        short_flags: &[],
        meaning: "what was done before a record is acknowledged: buffered = in this process's \
                  memory, written within 10 ms; unbuffered = written to the system; sync = on disk",
    },
    Setting {
        name: "segment_bytes",
        kind: Kind::Size(MIB, 1024 * MIB),
        default: "64MiB",
        originals: &[],
        short_flags: &[],
        meaning: "the size of one file of the log",
    },
    MEMORY_LIMIT,
    Setting {
        name: "readers",
        kind: Kind::Count(1, 64),
        default: "4",
        originals: &[],
        short_flags: &[],
        meaning: "threads that read payloads which are not in memory",
    },
    LOG_LEVEL,
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

/// The names of the engines.
pub const ENGINES: &[&str] = &["log", "files"];

/// The names of the write modes; the original's names are among them.
pub const WRITE_MODES: &[&str] = &["buffered", "unbuffered", "sync"];

/// How payloads are kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Append-only segments.
    Log,
    /// One file for each message.
    Files,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Log => "log",
            EngineKind::Files => "files",
        })
    }
}

/// What was done before a record is acknowledged. What a crash loses follows from it:
///
/// | mode | acknowledged when | lost on process crash | lost on power loss |
/// |---|---|---|---|
/// | `buffered` | it is in the process's buffer | up to 10 ms | as `unbuffered` |
/// | `unbuffered` | `write(2)` returned | nothing | what the system had not written |
/// | `sync` | `fdatasync` returned | nothing | nothing |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// It is in the process's buffer.
    Buffered,
    /// The operating system has it.
    Unbuffered,
    /// The disk has it.
    Sync,
}

impl fmt::Display for WriteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WriteMode::Buffered => "buffered",
            WriteMode::Unbuffered => "unbuffered",
            WriteMode::Sync => "sync",
        })
    }
}

/// The checked settings of a member. Each field is the setting of its name; see [`SETTINGS`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The table says what each of them means.
pub struct MemberConfig {
    pub name: String,
    pub data_dir: PathBuf,
    pub cluster_id: Option<ClusterId>,
    pub leaders: Vec<String>,
    pub rpc_bind: SocketAddr,
    pub rpc_advertise: Option<String>,
    pub metrics_bind: Option<SocketAddr>,
    pub expected_leader_cn: String,
    pub zone: String,
    pub replace: bool,
    pub engine: EngineKind,
    pub io: WriteMode,
    pub segment_bytes: u64,
    pub memory_limit: u64,
    pub readers: usize,
    pub log_level: LevelFilter,
    pub tls: Tls,
}

impl MemberConfig {
    /// Reads and checks all settings.
    pub fn load(sources: &Sources) -> Result<Loaded<MemberConfig>, ConfigError> {
        Values::resolve(SETTINGS, sources).finish(|values| MemberConfig {
            name: values.text("name"),
            data_dir: values.path("data_dir"),
            cluster_id: values.cluster("cluster_id"),
            leaders: values.addresses("leaders"),
            rpc_bind: values.bind("rpc_bind"),
            rpc_advertise: values.addresses("rpc_advertise").pop(),
            metrics_bind: values.bind_or_none("metrics_bind"),
            expected_leader_cn: values.text("expected_leader_cn"),
            zone: values.text("zone"),
            replace: values.switch("replace"),
            engine: match values.text("engine").as_str() {
                "log" => EngineKind::Log,
                "files" => EngineKind::Files,
                other => panic!("engine {other} is not in the table"),
            },
            io: match values.text("io").as_str() {
                "buffered" => WriteMode::Buffered,
                "unbuffered" => WriteMode::Unbuffered,
                "sync" => WriteMode::Sync,
                other => panic!("write mode {other} is not in the table"),
            },
            segment_bytes: values.number("segment_bytes"),
            memory_limit: values.number("memory_limit"),
            readers: values.count("readers"),
            log_level: values.level("log_level"),
            tls: values.tls(),
        })
    }
}
