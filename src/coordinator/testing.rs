//! A leader and its members in one value, for tests of coordinators: carries effects out as far as
//! that needs no choice, keeps the rest open for the test to decide, and writes everything down.

mod show;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::show::{show_command, show_reply, show_tag};
use super::events::{
    Answer, Charge, Effect, Event, Found, Question, Revisions, Settlement, Tag, Told,
};
use super::release::ReleaseQueue;
use super::{Coordinator, Limits};
use crate::clock::Instant;
use crate::cluster::{Cluster, Strategy};
use crate::ids::{Key, MemberId, Revision, Token};
use crate::metadata::command::{Applied, Change, Command, Operation, Registration};
use crate::metadata::listing::list;
use crate::metadata::message_index::{Entry, Lookup};
use crate::metadata::once::OnceChange;
use crate::metadata::state::{PlainShards, Shards, State};
use crate::metadata::transact::{self, Action};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Condition};
use crate::rpc::message::{FetchResult, StoreRecord, StoreResult};

/// The term of the leader.
pub const TERM: u64 = 3;

pub struct StoreCall {
    pub tag: Tag,
    pub member: MemberId,
    pub records: Arc<Vec<StoreRecord>>,
    pub charge: Charge,
}

pub struct FetchCall {
    pub tag: Tag,
    pub member: MemberId,
    pub revisions: Vec<Revision>,
}

pub struct Proposal {
    pub tag: Tag,
    pub command: Command,
    pub settlement: Settlement,
}

/// See above.
pub struct World {
    pub now: Instant,
    pub cluster: Cluster,
    pub tolerance: u8,
    pub limits: Limits,
    pub coordinator: Option<Coordinator>,
    /// Not ended yet.
    pub stores: Vec<StoreCall>,
    pub fetches: Vec<FetchCall>,
    pub proposals: Vec<Proposal>,
    pub releases: ReleaseQueue,
    /// Of the batch under way.
    pub hold: Option<u64>,
    /// What was settled, in order.
    pub settled: Vec<Settlement>,
    /// Applied metadata; members 1 to 9 are registered.
    pub state: State<PlainShards>,
    /// What the members hold of them.
    pub payloads: BTreeMap<Revision, (Key, Bytes)>,
    pub next_sequence: u64,
    /// The replies of the coordinator, once for each `Done`.
    pub done: Vec<Vec<Reply>>,
    /// How often room was asked for.
    pub rooms: usize,
    /// Whether it is granted at once; else the test does.
    pub has_room: bool,
    /// Everything that happened.
    pub log: String,
}

pub fn member(number: u64) -> MemberId {
    MemberId(number)
}

pub fn key(text: &str) -> Key {
    Key::parse(text.as_bytes()).expect("a valid key")
}

/// `r7` is the seventh revision of the term.
pub fn short(revision: Revision) -> String {
    format!("r{}", revision.as_u64() & Revision::SEQUENCE_MAX)
}

impl World {
    /// Members 1 to `members`, all connected.
    pub fn new(members: u64, tolerance: u8) -> World {
        let mut world = World {
            now: Instant::default() + Duration::from_secs(1),
            cluster: Cluster::new(Strategy::LeastLoaded, 1),
            tolerance,
            limits: Limits::default(),
            coordinator: None,
            stores: Vec::new(),
            fetches: Vec::new(),
            proposals: Vec::new(),
            releases: ReleaseQueue::new(),
            hold: None,
            settled: Vec::new(),
            state: State::new(PlainShards::new(1)),
            payloads: BTreeMap::new(),
            next_sequence: 1,
            done: Vec::new(),
            rooms: 0,
            has_room: true,
            log: String::new(),
        };
        world.releases.begin_term(TERM);
        for number in 1..=9 {
            let registration = Registration {
                id: member(number),
                name: format!("m{number}"),
                address: format!("h{number}:1"),
                zone: String::new(),
                incarnation: 1,
                nonce: 1,
            };
            if number <= members {
                world.cluster.register(&registration);
                world.connect(member(number));
            }
            world.change(Change::RegisterMember(registration));
        }
        world
    }

    pub fn connect(&mut self, id: MemberId) {
        self.cluster.connected(id, self.now);
        self.cluster.heartbeat(id, &Default::default(), self.now);
        self.releases.member_up(id);
    }

    pub fn allot(&mut self, count: u64) -> Revisions {
        let first = Revision::new(TERM, self.next_sequence);
        self.next_sequence += count;
        Revisions { first, count }
    }

    /// Puts a message into the metadata and on members, as if written before.
    pub fn put(&mut self, key: Key, payload: &Bytes, entry: Entry) {
        self.payloads
            .insert(entry.revision, (key.clone(), payload.clone()));
        let applied = self.change(Change::Write(vec![Operation::Set {
            key,
            revision: entry.revision,
            replicas: entry.replicas,
            length: entry.length,
        }]));
        assert!(matches!(applied, Applied::Write { .. }), "{applied:?}");
    }

    /// Applies a change that no batch proposed.
    pub fn change(&mut self, change: Change) -> Applied {
        self.applied(&Command { term: TERM, change })
    }

    /// The record of a message.
    pub fn entry(&self, key: &Key) -> Option<Entry> {
        self.state.find(key)
    }

    pub fn start(&mut self, batch: Batch) {
        let revisions = self.allot(Coordinator::revisions_needed(&batch));
        self.releases.open(revisions);
        self.coordinator = Coordinator::new(batch, revisions, self.tolerance, self.limits);
        self.stores.clear();
        self.fetches.clear();
        self.proposals.clear();
        self.step(Event::Start);
    }

    pub fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        let coordinator = self.coordinator.as_mut().expect("a batch was started");
        coordinator.step(event, self.now, &mut self.cluster, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    pub fn end_store(&mut self, position: usize, answer: Answer<StoreResult>) {
        let call = self.stores.remove(position);
        let Charge { records, bytes } = call.charge;
        self.cluster.settle(call.member, records, bytes);
        if matches!(answer, Answer::Results(_) | Answer::Refused(_)) {
            self.cluster.answered(call.member, self.now);
        }
        let tag = call.tag;
        self.step(Event::StoreAnswered { tag, answer });
    }

    pub fn end_fetch(&mut self, position: usize, answer: Answer<FetchResult>) {
        let call = self.fetches.remove(position);
        if matches!(answer, Answer::Results(_) | Answer::Refused(_)) {
            self.cluster.answered(call.member, self.now);
        }
        let tag = call.tag;
        self.step(Event::FetchAnswered { tag, answer });
    }

    /// What a good member answers.
    pub fn fetched(&self, revision: Revision) -> FetchResult {
        match self.payloads.get(&revision) {
            Some((key, payload)) => FetchResult::Found {
                key: key.clone(),
                payload: payload.clone(),
            },
            None => FetchResult::Missing,
        }
    }

    /// The link to a member breaks, with all that is under way on it.
    pub fn lose(&mut self, id: MemberId) {
        self.cluster.disconnected(id, self.now);
        self.releases.member_down(id);
        while let Some(at) = self.stores.iter().position(|call| call.member == id) {
            self.end_store(at, Answer::LinkLost);
        }
        while let Some(at) = self.fetches.iter().position(|call| call.member == id) {
            self.end_fetch(at, Answer::LinkLost);
        }
    }

    /// Applies a proposal, settles it, and tells the coordinator.
    pub fn apply(&mut self, position: usize) -> Applied {
        let mut proposal = self.proposals.remove(position);
        proposal.command.set_time(self.now.as_nanos() / 1_000_000);
        let applied = self.applied(&proposal.command);
        self.releases.released(applied.released());
        self.settle(proposal.settlement);
        let (tag, answer) = (proposal.tag, applied.clone());
        self.step(Event::Applied {
            tag,
            applied: answer,
        });
        applied
    }

    fn applied(&mut self, command: &Command) -> Applied {
        let index = self.state.applied_index() + 1;
        self.state.apply(index, TERM, command)
    }

    pub fn settle(&mut self, settlement: Settlement) {
        for (revision, member) in &settlement.given_up {
            self.note(format!("  release {} on m{}", short(*revision), member.0));
        }
        self.releases.settle(settlement.clone());
        self.settled.push(settlement);
    }

    pub fn note(&mut self, line: String) {
        writeln!(self.log, "{line}").expect("a string takes everything");
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Store {
                tag,
                member,
                records,
                charge,
            } => {
                let names = records
                    .iter()
                    .map(|r| format!("{}@{}", r.key, short(r.revision)))
                    .collect::<Vec<_>>();
                self.note(format!(
                    "store {} -> m{}: {} ({} bytes)",
                    show_tag(tag),
                    member.0,
                    names.join(" "),
                    charge.bytes
                ));
                for record in records.iter() {
                    let value = (record.key.clone(), record.payload.clone());
                    self.payloads.insert(record.revision, value);
                }
                self.stores.push(StoreCall {
                    tag,
                    member,
                    records,
                    charge,
                });
            }
            Effect::Fetch {
                tag,
                member,
                revisions,
            } => {
                let names: Vec<String> = revisions.iter().map(|r| short(*r)).collect();
                self.note(format!(
                    "fetch {} -> m{}: {}",
                    show_tag(tag),
                    member.0,
                    names.join(" ")
                ));
                self.fetches.push(FetchCall {
                    tag,
                    member,
                    revisions,
                });
            }
            Effect::Propose {
                tag,
                command,
                settlement,
                reads,
            } => {
                if reads {
                    self.hold = Some(self.releases.hold());
                }
                self.note(format!(
                    "propose {}: {}",
                    show_tag(tag),
                    show_command(&command)
                ));
                self.proposals.push(Proposal {
                    tag,
                    command,
                    settlement,
                });
            }
            Effect::Settle(settlement) => {
                self.note(format!("settle {}", settlement.closed.count));
                self.settle(settlement);
            }
            Effect::ConfirmRead => self.note("confirm read".to_owned()),
            Effect::LookUp { tag, keys } => {
                let found: Vec<Option<Found>> = keys
                    .iter()
                    .map(|key| {
                        let entry = self.entry(key)?;
                        Some(Found {
                            entry,
                            cached: None,
                        })
                    })
                    .collect();
                for (key, found) in keys.iter().zip(&found) {
                    let found = found.as_ref().map(|f| short(f.entry.revision));
                    self.note(format!(
                        "look up {key}: {}",
                        found.as_deref().unwrap_or("absent")
                    ));
                }
                self.step(Event::LookedUp { tag, found });
            }
            Effect::Reserve { bytes, fetches } => {
                let members = fetches
                    .iter()
                    .map(|(m, bytes)| format!(" m{}:{bytes}", m.0));
                let members: String = members.collect();
                self.note(format!("reserve {bytes} bytes{members}"));
                self.rooms += 1;
                if self.has_room {
                    self.step(Event::Reserved { granted: true });
                }
            }
            Effect::Ask(question) => {
                let told = match question {
                    Question::Count => Told::Count(self.state.message_count()),
                    Question::Expiry(key) => {
                        let now_ms = self.now.as_nanos() / 1_000_000;
                        Told::Expiry(self.state.shards().expiry_ms(&key).map(|expires_ms| {
                            expires_ms.map(|expires_ms| expires_ms.saturating_sub(now_ms))
                        }))
                    }
                    Question::List(request) => Told::Keys(list(self.state.shards(), &request)),
                };
                self.note(match &told {
                    Told::Count(count) => format!("count: {count}"),
                    told => format!("told: {told:?}"),
                });
                self.step(Event::Told(told));
            }
            Effect::Cache { revision, payload } => {
                self.note(format!(
                    "cache {} ({} bytes)",
                    short(revision),
                    payload.len()
                ));
            }
            Effect::CorruptCopy {
                member,
                revision,
                key,
                flaw,
            } => self.note(format!(
                "corrupt copy of {key}@{} on m{}: {flaw:?}",
                short(revision),
                member.0
            )),
            Effect::Deposed { member, highest } => {
                self.note(format!("deposed by m{}: fence {highest}", member.0));
            }
            Effect::Done(replies) => {
                if let Some(hold) = self.hold.take() {
                    self.releases.end_hold(hold);
                }
                for reply in &replies {
                    self.note(format!("reply {}", show_reply(reply)));
                }
                self.note("done".to_owned());
                self.done.push(replies);
            }
        }
    }
}
