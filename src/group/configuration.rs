//! Who takes part in a group: its voters and learners, and how that may change. Pure.
//!
//! A *learner* gets the log and has no vote; it becomes a voter once it has caught up. A change of
//! the voters passes through a *joint* configuration, in which old and new voters must both agree
//! (Raft thesis 4.3); the group leaves it by itself.
//!
//! The configuration in force is the one of the last applied entry that changed it. It stands in
//! snapshots, too:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | format: 1, or 2 if any HTTP address is known |
//! | 1 | 1 | 1 if the group leaves the joint configuration by itself, else 0 |
//! | 2 | 1 each | how many voters, outgoing voters, learners, next learners; at most 255 |
//! | 6 | 8 each | their ids in this order, little-endian, ascending |
//! | | 1 | how many addresses are known |
//! | | each | id 8, ascending; name, RPC and client address, in format 2 HTTP address: each 2
//! bytes length and text |
//!
//! The address of one peer stands in the entry that tells of it, without its id and with the HTTP
//! address only if it is known. Whoever was built before there was one reads what has none.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::PeerId;

/// Without HTTP addresses.
const FORMAT_1: u8 = 1;
/// With them.
const FORMAT_2: u8 = 2;

/// Peers in one configuration, of any kind: a group has three or five.
pub const PEERS_MAX: usize = 16;

/// The longest name or address, in bytes.
pub const TEXT_BYTES_MAX: usize = 255;

/// The most bytes of a configuration.
pub const BYTES_MAX: usize = 7 + PEERS_MAX * (4 * 8 + 8 + 4 * (2 + TEXT_BYTES_MAX));

/// Where a participant is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its name, as in its certificate.
    pub name: String,
    /// Its RPC, `host:port`.
    pub rpc: String,
    /// Its client port, `host:port`.
    pub client: String,
    /// Its HTTP port, `host:port`; empty: none, or not known.
    pub http: String,
}

/// Who takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Those with a vote.
    pub voters: BTreeSet<PeerId>,
    /// In a joint configuration, those that had one before; else empty.
    pub outgoing: BTreeSet<PeerId>,
    /// Those that get the log only.
    pub learners: BTreeSet<PeerId>,
    /// Outgoing voters that become learners when the joint configuration ends.
    pub learners_next: BTreeSet<PeerId>,
    /// Whether a joint configuration ends by itself.
    pub auto_leave: bool,
    /// Where they are reached, as far as it is known.
    pub addresses: BTreeMap<PeerId, PeerAddress>,
}

/// A change of the configuration, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigurationChange {
    /// Gets the log from here on.
    AddLearner(PeerId, PeerAddress),
    /// Is reached there from here on; whoever leads says so of itself.
    Describe(PeerId, PeerAddress),
    /// A learner becomes a voter.
    Promote(PeerId),
    /// Takes part no more.
    Remove(PeerId),
    /// Ends a joint configuration that did not end by itself.
    LeaveJoint,
}

impl Configuration {
    /// With these voters and nobody else.
    pub fn of(voters: impl IntoIterator<Item = PeerId>) -> Configuration {
        Configuration {
            voters: voters.into_iter().collect(),
            ..Configuration::default()
        }
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `peer` decides everything by itself.
    pub fn is_alone(&self, peer: PeerId) -> bool {
        !self.is_joint() && self.voters.len() == 1 && self.voters.contains(&peer)
    }

    /// Whether `peer` has a vote, before or after the change that is under way.
    pub fn is_voter(&self, peer: PeerId) -> bool {
        self.voters.contains(&peer) || self.outgoing.contains(&peer)
    }

    /// All that take part, in the order of their ids.
    pub fn peers(&self) -> BTreeSet<PeerId> {
        self.sets().into_iter().flatten().copied().collect()
    }

    fn sets(&self) -> [&BTreeSet<PeerId>; 4] {
        let Configuration {
            voters,
            outgoing,
            learners,
            learners_next,
            auto_leave: _,
            addresses: _,
        } = self;
        [voters, outgoing, learners, learners_next]
    }

    /// The same participants with these addresses, as far as they take part.
    pub fn with_addresses(mut self, addresses: BTreeMap<PeerId, PeerAddress>) -> Configuration {
        let peers = self.peers();
        self.addresses = addresses;
        self.addresses.retain(|peer, _| peers.contains(peer));
        self
    }

    /// Whether the same peers take part in the same way.
    pub fn is_like(&self, other: &Configuration) -> bool {
        self.sets() == other.sets() && self.auto_leave == other.auto_leave
    }

    /// As in the table above.
    pub fn encode(&self) -> Vec<u8> {
        let has_http = self.addresses.values().any(|one| !one.http.is_empty());
        let format = if has_http { FORMAT_2 } else { FORMAT_1 };
        let mut bytes = vec![format, u8::from(self.auto_leave)];
        let count = |set: &BTreeSet<PeerId>| u8::try_from(set.len()).expect("a group is small");
        bytes.extend(self.sets().map(count));
        for peer in self.sets().into_iter().flatten() {
            bytes.extend(peer.0.to_le_bytes());
        }
        bytes.push(u8::try_from(self.addresses.len()).expect("a group is small"));
        for (peer, address) in &self.addresses {
            bytes.extend(peer.0.to_le_bytes());
            address.put(&mut bytes, has_http);
        }
        bytes
    }

    /// What [`Configuration::encode`] made; `None` if it did not make this.
    pub fn decode(bytes: &[u8]) -> Option<Configuration> {
        let (head, ids) = bytes.split_first_chunk::<6>()?;
        let [
            format @ FORMAT_1..=FORMAT_2,
            auto_leave @ 0..=1,
            counts @ ..,
        ] = *head
        else {
            return None;
        };
        let total: usize = counts.iter().map(|count| usize::from(*count)).sum();
        let (ids, rest) = ids.split_at_checked(total * 8)?;
        let (ids, _) = ids.as_chunks::<8>();
        let mut ids = ids.iter().map(|id| PeerId(u64::from_le_bytes(*id)));
        let [voters, outgoing, learners, learners_next] = counts.map(|count| {
            let set: BTreeSet<PeerId> = ids.by_ref().take(usize::from(count)).collect();
            (set.len() == usize::from(count)).then_some(set)
        });
        let mut found = Configuration {
            voters: voters?,
            outgoing: outgoing?,
            learners: learners?,
            learners_next: learners_next?,
            auto_leave: auto_leave == 1,
            addresses: BTreeMap::new(),
        };
        let (count, mut rest) = rest.split_first()?;
        for _ in 0..*count {
            let (id, text) = rest.split_first_chunk::<8>()?;
            let address;
            (address, rest) = PeerAddress::take(text, format == FORMAT_2)?;
            let peer = PeerId(u64::from_le_bytes(*id));
            found.addresses.insert(peer, address);
        }
        // One way only to write it: ids ascending, none of them 0.
        let is_ours = !found.peers().contains(&PeerId(0)) && found.encode() == bytes;
        (is_ours && found.is_possible()).then_some(found)
    }

    /// Whether changes can lead to it: what the `raft` crate demands, and ends the process without.
    pub(super) fn is_possible(&self) -> bool {
        let is_staged = |peer| self.outgoing.contains(peer) && !self.voters.contains(peer);
        let is_led = !self.voters.is_empty() || self.peers().is_empty();
        is_led
            && self.peers().len() <= PEERS_MAX
            && self.learners.iter().all(|peer| !self.is_voter(*peer))
            && self.learners_next.iter().all(is_staged)
            && (self.is_joint() || !self.auto_leave)
    }
}

impl PeerAddress {
    /// As in the table above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.put(&mut bytes, !self.http.is_empty());
        bytes
    }

    /// What [`PeerAddress::encode`] made.
    pub fn decode(bytes: &[u8]) -> Option<PeerAddress> {
        let read = |has_http| {
            let (address, rest) = PeerAddress::take(bytes, has_http)?;
            rest.is_empty().then_some(address)
        };
        read(false).or_else(|| read(true))
    }

    fn put(&self, bytes: &mut Vec<u8>, has_http: bool) {
        let http = has_http.then_some(&self.http);
        for text in [&self.name, &self.rpc, &self.client]
            .into_iter()
            .chain(http)
        {
            assert!(text.len() <= TEXT_BYTES_MAX, "an address is too long");
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
    }

    fn take(bytes: &[u8], has_http: bool) -> Option<(PeerAddress, &[u8])> {
        let mut rest = bytes;
        let mut text = || {
            let (length, behind) = rest.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_le_bytes(*length));
            let (text, behind) = behind.split_at_checked(length)?;
            rest = behind;
            let text = std::str::from_utf8(text).ok()?;
            (length <= TEXT_BYTES_MAX).then(|| text.to_owned())
        };
        let address = PeerAddress {
            name: text()?,
            rpc: text()?,
            client: text()?,
            http: if has_http { text()? } else { String::new() },
        };
        Some((address, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<PeerId> {
        ids.iter().copied().map(PeerId).collect()
    }

    #[test]
    fn a_configuration_reads_back_and_anything_else_is_refused() {
        let configuration = Configuration {
            voters: set(&[1, 2, 300]),
            outgoing: set(&[1, 4]),
            learners: set(&[7]),
            learners_next: set(&[4]),
            auto_leave: true,
            addresses: BTreeMap::from([(
                PeerId(7),
                PeerAddress {
                    name: "leader-7".to_owned(),
                    rpc: "localhost:5".to_owned(),
                    client: String::new(),
                    http: String::new(),
                },
            )]),
        };
        let bytes = configuration.encode();
        assert_eq!(Configuration::decode(&bytes), Some(configuration.clone()));
        let empty = Configuration::default();
        assert_eq!(Configuration::decode(&empty.encode()), Some(empty));
        for length in 0..bytes.len() {
            assert_eq!(Configuration::decode(&bytes[..length]), None);
        }
        // With an HTTP address it is of another format; without, as it always was.
        assert_eq!(bytes.first(), Some(&FORMAT_1));
        let mut with_http = configuration.clone();
        for address in with_http.addresses.values_mut() {
            address.http = "localhost:8080".to_owned();
            assert_eq!(
                PeerAddress::decode(&address.encode()).as_ref(),
                Some(&*address)
            );
        }
        let more = with_http.encode();
        assert_eq!(more.first(), Some(&FORMAT_2));
        for length in 0..more.len() {
            assert_eq!(Configuration::decode(&more[..length]), None);
        }
        assert_eq!(Configuration::decode(&more), Some(with_http));
        let mut descending = bytes.clone();
        descending[6..22].rotate_left(8);
        assert_eq!(Configuration::decode(&descending), None);
        assert_eq!(configuration.peers(), set(&[1, 2, 4, 7, 300]));
    }

    #[test]
    fn a_configuration_that_no_change_leads_to_is_refused() {
        let joint = Configuration {
            voters: set(&[1, 2]),
            outgoing: set(&[1, 3]),
            learners: set(&[4]),
            learners_next: set(&[3]),
            auto_leave: true,
            addresses: BTreeMap::new(),
        };
        assert_eq!(Configuration::decode(&joint.encode()), Some(joint.clone()));
        let changes: [fn(&mut Configuration); 6] = [
            |no_voter| no_voter.voters = set(&[]),
            |learner_with_a_vote| learner_with_a_vote.learners = set(&[2]),
            |learner_with_an_old_vote| learner_with_an_old_vote.learners = set(&[3]),
            |next_without_a_vote| next_without_a_vote.learners_next = set(&[5]),
            |next_with_a_new_vote| next_with_a_new_vote.learners_next = set(&[1]),
            |next_of_no_change| next_of_no_change.outgoing = set(&[]),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut changed = joint.clone();
            change(&mut changed);
            assert_eq!(Configuration::decode(&changed.encode()), None, "{number}");
        }
        let leaves_nothing = Configuration {
            outgoing: set(&[]),
            learners_next: set(&[]),
            ..joint
        };
        assert_eq!(Configuration::decode(&leaves_nothing.encode()), None);
    }

    #[test]
    fn one_voter_is_alone_until_another_change_is_under_way() {
        let mut configuration = Configuration::of([PeerId(1)]);
        assert!(configuration.is_alone(PeerId(1)));
        assert!(!configuration.is_alone(PeerId(2)));
        configuration.learners.insert(PeerId(2));
        assert!(configuration.is_alone(PeerId(1)));
        configuration.outgoing = set(&[1, 2]);
        assert!(!configuration.is_alone(PeerId(1)));
        assert!(configuration.is_voter(PeerId(2)));
    }
}
