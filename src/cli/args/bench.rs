//! The flags of `tolerex bench`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::ClusterArgs;

/// `tolerex bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The cluster.
    #[command(flatten)]
    pub at: ClusterArgs,
    /// How clients speak to the leader, which is found by --addr or --data-dir either way.
    #[arg(long, value_enum, default_value_t = Protocol::Hatokuse)]
    pub protocol: Protocol,
    /// Connections.
    #[arg(long, value_name = "C", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub connections: u32,
    /// Drive each connection by a thread of its own with a blocking socket, as most clients do
    /// [default: a few threads that wait in epoll, each with many connections].
    #[arg(long)]
    pub blocking: bool,
    /// Requests in flight on each connection.
    #[arg(long, value_name = "P", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub pipeline: u32,
    /// Bytes of a message.
    #[arg(long, value_name = "BYTES", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=16 << 20))]
    pub size: u32,
    /// Requests a second of all connections together [default: as fast as replies come].
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// How long to measure [default: 10]. A tenth of it, at most one second, is a warm-up before.
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// How many requests to make, without a warm-up, instead of a time.
    #[arg(long, value_name = "N", conflicts_with = "seconds",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// The share of requests that read, 0 to 1; the others store.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub get_ratio: f64,
    /// How many different keys.
    #[arg(long, value_name = "K", default_value_t = 100_000,
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub keys: u64,
    /// Read what an earlier run stored with as many keys, instead of storing it first.
    #[arg(long)]
    pub stored: bool,
    /// One JSON object on one line.
    #[arg(long)]
    pub json: bool,
}

/// What a load is spoken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The text protocol: SET and GET.
    Hatokuse,
    /// HTTP/1.1: PUT and GET of /kv/KEY, on connections that are kept.
    Http,
}
