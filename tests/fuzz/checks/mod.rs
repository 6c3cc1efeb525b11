//! What holds for every input of a parser, one function a fuzz target.
//!
//! The functions are called by the fuzz targets of this workspace (which has this file as its
//! library) and, for every file of the corpora and its neighbours, by `tests/fuzz_corpora.rs`. They
//! see the product as any user of the library does. A function panics where a claim does not hold.
//!
//! An input of several parts is cut into [`pieces`]. Where bytes arrive in parts, the [`splits`]
//! follow from the input, so that its file is what was sent and nothing else.

mod answers;
mod batch;
mod command;
mod config;
mod envelope;
mod frame;
mod group;
mod hatokuse;
mod http;
mod log;
mod pieces;
mod sessions;
mod snapshot;
mod splits;

/// A check by the name of its target, its corpus and its seeds.
pub type Check = (&'static str, fn(&[u8]));

/// All of them.
pub const CHECKS: &[Check] = &[
    ("batch", batch::check),
    ("command", command::check_one),
    ("config", config::check),
    ("configuration", group::check_configuration),
    ("entries", command::check_entries),
    ("envelope", envelope::check),
    ("frame", frame::check),
    ("hatokuse", hatokuse::check),
    ("hint", log::check_hint),
    ("http", http::check),
    ("journal", group::check_journal),
    ("records", log::check_records),
    ("segment", log::check_segment),
    ("snapshot", snapshot::check_chunks),
    ("snapshot_file", snapshot::check_file),
];

/// Runs the check of this name.
pub fn run(name: &str, data: &[u8]) {
    let check = CHECKS.iter().find(|(known, _)| *known == name);
    let (_, check) = check.unwrap_or_else(|| panic!("there is no check {name}"));
    check(data);
}
