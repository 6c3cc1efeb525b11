//! Golden scripts: one batch at a time, stepped by commands; everything that happens is recorded.

mod command;

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use goldenscript::Context;

use self::command::Command;
use super::events::{Answer, Event};
use super::testing::{TERM, World, key, member, short};
use crate::error::Failure;
use crate::ids::{Fence, MemberId, Revision, Token};
use crate::metadata::command::{Change, Operation};
use crate::metadata::message_index::Entry;
use crate::metadata::replica_sets::ReplicaSet;
use crate::protocol::request::{Batch, Condition, SetOptions, Step, Transaction, Write};
use crate::rpc::message::{FetchResult, Refusal, StoreResult};

struct Runner {
    world: World,
    steps: Vec<Step>,
    /// Releases handed out: number and member.
    releases: Vec<(u64, MemberId)>,
}

fn condition(text: &str) -> Condition {
    match text {
        "absent" => Condition::Absent,
        "exists" => Condition::Exists,
        revision => {
            let sequence = revision[1..].parse().expect("a revision is named r1");
            Condition::Revision(Revision::new(TERM, sequence))
        }
    }
}

fn id(name: &str) -> MemberId {
    member(name[1..].parse().expect("a member is named m1"))
}

fn token(text: &str) -> Token {
    Token::parse(text.as_bytes()).expect("a valid token")
}

impl Runner {
    fn member(&self, name: &str) -> Result<MemberId, Box<dyn Error>> {
        match name {
            "oldest" => {
                let oldest = self.world.fetches.first();
                Ok(oldest.ok_or("nothing is fetched")?.member)
            }
            name => Ok(id(name)),
        }
    }

    fn store_of(&self, name: &str) -> Result<usize, Box<dyn Error>> {
        let member = self.member(name)?;
        let mut calls = self.world.stores.iter();
        let found = calls.position(|call| call.member == member);
        found.ok_or_else(|| format!("no store to {name}").into())
    }

    fn fetch_of(&self, name: &str) -> Result<usize, Box<dyn Error>> {
        let member = self.member(name)?;
        let mut calls = self.world.fetches.iter();
        let found = calls.position(|call| call.member == member);
        found.ok_or_else(|| format!("no fetch to {name}").into())
    }

    fn ack(&mut self, name: &str, results: &[String]) -> Result<(), Box<dyn Error>> {
        let at = self.store_of(name)?;
        let records = self.world.stores[at].records.len();
        let results = match results {
            [] => vec![StoreResult::Stored; records],
            results => results
                .iter()
                .map(|result| match result.as_str() {
                    "stored" => StoreResult::Stored,
                    "full" => StoreResult::DiskFull,
                    _ => StoreResult::Conflict,
                })
                .collect(),
        };
        self.world.end_store(at, Answer::Results(results));
        Ok(())
    }

    fn answer(&mut self, name: &str, results: &[String]) -> Result<(), Box<dyn Error>> {
        let at = self.fetch_of(name)?;
        let revisions = self.world.fetches[at].revisions.clone();
        let results = revisions
            .into_iter()
            .enumerate()
            .map(|(n, revision)| match results.get(n).map(String::as_str) {
                None | Some("found") => self.world.fetched(revision),
                Some("missing") => FetchResult::Missing,
                Some("damaged") => FetchResult::Damaged,
                Some("omitted") => FetchResult::Omitted,
                Some(_) => FetchResult::Found {
                    key: key("another"),
                    payload: Bytes::new(),
                },
            })
            .collect();
        self.world.end_fetch(at, Answer::Results(results));
        Ok(())
    }

    fn refuse(&mut self, name: &str, why: &str) -> Result<(), Box<dyn Error>> {
        let refusal = match why.parse() {
            Ok(term) => Refusal::StaleFence {
                highest: Fence { term, link: 1 },
            },
            Err(_) if why == "full" => Refusal::NoSpace,
            Err(_) => Refusal::Busy,
        };
        match self.store_of(name) {
            Ok(at) => self.world.end_store(at, Answer::Refused(refusal)),
            Err(_) => {
                let at = self.fetch_of(name)?;
                self.world.end_fetch(at, Answer::Refused(refusal));
            }
        }
        Ok(())
    }

    fn unsent(&mut self, name: &str) -> Result<(), Box<dyn Error>> {
        match self.store_of(name) {
            Ok(at) => self.world.end_store(at, Answer::NotSent),
            Err(_) => {
                let at = self.fetch_of(name)?;
                self.world.end_fetch(at, Answer::NotSent);
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, payload: &str, members: &[String]) {
        let revision = self.world.allot(1).first;
        let members: Vec<MemberId> = members.iter().map(|name| id(name)).collect();
        let entry = Entry {
            revision,
            replicas: ReplicaSet::new(&members).expect("distinct members"),
            length: payload.len() as u32,
        };
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        if let Some(old) = self.world.entry(&key(name)) {
            let old = [(old.revision, old.replicas)];
            self.world.releases.released(&old);
        }
        self.world.put(key(name), &payload, entry);
        self.world.note(format!("{name} is {}", short(revision)));
    }

    fn send_releases(&mut self) {
        while let Some(release) = self.world.releases.next_release() {
            let names: Vec<String> = release.revisions.iter().map(|r| short(*r)).collect();
            let names = names.join(" ");
            self.world
                .note(format!("release -> m{}: {names}", release.member.0));
            self.releases.push((release.number, release.member));
        }
    }

    fn status(&mut self) {
        let world = &mut self.world;
        let coordinator = world.coordinator.as_ref().expect("a batch was started");
        let deadline = match coordinator.is_done() {
            true => "done".to_owned(),
            false => format!("deadline {}", coordinator.next_deadline()),
        };
        world.note(format!("at {}: {deadline}", world.now));
        let members: Vec<(MemberId, String)> = world
            .cluster
            .members()
            .map(|member| (member.id, member.name.clone()))
            .collect();
        for (member, name) in members {
            let line = format!(
                "  {name} {}, {} bytes in flight, {} releases queued",
                world.cluster.state(member, world.now),
                world.cluster.bytes_in_flight(member),
                world.releases.queued(member)
            );
            world.note(line);
        }
    }

    fn proposal(&mut self) -> Result<super::testing::Proposal, Box<dyn Error>> {
        match self.world.proposals.is_empty() {
            true => Err("nothing is proposed".into()),
            false => Ok(self.world.proposals.remove(0)),
        }
    }

    fn execute(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        match command {
            Command::Cluster {
                members,
                tolerance,
                run,
                part,
                fetch,
            } => {
                self.world = World::new(*members, tolerance.unwrap_or(2));
                let limits = &mut self.world.limits;
                limits.run_messages_max = run.unwrap_or(limits.run_messages_max);
                limits.part_messages_max = part.unwrap_or(limits.part_messages_max);
                limits.fetch_bytes_max = fetch.unwrap_or(limits.fetch_bytes_max);
            }
            Command::Message {
                key,
                payload,
                members,
            } => self.put(key, payload, members),
            Command::Forget(name) => {
                let key = key(name);
                self.world
                    .change(Change::Write(vec![Operation::Delete { key }]));
            }
            Command::Set {
                key: name,
                payload,
                once,
                given,
                ttl,
            } => self.steps.push(Step::Write(Write::Set {
                key: key(name),
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                options: SetOptions {
                    token: once.as_deref().map(token),
                    condition: given.as_deref().map(condition),
                    ttl_ms: *ttl,
                },
            })),
            Command::Del {
                key: name,
                once,
                given,
            } => self.steps.push(Step::Write(Write::Delete {
                key: key(name),
                token: once.as_deref().map(token),
                condition: given.as_deref().map(condition),
            })),
            Command::Expire { key: name, ttl } => self.steps.push(Step::Write(Write::Expire {
                key: key(name),
                token: None,
                ttl_ms: *ttl,
            })),
            Command::Read(name) => self.steps.push(Step::Get(key(name))),
            Command::Go => {
                let steps = std::mem::take(&mut self.steps).into_iter();
                let writes = steps.map(|step| match step {
                    Step::Write(write) => Ok(write),
                    Step::Get(key) => Err(format!("the read of {key} needs a transaction")),
                });
                let writes = writes.collect::<Result<_, _>>()?;
                self.world.start(Batch::Writes(writes));
            }
            Command::Transaction { atomic, once } => {
                self.world.start(Batch::Transaction(Transaction {
                    steps: std::mem::take(&mut self.steps),
                    is_atomic: atomic.unwrap_or(false),
                    token: once.as_deref().map(token),
                }));
            }
            Command::Ttl(name) => self.world.start(Batch::Ttl(key(name))),
            Command::Get(names) => {
                let keys = names.iter().map(|name| key(name)).collect();
                self.world.start(Batch::Reads(keys));
            }
            Command::Bulk {
                count,
                payload,
                once,
            } => self.world.start(Batch::Bulk {
                count: *count,
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                token: once.as_deref().map(token),
            }),
            Command::Where(name) => self.world.start(Batch::Where(key(name))),
            Command::Count => self.world.start(Batch::Count),
            Command::Ack { member, results } => self.ack(member, results)?,
            Command::AckAll => {
                for _ in 0..self.world.stores.len() {
                    let name = format!("m{}", self.world.stores[0].member.0);
                    self.ack(&name, &[])?;
                }
            }
            Command::Answer { member, results } => self.answer(member, results)?,
            Command::Refuse { member, why } => self.refuse(member, why)?,
            Command::Unsent(name) => self.unsent(name)?,
            Command::Lose(name) => {
                let member = self.member(name)?;
                self.releases.retain(|(_, of)| *of != member);
                self.world.lose(member);
            }
            Command::Connect(name) => self.world.connect(id(name)),
            Command::Fill { member, mib } => {
                self.world.cluster.charge(id(member), 1, mib << 20);
            }
            Command::Drain { member, mib } => {
                self.world.cluster.settle(id(member), 1, mib << 20);
            }
            Command::Tick(ms) => {
                self.world.now = self.world.now + Duration::from_millis(*ms);
                self.world.step(Event::Tick);
            }
            Command::Confirm => self.world.step(Event::ReadConfirmed),
            Command::RefuseRead => {
                let failure = Failure::NotLeader { leader: None };
                self.world.step(Event::ReadRefused(failure));
            }
            Command::Applied => match self.world.proposals.is_empty() {
                true => return Err("nothing is proposed".into()),
                false => _ = self.world.apply(0),
            },
            Command::NotProposed(why) => {
                let tag = self.proposal()?.tag;
                let failure = match why.as_str() {
                    "busy" => Failure::Busy,
                    _ => Failure::NotLeader { leader: None },
                };
                self.world.step(Event::NotProposed { tag, failure });
            }
            Command::Unknown => {
                let tag = self.proposal()?.tag;
                self.world.step(Event::OutcomeUnknown { tag });
            }
            Command::Superseded => {
                let tag = self.proposal()?.tag;
                let failure = Failure::NotLeader { leader: None };
                self.world.releases.begin_term(TERM + 2);
                self.world.step(Event::Superseded { tag, failure });
            }
            Command::Releases => self.send_releases(),
            Command::Released(name) => {
                let position = self.releases.iter().position(|(_, m)| *m == id(name));
                let (number, member) = self.releases.remove(position.ok_or("no release")?);
                self.world.releases.answered(number, member, true);
            }
            Command::Status => self.status(),
        }
        Ok(())
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        self.execute(command)?;
        Ok(std::mem::take(&mut self.world.log))
    }
}

#[test]
fn scripts_do_what_was_recorded() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/coordinator/testscripts");
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .expect("the scripts are there")
        .map(|entry| entry.expect("the directory can be listed").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", dir.display());
    for path in paths {
        println!("{}", path.display());
        let mut runner = Runner {
            world: World::new(3, 2),
            steps: Vec::new(),
            releases: Vec::new(),
        };
        goldenscript::run(&mut runner, &path).expect("the script runs");
    }
}
