//! The flags of `tolerex kv`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::ClusterArgs;

/// `tolerex kv ...`.
#[derive(Clone, Debug, Subcommand)]
pub enum KvAction {
    /// Store a message.
    Set {
        /// Its key.
        key: OsString,
        /// The message; `-` reads it from standard input.
        message: OsString,
        /// It expires in this time from now, such as `30s` or `24h`.
        #[arg(long, value_name = "TIME")]
        ttl: Option<String>,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// Write a message to standard output, its bytes as they are.
    Get {
        /// Its key.
        key: OsString,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// Delete a message.
    Del {
        /// Its key.
        key: OsString,
        /// Only if it has this revision; `*`: any.
        #[arg(long = "if", value_name = "REVISION")]
        revision: Option<String>,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// Compare-and-set: store a message if it has this revision; print the new one.
    Cas {
        /// Its key.
        key: OsString,
        /// The revision that it must have; 0: there is no such message, `*`: there is one.
        revision: String,
        /// The message; `-` reads it from standard input.
        message: OsString,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// List keys in bytewise order, with revision and length.
    List {
        /// What they begin with [default: all].
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Only those behind this key.
        #[arg(long, value_name = "KEY")]
        after: Option<OsString>,
        /// How many at most [default: all].
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// Print in how many seconds a message expires, or `none`.
    Ttl {
        /// Its key.
        key: OsString,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// Let a message expire.
    Expire {
        /// Its key.
        key: OsString,
        /// In this time from now, such as `30s` or `24h`.
        time: String,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
    /// Let a message last.
    Persist {
        /// Its key.
        key: OsString,
        /// What all of them take.
        #[command(flatten)]
        more: KvArgs,
    },
}

/// What all of `tolerex kv` take.
#[derive(Args, Clone, Debug, Default)]
pub struct KvArgs {
    /// Print what was done as one JSON object on one line.
    #[arg(long)]
    pub json: bool,
    /// The cluster.
    #[command(flatten)]
    pub at: ClusterArgs,
}
