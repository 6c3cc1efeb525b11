//! What leaders do when an event is theirs: the raft, journal, snapshot and house threads, and the
//! workers, by hand.

use std::time::Duration;

use tolerex::clock::Instant;
use tolerex::disk::mem::Loss;
use tolerex::group::TICK_INTERVAL;
use tolerex::group::node::Event as NodeEvent;
use tolerex::group::snapshots::Task;
use tolerex::metadata::command::{Applied, Change, Command};
use tolerex::net::{Handler, Parked, Progress, Waker};
use tolerex::protocol::reply::Reply;
use tolerex::protocol::request::Batch;
use tolerex::threads::StopSignal;

use crate::events::{Event, Out};
use crate::leader::{Running, Waiting, now_of};
use crate::net::MS;
use crate::world::World;

/// Between two rounds of housekeeping when the bell rang, and when it did not.
const ROUND: Duration = Duration::from_millis(20);
const IDLE_ROUND: Duration = Duration::from_millis(500);

impl World {
    /// The process of a leader in this start, with its clock set.
    pub fn leader(&mut self, leader: usize, epoch: u32) -> Option<&mut Running> {
        let now = self.now;
        let node = &mut self.leaders[leader];
        let running = node.running.as_mut().filter(|_| node.epoch == epoch)?;
        running.clock.set(now);
        Some(running)
    }

    /// Starts the process.
    pub fn start_leader(&mut self, leader: usize) {
        if self.leaders[leader].running.is_some() || self.is_kept_out(leader) {
            return;
        }
        let shared = (
            self.outbox.clone(),
            self.oracle.clone(),
            self.next_call.clone(),
        );
        let node = &mut self.leaders[leader];
        let opened = node.open(leader, self.now, &self.plan, &self.founders, shared);
        let epoch = node.epoch;
        self.trace.note(
            self.now,
            format_args!("L{leader} start {epoch} {}", opened.is_ok()),
        );
        if let Err(error) = opened {
            // Without space, or with a fault armed on it.
            if self.has_faults() {
                return self.after(300 * MS, Event::StartLeader { leader });
            }
            return self.fail(format!("A6: leader {leader} does not start: {error}"));
        }
        self.note_start(leader);
        self.about(TICK_INTERVAL, Event::Tick { leader, epoch });
        let is_periodic = true;
        let house = Event::House {
            leader,
            epoch,
            is_periodic,
        };
        self.about(ROUND, house);
        self.advance(leader);
    }

    /// Ends the process, as a kill does.
    pub fn end_leader(&mut self, leader: usize) {
        let node = &mut self.leaders[leader];
        node.epoch += 1;
        let Some(running) = node.running.take() else {
            return;
        };
        running.links.clear();
        let links = &mut self.net.links;
        for link in links.iter_mut().filter(|link| link.leader == leader) {
            if link.is_open {
                link.is_open = false;
                link.drains_until = self.now + self.rng.u64(..20 * MS);
            }
        }
        // Nobody is told.
        self.calls
            .retain(|_, call| links[call.link].leader != leader);
        self.transfers.retain(|(from, _), _| *from != leader);
        let waiting: Vec<_> = running
            .parked
            .values()
            .map(|one| (one.client, one.request))
            .collect();
        drop(running);
        for (client, request) in waiting {
            self.disconnect(client, request);
        }
    }

    /// A power failure, or the end of the process alone.
    pub fn crash_leader(&mut self, leader: usize, is_power: bool) {
        self.trace
            .note(self.now, format_args!("L{leader} crash power={is_power}"));
        self.end_leader(leader);
        let fs = &self.leaders[leader].fs;
        fs.heal();
        if is_power {
            fs.crash(Loss::Random(self.rng.u64(..)));
        }
    }

    /// Takes all that waits for the node, and does what it says.
    pub fn advance(&mut self, leader: usize) {
        let epoch = self.leaders[leader].epoch;
        loop {
            let Some(running) = self.leader(leader, epoch) else {
                return;
            };
            let now = now_of(running);
            let mut result = Ok(());
            while let Ok(event) = running.parts.inbox.try_recv() {
                result = result.and_then(|()| running.parts.node.take(event, now));
            }
            match result.and_then(|()| running.parts.node.advance(now)) {
                Ok(effects) => self.carry_out_effects(leader, effects),
                Err(error) => return self.leader_failed(leader, &error.to_string()),
            }
            let Some(running) = self.leader(leader, epoch) else {
                return;
            };
            if running.parts.inbox.is_empty() {
                break;
            }
        }
        self.look_after(leader, epoch);
        self.end_if_stopped(leader);
    }

    /// The process ends by itself.
    fn leader_failed(&mut self, leader: usize, error: &str) {
        self.trace
            .note(self.now, format_args!("L{leader} failed: {error}"));
        if error.contains("is an older copy") {
            return self.keep_out(leader);
        }
        if !self.has_faults() {
            self.fail(format!("leader {leader} failed without a fault: {error}"));
        }
        self.saw("leader failed");
        let is_power = self.rng.bool() || std::mem::take(&mut self.leaders[leader].ends_in_power);
        self.crash_leader(leader, is_power);
        self.about(Duration::from_millis(500), Event::StartLeader { leader });
    }

    fn carry_out_effects(&mut self, leader: usize, effects: tolerex::group::node::Effects) {
        let epoch = self.leaders[leader].epoch;
        if let Some(running) = self.leader(leader, epoch) {
            running.writes.extend(effects.writes);
            if let Some(request) = effects.snapshot {
                let queue = &running.parts.task_queue.0;
                if queue.try_send(Task::Write(request)).is_err() {
                    running
                        .parts
                        .node
                        .take(NodeEvent::SnapshotRefused, now_of(running))
                        .ok();
                }
            }
        }
        self.send_messages(leader, effects.messages);
        self.send_snapshots(leader, effects.transfers);
    }

    /// Schedules what the other threads of the process have to do.
    pub(crate) fn look_after(&mut self, leader: usize, epoch: u32) {
        let slow = self.leaders[leader].slow_until > self.now;
        let (has_gate, oracle) = (self.plan.has_older_copy, self.oracle.clone());
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        // As soon as its gate is open; see `Watched`.
        if let Some(term) = running.shared.serving_term().filter(|_| has_gate) {
            let mut oracle = oracle.lock();
            oracle.serves(leader, epoch, term);
        }
        let has_rung = running.shared.view.wait_for_bell(Duration::ZERO);
        let house = has_rung && !std::mem::replace(&mut running.house_is_due, has_rung);
        let has_writes = !running.writes.is_empty();
        let journal = has_writes && !std::mem::replace(&mut running.journal_is_busy, has_writes);
        let has_tasks = !running.parts.task_queue.1.is_empty();
        let desk = has_tasks && !std::mem::replace(&mut running.desk_is_busy, has_tasks);
        let disk = Duration::from_micros(if slow { 900_000 } else { 1_000 });
        if house {
            let is_periodic = false;
            let event = Event::House {
                leader,
                epoch,
                is_periodic,
            };
            self.about(ROUND, event);
        }
        if journal {
            self.about(disk, Event::Journal { leader, epoch });
        }
        if desk {
            self.about(disk * 4, Event::Desk { leader, epoch });
        }
    }

    pub(crate) fn tick(&mut self, leader: usize, epoch: u32) {
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        let now = now_of(running);
        if running.parts.node.needs_ticks() {
            running.parts.node.tick(now);
        }
        let next = running.clock.world(now + TICK_INTERVAL);
        let status = running.parts.handle.status();
        self.trace.note(
            self.now,
            format_args!(
                "L{leader} tick {:?} {} {}",
                status.role, status.term, status.applied
            ),
        );
        self.schedule(next, Event::Tick { leader, epoch });
        self.advance(leader);
    }

    pub(crate) fn journal(&mut self, leader: usize, epoch: u32) {
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        let writes = std::mem::take(&mut running.writes);
        let count = writes.len();
        running.journal_is_busy = false;
        match running.parts.write(&writes) {
            Ok(Some(event)) => {
                let now = now_of(running);
                let taken = running.parts.node.take(event, now);
                self.trace
                    .note(self.now, format_args!("L{leader} journal {count}"));
                if let Err(error) = taken {
                    return self.leader_failed(leader, &error.to_string());
                }
                self.advance(leader);
                self.may_crash_voter(leader);
            }
            Ok(None) => {
                running.writes = writes;
                running.journal_is_busy = true;
                self.saw("journal full");
                self.trace
                    .note(self.now, format_args!("L{leader} journal full"));
                self.after(100 * MS, Event::Journal { leader, epoch });
            }
            Err(error) => self.leader_failed(leader, &error.to_string()),
        }
    }

    pub(crate) fn desk(&mut self, leader: usize, epoch: u32) {
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        running.desk_is_busy = false;
        let Ok(task) = running.parts.task_queue.1.try_recv() else {
            return;
        };
        let now = now_of(running);
        let event = running.parts.desk.perform(task, &StopSignal::default());
        let taken = event.map_or(Ok(()), |event| running.parts.node.take(event, now));
        self.trace.note(self.now, format_args!("L{leader} desk"));
        if let Err(error) = taken {
            return self.leader_failed(leader, &error.to_string());
        }
        self.advance(leader);
    }

    pub(crate) fn house(&mut self, leader: usize, epoch: u32, is_periodic: bool) {
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        running.house.round();
        running.house_is_due = false;
        self.set_tolerance(leader, epoch);
        if is_periodic {
            let event = Event::House {
                leader,
                epoch,
                is_periodic,
            };
            self.about(IDLE_ROUND, event);
        }
        self.trace.note(self.now, format_args!("L{leader} house"));
        self.advance(leader);
    }

    fn set_tolerance(&mut self, leader: usize, epoch: u32) {
        let tolerance = self.plan.tolerance;
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        let term = running.shared.serving_term();
        let is_set = running.shared.view.metadata.tolerance().is_some();
        if let (Some(term), false) = (term, is_set) {
            let change = Change::SetTolerance(tolerance);
            let command = Command { term, change };
            let group = &running.shared.group;
            group.propose(
                term,
                command.encode(),
                |_: tolerex::group::ProposalOutcome<Applied>| (),
            );
        }
    }

    /// A client's batch has arrived.
    pub(crate) fn submit(&mut self, client: usize, request: u64, leader: usize, batch: Batch) {
        let epoch = self.leaders[leader].epoch;
        let node = self.client_node(client);
        let is_blocked = self.net.blocked_until(node, leader) > self.now;
        self.trace.note(
            self.now,
            format_args!("L{leader} takes C{client} #{request}"),
        );
        if is_blocked {
            // The client gives up.
            return;
        }
        let Some(running) = self.leader(leader, epoch) else {
            return self.disconnect(client, request);
        };
        // As a worker does.
        let (progress, reads) = match batch {
            Batch::Reads(_) if running.handler.confirms_reads() => {
                let since = now_of(running);
                (running.handler.confirm(), Some((batch, since)))
            }
            batch => (running.handler.begin(batch, 1), None),
        };
        self.progress(leader, (client, request), progress, reads);
        self.advance(leader);
    }

    pub(crate) fn resume(&mut self, leader: usize, epoch: u32, ticket: u64) {
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        let Some(waiting) = running.parked.remove(&ticket) else {
            return;
        };
        let Waiting {
            client,
            request,
            batch,
            reads,
        } = waiting;
        let progress = batch.resume();
        self.trace.note(
            self.now,
            format_args!("L{leader} goes on C{client} #{request}"),
        );
        self.progress(leader, (client, request), progress, reads);
        self.advance(leader);
    }

    /// What came of a batch, or of the confirmation for these reads.
    fn progress(
        &mut self,
        leader: usize,
        (client, request): (usize, u64),
        progress: Progress,
        reads: Option<(Batch, Instant)>,
    ) {
        match (progress, reads) {
            (Progress::Done(replies, _), Some((batch, since))) => {
                let epoch = self.leaders[leader].epoch;
                let progress = match (replies.first(), self.leader(leader, epoch)) {
                    (Some(reply), _) => Progress::done(vec![reply.clone(); batch.reply_count()]),
                    (None, Some(running)) => running.handler.begin_confirmed(batch, 1, since),
                    (None, None) => return,
                };
                self.progress(leader, (client, request), progress, None);
            }
            (Progress::Done(replies, _), None) => {
                self.check_replies(leader, &replies);
                let node = self.client_node(client);
                if self.net.blocked_until(leader, node) > self.now {
                    return;
                }
                let at = self.net.arrival(leader, node, self.now, true);
                let replies = Some(replies);
                let event = Event::Reply {
                    client,
                    request,
                    replies,
                };
                self.schedule(at, event);
            }
            (Progress::Subscribed(..), _) => {
                unreachable!("no client of the simulation subscribes")
            }
            (Progress::Parked(batch), reads) => self.park(leader, (client, request), batch, reads),
        }
    }

    fn park(
        &mut self,
        leader: usize,
        (client, request): (usize, u64),
        mut batch: Box<dyn Parked>,
        reads: Option<(Batch, Instant)>,
    ) {
        let ticket = self.number();
        let epoch = self.leaders[leader].epoch;
        let outbox = self.outbox.clone();
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        let due = running.clock.world(batch.deadline());
        batch.arm(Waker::calling(move || {
            outbox.lock().push(Out::Woken {
                leader,
                epoch,
                ticket,
            });
        }));
        let waiting = Waiting {
            client,
            request,
            batch,
            reads,
        };
        running.parked.insert(ticket, waiting);
        let event = Event::Resume {
            leader,
            epoch,
            ticket,
        };
        self.schedule(due, event);
    }

    /// A1: what is acknowledged is applied here.
    fn check_replies(&mut self, leader: usize, replies: &[Reply]) {
        let Some(running) = &self.leaders[leader].running else {
            return;
        };
        let applied = running.parts.handle.status().applied;
        for reply in replies {
            if let Reply::Stored { revision, .. } = reply {
                self.oracle.lock().acknowledged(*revision, applied);
            }
        }
    }
}
