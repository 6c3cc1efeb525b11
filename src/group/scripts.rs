//! Golden scripts: a few participants stepped by commands; everything that happens is recorded.
//!
//! Peers are p1, p2, …; an entry is `index@term:text`, with `-` for the empty one that begins a
//! term. All logs begin behind 1@1. A line `p1 -> p2: …` is a message as it is sent, `p2 <- p1: …`
//! its arrival. Unless told otherwise, p1 stands for election after 6 ticks without a leader, p2
//! after 8, p3 after 10, and so on, always the same.
//! `UPDATE_GOLDENFILES=1 cargo test group::scripts` records `testscripts/`.

use std::collections::BTreeMap;
use std::error::Error;

use goldenscript::Context;

use self::commands::Command;
use super::core::readable::name;
use super::node::Event;
use super::testing::{Parcel, Started, Trace, World, members, texts};
use super::*;
use crate::disk::mem::{Loss, MemFileSystem};
use crate::ids::LogPosition;

mod commands;

/// No snapshot is taken for the journal's length.
const NEVER: u64 = u64::MAX;

/// Rounds of messages after which a group that is left alone must have come to rest.
const ROUNDS_MAX: usize = 100;

struct Runner {
    world: World,
    /// How many reads were asked for.
    reads: u64,
    /// Copies of disks.
    copies: BTreeMap<usize, MemFileSystem>,
}

type Done = Result<(), Box<dyn Error>>;

impl Runner {
    fn new() -> Runner {
        Runner {
            world: World::new(NEVER, Trace::kept()),
            reads: 0,
            copies: BTreeMap::new(),
        }
    }

    fn number(&self, peer: &str) -> Result<usize, Box<dyn Error>> {
        let number = peer.strip_prefix('p').ok_or("a peer is named p1")?;
        let number: usize = number.parse()?;
        match (1..=self.world.hosts.len()).contains(&number) {
            true => Ok(number - 1),
            false => Err(format!("there is no {peer}").into()),
        }
    }

    /// Those named, or all.
    fn numbers(&self, peers: &[String]) -> Result<Vec<usize>, Box<dyn Error>> {
        match peers {
            [] => Ok((0..self.world.hosts.len()).collect()),
            peers => peers.iter().map(|peer| self.number(peer)).collect(),
        }
    }

    fn running(&mut self, peer: &str) -> Result<(usize, &mut Started), Box<dyn Error>> {
        let number = self.number(peer)?;
        let running = self.world.hosts[number].running.as_mut();
        Ok((number, running.ok_or_else(|| format!("{peer} is down"))?))
    }

    fn note(&self, line: String) {
        self.world.trace.note(|| line);
    }

    fn cluster(&mut self, peers: u64, voters: Option<u64>, ticks: Option<usize>, ask: bool) {
        *self = Runner::new();
        (self.world.asks_peers, self.world.asks_members) = (ask, ask);
        self.world.failures = ask.then(Vec::new);
        let voters: Vec<PeerId> = (1..=voters.unwrap_or(peers)).map(PeerId).collect();
        for number in 0..peers as usize {
            self.world.add(ticks.unwrap_or(6 + 2 * number));
            let founders = match number < voters.len() {
                true => voters.clone(),
                false => Vec::new(),
            };
            self.world.identify(number, founders);
            self.world.start(number, Bootstrap::Join);
            self.world.advance(number);
        }
    }

    fn tick(&mut self, count: usize, numbers: &[usize]) {
        for _ in 0..count {
            self.world.clock.advance(TICK_INTERVAL);
            for number in numbers {
                self.world.tick(*number);
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let hosts = 0..self.world.hosts.len();
            let written = hosts.filter(|number| self.world.sync(*number)).count();
            let count = self.world.parcels.len();
            if written + count == 0 {
                return;
            }
            for _ in 0..count {
                self.world.deliver(0, false);
            }
        }
        panic!("no rest within {ROUNDS_MAX} rounds");
    }

    /// Delivers what is meant, or loses it.
    fn deliver(
        &mut self,
        (from, to): (&Option<String>, &Option<String>),
        kind: &Option<String>,
        count: Option<usize>,
        is_lost: bool,
    ) -> Done {
        let number = |peer: &Option<String>| match peer {
            Some(peer) => self.number(peer).map(Some),
            None => Ok(None),
        };
        let (from, to) = (number(from)?, number(to)?);
        let is_meant = |parcel: &Parcel| {
            from.is_none_or(|from| from == parcel.from)
                && to.is_none_or(|to| to == parcel.to)
                && kind.as_ref().is_none_or(|kind| *kind == parcel.kind())
        };
        let meant = self.world.parcels.iter().filter(|parcel| is_meant(parcel));
        let count = meant.count().min(count.unwrap_or(usize::MAX));
        if count == 0 {
            return Err("there is no such message".into());
        }
        for _ in 0..count {
            let at = self.world.parcels.iter().position(is_meant);
            self.world.deliver(at.expect("they were counted"), is_lost);
        }
        Ok(())
    }

    fn partition(&mut self, one: &str, other: &Option<String>) -> Done {
        let one = self.number(one)?;
        let others = match other {
            Some(other) => vec![self.number(other)?],
            None => (0..self.world.hosts.len()).collect(),
        };
        for other in others {
            self.world.cut.extend([(one, other), (other, one)]);
        }
        Ok(())
    }

    fn propose(
        &mut self,
        peer: &str,
        list: &[String],
        term: Option<u64>,
        size: Option<usize>,
    ) -> Done {
        let trace = self.world.trace.clone();
        let (number, started) = self.running(peer)?;
        let handle = &started.parts.handle;
        let term = term.unwrap_or(handle.status().term);
        for text in list {
            let padding = size.unwrap_or(0).saturating_sub(text.len());
            let data = format!("{text}{}", ".".repeat(padding));
            let (trace, line) = (trace.clone(), format!("{peer} answers {text}"));
            handle.propose(term, data.into_bytes(), move |outcome| {
                trace.note(|| format!("{line}: {}", describe(&outcome)));
            });
        }
        self.world.advance(number);
        Ok(())
    }

    fn read(&mut self, peer: &str, count: u64) -> Done {
        let trace = self.world.trace.clone();
        let numbers = self.reads + 1..=self.reads + count;
        self.reads += count;
        let (number, started) = self.running(peer)?;
        for read in numbers {
            let (seen, line) = (trace.clone(), format!("{peer} answers read {read}"));
            let called = line.clone();
            let confirmation = started.parts.handle.confirm_read(move |outcome| {
                seen.note(|| format!("{called}: {outcome:?}"));
            });
            if confirmation != ReadConfirmation::Later {
                trace.note(|| format!("{line}: {confirmation:?}"));
            }
        }
        self.world.advance(number);
        Ok(())
    }

    fn change(&mut self, peer: &str, change: ConfigurationChange) -> Done {
        let trace = self.world.trace.clone();
        let (number, started) = self.running(peer)?;
        let handle = &started.parts.handle;
        let line = format!("{peer} answers the change");
        handle.change(handle.status().term, change, move |outcome| {
            trace.note(|| format!("{line}: {}", describe(&outcome)));
        });
        self.world.advance(number);
        Ok(())
    }

    fn transfer(&mut self, peer: &str, to: &Option<String>) -> Done {
        let to = match to {
            Some(to) => Some(self.world.id(self.number(to)?)),
            None => None,
        };
        let (number, _) = self.running(peer)?;
        self.world.tell(number, Event::Transfer(to));
        self.world.advance(number);
        Ok(())
    }

    fn stop(&mut self, peer: &str, ticks: usize) -> Done {
        let (number, _) = self.running(peer)?;
        self.world.tell(number, Event::Stop(STOP_TIMEOUT));
        for passed in 0..=ticks {
            self.world.sync(number);
            let now = self.world.now();
            let (_, started) = self.running(peer)?;
            if started.parts.node.is_finished(now) {
                self.note(format!("{peer} is ready after {passed} ticks"));
                return Ok(());
            }
            self.tick(1, &[number]);
        }
        self.note(format!("{peer} is not ready after {ticks} ticks"));
        Ok(())
    }

    fn status(&mut self, peers: &[String]) -> Done {
        for number in self.numbers(peers)? {
            let Some(started) = &self.world.hosts[number].running else {
                self.note(format!("p{} is down", number + 1));
                continue;
            };
            let core = &started.parts.node.core;
            let status = core.status();
            let or_nobody = |peer: Option<PeerId>| peer.map_or("nobody".to_owned(), name);
            let serving = if status.serving { " and serves" } else { "" };
            self.note(format!(
                "p{} {:?} of {} in term {}{serving}, vote {}, commit {}, applied {}",
                number + 1,
                status.role,
                or_nobody(status.leader),
                status.term,
                or_nobody(core.vote()),
                status.commit,
                status.applied
            ));
            if let Some(obstacle) = core.obstacle() {
                self.note(format!("p{}: {obstacle}", number + 1));
            }
        }
        Ok(())
    }

    fn log(&mut self, peers: &[String]) -> Done {
        for number in self.numbers(peers)? {
            if let Some(started) = &self.world.hosts[number].running {
                let (log, state) = (started.parts.node.core.log(), texts(&started.state()));
                self.note(format!("p{} log {log}, state {state}", number + 1));
            }
        }
        Ok(())
    }

    fn members(&mut self, peers: &[String]) -> Done {
        for number in self.numbers(peers)? {
            if let Some(started) = &self.world.hosts[number].running {
                let members = members(started.parts.node.core.configuration());
                self.note(format!("p{} has {members}", number + 1));
            }
        }
        Ok(())
    }

    fn progress(&mut self, peer: &str) -> Done {
        let (_, started) = self.running(peer)?;
        for progress in started.parts.node.core.progress() {
            let active = if progress.is_active { "" } else { ", silent" };
            let snapshot = match progress.gets_snapshot {
                true => ", gets a snapshot",
                false => "",
            };
            self.note(format!(
                "{} has up to {}{active}{snapshot}",
                name(progress.peer),
                progress.matched
            ));
        }
        Ok(())
    }

    fn execute(&mut self, command: &Command) -> Done {
        match command {
            Command::Cluster {
                peers,
                ask,
                voters,
                ticks,
            } => self.cluster(*peers, *voters, *ticks, ask.unwrap_or_default()),
            Command::Tick { count, peers } => {
                let numbers = self.numbers(peers)?;
                self.tick(*count, &numbers);
            }
            Command::Settle => self.settle(),
            Command::Run { ticks } => {
                for _ in 0..*ticks {
                    let numbers = self.numbers(&[])?;
                    self.tick(1, &numbers);
                    self.settle();
                }
            }
            Command::Sync(peers) => {
                for number in self.numbers(peers)? {
                    self.world.sync(number);
                }
            }
            Command::Deliver {
                from,
                to,
                kind,
                count,
            } => self.deliver((from, to), kind, *count, false)?,
            Command::Drop {
                from,
                to,
                kind,
                count,
            } => self.deliver((from, to), kind, *count, true)?,
            Command::Messages => {
                for parcel in &self.world.parcels {
                    self.note(parcel.describe());
                }
            }
            Command::Partition { one, other } => self.partition(one, other)?,
            Command::Heal => self.world.cut.clear(),
            Command::Crash(peer) => {
                let (number, _) = self.running(peer)?;
                self.world.crash(number, Loss::Everything);
            }
            Command::Stop { peer, ticks } => self.stop(peer, *ticks)?,
            Command::Restart(peer) => {
                let number = self.number(peer)?;
                self.world.start(number, Bootstrap::Existing);
                self.world.advance(number);
            }
            Command::Keep(peer) => {
                let (number, _) = self.running(peer)?;
                self.copies
                    .insert(number, self.world.hosts[number].fs.fork());
            }
            Command::Rollback(peer) => {
                let number = self.number(peer)?;
                let copy = self.copies.get(&number).ok_or("no copy was kept")?;
                self.world.hosts[number].fs = copy.fork();
                self.world.start(number, Bootstrap::Existing);
                self.world.advance(number);
            }
            Command::Told { term, index, peers } => {
                for number in self.numbers(peers)? {
                    let committed = LogPosition {
                        term: *term,
                        index: *index,
                    };
                    let is_enough = true;
                    let told = Event::MembersTold {
                        committed,
                        is_enough,
                    };
                    self.world.tell(number, told);
                    self.world.advance(number);
                }
            }
            Command::Propose {
                peer,
                texts,
                term,
                size,
            } => self.propose(peer, texts, *term, *size)?,
            Command::Read { peer, count } => self.read(peer, count.unwrap_or(1))?,
            Command::Add { peer, newcomer } => {
                let newcomer = self.world.id(self.number(newcomer)?);
                let address = PeerAddress::default();
                self.change(peer, ConfigurationChange::AddLearner(newcomer, address))?;
            }
            Command::Remove { peer, other } => {
                let other = self.world.id(self.number(other)?);
                self.change(peer, ConfigurationChange::Remove(other))?;
            }
            Command::Transfer { peer, to } => self.transfer(peer, to)?,
            Command::Snapshot(peer) => {
                let (number, started) = self.running(peer)?;
                started.parts.node.schedule.want();
                self.world.advance(number);
            }
            Command::Forget(peer) => self.running(peer)?.1.parts.node.core.forget_applied(),
            Command::Status(peers) => self.status(peers)?,
            Command::Log(peers) => self.log(peers)?,
            Command::Members(peers) => self.members(peers)?,
            Command::Progress(peer) => self.progress(peer)?,
        }
        Ok(())
    }
}

fn describe<O>(outcome: &ProposalOutcome<O>) -> String {
    match outcome {
        ProposalOutcome::Applied(_) => "applied".to_owned(),
        ProposalOutcome::NotProposed(reason) => format!("not proposed: {reason}"),
        ProposalOutcome::Lost => "lost".to_owned(),
        ProposalOutcome::Unknown => "unknown".to_owned(),
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        self.execute(command)?;
        for (number, error) in self.world.failures.iter_mut().flat_map(std::mem::take) {
            self.world
                .trace
                .note(|| format!("p{} stops: {error}", number + 1));
        }
        Ok(self.world.trace.take())
    }
}

#[test]
fn scripts_do_what_was_recorded() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/group/testscripts");
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .expect("the scripts are there")
        .map(|entry| entry.expect("the directory can be listed").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", dir.display());
    for path in paths {
        println!("{}", path.display());
        goldenscript::run(&mut Runner::new(), &path).expect("the script runs");
    }
}
