//! What the active leader believes of its members: registry, liveness and load, and from these where
//! new copies go and which copy is read first. Pure.
//!
//! It owns nothing that must survive: the registry and the counters come from applied metadata, the
//! rest from links and heartbeats. A wrong belief costs work, never data (A9). Inputs that name a
//! member which is not registered (yet, or any more) are passed over.
//!
//! Memory: some 300 bytes a member, for members that ever registered; the metadata bounds them.

pub mod liveness;
pub mod load;
pub mod placement;

pub use placement::Strategy;

use crate::clock::Instant;
use crate::cluster::liveness::Liveness;
use crate::cluster::load::Load;
use crate::cluster::placement::Candidate;
use crate::ids::MemberId;
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
    /// Links, heartbeats, lateness, space.
    pub liveness: Liveness,
    /// Copies by metadata, and what is in flight.
    pub load: Load,
    /// `zone` as a number in [`Cluster::zones`].
    zone_number: Option<u32>,
    /// The value of [`Cluster::placed`] from which on it has had no more than twice its share.
    ahead_until: u64,
}

impl MemberView {
    /// What people are shown.
    pub fn state(&self, now: Instant) -> MemberState {
        if self.is_retired {
            MemberState::Down
        } else {
            self.liveness.state(now)
        }
    }

    fn is_reachable(&self) -> bool {
        !self.is_retired && self.liveness.is_connected()
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
    /// known of its links and load stays.
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
                    liveness: Liveness::default(),
                    load: Load::default(),
                    zone_number: None,
                    ahead_until: 0,
                };
                self.members.insert(position, member);
                position
            }
        };
        let member = &mut self.members[position];
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

    /// It is late with an answer: suspect until the next one comes.
    pub fn late(&mut self, id: MemberId, _now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.liveness.late();
        }
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

    /// Up to `copies` distinct members for a run of messages, best first: registered, connected, not
    /// in `exclude`, with room in flight. Each is charged with `records` and `bytes`, for
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
        for member in self.members.iter().filter(|member| !member.is_retired) {
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

    /// Counts the shares of a choice. A member's share of what is placed is 1 in `usable`; with each
    /// record it gets, it is ahead until `usable / 2` copies more are placed, so that over any
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

    /// Ends a charge, once; best after the batch was applied, see `load`.
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

    /// The connected ones of `replicas` in the order in which to ask them: up and least busy first,
    /// suspect last. Equals change places from one nanosecond to the next, so that reads spread.
    pub fn read_order(&self, replicas: &ReplicaSet, now: Instant) -> Vec<MemberId> {
        let mut reachable: Vec<&MemberView> = replicas
            .as_slice()
            .iter()
            .filter_map(|id| self.member(*id))
            .filter(|member| member.is_reachable())
            .collect();
        reachable.sort_by_cached_key(|member| {
            let busy = (
                member.load.bytes_in_flight(),
                member.load.records_in_flight(),
            );
            let lot = fastrand::Rng::with_seed(member.id.0 ^ now.as_nanos()).u64(..);
            (member.liveness.is_late(), busy, lot, member.id)
        });
        reachable.iter().map(|member| member.id).collect()
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
