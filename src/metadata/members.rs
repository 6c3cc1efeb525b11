//! The registry of members, and the copies each one holds by the metadata. Pure.
//!
//! Rules of registration (DESIGN.md §5):
//! * an id that is known under another name, or was retired, is refused;
//! * a lower incarnation than the registered one is refused, an equal one too unless its nonce is
//!   the same (a reconnect): the disk was rolled back or cloned;
//! * a new id for a known name retires the id it had.
//!
//! A retired member takes no new copies and cannot come back; it stays in the registry, because the
//! metadata still lists it for the copies that it held, until each is overwritten, deleted or (once
//! repair exists) moved. Its counters go down with them.
//!
//! Known limit: retired ids are kept for good, some 200 bytes each, so that a wiped member's old
//! disk is refused at any later time.

use std::collections::BTreeMap;

use crate::ids::MemberId;
use crate::metadata::command::{Applied, Registration};

/// A member of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As it last registered.
    pub registration: Registration,
    /// Its name came with a new id.
    pub is_retired: bool,
    /// How many messages list it.
    pub records: u64,
    /// Payload bytes of these messages.
    pub bytes: u64,
}

/// All members that ever registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<MemberId, Member>,
    /// The ids of members that are not retired, by name.
    names: BTreeMap<String, MemberId>,
}

impl Members {
    /// Takes a member in, renews it, or says why not.
    pub fn register(&mut self, registration: &Registration) -> Applied {
        if let Some(known) = self.members.get_mut(&registration.id) {
            let held = &known.registration;
            if known.is_retired || held.name != registration.name {
                return Applied::Retired;
            }
            let is_same_start = held.nonce == registration.nonce;
            if registration.incarnation < held.incarnation
                || (registration.incarnation == held.incarnation && !is_same_start)
            {
                let registered = held.incarnation;
                return Applied::StaleIncarnation { registered };
            }
            known.registration = registration.clone();
            return Applied::Registered { retired: None };
        }
        let member = Member {
            registration: registration.clone(),
            is_retired: false,
            records: 0,
            bytes: 0,
        };
        self.members.insert(registration.id, member);
        let retired = self
            .names
            .insert(registration.name.clone(), registration.id);
        if let Some(id) = retired {
            self.members
                .get_mut(&id)
                .expect("each name belongs to a member")
                .is_retired = true;
        }
        Applied::Registered { retired }
    }

    /// Whether it may take new copies: registered and not retired.
    pub fn is_active(&self, id: MemberId) -> bool {
        self.members
            .get(&id)
            .is_some_and(|member| !member.is_retired)
    }

    /// One member, retired or not.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The id that this name has now.
    pub fn id_of(&self, name: &str) -> Option<MemberId> {
        self.names.get(name).copied()
    }

    /// All members, retired ones too, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Takes in a member of a snapshot, with its counters; false if its id, or its name while it is
    /// not retired, is there already.
    pub(super) fn restore(&mut self, member: Member) -> bool {
        let Registration { id, name, .. } = &member.registration;
        let (id, name) = (*id, name.clone());
        let is_new_name = member.is_retired || self.names.insert(name, id).is_none();
        self.members.insert(id, member).is_none() && is_new_name
    }

    /// That many messages more list this member, which is registered.
    pub(crate) fn add_copies(&mut self, id: MemberId, records: u64, bytes: u64) {
        let member = self.listed(id);
        member.records += records;
        member.bytes += bytes;
    }

    /// That many messages less list this member, which counted them.
    pub(crate) fn remove_copies(&mut self, id: MemberId, records: u64, bytes: u64) {
        let member = self.listed(id);
        assert!(
            member.records >= records && member.bytes >= bytes,
            "member {id} loses copies that were never counted"
        );
        member.records -= records;
        member.bytes -= bytes;
    }

    fn listed(&mut self, id: MemberId) -> &mut Member {
        self.members
            .get_mut(&id)
            .expect("messages list only members of the registry, which keeps them all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(id: u64, name: &str, incarnation: u64, nonce: u64) -> Registration {
        Registration {
            id: MemberId(id),
            name: name.to_owned(),
            address: format!("127.0.0.1:{id}"),
            zone: String::new(),
            incarnation,
            nonce,
        }
    }

    #[test]
    fn restarts_and_reconnects_are_taken_and_rolled_back_disks_refused() {
        let mut members = Members::default();
        let renewed = Applied::Registered { retired: None };
        assert_eq!(members.register(&start(1, "a", 5, 50)), renewed);
        assert_eq!(
            members.register(&start(1, "a", 5, 50)),
            renewed,
            "reconnect"
        );
        assert_eq!(members.register(&start(1, "a", 6, 60)), renewed, "restart");
        let stale = Applied::StaleIncarnation { registered: 6 };
        assert_eq!(
            members.register(&start(1, "a", 5, 50)),
            stale,
            "rolled back"
        );
        assert_eq!(members.register(&start(1, "a", 6, 61)), stale, "cloned");
        let held = members.member(MemberId(1)).map(|m| m.registration.nonce);
        assert_eq!(held, Some(60));
    }

    #[test]
    fn a_new_id_for_a_name_retires_the_old_one_for_good() {
        let mut members = Members::default();
        members.register(&start(1, "a", 1, 1));
        members.register(&start(2, "b", 1, 1));
        let retired = Some(MemberId(1));
        assert_eq!(
            members.register(&start(3, "a", 1, 1)),
            Applied::Registered { retired }
        );
        assert!(!members.is_active(MemberId(1)) && members.is_active(MemberId(3)));
        assert_eq!(members.id_of("a"), Some(MemberId(3)));
        assert_eq!(members.register(&start(1, "a", 9, 9)), Applied::Retired);
        assert_eq!(members.register(&start(1, "c", 9, 9)), Applied::Retired);
        assert_eq!(members.register(&start(2, "a", 9, 9)), Applied::Retired);
        assert_eq!(members.iter().count(), 3);
    }
}
