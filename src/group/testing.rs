//! Several participants in one thread: nodes, journals and snapshot desks of the real code on disks
//! in memory, and what is on its way between them. Whoever steps them decides what arrives, when
//! and whether. All that happens can be written down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::core::readable::{self, entries, name};
use super::core::{CoreStatus, Persist};
use super::identity::Identity;
use super::node::{Effects, Event};
use super::snapshots::Task;
use super::*;
use crate::clock::{Instant, ManualClock};
use crate::disk::mem::{Loss, MemFileSystem};

mod machine;

pub use self::machine::{Machine, Trace, UNSOUND, members, texts};

/// One participant, and what it has under way.
pub struct Host {
    pub fs: MemFileSystem,
    pub running: Option<Started>,
    /// Ticks after which it stands for election.
    ticks: usize,
}

pub struct Started {
    pub parts: Parts<Machine>,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Not given to the journal yet.
    writes: Vec<Persist>,
    /// As last written down.
    noted: Option<(Role, u64, Option<PeerId>)>,
}

impl Started {
    /// The data of all entries that are applied.
    pub fn state(&self) -> Vec<Vec<u8>> {
        self.log.lock().clone()
    }
}

/// Something on its way between two participants.
pub struct Parcel {
    pub from: usize,
    pub to: usize,
    content: Content,
}

enum Content {
    Message(Vec<u8>),
    /// A piece of a snapshot, with the number of the transfer.
    Chunk(IncomingChunk, u64),
}

impl Parcel {
    /// What it is, in a word.
    pub fn kind(&self) -> String {
        match &self.content {
            Content::Message(bytes) => readable::kind(bytes),
            Content::Chunk(chunk, _) => format!("Chunk at {}", chunk.offset),
        }
    }

    /// What it is, in full.
    pub fn describe(&self) -> String {
        let content = match &self.content {
            Content::Message(bytes) => readable::message(bytes),
            Content::Chunk(chunk, _) => match &chunk.end {
                None => self.kind(),
                Some(message) => {
                    format!("{}, the last: {}", self.kind(), readable::message(message))
                }
            },
        };
        let (from, to) = (number_name(self.from), number_name(self.to));
        format!("{from} -> {to}: {content}")
    }
}

/// The name of the host with this number. In a script its id is one more than that.
fn number_name(number: usize) -> String {
    format!("p{}", number + 1)
}

/// Participants, their time, and what is on its way.
pub struct World {
    pub clock: Arc<ManualClock>,
    pub hosts: Vec<Host>,
    ids: BTreeMap<PeerId, usize>,
    /// In the order of sending.
    pub parcels: Vec<Parcel>,
    /// What is sent from the first to the second is lost.
    pub cut: BTreeSet<(usize, usize)>,
    transfers: BTreeMap<(usize, usize), (OutgoingSnapshot, u64)>,
    /// The number of the last transfer.
    last_transfer: u64,
    /// A snapshot is taken when the journal is longer than this.
    snapshot_bytes: u64,
    pub trace: Trace,
    /// Hosts that start again ask the others what these know of them.
    pub asks_peers: bool,
    /// They wait for members, too.
    pub asks_members: bool,
    /// Why hosts stopped by themselves; `None`: none may.
    pub failures: Option<Vec<(usize, GroupError)>>,
}

impl World {
    pub fn new(snapshot_bytes: u64, trace: Trace) -> World {
        World {
            clock: Arc::default(),
            hosts: Vec::new(),
            ids: BTreeMap::new(),
            parcels: Vec::new(),
            cut: BTreeSet::new(),
            transfers: BTreeMap::new(),
            last_transfer: 0,
            snapshot_bytes,
            trace,
            asks_peers: false,
            asks_members: false,
            failures: None,
        }
    }

    /// A node has failed, if it has: it runs no longer.
    fn end_failed<T>(&mut self, number: usize, result: Result<T, GroupError>) -> Option<T> {
        match (result, &mut self.failures) {
            (Ok(value), _) => Some(value),
            (Err(error), None) => panic!("{} failed: {error}", number_name(number)),
            (Err(error), Some(failures)) => {
                failures.push((number, error));
                self.hosts[number].running = None;
                None
            }
        }
    }

    /// One more host, with an empty disk, that stands for election after so many ticks.
    pub fn add(&mut self, ticks: usize) -> usize {
        self.hosts.push(Host {
            fs: MemFileSystem::new(),
            running: None,
            ticks,
        });
        self.hosts.len() - 1
    }

    /// Who a host is and with whom its group begins, before it is first started.
    pub fn identify(&mut self, number: usize, voters: Vec<PeerId>) {
        let identity = Identity {
            peer: PeerId(number as u64 + 1),
            voters,
            is_ready: false,
        };
        let fs = &self.hosts[number].fs;
        fs.create_dir_all(root()).expect("a disk");
        identity.write(fs, root()).expect("a disk");
    }

    pub fn start(&mut self, number: usize, bootstrap: Bootstrap) {
        let host = &mut self.hosts[number];
        let options = GroupOptions {
            fs: Arc::new(host.fs.clone()),
            dir: root().to_owned(),
            clock: self.clock.clone(),
            bootstrap,
            log: LogOptions {
                segment_bytes: 16 << 10,
                reserve_bytes: 0,
                salt: 5,
            },
            snapshot_bytes: self.snapshot_bytes,
            timing: Timing {
                heartbeat_ticks: 1,
                // A range of one: no matter of chance.
                election_ticks: host.ticks..host.ticks + 1,
            },
            asks_peers: self.asks_peers,
            asks_members: self.asks_members,
            on_failure: Box::new(|_| ()),
        };
        let log = Arc::default();
        let machine = Machine {
            name: number_name(number),
            log: Arc::clone(&log),
            trace: self.trace.clone(),
        };
        let parts = Parts::open(&options, machine).expect("it opens");
        self.ids.insert(parts.node.peer, number);
        host.running = Some(Started {
            parts,
            log,
            writes: Vec::new(),
            noted: None,
        });
    }

    pub fn id(&self, number: usize) -> PeerId {
        let found = self.ids.iter().find(|(_, host)| **host == number);
        *found.expect("it was started").0
    }

    /// Power fails.
    pub fn crash(&mut self, number: usize, loss: Loss<'_>) {
        let host = &mut self.hosts[number];
        host.running = None;
        host.fs.crash(loss);
        self.transfers.retain(|(from, _), _| *from != number);
    }

    /// The time of all of them.
    pub fn now(&self) -> Instant {
        crate::clock::Clock::now(&*self.clock)
    }

    /// A host that runs is told something.
    pub fn tell(&mut self, number: usize, event: Event<usize>) {
        let now = self.now();
        if let Some(started) = &mut self.hosts[number].running {
            let taken = started.parts.node.take(event, now);
            self.end_failed(number, taken);
        }
    }

    /// Takes all that the handle of a host has queued, and does what its node says.
    pub fn advance(&mut self, number: usize) {
        let now = self.now();
        while let Some(started) = &mut self.hosts[number].running {
            if let Ok(event) = started.parts.inbox.try_recv() {
                let taken = started.parts.node.take(event, now);
                self.end_failed(number, taken);
                continue;
            }
            let advanced = started.parts.node.advance(now);
            let Some(effects) = self.end_failed(number, advanced) else {
                return;
            };
            let is_done = self.carry_out(number, effects);
            let started = self.hosts[number].running.as_ref();
            if is_done && started.is_some_and(|started| started.parts.inbox.is_empty()) {
                break;
            }
        }
    }

    /// Does what a node says; false if there is more to do.
    fn carry_out(&mut self, number: usize, effects: Effects) -> bool {
        self.note_status(number);
        let started = self.hosts[number].running.as_mut().expect("it runs");
        for write in &effects.writes {
            self.trace.note(|| describe_write(number, write));
        }
        started.writes.extend(effects.writes);
        let mut messages = effects.messages;
        messages.sort_by_key(|message| message.to);
        for message in messages {
            let to = self.ids[&message.to];
            self.send(number, to, Content::Message(message.bytes));
        }
        for transfer in effects.transfers {
            let to = self.ids[&transfer.to];
            self.last_transfer += 1;
            self.transfers
                .insert((number, to), (transfer, self.last_transfer));
            self.next_chunk(number, to);
        }
        let Some(request) = effects.snapshot else {
            return true;
        };
        self.perform(number, Task::Write(request));
        false
    }

    /// The snapshot desk of a host does something, of which its node hears.
    fn perform(&mut self, number: usize, task: Task) {
        let Some(started) = &mut self.hosts[number].running else {
            return;
        };
        let event = started.parts.desk.perform(task, &StopSignal::default());
        if let Some(event) = event {
            self.tell(number, event);
        }
    }

    fn note_status(&mut self, number: usize) {
        let started = self.hosts[number].running.as_mut().expect("it runs");
        let CoreStatus {
            role, term, leader, ..
        } = started.parts.node.core.status();
        let status = Some((role, term, leader));
        if started.noted == status {
            return;
        }
        started.noted = status;
        self.trace.note(|| {
            let leader = leader.map_or(String::new(), |leader| format!(" of {}", name(leader)));
            let own = number_name(number);
            match role {
                Role::Follower => format!("{own} is follower{leader} in term {term}"),
                Role::Candidate => format!("{own} is candidate in term {term}"),
                Role::Leader => format!("{own} is leader of term {term}"),
            }
        });
    }

    fn send(&mut self, from: usize, to: usize, content: Content) {
        let parcel = Parcel { from, to, content };
        let is_lost = self.cut.contains(&(from, to));
        self.trace.note(|| {
            let lost = if is_lost { " (lost)" } else { "" };
            format!("{}{lost}", parcel.describe())
        });
        match is_lost {
            true => self.lose(parcel),
            false => self.parcels.push(parcel),
        }
    }

    /// It does not arrive. Whoever sends a snapshot hears of that.
    fn lose(&mut self, parcel: Parcel) {
        if let Content::Chunk(_, number) = parcel.content {
            self.chunk_answered(parcel.from, parcel.to, number, false);
        }
    }

    fn next_chunk(&mut self, from: usize, to: usize) {
        let Some((transfer, number)) = self.transfers.get_mut(&(from, to)) else {
            return;
        };
        let number = *number;
        match transfer.next_chunk(number).expect("the file is there") {
            Some(chunk) => self.send(from, to, Content::Chunk(chunk, number)),
            None => self.end_transfer(from, to, true),
        }
    }

    fn chunk_answered(&mut self, from: usize, to: usize, number: u64, is_taken: bool) {
        let current = self.transfers.get(&(from, to));
        if current.is_some_and(|(_, current)| *current == number) {
            match is_taken {
                true => self.next_chunk(from, to),
                false => self.end_transfer(from, to, false),
            }
        }
    }

    fn end_transfer(&mut self, from: usize, to: usize, arrived: bool) {
        self.transfers.remove(&(from, to));
        let id = self.id(to);
        if let Some(started) = &self.hosts[from].running {
            started.parts.handle.snapshot_sent(id, arrived);
        }
    }

    /// The journal of a host makes what it has durable; false if there is nothing.
    pub fn sync(&mut self, number: usize) -> bool {
        let Some(started) = &mut self.hosts[number].running else {
            return false;
        };
        let writes = std::mem::take(&mut started.writes);
        let Some(event) = started.parts.write(&writes).expect("a disk") else {
            return false;
        };
        self.trace
            .note(|| format!("{} has written", number_name(number)));
        self.tell(number, event);
        self.advance(number);
        true
    }

    /// One of the parcels arrives, or does not.
    pub fn deliver(&mut self, at: usize, is_lost: bool) {
        let parcel = self.parcels.remove(at);
        let Parcel { from, to, .. } = parcel;
        self.trace.note(|| {
            let (from, to) = (number_name(from), number_name(to));
            match is_lost {
                true => format!("{to} <- {from}: {} (lost)", parcel.kind()),
                false => format!("{to} <- {from}: {}", parcel.kind()),
            }
        });
        if is_lost || self.hosts[to].running.is_none() {
            self.lose(parcel);
        } else {
            match parcel.content {
                Content::Message(bytes) => {
                    let (link, message) = (self.id(from), bytes.into());
                    let room = None;
                    self.tell(
                        to,
                        Event::Message {
                            link,
                            message,
                            room,
                        },
                    );
                }
                Content::Chunk(chunk, number) => self.take_chunk(from, to, chunk, number),
            }
        }
        self.advance(to);
        self.advance(from);
    }

    fn take_chunk(&mut self, from: usize, to: usize, chunk: IncomingChunk, number: u64) {
        let is_taken = Arc::new(Mutex::new(false));
        let (seen, trace) = (is_taken.clone(), self.trace.clone());
        let done: snapshots::ChunkDone = Box::new(move |result| {
            if let Err(error) = &result {
                trace.note(|| format!("  refused: {error}"));
            }
            *seen.lock() = result.is_ok();
        });
        self.perform(to, Task::Receive(chunk, done));
        let is_taken = *is_taken.lock();
        self.chunk_answered(from, to, number, is_taken);
    }

    /// Time passes for a host.
    pub fn tick(&mut self, number: usize) {
        let now = self.now();
        if let Some(started) = &mut self.hosts[number].running {
            started.parts.node.tick(now);
            self.advance(number);
        }
    }

    /// The host that serves, and its term; of several the one in the latest term.
    pub fn leader(&self) -> Option<(usize, u64)> {
        let serving = self.hosts.iter().enumerate().filter_map(|(number, host)| {
            let status = host.running.as_ref()?.parts.handle.status();
            status.serving.then_some((number, status.term))
        });
        serving.max_by_key(|(_, term)| *term)
    }

    /// A host that runs.
    pub fn started(&self, number: usize) -> &Started {
        self.hosts[number].running.as_ref().expect("it runs")
    }
}

/// Where each host has its directory.
pub fn root() -> &'static Path {
    Path::new("leader")
}

fn describe_write(number: usize, write: &Persist) -> String {
    let hard_state = write.hard_state;
    let vote = hard_state.vote.map_or("nobody".to_owned(), name);
    let reset = match write.reset {
        Some(position) => format!("reset to {}@{}, ", position.index, position.term),
        None => String::new(),
    };
    format!(
        "{} writes {reset}{}; term {}, vote {vote}, commit {}",
        number_name(number),
        entries(&write.entries),
        hard_state.term,
        hard_state.commit
    )
}
