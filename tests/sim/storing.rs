//! The way to members and back: links, calls, registration, and what members do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tolerex::clock::{Clock, Instant};
use tolerex::disk::mem::Loss;
use tolerex::ids::{CallId, MemberId};
use tolerex::rpc::PeerInfo;
use tolerex::rpc::link::{CallError, Completion};
use tolerex::rpc::message::{
    HeartbeatRequest, Refusal, RegisterRequest, Request, Response, Role, Seen,
};
use tolerex::rpc::server::{CallInfo, Responder, Service};

use crate::events::{Ends, Event, Out};
use crate::leader::now_of;
use crate::member::Running;
use crate::net::{DataLink, MS};
use crate::world::{PendingCall, World};

/// Between two tries to register, and between two looks whether it is needed.
const REGISTER: Duration = Duration::from_millis(400);

/// A call whose number and size nobody looks at.
const CALL: CallInfo = CallInfo {
    id: CallId(0),
    term: 0,
    bytes: 0,
};

/// A member rests after so long without a request.
const REST: Duration = Duration::from_millis(100);

impl World {
    /// The process of a member in this start, with its clock set.
    pub fn member(&mut self, member: usize, epoch: u32) -> Option<&mut Running> {
        let now = self.now;
        let node = &mut self.members[member];
        let running = node.running.as_mut().filter(|_| node.epoch == epoch)?;
        running.clock.set(now);
        Some(running)
    }

    /// Starts the process, which must hold all that it has acknowledged.
    pub fn start_member(&mut self, member: usize) {
        let node = &mut self.members[member];
        if node.running.is_some() {
            return;
        }
        let before = node.id;
        let opened = node.open(self.now, &self.plan);
        let epoch = node.epoch;
        self.trace.note(
            self.now,
            format_args!("M{member} start {epoch} {}", opened.is_ok()),
        );
        if let Err(error) = opened {
            if self.has_faults() {
                return self.after(300 * MS, Event::StartMember { member });
            }
            return self.fail(format!("A6: member {member} does not start: {error:#}"));
        }
        if let (Some(id), Some(running)) = (node.id, &node.running) {
            // Twice: a fault may be armed for the first read.
            let holds = |revision| {
                let mut reads = (0..2).map(|_| running.reader.fetch(revision));
                reads.any(|read| matches!(read, Ok(Some(_))))
            };
            self.oracle.lock().restarted(id, holds);
            if before.is_some_and(|before| before != id) {
                self.fail(format!("A6: member {member} has lost its identity"));
            }
        }
        for leader in 0..self.plan.leaders {
            let event = Event::Beat {
                member,
                epoch,
                leader,
            };
            self.about(Duration::from_millis(20), event);
        }
    }

    /// A power failure, or the end of the process alone.
    pub fn crash_member(&mut self, member: usize, is_power: bool) {
        self.trace
            .note(self.now, format_args!("M{member} crash power={is_power}"));
        let node = &mut self.members[member];
        node.epoch += 1;
        node.running = None;
        node.fs.heal();
        if is_power {
            node.fs.crash(Loss::Random(self.rng.u64(..)));
        }
        for link in 0..self.net.links.len() {
            let one = &self.net.links[link];
            if one.is_open && one.member == member {
                self.about(Duration::from_millis(20), Event::Break { link });
            }
        }
    }

    fn member_failed(&mut self, member: usize, error: &str) {
        self.trace
            .note(self.now, format_args!("M{member} failed: {error}"));
        if !self.has_faults() {
            self.fail(format!("member {member} failed without a fault: {error}"));
        }
        self.saw("member failed");
        let is_power = self.rng.bool() || std::mem::take(&mut self.members[member].ends_in_power);
        self.crash_member(member, is_power);
        self.about(Duration::from_millis(500), Event::StartMember { member });
    }

    pub(crate) fn connect(&mut self, leader: usize, epoch: u32, id: MemberId) {
        let member = self.member_of(id);
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        if !running.links.wants(id) {
            return;
        }
        let number = running.links.next_number();
        let reached = member.filter(|member| {
            let node = self.member_node(*member);
            let is_cut = self.net.blocked_until(leader, node) > self.now
                || self.net.blocked_until(node, leader) > self.now
                || self.members[*member].paused_until > self.now;
            self.members[*member].running.is_some() && !is_cut
        });
        let Some(member) = reached else {
            let event = Event::Connect {
                leader,
                epoch,
                member: id,
            };
            return self.about(Duration::from_millis(300), event);
        };
        let ends = |link: &&mut DataLink| link.leader == leader && link.member == member;
        for older in self.net.links.iter_mut().filter(ends) {
            older.drains_until = 0;
        }
        let link = self.net.links.len();
        self.net.links.push(DataLink {
            leader,
            leader_epoch: epoch,
            member,
            id,
            member_epoch: self.members[member].epoch,
            number,
            is_open: true,
            drains_until: u64::MAX,
        });
        self.trace
            .note(self.now, format_args!("L{leader} link {number} M{member}"));
        if let Some(running) = self.leader(leader, epoch) {
            running.links.opened(id, link, number);
            running.shared.view.member_up(id, now_of(running));
        }
        self.advance(leader);
    }

    pub(crate) fn break_link(&mut self, link: usize) {
        let now = self.now;
        let drains = self.rng.u64(..50 * MS);
        let one = &mut self.net.links[link];
        if !one.is_open {
            return;
        }
        one.is_open = false;
        one.drains_until = now + drains;
        self.saw("net link breaks");
        let one = &self.net.links[link];
        let (leader, epoch, member, id) = (one.leader, one.leader_epoch, one.member, one.id);
        self.trace
            .note(now, format_args!("L{leader} breaks M{member}"));
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        running.links.closed(id, link);
        let kept = std::mem::take(&mut self.calls);
        let lost: BTreeMap<_, _>;
        (lost, self.calls) = kept.into_iter().partition(|(_, call)| call.link == link);
        for call in lost.into_values() {
            (call.completion)(Err(CallError::LinkLost("broken".into())));
        }
        if let Some(running) = self.leader(leader, epoch) {
            running.shared.view.member_down(id, now_of(running));
        }
        let event = Event::Connect {
            leader,
            epoch,
            member: id,
        };
        self.about(Duration::from_millis(40), event);
        self.advance(leader);
    }

    pub(crate) fn call(
        &mut self,
        link: usize,
        call: u64,
        request: Arc<Request>,
        deadline: Instant,
        completion: Completion,
    ) {
        let one = &self.net.links[link];
        let (leader, epoch, member) = (one.leader, one.leader_epoch, one.member);
        if !one.is_open {
            completion(Err(CallError::LinkLost("broken".into())));
            return self.advance(leader);
        }
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        let due = running.clock.world(deadline);
        self.calls.insert(call, PendingCall { link, completion });
        self.schedule(
            due,
            Event::CallDue {
                leader,
                epoch,
                call,
            },
        );
        let to = self.member_node(member);
        let at = self.net.arrival(leader, to, self.now, true);
        let event = Event::Request {
            link,
            call,
            request,
        };
        self.schedule(at, event);
    }

    pub(crate) fn call_due(&mut self, leader: usize, epoch: u32, call: u64) {
        if self.leader(leader, epoch).is_none() {
            return;
        }
        if let Some(pending) = self.calls.remove(&call) {
            self.trace
                .note(self.now, format_args!("L{leader} call {call} due"));
            (pending.completion)(Err(CallError::TimedOut));
            self.advance(leader);
        }
    }

    pub(crate) fn request(&mut self, link: usize, call: u64, request: Arc<Request>) {
        let one = &self.net.links[link];
        let (leader, member, epoch) = (one.leader, one.member, one.member_epoch);
        let (number, drains_until) = (one.number, one.drains_until);
        let node = self.member_node(member);
        if !one.is_open && self.now > drains_until {
            return;
        }
        let blocked = self.net.blocked_until(leader, node);
        if blocked > self.now {
            let event = Event::Request {
                link,
                call,
                request,
            };
            return self.schedule(blocked, event);
        }
        let Some(id) = self.members[member].id else {
            return;
        };
        let (oracle, outbox) = (self.oracle.clone(), self.outbox.clone());
        let is_slow = self.members[member].slow_until > self.now;
        let loses_disks = self.plan.loses_disks;
        let kind = request.kind();
        let Some(running) = self.member(member, epoch) else {
            return;
        };
        oracle.lock().delivered(id, &request);
        let asked = request.clone();
        let responder = Responder::calling(CallId(call), move |response| {
            oracle.lock().executed(id, &asked, &response);
            outbox.lock().push(Out::Answer {
                link,
                call,
                response,
            });
        });
        let from = PeerInfo {
            name: format!("leader-{leader}"),
            link: number,
            role: Role::Leader,
            ..running.info.clone()
        };
        let info = CallInfo {
            id: CallId(call),
            term: 0,
            bytes: 100,
        };
        let is_fetch = match &*request {
            Request::Fetch(_) => true,
            // Elsewhere nobody waits for the answer.
            Request::Holds(_) => loses_disks,
            _ => false,
        };
        running
            .handler
            .handle(&from, info, (*request).clone(), responder);
        let due = match is_fetch {
            true => &mut running.read_is_due,
            false => &mut running.append_is_due,
        };
        let is_new = !std::mem::replace(due, true);
        self.trace.note(
            self.now,
            format_args!("M{member} takes {kind} {call} of L{leader}"),
        );
        if is_new {
            let disk = Duration::from_micros(if is_slow { 700_000 } else { 500 });
            let event = match is_fetch {
                true => Event::Read { member, epoch },
                false => Event::Append { member, epoch },
            };
            self.about(disk, event);
        }
    }

    pub(crate) fn append(&mut self, member: usize, epoch: u32) {
        let Some(running) = self.member(member, epoch) else {
            return;
        };
        running.append_is_due = false;
        let stepped = running.appender.step();
        self.trace.note(
            self.now,
            format_args!("M{member} appends {}", stepped.is_ok()),
        );
        match stepped {
            Ok(_) => self.about(REST, Event::Rest { member, epoch }),
            Err(error) => self.member_failed(member, &error.to_string()),
        }
    }

    pub(crate) fn rest(&mut self, member: usize, epoch: u32) {
        let Some(running) = self.member(member, epoch) else {
            return;
        };
        if running.append_is_due {
            return;
        }
        if let Err(error) = running.appender.idle() {
            self.member_failed(member, &error.to_string());
        }
    }

    pub(crate) fn read(&mut self, member: usize, epoch: u32) {
        let Some(running) = self.member(member, epoch) else {
            return;
        };
        running.read_is_due = false;
        while running.fetches.step() {}
        self.trace.note(self.now, format_args!("M{member} reads"));
    }

    pub(crate) fn send_answer(&mut self, link: usize, call: u64, response: Response) {
        let one = &self.net.links[link];
        let (leader, member) = (one.leader, one.member);
        if !one.is_open || self.members[member].epoch != one.member_epoch {
            return;
        }
        let from = self.member_node(member);
        let at = self.net.arrival(from, leader, self.now, true);
        let event = Event::Answer {
            link,
            call,
            response,
        };
        self.schedule(at, event);
    }

    pub(crate) fn answer(&mut self, link: usize, call: u64, response: Response) {
        let one = &self.net.links[link];
        let (leader, epoch, member) = (one.leader, one.leader_epoch, one.member);
        if !one.is_open || self.leader(leader, epoch).is_none() {
            return;
        }
        let node = self.member_node(member);
        let blocked = self.net.blocked_until(node, leader);
        if blocked > self.now {
            let event = Event::Answer {
                link,
                call,
                response,
            };
            return self.schedule(blocked, event);
        }
        if let Some(pending) = self.calls.remove(&call) {
            self.trace.note(
                self.now,
                format_args!("L{leader} answer {call} of M{member}"),
            );
            (pending.completion)(Ok(response));
            self.advance(leader);
        }
    }

    pub(crate) fn beat(&mut self, member: usize, epoch: u32, leader: usize) {
        let leader_epoch = self.leaders[leader].epoch;
        if self.member(member, epoch).is_none() {
            return;
        }
        let event = Event::Beat {
            member,
            epoch,
            leader,
        };
        self.about(REGISTER, event);
        let is_running = self.leaders[leader].running.is_some();
        let is_registered = self.members[member].registered[leader] == leader_epoch;
        let is_known = is_registered && !self.has_lost_name(member);
        if !is_running || (is_known && !self.plan.has_older_copy) {
            return;
        }
        let ends = Ends {
            member,
            member_epoch: epoch,
            leader,
            leader_epoch,
        };
        let node = self.member_node(member);
        if self.net.blocked_until(node, leader) <= self.now {
            let at = self.net.arrival(node, leader, self.now, true);
            self.schedule(
                at,
                match is_known {
                    true => Event::Heartbeat { ends },
                    false => Event::Register { ends },
                },
            );
        }
    }

    /// A member tells a leader what it has seen, and is told what is committed.
    pub(crate) fn heartbeat(&mut self, ends: Ends) {
        let outbox = self.outbox.clone();
        let member = &self.members[ends.member];
        let process = member.running.as_ref();
        let Some(process) = process.filter(|_| member.epoch == ends.member_epoch) else {
            return;
        };
        let counters = process.reader.counters();
        let (info, request) = (
            process.info.clone(),
            HeartbeatRequest {
                records: counters.records,
                bytes: counters.bytes,
                free: 1 << 40,
                seen: process.seen(),
            },
        );
        let Some(running) = self.leader(ends.leader, ends.leader_epoch) else {
            return;
        };
        let responder = Responder::calling(CallId(0), move |response| {
            outbox.lock().push(Out::Registered { ends, response });
        });
        let request = Request::Heartbeat(request);
        running.service.handle(&info, CALL, request, responder);
        let (leader, member) = (ends.leader, ends.member);
        self.note(format_args!("L{leader} heartbeat M{member}"));
        self.advance(leader);
    }

    pub(crate) fn register(&mut self, ends: Ends) {
        let outbox = self.outbox.clone();
        let has_older_copy = self.plan.has_older_copy;
        let member = &self.members[ends.member];
        let Some(process) = member.running.as_ref() else {
            return;
        };
        let (info, records) = (process.info.clone(), process.reader.counters().records);
        let incomplete = self.plan.loses_disks && member.has_losses();
        let seen = match has_older_copy {
            true => process.seen(),
            false => Seen::default(),
        };
        if member.epoch != ends.member_epoch {
            return;
        }
        let Some(running) = self.leader(ends.leader, ends.leader_epoch) else {
            return;
        };
        let responder = Responder::calling(CallId(0), move |response| {
            outbox.lock().push(Out::Registered { ends, response });
        });
        let request = Request::Register(RegisterRequest {
            address: format!("{}:1", info.name),
            zone: String::new(),
            seen,
            replace: false,
            incomplete,
            records: Some(records),
        });
        running.service.handle(&info, CALL, request, responder);
        let (leader, member) = (ends.leader, ends.member);
        self.trace
            .note(self.now, format_args!("L{leader} register M{member}"));
        self.advance(leader);
    }

    pub(crate) fn registered(&mut self, ends: Ends, response: Response) {
        if self.member(ends.member, ends.member_epoch).is_none() {
            return;
        }
        match response {
            Response::Register => {
                self.members[ends.member].registered[ends.leader] = ends.leader_epoch
            }
            Response::Heartbeat(answer) => {
                if let Some(running) = self.member(ends.member, ends.member_epoch) {
                    running.witness.told(answer.committed, running.clock.now());
                }
            }
            Response::Refused(
                refusal @ (Refusal::StaleIncarnation { .. } | Refusal::Retired(_)),
            ) => {
                let member = ends.member;
                self.fail(format!("member {member} is refused: {refusal}"));
            }
            Response::Refused(Refusal::NameHeld { .. }) => self.saw("name held"),
            _ => {}
        }
    }
}
