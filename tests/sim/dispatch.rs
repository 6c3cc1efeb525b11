//! Who an event is for, and what becomes of what the real code wants of others.

use std::time::Duration;

use crate::events::{Event, Out};
use crate::world::World;

impl World {
    /// Until when the process stands still that the event is for.
    pub(crate) fn paused_until(&self, event: &Event) -> Option<u64> {
        let leader = |leader: usize| self.leaders[leader].paused_until;
        // What came first to a process that stands still need not be looked at first.
        let raft = |leader: usize| {
            let leader = &self.leaders[leader];
            let is_paused = leader.paused_until > self.now;
            leader.paused_until + if is_paused { leader.raft_lag } else { 0 }
        };
        let member = |member: usize| self.members[member].paused_until;
        let until = match event {
            Event::Tick { leader: at, .. } | Event::Raft { to: at, .. } => raft(*at),
            Event::Journal { leader: at, .. }
            | Event::Desk { leader: at, .. }
            | Event::House { leader: at, .. }
            | Event::Resume { leader: at, .. }
            | Event::Chunk { to: at, .. }
            | Event::Connect { leader: at, .. }
            | Event::CallDue { leader: at, .. }
            | Event::Submit { leader: at, .. } => leader(*at),
            Event::ChunkDone { from, .. } => leader(*from),
            Event::Break { link } | Event::Answer { link, .. } => {
                leader(self.net.links[*link].leader)
            }
            Event::Register { ends } | Event::Heartbeat { ends } => leader(ends.leader),
            Event::Request { link, .. } => member(self.net.links[*link].member),
            Event::Registered { ends, .. } => member(ends.member),
            Event::Append { member: at, .. }
            | Event::Read { member: at, .. }
            | Event::Rest { member: at, .. }
            | Event::Beat { member: at, .. } => member(*at),
            Event::Next { .. } | Event::Reply { .. } | Event::StartLeader { .. } => 0,
            Event::StartMember { .. } | Event::Fault | Event::Disk | Event::Calm => 0,
            Event::KeepCopy | Event::StopForCopy | Event::StartOnCopy | Event::Look => 0,
            Event::Cut { .. } | Event::Crash { .. } | Event::Rejoin { .. } => 0,
        };
        (until > self.now).then_some(until)
    }

    pub(crate) fn perform(&mut self, event: Event) {
        match event {
            Event::Tick { leader, epoch } => self.tick(leader, epoch),
            Event::Journal { leader, epoch } => self.journal(leader, epoch),
            Event::Desk { leader, epoch } => self.desk(leader, epoch),
            Event::House {
                leader,
                epoch,
                is_periodic,
            } => self.house(leader, epoch, is_periodic),
            Event::Resume {
                leader,
                epoch,
                ticket,
            } => self.resume(leader, epoch, ticket),
            Event::Raft {
                from,
                sender,
                to,
                bytes,
            } => self.raft(from, sender, to, bytes),
            Event::Chunk { from, to, chunk } => self.chunk(from, to, chunk),
            Event::ChunkDone {
                from,
                to,
                transfer,
                is_taken,
            } => self.chunk_done(from, to, transfer, is_taken),
            Event::Connect {
                leader,
                epoch,
                member,
            } => self.connect(leader, epoch, member),
            Event::Break { link } => self.break_link(link),
            Event::Request {
                link,
                call,
                request,
            } => self.request(link, call, request),
            Event::Answer {
                link,
                call,
                response,
            } => self.answer(link, call, response),
            Event::CallDue {
                leader,
                epoch,
                call,
            } => self.call_due(leader, epoch, call),
            Event::Append { member, epoch } => self.append(member, epoch),
            Event::Read { member, epoch } => self.read(member, epoch),
            Event::Rest { member, epoch } => self.rest(member, epoch),
            Event::Beat {
                member,
                epoch,
                leader,
            } => self.beat(member, epoch, leader),
            Event::Register { ends } => self.register(ends),
            Event::Heartbeat { ends } => self.heartbeat(ends),
            Event::Registered { ends, response } => self.registered(ends, response),
            Event::Next { client } => self.next(client),
            Event::Submit {
                client,
                request,
                leader,
                batch,
            } => self.submit(client, request, leader, batch),
            Event::Reply {
                client,
                request,
                replies,
            } => self.reply(client, request, replies),
            Event::StartLeader { leader } => self.start_leader(leader),
            Event::StartMember { member } => self.start_member(member),
            Event::Fault => self.fault(),
            Event::Disk => self.lose_disk(),
            Event::KeepCopy => self.keep_copy(),
            Event::StopForCopy => self.stop_for_copy(),
            Event::StartOnCopy => self.start_on_copy(),
            Event::Cut { from, to, until } => self.cut_one_way(from, to, until),
            Event::Crash {
                node,
                is_power,
                down,
            } => self.crash_one(node, is_power, down),
            Event::Rejoin { leader } => self.rejoin(leader),
            Event::Calm => self.calm(),
            Event::Look => self.look(),
        }
    }

    /// Makes events of what the real code wants of others.
    pub(crate) fn drain_outbox(&mut self) {
        loop {
            let outs = std::mem::take(&mut *self.outbox.lock());
            if outs.is_empty() {
                return;
            }
            for out in outs {
                self.carry_out(out);
            }
        }
    }

    fn carry_out(&mut self, out: Out) {
        match out {
            Out::Dial {
                leader,
                epoch,
                member,
            } => {
                let event = Event::Connect {
                    leader,
                    epoch,
                    member,
                };
                self.about(Duration::from_millis(2), event);
            }
            Out::Close { link } => self.after(0, Event::Break { link }),
            Out::Call {
                link,
                call,
                request,
                deadline,
                completion,
            } => self.call(link, call, request, deadline, completion),
            Out::Answer {
                link,
                call,
                response,
            } => self.send_answer(link, call, response),
            Out::Woken {
                leader,
                epoch,
                ticket,
            } => {
                let event = Event::Resume {
                    leader,
                    epoch,
                    ticket,
                };
                self.about(Duration::from_micros(20), event);
            }
            Out::Registered { ends, response } => {
                let (from, to) = (ends.leader, self.member_node(ends.member));
                let at = self.net.arrival(from, to, self.now, true);
                self.schedule(at, Event::Registered { ends, response });
            }
            Out::ChunkTaken {
                from,
                to,
                transfer,
                is_taken,
            } => {
                let at = self.net.arrival(to, from, self.now, true);
                let event = Event::ChunkDone {
                    from,
                    to,
                    transfer,
                    is_taken,
                };
                self.schedule(at, event);
            }
        }
    }
}
