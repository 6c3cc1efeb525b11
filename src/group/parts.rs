//! A participant before it has threads: what its directory holds, and the parts made of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{self, Core, CoreConfig, HardState, Persist, Recovered};
use super::handle::{GroupHandle, Shared};
use super::identity::Identity;
use super::journal::{Journal, JournalError, Start, Written};
use super::node::{Event, Node, Writes};
use super::proposals::Proposals;
use super::raft_thread::INBOX_MAX;
use super::reads::Reads;
use super::snapshots::files::{Found, Piece, SnapshotFiles};
use super::snapshots::{SNAPSHOT_DIR, Schedule, SnapshotDesk, TASKS_MAX, Task};
use super::window::{LogEntry, Position, Window};
use super::{Bootstrap, Configuration, GroupError, GroupOptions, StateMachine, logger};
use crate::faults::{self, Fault};
use crate::threads::queue::{Receiver, Sender, bounded};

/// The journal's place in the group's directory.
pub(super) const JOURNAL_DIR: &str = "journal";

/// Bytes of applied entries kept in memory for peers that lag a little.
const WINDOW_BYTES_MAX: usize = 16 << 20;

/// What a leader that joins a group begins with: nothing, not even the origin, so that the first
/// thing it gets is a snapshot, which says who takes part.
const NOTHING: Position = Position { index: 0, term: 0 };

/// A participant before it has threads; a simulation steps them by hand.
pub struct Parts<S: StateMachine> {
    /// What decides.
    pub node: Node<S>,
    /// For everyone who proposes, reads or looks.
    pub handle: GroupHandle<S::Output>,
    /// What the handle sends to the node.
    pub inbox: Receiver<Event<S::Output>>,
    /// The journal, for the writes of the node.
    pub journal: Journal,
    /// What does the tasks.
    pub desk: SnapshotDesk,
    /// Where the node, or whoever steps it, and the handle put tasks, and where they come out.
    pub task_queue: (Sender<Task>, Receiver<Task>),
    pub(super) shared: Arc<Shared>,
}

impl<S: StateMachine> Parts<S> {
    /// Makes writes of the node durable, in order and as one, as the `journal` thread does, and
    /// returns what the node is to be told; none when the system refuses it now.
    pub fn write(&mut self, writes: &[Persist]) -> Result<Option<Event<S::Output>>, JournalError> {
        let Some(last) = writes.last() else {
            return Ok(None);
        };
        if self.journal.write(writes)? != Written::Durable {
            return Ok(None);
        }
        match self.shared.cut.swap(0, Ordering::AcqRel) {
            0 => {}
            index => self.journal.cut(index)?,
        }
        Ok(Some(Event::Persisted {
            number: last.number,
            journal_bytes: self.journal.bytes(),
        }))
    }

    /// Opens the directory, reads the last snapshot, and applies what is known to be committed.
    pub fn open(options: &GroupOptions, mut machine: S) -> Result<Parts<S>, GroupError> {
        let Opened {
            identity,
            files,
            journal,
            recovered,
            snapshot,
            is_restart,
        } = open(options, &mut machine)?;
        let config = CoreConfig {
            id: identity.peer,
            heartbeat_ticks: options.timing.heartbeat_ticks,
            election_ticks: options.timing.election_ticks.clone(),
            asks_peers: options.asks_peers && is_restart,
            asks_members: options.asks_members && is_restart,
            check: S::check,
        };
        let applied = recovered.applied();
        let shared = Arc::new(Shared::new(&recovered.configuration, identity.peer));
        machine.configuration(&recovered.configuration);
        let mut core = Core::new(&config, recovered, &logger::quiet())?;
        shared.publish_applied(core.status().applied);
        log::info!(
            "peer {}, term {}, applied {}",
            identity.peer,
            core.status().term,
            core.status().applied
        );
        let snapshot_bytes = snapshot.as_ref().map_or(0, |found| found.bytes);
        if let Some(found) = snapshot {
            core.offer_snapshot(found.position, found.configuration);
        }
        let (inbox, events) = bounded(INBOX_MAX);
        let (tasks, queue) = bounded(TASKS_MAX);
        let node = Node {
            core,
            peer: identity.peer,
            machine,
            files: files.clone(),
            schedule: Schedule::new(options.snapshot_bytes, snapshot_bytes, journal.bytes()),
            applied,
            installing: None,
            received: None,
            shared: shared.clone(),
            proposals: Proposals::default(),
            reads: Reads::default(),
            serving: None,
            writes: Writes::default(),
            obstacle: None,
            stop: None,
        };
        Ok(Parts {
            node,
            handle: GroupHandle::new(inbox, tasks.clone(), shared.clone()),
            inbox: events,
            journal,
            desk: SnapshotDesk::new(files, options.clock.clone(), S::snapshot_check),
            task_queue: (tasks, queue),
            shared,
        })
    }
}

/// Opens the directory as [`Group::start`] does, brings `machine` to what is known to be committed,
/// and starts nothing. Says what is behind that.
pub fn inspect<S: StateMachine>(
    options: &GroupOptions,
    machine: &mut S,
) -> Result<Recovered, GroupError> {
    Ok(open(options, machine)?.recovered)
}

/// What a group starts from.
struct Opened {
    identity: Identity,
    files: SnapshotFiles,
    journal: Journal,
    recovered: Recovered,
    /// The last snapshot.
    snapshot: Option<Found>,
    /// It took part before.
    is_restart: bool,
}

/// Finds or makes the identity and the journal, by the table in [`identity`], and reads the last
/// snapshot and the journal behind it.
fn open<S: StateMachine>(options: &GroupOptions, machine: &mut S) -> Result<Opened, GroupError> {
    let fs = options.fs.as_ref();
    let dir = options.dir.display().to_string();
    let journal_dir = options.dir.join(JOURNAL_DIR);
    let mut identity = identify(options, &journal_dir)?;
    let founders = Configuration::of(identity.voters.iter().copied());
    let files = SnapshotFiles {
        fs: options.fs.clone(),
        dir: options.dir.join(SNAPSHOT_DIR),
        owner: identity.peer,
        founders: founders.clone(),
        reserve_bytes: options.log.reserve_bytes,
    };
    let snapshot = files
        .open(&mut |piece| match piece {
            Piece::Chunk(chunk) => machine.restore(chunk),
            Piece::End { index } => machine.restored(index),
        })
        .map_err(GroupError::Snapshot)?;
    let (origin, hard_state) = match identity.voters.is_empty() {
        true => (NOTHING, HardState::NOTHING),
        false => (self::core::ORIGIN, HardState::INITIAL),
    };
    let start = match &snapshot {
        Some(found) => Start {
            position: found.position,
            configuration: found.configuration.clone(),
            is_received: found.is_received,
        },
        None => Start {
            position: origin,
            configuration: founders.clone(),
            is_received: false,
        },
    };
    let first_index = snapshot
        .as_ref()
        .map_or(0, |found| found.position.index + 1);
    fs.create_dir_all(&journal_dir)
        .map_err(io_error("make", &journal_dir))?;
    let mut failed = None;
    let (mut journal, recovered) = Journal::open(
        options.fs.clone(),
        &journal_dir,
        options.log,
        identity.peer,
        start,
        WINDOW_BYTES_MAX,
        &mut |entry: &LogEntry| {
            let index = entry.index;
            if faults::has(Fault::SnapshotWithoutLastEntry) && index == first_index {
                return;
            }
            if entry.data.is_empty() || failed.is_some() {
                return;
            }
            if let Err(reason) = machine.apply(index, entry.term, &entry.data) {
                failed = Some(GroupError::Entry { index, reason });
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    let recovered = match recovered {
        Some(recovered) => recovered,
        None if identity.is_ready || snapshot.is_some() => {
            return Err(GroupError::JournalMissing { dir });
        }
        None => {
            let first = Persist {
                number: 0,
                reset: None,
                entries: Vec::new(),
                hard_state,
            };
            if let Written::Refused(shortage) = journal.write(&[first])? {
                return Err(GroupError::Refused { dir, shortage });
            }
            Recovered {
                hard_state,
                window: Window::new(origin, WINDOW_BYTES_MAX),
                configuration: founders,
            }
        }
    };
    let is_restart = identity.is_ready;
    if !identity.is_ready {
        identity.is_ready = true;
        log::info!("made peer {} in {dir}", identity.peer);
    }
    // At each start: when its last write failed, it may be in the page cache only.
    identity.write(fs, &options.dir)?;
    Ok(Opened {
        identity,
        files,
        journal,
        recovered,
        snapshot,
        is_restart,
    })
}

/// Finds or makes the identity, unless the journal says that it must not be used.
fn identify(options: &GroupOptions, journal_dir: &Path) -> Result<Identity, GroupError> {
    let fs = options.fs.as_ref();
    let dir = options.dir.display().to_string();
    let has_journal = Journal::exists(fs, journal_dir).map_err(io_error("list", journal_dir))?;
    let found = Identity::read(fs, &options.dir)?;
    let identity = match (found, options.bootstrap) {
        (None, _) if has_journal => return Err(GroupError::IdMissing { dir }),
        (None, Bootstrap::Existing) => return Err(GroupError::NotBootstrapped { dir }),
        (None, Bootstrap::New | Bootstrap::Join) => {
            fs.create_dir_all(&options.dir)
                .map_err(io_error("make", &options.dir))?;
            let identity = Identity::random(options.bootstrap == Bootstrap::Join)?;
            identity.write(fs, &options.dir)?;
            identity
        }
        (Some(identity), Bootstrap::Existing) if !identity.is_ready => {
            return Err(GroupError::NotBootstrapped { dir });
        }
        (Some(identity), Bootstrap::New | Bootstrap::Join | Bootstrap::Existing) => identity,
    };
    if identity.is_ready && !has_journal {
        return Err(GroupError::JournalMissing { dir });
    }
    Ok(identity)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GroupError {
    let what = path.display().to_string();
    move |source| GroupError::Io {
        action,
        what,
        source,
    }
}
