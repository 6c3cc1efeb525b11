//! What the active leader believes of its members: registry, liveness and load, and from these
//! where new copies go and which copy is read first. Pure.
//!
//! It owns nothing that must survive: the registry and the counters come from applied metadata, the
//! rest from links and heartbeats. A wrong belief costs work, never data (A9). Inputs that name a
//! member which is not registered (yet, or any more) are passed over.
//!
//! Memory: some 300 bytes a member, for members that ever registered; the metadata bounds them.

pub mod liveness;
pub mod load;
pub mod missing;
pub mod placement;
#[cfg(test)]
mod scripts;

pub use placement::Strategy;

use crate::clock::Instant;
use crate::cluster::liveness::Liveness;
use crate::cluster::load::Load;
use crate::cluster::missing::MissingCopies;
use crate::cluster::placement::Candidate;
use crate::ids::{Fence, MemberId, Revision};
use crate::metadata::command::Registration;
use crate::metadata::replica_sets::ReplicaSet;
use crate::protocol::reply::MemberState;
use crate::rpc::message::HeartbeatRequest;

/// One member as the leader sees it; all that a line of `STATUS` needs.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Its RPC address, `host:port`.
    pub address: String,
    /// Its placement zone, empty for none.
    pub zone: String,
    /// Its name came with a new id: it gets nothing more, and is kept for the copies it may hold.
    pub is_retired: bool,
    /// The fence for which it is isolated: no leader of this group can have made it, and the member
    /// refuses all lower ones. It gets nothing more, and is not read from.
    pub absurd_fence: Option<Fence>,
    /// Links, heartbeats, lateness, space.
    pub liveness: Liveness,
    /// Copies by metadata, and what is in flight.
    pub load: Load,
    /// Those of them that the member does not have.
    pub missing: MissingCopies,
    /// How many times it was reported that records of it may be lost: after each its copies are
    /// compared with the metadata.
    pub incomplete: u64,
    /// It says which records it has when it is asked; an older build does not know the question.
    pub says_what_it_holds: bool,
    /// The start that registered last, by its nonce.
    pub start: Option<u64>,
    /// The start whose copies were compared as a whole, if no others were found missing since.
    compared: Option<u64>,
    /// `zone` as a number in [`Cluster::zones`].
    zone_number: Option<u32>,
    /// The value of [`Cluster::placed`] from which on it has had no more than twice its share.
    ahead_until: u64,
}

impl MemberView {
    /// What people are shown.
    pub fn state(&self, now: Instant) -> MemberState {
        if self.is_retired {
            MemberState::Retired
        } else if self.absurd_fence.is_some() {
            MemberState::Down
        } else {
            self.liveness.state(now)
        }
    }

    /// How many of the copies that the metadata lists are there, as far as is known, and their
    /// payload bytes.
    pub fn present(&self) -> (u64, u64) {
        self.missing.present(self.load.records(), self.load.bytes())
    }

    fn is_reachable(&self) -> bool {
        !self.is_retired && self.absurd_fence.is_none() && self.liveness.is_connected()
    }
}

/// The active leader's view of all members.
#[derive(Debug)]
pub struct Cluster {
    strategy: Strategy,
    rng: fastrand::Rng,
    /// Ascending by id.
    members: Vec<MemberView>,
    /// Zone labels that were ever seen; the position is the number.
    zones: Vec<String>,
    /// Copies of records placed so far: the clock by which shares are measured.
    placed: u64,
}

/// How well a member can be asked for a revision: the lesser, the better. Equals change places from
/// one nanosecond to the next, so that reads spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadRank {
    /// Whether its copy counts as missing, and whether it owes an answer.
    pub health: (bool, bool),
    /// Bytes and records that are in flight to it.
    busy: (u64, u64),
    lot: u64,
}

impl Cluster {
    /// A view without members; `seed` decides all choices by chance.
    pub fn new(strategy: Strategy, seed: u64) -> Cluster {
        Cluster {
            strategy,
            rng: fastrand::Rng::with_seed(seed),
            members: Vec::new(),
            zones: Vec::new(),
            placed: 0,
        }
    }

    /// Places with this strategy from now on.
    pub fn set_strategy(&mut self, strategy: Strategy) {
        self.strategy = strategy;
    }

    /// The strategy in use.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Takes a member in as applied metadata has it, or renews its name, address and zone; what is
    /// known of its links and load stays. One that was retired is not any more.
    pub fn register(&mut self, registration: &Registration) {
        let zone_number = self.zone_number(&registration.zone);
        let position = match self.position(registration.id) {
            Ok(position) => position,
            Err(position) => {
                let member = MemberView {
                    id: registration.id,
                    name: String::new(),
                    address: String::new(),
                    zone: String::new(),
                    is_retired: false,
                    absurd_fence: None,
                    liveness: Liveness::default(),
                    load: Load::default(),
                    missing: MissingCopies::default(),
                    incomplete: 0,
                    says_what_it_holds: false,
                    start: None,
                    compared: None,
                    zone_number: None,
                    ahead_until: 0,
                };
                self.members.insert(position, member);
                position
            }
        };
        let member = &mut self.members[position];
        member.is_retired = false;
        member.name.clone_from(&registration.name);
        member.address.clone_from(&registration.address);
        member.zone.clone_from(&registration.zone);
        member.zone_number = zone_number;
    }

    /// The member's name has a new id; this one is neither written to nor read from any more.
    pub fn retire(&mut self, id: MemberId) {
        if let Some(member) = self.member_mut(id) {
            member.is_retired = true;
        }
    }

    /// The member lost this copy, or cannot return it.
    pub fn copy_missing(&mut self, id: MemberId, revision: Revision, length: u32) {
        if let Some(member) = self.member_mut(id) {
            member.missing.add(revision, length);
            member.compared = None;
        }
    }

    /// A comparison of the member's copies with the metadata is complete: all that the start with
    /// this nonce lacks are noted as missing.
    pub fn copies_compared(&mut self, id: MemberId, start: Option<u64>) {
        if let Some(member) = self.member_mut(id) {
            member.compared = start;
        }
    }

    /// Whether the member has a copy of every message that the metadata lists for it. True only if
    /// its copies were compared since the start with this nonce, and no copy is noted as missing.
    pub fn has_all(&self, id: MemberId, start: u64) -> bool {
        self.member(id)
            .is_some_and(|member| member.compared == Some(start) && member.missing.is_empty())
    }

    /// The metadata lists these copies no more.
    pub fn released(&mut self, records: &[(Revision, ReplicaSet)]) {
        let mut members = self.members.iter_mut();
        if records.is_empty() || members.all(|member| member.missing.is_empty()) {
            return;
        }
        for (revision, replicas) in records {
            for id in replicas.as_slice() {
                if let Some(member) = self.member_mut(*id) {
                    member.missing.remove(*revision);
                }
            }
        }
    }

    /// What was known of missing copies is of another term, or of another state.
    pub fn forget_missing(&mut self) {
        for member in &mut self.members {
            member.missing = MissingCopies::default();
            member.compared = None;
        }
    }

    /// The member registered, and says that records of it may be lost.
    pub fn report_incomplete(&mut self, id: MemberId) {
        if let Some(member) = self.member_mut(id) {
            member.incomplete += 1;
        }
    }

    /// A copy is missing where a read looked for it: others may be. Told once a member.
    pub fn suspect_incomplete(&mut self, id: MemberId) {
        if let Some(member) = self.member_mut(id) {
            member.incomplete = member.incomplete.max(1);
        }
    }

    /// The member registered with this start, and answers when it is asked what it holds, or not.
    pub fn started(&mut self, id: MemberId, start: u64, says_what_it_holds: bool) {
        if let Some(member) = self.member_mut(id) {
            member.start = Some(start);
            member.says_what_it_holds = says_what_it_holds;
        }
    }

    /// What people are shown of a copy.
    pub fn copy_state(&self, id: MemberId, revision: Revision, now: Instant) -> MemberState {
        match self.member(id) {
            Some(member) if member.missing.contains(revision) => MemberState::Missing,
            Some(member) => member.state(now),
            None => MemberState::Down,
        }
    }

    /// The member has executed a fence that no leader of this group can have made: it is neither
    /// written to nor read from any more by this leader. Whether that is news.
    pub fn isolate(&mut self, id: MemberId, fence: Fence) -> bool {
        self.member_mut(id)
            .is_some_and(|member| member.absurd_fence.replace(fence).is_none())
    }

    /// What the member holds by applied metadata.
    pub fn set_load(&mut self, id: MemberId, records: u64, bytes: u64) {
        if let Some(member) = self.member_mut(id) {
            member.load.set(records, bytes);
        }
    }

    /// Our data link to it is open.
    pub fn connected(&mut self, id: MemberId, now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.connected(now);
        }
    }

    /// Our data link to it is broken. Charges stay until they are settled.
    pub fn disconnected(&mut self, id: MemberId, _now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.disconnected();
        }
    }

    /// A heartbeat came. Of its counters only the free space is used: what the member holds is
    /// counted by the metadata.
    pub fn heartbeat(&mut self, id: MemberId, counters: &HeartbeatRequest, now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.heartbeat(counters.free, now);
        }
    }

    /// It answered on its data link: if it was suspect, it is up again.
    pub fn answered(&mut self, id: MemberId, now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.answered(now);
        }
    }

    /// It is late with an answer that was due then: suspect until the next one comes.
    pub fn late(&mut self, id: MemberId, due: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.late(due);
        }
    }

    /// Whether it is late with an answer, to this batch or another one.
    pub fn is_late(&self, id: MemberId) -> bool {
        self.member(id)
            .is_some_and(|member| member.liveness.is_late())
    }

    /// It refused a record for lack of space: for a while it is chosen only when no other is left.
    pub fn refused_full(&mut self, id: MemberId, now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.refused_full(now);
        }
    }

    /// What people are shown; down if it is not registered.
    pub fn state(&self, id: MemberId, now: Instant) -> MemberState {
        self.member(id)
            .map_or(MemberState::Down, |member| member.state(now))
    }

    /// Up to `copies` distinct members for a run of messages, best first: registered, connected,
    /// not in `exclude`, with room in flight. Each is charged with `records` and `bytes`, for
    /// [`Cluster::settle`] to end. Those in `exclude` that are in good order are taken to hold
    /// copies of the run, so that others in their zones come last.
    pub fn choose(
        &mut self,
        copies: usize,
        exclude: &[MemberId],
        records: u64,
        bytes: u64,
        now: Instant,
    ) -> Vec<MemberId> {
        let mut candidates = Vec::with_capacity(self.members.len());
        let mut used_zones = Vec::with_capacity(copies + exclude.len());
        let mut usable = 0;
        let is_usable =
            |member: &&mut MemberView| !member.is_retired && member.absurd_fence.is_none();
        for member in self.members.iter_mut().filter(is_usable) {
            member.load.pass_time(now);
            let Some(fitness) = member.liveness.fitness(now) else {
                continue;
            };
            usable += 1;
            if exclude.contains(&member.id) {
                // A late or full one is being replaced: its zone has no copy.
                if fitness < liveness::Fitness::Suspect {
                    used_zones.extend(member.zone_number);
                }
                continue;
            }
            if member.load.has_room(records, bytes) {
                candidates.push(Candidate {
                    id: member.id,
                    fitness,
                    zone: member.zone_number,
                    load: member.load.total(),
                    is_ahead: member.ahead_until > self.placed,
                });
            }
        }
        let chosen =
            placement::choose(self.strategy, copies, candidates, used_zones, &mut self.rng);
        self.account(&chosen, usable, records);
        for id in &chosen {
            self.charge(*id, records, bytes);
        }
        chosen
    }

    /// Counts the shares of a choice. A member's share of what is placed is 1 in `usable`; with
    /// each record it gets, it is ahead until `usable / 2` copies more are placed, so that over any
    /// stretch it gets at most twice its share, and one run.
    fn account(&mut self, chosen: &[MemberId], usable: u64, records: u64) {
        let placed = self.placed;
        for id in chosen {
            if let Some(member) = self.member_mut(*id) {
                let from = member.ahead_until.max(placed);
                member.ahead_until = from + records.saturating_mul(usable) / 2;
            }
        }
        self.placed = placed + records.saturating_mul(chosen.len() as u64);
    }

    /// That much more is in flight to it, beyond what [`Cluster::choose`] charged: a read, or a
    /// store to a member that the caller chose itself.
    pub fn charge(&mut self, id: MemberId, records: u64, bytes: u64) {
        if let Some(member) = self.member_mut(id) {
            member.load.charge(records, bytes);
        }
    }

    /// Ends a charge, once: its answer has come, or will not count any more.
    pub fn settle(&mut self, id: MemberId, records: u64, bytes: u64) {
        if let Some(member) = self.member_mut(id) {
            member.load.settle(records, bytes);
        }
    }

    /// Bytes charged to it and not settled; 0 if it is not registered.
    pub fn bytes_in_flight(&self, id: MemberId) -> u64 {
        self.member(id)
            .map_or(0, |member| member.load.bytes_in_flight())
    }

    /// How well a member can be asked for a revision, if it is connected.
    pub fn read_rank(&self, id: MemberId, revision: Revision, now: Instant) -> Option<ReadRank> {
        let member = self.member(id).filter(|member| member.is_reachable())?;
        Some(ReadRank {
            health: (member.missing.contains(revision), member.liveness.is_late()),
            busy: (
                member.load.bytes_in_flight(),
                member.load.records_in_flight(),
            ),
            lot: fastrand::Rng::with_seed(id.0 ^ now.as_nanos()).u64(..),
        })
    }

    /// How many members could be written to: registered and connected.
    pub fn connected_count(&self) -> usize {
        self.members
            .iter()
            .filter(|member| member.is_reachable())
            .count()
    }

    /// One member, retired or not; `None` if its id was never registered.
    pub fn member(&self, id: MemberId) -> Option<&MemberView> {
        self.position(id)
            .ok()
            .map(|position| &self.members[position])
    }

    /// The id other than `id` that has this name, and is not retired.
    pub fn other_of_name(&self, name: &str, id: MemberId) -> Option<&MemberView> {
        let mut members = self.members.iter();
        members.find(|member| !member.is_retired && member.name == name && member.id != id)
    }

    /// All registered members that are not retired, by name.
    pub fn members(&self) -> impl Iterator<Item = &MemberView> {
        let mut members: Vec<&MemberView> = self
            .members
            .iter()
            .filter(|member| !member.is_retired)
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members.into_iter()
    }

    /// All members that ever registered, by name, the active one of a name first.
    pub fn members_and_retired(&self) -> Vec<&MemberView> {
        let mut members: Vec<&MemberView> = self.members.iter().collect();
        members.sort_by(|a, b| (&a.name, a.is_retired).cmp(&(&b.name, b.is_retired)));
        members
    }

    fn position(&self, id: MemberId) -> Result<usize, usize> {
        self.members.binary_search_by_key(&id, |member| member.id)
    }

    fn member_mut(&mut self, id: MemberId) -> Option<&mut MemberView> {
        self.position(id)
            .ok()
            .map(|position| &mut self.members[position])
    }

    fn zone_number(&mut self, zone: &str) -> Option<u32> {
        if zone.is_empty() {
            return None;
        }
        let known = self.zones.iter().position(|known| known == zone);
        let number = known.unwrap_or_else(|| {
            self.zones.push(zone.to_owned());
            self.zones.len() - 1
        });
        Some(u32::try_from(number).expect("there are fewer zones than members"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::liveness::{FREE_BYTES_LOW, FULL_PAUSE, HEARTBEAT_SILENCE_MAX};
    use crate::cluster::load::BYTES_IN_FLIGHT_MAX;
    use std::time::Duration;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);
    const REVISION: Revision = Revision::from_u64(7);

    #[test]
    fn a_missing_copy_is_shown_and_asked_for_last() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", ""]);
        let both = ReplicaSet::new(&[MemberId(1), MemberId(2)]).expect("two members");
        cluster.set_load(MemberId(1), 10, 100);
        for missing in [1, 2] {
            cluster.copy_missing(MemberId(missing), REVISION, 10);
            let state = cluster.copy_state(MemberId(missing), REVISION, NOW);
            assert_eq!(state, MemberState::Missing);
            let order = read_order(&cluster, both.as_slice(), NOW);
            assert_eq!((order.len(), order[1]), (2, missing));
            cluster.late(MemberId(3 - missing), NOW);
            assert_eq!(read_order(&cluster, both.as_slice(), NOW), order);
            let present = cluster.member(MemberId(1)).map(MemberView::present);
            assert_eq!(
                present,
                Some(if missing == 1 { (9, 90) } else { (10, 100) })
            );
            cluster.released(&[(REVISION, both)]);
            let state = cluster.copy_state(MemberId(missing), REVISION, NOW);
            assert_ne!(state, MemberState::Missing);
            cluster.answered(MemberId(3 - missing), NOW);
        }
    }

    pub(super) fn registration(id: u64, zone: &str) -> Registration {
        Registration {
            id: MemberId(id),
            name: format!("member-{id}"),
            address: format!("127.0.0.1:{id}"),
            zone: zone.to_owned(),
            incarnation: 1,
            nonce: 1,
        }
    }

    /// Members 1, 2, … in these zones, connected.
    pub(super) fn cluster(strategy: Strategy, zones: &[&str]) -> Cluster {
        let mut cluster = Cluster::new(strategy, 7);
        for (id, zone) in (1..).zip(zones) {
            cluster.register(&registration(id, zone));
            cluster.connected(MemberId(id), NOW);
        }
        cluster
    }

    fn ids(members: &[MemberId]) -> Vec<u64> {
        members.iter().map(|id| id.0).collect()
    }

    /// The connected ones of these members, the one to be asked first at the front.
    pub(super) fn read_order(cluster: &Cluster, replicas: &[MemberId], now: Instant) -> Vec<u64> {
        let ranked = |id: &MemberId| Some((cluster.read_rank(*id, REVISION, now)?, id.0));
        let mut ranked: Vec<_> = replicas.iter().filter_map(ranked).collect();
        ranked.sort();
        ranked.into_iter().map(|(_, id)| id).collect()
    }

    fn choose(cluster: &mut Cluster, copies: usize, exclude: &[u64]) -> Vec<u64> {
        let exclude: Vec<MemberId> = exclude.iter().map(|id| MemberId(*id)).collect();
        ids(&cluster.choose(copies, &exclude, 1, 10, NOW))
    }

    fn beat(free: u64) -> HeartbeatRequest {
        HeartbeatRequest {
            records: 0,
            bytes: 0,
            free,
            seen: Default::default(),
        }
    }

    #[test]
    fn a_member_with_an_absurd_fence_is_neither_written_to_nor_read_from() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", "", ""]);
        let fence = Fence {
            term: 1 << 63,
            link: 1,
        };
        assert!(cluster.isolate(MemberId(2), fence));
        assert!(!cluster.isolate(MemberId(2), fence), "no news");
        assert_eq!(cluster.state(MemberId(2), NOW), MemberState::Down);
        assert_eq!(choose(&mut cluster, 3, &[]), [1, 3]);
        assert_eq!(read_order(&cluster, &[MemberId(1), MemberId(2)], NOW), [1]);
        assert_eq!(cluster.connected_count(), 2);
        cluster.connected(MemberId(2), NOW);
        assert_eq!(cluster.state(MemberId(2), NOW), MemberState::Down);
    }

    #[test]
    fn liveness_follows_links_answers_and_heartbeats() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", ""]);
        let id = MemberId(1);
        assert_eq!(cluster.state(id, NOW), MemberState::Up);
        assert_eq!(cluster.state(MemberId(9), NOW), MemberState::Down);
        cluster.late(id, NOW);
        assert_eq!(cluster.state(id, NOW), MemberState::Suspect);
        cluster.heartbeat(id, &beat(1 << 40), NOW);
        assert_eq!(
            cluster.state(id, NOW),
            MemberState::Suspect,
            "beats say nothing of its disk"
        );
        let after = NOW + Duration::from_millis(1);
        cluster.answered(id, after);
        assert_eq!(cluster.state(id, NOW), MemberState::Up);
        cluster.late(id, NOW);
        assert_eq!(
            cluster.state(id, NOW),
            MemberState::Up,
            "it has answered since"
        );
        let silent = NOW + HEARTBEAT_SILENCE_MAX;
        assert_eq!(cluster.state(id, silent), MemberState::Down);
        assert_eq!(
            cluster.choose(2, &[], 1, 1, silent).len(),
            2,
            "its link is still open"
        );
        cluster.heartbeat(id, &beat(1 << 40), silent);
        assert_eq!(cluster.state(id, silent), MemberState::Up);
        cluster.disconnected(id, silent);
        assert_eq!(cluster.state(id, silent), MemberState::Down);
        assert_eq!(ids(&cluster.choose(2, &[], 1, 1, silent)), [2]);
    }

    #[test]
    fn the_fewest_records_come_first_and_what_is_in_flight_counts() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", "", ""]);
        for (id, records) in [(1, 2), (2, 1), (3, 0)] {
            cluster.set_load(MemberId(id), records, 0);
        }
        assert_eq!(choose(&mut cluster, 3, &[]), [3, 2, 1]);
        assert_eq!(cluster.bytes_in_flight(MemberId(3)), 10);
        cluster.charge(MemberId(3), 10, 0);
        assert_eq!(choose(&mut cluster, 3, &[]), [2, 1, 3]);
        assert_eq!(choose(&mut cluster, 3, &[2]), [1, 3]);
    }

    #[test]
    fn late_and_full_members_are_chosen_last() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", "", "", ""]);
        cluster.refused_full(MemberId(1), NOW);
        cluster.late(MemberId(2), NOW);
        cluster.heartbeat(MemberId(3), &beat(FREE_BYTES_LOW - 1), NOW);
        assert_eq!(choose(&mut cluster, 4, &[]), [4, 3, 2, 1]);
        let later = NOW + FULL_PAUSE;
        assert_eq!(ids(&cluster.choose(1, &[], 1, 1, later)), [1]);
    }

    #[test]
    fn a_member_without_room_in_flight_is_not_chosen() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", ""]);
        cluster.charge(MemberId(1), 1, BYTES_IN_FLIGHT_MAX);
        assert_eq!(choose(&mut cluster, 2, &[]), [2]);
        cluster.settle(MemberId(1), 1, BYTES_IN_FLIGHT_MAX);
        assert_eq!(choose(&mut cluster, 2, &[]).len(), 2);
    }

    #[test]
    fn copies_spread_over_zones_before_loads_are_compared() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["a", "a", "a", "b", "b", "c"]);
        for id in 4..=6 {
            cluster.set_load(MemberId(id), 1000, 0);
        }
        assert_eq!(choose(&mut cluster, 3, &[]), [1, 4, 6]);
        assert_eq!(choose(&mut cluster, 2, &[1]), [5, 6], "zone a has a copy");
        cluster.disconnected(MemberId(1), NOW);
        cluster.late(MemberId(4), NOW);
        assert_eq!(
            choose(&mut cluster, 1, &[6, 4, 1]),
            [2],
            "4 is replaced, 1 is gone"
        );
        assert_eq!(
            choose(&mut cluster, 1, &[6, 2, 4]),
            [5],
            "a late copy does not fill its zone"
        );
    }

    #[test]
    fn a_retired_member_gets_nothing_and_is_not_listed() {
        let mut cluster = cluster(Strategy::P2c, &["", ""]);
        cluster.retire(MemberId(1));
        assert_eq!(choose(&mut cluster, 2, &[]), [2]);
        assert_eq!(read_order(&cluster, &[MemberId(1), MemberId(2)], NOW), [2]);
        assert_eq!(
            cluster
                .members()
                .map(|member| member.id.0)
                .collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(
            cluster.member(MemberId(1)).map(|member| &*member.name),
            Some("member-1")
        );
    }

    #[test]
    fn reads_ask_idle_members_first_and_suspects_last() {
        let mut cluster = cluster(Strategy::LeastLoaded, &["", "", "", ""]);
        let replicas: Vec<MemberId> = (1..=4).map(MemberId).collect();
        cluster.late(MemberId(1), NOW);
        cluster.charge(MemberId(2), 1, 100);
        cluster.charge(MemberId(3), 1, 50);
        assert_eq!(read_order(&cluster, &replicas, NOW), [4, 3, 2, 1]);
        cluster.disconnected(MemberId(4), NOW);
        assert_eq!(read_order(&cluster, &replicas, NOW), [3, 2, 1]);
    }

    #[test]
    fn reads_of_equals_spread() {
        let cluster = cluster(Strategy::LeastLoaded, &["", ""]);
        let both = [MemberId(1), MemberId(2)];
        let first = |step| read_order(&cluster, &both, NOW + Duration::from_nanos(step))[0];
        let to_first = (0..1000).filter(|step| first(*step) == 1).count();
        assert!((400..600).contains(&to_first), "{to_first} of 1000");
    }
}

#[cfg(test)]
mod properties {
    use super::tests::{cluster, registration};
    use super::*;
    use crate::cluster::load::RECORDS_IN_FLIGHT_MAX;
    use proptest::prelude::{Just, Strategy as _, any, prop_assert, prop_assert_eq};
    use proptest::{prop_oneof, proptest};
    use std::collections::BTreeSet;
    use std::time::Duration;

    const NOW: Instant = Instant::from_nanos(0);

    /// In which order the answers of a choice are settled and its records applied.
    #[derive(Clone, Copy, Debug)]
    enum Order {
        SettledFirst,
        AppliedFirst,
        /// Each member's answer is settled at another time, and applied after the last.
        OneByOne,
    }

    const ORDERS: [Order; 3] = [Order::SettledFirst, Order::AppliedFirst, Order::OneByOne];

    fn apply(cluster: &mut Cluster, chosen: &[MemberId], records: u64) {
        for id in chosen {
            let held = cluster.member(*id).expect("registered").load.records();
            cluster.set_load(*id, held + records, 0);
        }
    }

    /// Places `messages` in runs of at most `run`, one each millisecond; up to `depth` choices are
    /// in flight, and as many settled but not applied or the reverse. They end in random order.
    fn place(cluster: &mut Cluster, copies: usize, messages: u64, run: u64, load: (usize, Order)) {
        let (depth, order) = load;
        let mut rng = fastrand::Rng::with_seed(depth as u64);
        // What has happened to each choice so far: this many of its members settled.
        let mut open: [Vec<(Vec<MemberId>, u64)>; 2] = [Vec::new(), Vec::new()];
        let mut left = messages;
        let mut now = NOW;
        while left > 0 || open.iter().any(|stage| !stage.is_empty()) {
            let records = run.min(left);
            left -= records;
            now = now + Duration::from_millis(1);
            if records > 0 {
                let chosen = cluster.choose(copies, &[], records, 0, now);
                assert_eq!(chosen.len(), copies);
                open[0].push((chosen, records));
            }
            for stage in 0..2 {
                if open[stage].is_empty() || (open[stage].len() <= depth && left > 0) {
                    continue;
                }
                let taken = rng.usize(..open[stage].len());
                let (chosen, records) = open[stage].swap_remove(taken);
                let settled = match (order, stage) {
                    (Order::SettledFirst, 0) | (Order::AppliedFirst, 1) => &chosen[..],
                    (Order::OneByOne, 0) => &chosen[..1],
                    (Order::OneByOne, _) => &chosen[1..],
                    (Order::SettledFirst | Order::AppliedFirst, _) => &[],
                };
                settled
                    .iter()
                    .for_each(|id| cluster.settle(*id, records, 0));
                if matches!(order, Order::AppliedFirst) == (stage == 0) {
                    apply(cluster, &chosen, records);
                }
                if stage == 0 {
                    open[1].push((chosen, records));
                }
            }
        }
    }

    fn records(cluster: &Cluster) -> Vec<u64> {
        cluster
            .members()
            .map(|member| member.load.records())
            .collect()
    }

    /// The bounds that the product promises for 10,000 SETs on 6 equal members at tolerance 2.
    #[test]
    fn ten_thousand_messages_spread_within_the_bounds() {
        for (strategy, bound) in [(Strategy::LeastLoaded, 1.05), (Strategy::P2c, 1.2)] {
            let cases = [1, 5, 32]
                .into_iter()
                .flat_map(|run| [0, 1, 16, 64].map(|depth| (run, depth)));
            for ((run, depth), order) in cases.flat_map(|case| ORDERS.map(|order| (case, order))) {
                let mut cluster = cluster(strategy, &["", "", "", "", "", ""]);
                place(&mut cluster, 2, 10_000, run, (depth, order));
                let records = records(&cluster);
                assert_eq!(records.iter().sum::<u64>(), 20_000);
                let fullest = *records.iter().max().expect("six") as f64;
                let emptiest = *records.iter().min().expect("six") as f64;
                let case = format!("{strategy}, runs of {run}, {depth} in flight, {order:?}");
                assert!(fullest <= emptiest * bound, "{case}: {records:?}");
            }
        }
    }

    /// Over any stretch of writes after it joined, an empty newcomer gets at most twice its share
    /// and one run, as long as there are others to choose; and it does catch up.
    #[test]
    fn an_empty_newcomer_gets_at_most_twice_its_share() {
        for (others, copies, run) in [(5, 2, 1), (5, 2, 32), (9, 3, 32), (2, 1, 7), (19, 1, 1)] {
            let mut cluster = cluster(Strategy::LeastLoaded, &vec![""; others]);
            for id in 1..=others as u64 {
                cluster.set_load(MemberId(id), 50_000, 0);
            }
            let newcomer = MemberId(others as u64 + 1);
            cluster.register(&registration(newcomer.0, ""));
            cluster.connected(newcomer, NOW);
            let mut placed = 0;
            for _ in 0..50 {
                place(&mut cluster, copies, run * 20, run, (3, Order::OneByOne));
                placed += run * 20;
                let share = placed as f64 * copies as f64 / (others as f64 + 1.0);
                let got = cluster.member(newcomer).expect("registered").load.records() as f64;
                let case =
                    format!("{others} others, {copies} copies, runs of {run}: {got}, {share}");
                assert!(got <= 2.0 * share + run as f64, "{case}");
                assert!(got >= 1.2 * share - run as f64, "it catches up: {case}");
            }
        }
    }

    #[test]
    fn equal_seeds_choose_equally() {
        let choices = || {
            let mut cluster = cluster(Strategy::P2c, &["", "", "a", "a", "b"]);
            let choose = |_| cluster.choose(3, &[], 1, 1, NOW);
            (0..100).map(choose).collect::<Vec<_>>()
        };
        assert_eq!(choices(), choices());
    }

    #[derive(Clone, Debug)]
    struct Case {
        p2c: bool,
        /// Zone, connected, late, full, records in flight.
        members: Vec<(u8, bool, bool, bool, u64)>,
        copies: usize,
        exclude: BTreeSet<u64>,
    }

    fn any_case() -> impl proptest::strategy::Strategy<Value = Case> {
        let in_flight = prop_oneof![3 => 0..100_u64, 1 => Just(RECORDS_IN_FLIGHT_MAX)];
        let member = (
            0..4_u8,
            proptest::bool::weighted(0.8),
            proptest::bool::weighted(0.2),
            proptest::bool::weighted(0.1),
            in_flight,
        );
        let members = proptest::collection::vec(member, 0..12);
        let exclude = proptest::collection::btree_set(1..12_u64, 0..4);
        (any::<bool>(), members, 1..=7_usize, exclude).prop_map(
            |(p2c, members, copies, exclude)| Case {
                p2c,
                members,
                copies,
                exclude,
            },
        )
    }

    proptest! {
        #[test]
        fn choices_are_distinct_connected_roomy_fit_and_spread_over_zones(case in any_case()) {
            let strategy = if case.p2c { Strategy::P2c } else { Strategy::LeastLoaded };
            let mut cluster = Cluster::new(strategy, 1);
            for (id, (zone, connected, late, full, in_flight)) in (1..).zip(&case.members) {
                let zone = ["", "a", "b", "c"][usize::from(*zone)];
                cluster.register(&registration(id, zone));
                let id = MemberId(id);
                if *connected {
                    cluster.connected(id, NOW);
                }
                if *late {
                    cluster.late(id, NOW);
                }
                if *full {
                    cluster.refused_full(id, NOW);
                }
                cluster.charge(id, *in_flight, 0);
            }
            let exclude: Vec<MemberId> = case.exclude.iter().map(|id| MemberId(*id)).collect();
            let before = cluster.members.clone();
            let chosen = cluster.choose(case.copies, &exclude, 1, 1, NOW);
            let usable = |member: &&MemberView| {
                member.liveness.is_connected()
                    && !exclude.contains(&member.id)
                    && member.load.has_room(1, 1)
            };
            let usable: Vec<&MemberView> = before.iter().filter(usable).collect();
            prop_assert_eq!(chosen.len(), case.copies.min(usable.len()));
            let distinct: BTreeSet<MemberId> = chosen.iter().copied().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            let fitness = |id: &MemberId| {
                let member = usable.iter().find(|member| member.id == *id);
                member.and_then(|member| member.liveness.fitness(NOW))
            };
            for pair in chosen.windows(2) {
                prop_assert!(fitness(&pair[0]) <= fitness(&pair[1]), "fitter ones come first");
            }
            prop_assert!(chosen.iter().all(|id| fitness(id).is_some()));
            // Without exclusions, and all of one fitness: no zone has two copies more than another
            // that could have taken one.
            let level = usable.iter().all(|member| {
                member.liveness.fitness(NOW) == usable[0].liveness.fitness(NOW)
            });
            if exclude.is_empty() && level {
                let in_zone = |zone: &str| {
                    let of_zone = |id: &&MemberId| {
                        usable.iter().any(|member| member.id == **id && member.zone == zone)
                    };
                    chosen.iter().filter(of_zone).count()
                };
                for spare in usable.iter().filter(|member| !chosen.contains(&member.id)) {
                    for zone in ["a", "b", "c"] {
                        let has = if spare.zone.is_empty() { 0 } else { in_zone(&spare.zone) };
                        prop_assert!(in_zone(zone) <= has + 1);
                    }
                }
            }
            for id in &chosen {
                let had = before.iter().find(|member| member.id == *id);
                let had = had.map_or(0, |member| member.load.bytes_in_flight());
                prop_assert_eq!(cluster.bytes_in_flight(*id), had + 1);
            }
        }
    }
}
