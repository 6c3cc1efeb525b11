//! The durable log under a member and the journal of a leader, and the files beside them.
//!
//! A [`log::Log`] is a row of segment files to which *groups* of records are appended; a group is
//! one write. It has one owner thread; any thread reads through a [`log::LogReader`]. All access
//! goes through [`fs::FileSystem`], so that tests put [`mem::MemFileSystem`] under the same code
//! and crash it.
//!
//! # What a log promises
//!
//! * After a crash it holds a prefix of the groups that were written, with every group whose sync
//!   returned (A6). A group is there as a whole or not at all.
//! * Bytes whose checksum does not match are never returned (A5).
//! * What is known to have been synced is never cut: if it is bad, that is damage, and reported
//!   with file and offset. See [`recovery`] for how that is known.
//! * A failed write or sync ends it: it is poisoned, and only opening it again goes on. No space is
//!   the one exception: the group is refused and the log stays valid.
//!
//! # On disk (little-endian)
//!
//! A directory holds `00000001.log`, `00000002.log`, ..., what the log's owner puts beside them,
//! and `*.tmp` files that no one needs after a crash. Each segment names the one before it, so a
//! gap is where segments were removed, or damage ([`segment`]). A segment is two equal header
//! sectors ([`segment`]), then groups, each beginning on a sector boundary, then zeros or the end
//! of the file:
//!
//! ```text
//! 0        512      1024
//! | header | header | group header, records, padding | group header, records, padding | 0 0 0 ...
//! ```
//!
//! The record is in [`record`], the headers are in [`segment`].
//!
//! # Sources
//!
//! Bitcask paper, section 2 (segments, records); etcd `wal` (zero-filled ahead, torn entries are
//! told by sectors); TigerBeetle `src/vsr/journal.zig` (damage and torn writes are different
//! things); Rebello et al., "Can Applications Recover from fsync Failures?" (ATC 2020).
//!
//! # Known limits
//!
//! * Recovery holds one segment in memory, and reads all that the log's owner does not know.
//! * Every segment stays open: one file descriptor for each 64 MiB.
//! * The loss of the last whole segment file cannot be told from its never having been made.

pub mod atomic_file;
pub mod cluster_file;
pub mod error;
pub mod filler;
pub mod fs;
pub mod lock;
pub mod log;
pub mod mem;
mod opening;
pub mod private;
pub mod reader;
pub mod record;
pub mod recovery;
pub mod segment;

#[cfg(test)]
mod script_tests;
