//! Tolerex: a fault-tolerant message store and queue.
//!
//! A synchronous thread-pool server without an async runtime. A *leader* takes client commands,
//! chooses *members*, and keeps the metadata (key -> revision, replica set), agreed by Raft;
//! members keep payloads on disk, named by revision. `OK` means that `tolerance` copies were
//! acknowledged in their write mode and the metadata is committed on disk.
//!
//! # Layers
//!
//! A module uses modules of lower rows only; `tests/tidy.rs` holds this table as data.
//!
//! ```text
//!  7  for users   testing                              a cluster in a user's own test
//!  6  tools       bin/   cli/
//!  5  processes   leader/   member/   client
//!  4  requests    coordinator/   replica/              pure
//!                 group/                        (core, proposals, reads pure; the rest its host)
//!  3  state       metadata/   cluster/                 pure
//!                 storage/                             (I/O through disk::FileSystem only)
//!  2  mechanisms  rpc/   net/   disk/
//!  1  formats     protocol/                            pure
//!  0  base        error  ids  clock  threads  logging  config  faults  resources
//! ```
//!
//! Sideways: `cluster` uses `metadata` (the registry), nothing else. `group` and `coordinator` meet
//! only in `leader`; `leader` and `member` share the message types in `rpc` and never import each
//! other. A library is named in one place: `raft` in `group`, `rustls` in `rpc::tls`, `mio` in
//! `net`, the generated protobuf types in `rpc::envelope`.
//!
//! *Pure* is a hard word: no sockets, files, threads, locks, channels, environment, globals or
//! clock. A pure module is a value with methods that take an input and `now` and return what should
//! happen; the caller makes it happen.

pub mod clock;
pub mod config;
pub mod error;
pub mod faults;
pub mod ids;
pub mod logging;
pub mod resources;
pub mod threads;

pub mod protocol;

pub mod disk;
pub mod net;
pub mod rpc;

pub mod cluster;
pub mod metadata;
pub mod storage;

pub mod coordinator;
pub mod group;
pub mod replica;

pub mod client;
pub mod leader;
pub mod member;

pub mod cli;

pub mod testing;
