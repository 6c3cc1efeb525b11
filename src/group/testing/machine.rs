//! A state machine that keeps all it is given, and writes down what is asked of it.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::group::core::readable::{names, text};
use crate::group::{Configuration, Leadership, Piece, SnapshotCheck, SnapshotSource, StateMachine};

/// What happens, a line each, if anybody wants to know.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Mutex<String>>>);

impl Trace {
    /// One that is kept.
    pub fn kept() -> Trace {
        Trace(Some(Arc::default()))
    }

    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            let mut lines = lines.lock();
            lines.push_str(&line());
            lines.push('\n');
        }
    }

    /// What was written since the last call.
    pub fn take(&self) -> String {
        let lines = self.0.as_ref();
        lines
            .map(|lines| std::mem::take(&mut *lines.lock()))
            .unwrap_or_default()
    }
}

/// Data that a sound participant refuses. Proposed here it is applied all the same: as by a leader
/// that is not sound.
pub const UNSOUND: &str = "unsound";

/// The state is the list of all entries' data.
pub struct Machine {
    pub name: String,
    pub log: Arc<Mutex<Vec<Vec<u8>>>>,
    pub trace: Trace,
}

struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

impl StateMachine for Machine {
    type Output = usize;

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<usize, String> {
        self.trace
            .note(|| format!("{} applies {index}@{term}:{}", self.name, text(data)));
        let mut log = self.log.lock();
        log.push(data.to_vec());
        Ok(log.len())
    }

    fn check(data: &[u8]) -> Result<(), String> {
        match data == UNSOUND.as_bytes() {
            true => Err("it is not sound".to_owned()),
            false => Ok(()),
        }
    }

    fn snapshot_check() -> SnapshotCheck {
        Box::new(|piece| match piece {
            Piece::Chunk(chunk) => Machine::check(chunk),
            Piece::End { .. } => Ok(()),
        })
    }

    fn begin_snapshot(&mut self, index: u64) -> Option<Box<dyn SnapshotSource>> {
        self.trace
            .note(|| format!("{} takes a snapshot at {index}", self.name));
        let log = self.log.lock().clone();
        Some(Box::new(Chunks(log.into_iter())))
    }

    fn reset(&mut self) {
        self.log.lock().clear();
    }

    fn configuration(&mut self, configuration: &Configuration) {
        self.trace
            .note(|| format!("{} has {}", self.name, members(configuration)));
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.log.lock().push(chunk.to_vec());
        Ok(())
    }

    fn restored(&mut self, index: u64) -> Result<(), String> {
        let state = texts(&self.log.lock());
        self.trace
            .note(|| format!("{} restores {state} at {index}", self.name));
        Ok(())
    }

    fn leadership(&mut self, change: Leadership) {
        self.trace.note(|| match change {
            Leadership::Serving { term, .. } => format!("{} serves term {term}", self.name),
            Leadership::Ended { term } => format!("{} serves term {term} no more", self.name),
        });
    }
}

/// Who takes part.
pub fn members(configuration: &Configuration) -> String {
    let sets = [
        ("voters", &configuration.voters),
        ("outgoing", &configuration.outgoing),
        ("learners", &configuration.learners),
        ("next learners", &configuration.learners_next),
    ];
    let sets = sets.iter().filter(|(_, set)| !set.is_empty());
    let sets: Vec<String> = sets
        .map(|(what, set)| format!("{what} {}", names(*set)))
        .collect();
    match sets.is_empty() {
        true => "no voters".to_owned(),
        false => sets.join(", "),
    }
}

pub fn texts(log: &[Vec<u8>]) -> String {
    let log: Vec<String> = log.iter().map(|data| text(data)).collect();
    format!("[{}]", log.join(" "))
}
