//! The registry of members, and the copies each one holds by the metadata. Pure.
//!
//! Rules of registration (DESIGN.md §5):
//! * an id that is known under another name is refused;
//! * a lower incarnation than the registered one is refused, an equal one too unless its nonce is
//!   the same (a reconnect): the disk was rolled back or cloned;
//! * of the ids of a name one is active, the others are retired. Another id, a new one or one that
//!   was retired, becomes the active one if the present one holds no message, or if it is told to
//!   replace it; otherwise it is refused, and tries again.
//!
//! So a start on an empty directory, where a disk is not mounted, costs nothing; and a retired
//! member whose data is there after all comes back with all of its copies, as long as none of them
//! is overwritten or deleted.
//!
//! A retired member takes no new copies and is not asked for those that it has. It stays in the
//! registry, because the metadata still lists it for the copies that it held, until each is
//! overwritten, deleted or (once repair exists) moved. Its counters go down with them.
//!
//! Entries of older builds ([`Members::register`]) retire the present id whatever it holds, and
//! refuse a retired one for good. They keep their effect, as leaders that replay them must agree.
//!
//! Known limit: retired ids are kept for good, some 200 bytes each, so that a stale disk of one is
//! refused at any later time.

use std::collections::BTreeMap;

use crate::faults::{self, Fault};
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

/// How an id stands that registers.
enum Standing {
    /// It was renewed, or refused.
    Known(Applied),
    /// It is retired.
    Retired,
    /// It was never registered.
    New,
}

/// All members that ever registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<MemberId, Member>,
    /// The ids of members that are not retired, by name.
    names: BTreeMap<String, MemberId>,
}

impl Members {
    /// Takes a member in, renews it, or says why not, as entries of older builds mean it.
    pub fn register(&mut self, registration: &Registration) -> Applied {
        match self.renew(registration) {
            Standing::Known(applied) => applied,
            Standing::Retired => Applied::Retired,
            Standing::New => self.activate(registration),
        }
    }

    /// Takes a member in, renews it, or says why not. With `replace` it may take its name from an
    /// id that holds messages.
    pub fn admit(&mut self, registration: &Registration, replace: bool) -> Applied {
        match self.renew(registration) {
            Standing::Known(applied) => return applied,
            Standing::Retired | Standing::New => {}
        }
        let holder = self.id_of(&registration.name);
        let holder = holder.and_then(|id| self.members.get(&id));
        let replace = replace || faults::has(Fault::NewIdRetiresHolder);
        match holder {
            Some(held) if held.records > 0 && !replace => Applied::NameHeld {
                holder: held.registration.id,
                messages: held.records,
            },
            Some(_) | None => self.activate(registration),
        }
    }

    /// Renews the registration of an active member, or refuses one.
    fn renew(&mut self, registration: &Registration) -> Standing {
        let Some(known) = self.members.get_mut(&registration.id) else {
            return Standing::New;
        };
        let held = &known.registration;
        if held.name != registration.name {
            return Standing::Known(Applied::Retired);
        }
        let is_same_start = held.nonce == registration.nonce;
        let is_stale = registration.incarnation < held.incarnation
            || (registration.incarnation == held.incarnation && !is_same_start);
        match known.is_retired {
            true if !is_stale => Standing::Retired,
            _ if is_stale => {
                let registered = held.incarnation;
                Standing::Known(Applied::StaleIncarnation { registered })
            }
            _ => {
                known.registration = registration.clone();
                Standing::Known(Applied::Registered { retired: None })
            }
        }
    }

    /// Makes this id the active one of its name, and retires the one that was.
    fn activate(&mut self, registration: &Registration) -> Applied {
        let id = registration.id;
        let member = self.members.entry(id).or_insert_with(|| Member {
            registration: registration.clone(),
            is_retired: false,
            records: 0,
            bytes: 0,
        });
        member.registration = registration.clone();
        member.is_retired = false;
        let retired = self.names.insert(registration.name.clone(), id);
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
    fn a_new_id_takes_a_name_only_from_one_that_holds_nothing_or_by_request() {
        let mut members = Members::default();
        let registered = |retired: Option<u64>| Applied::Registered {
            retired: retired.map(MemberId),
        };
        assert_eq!(members.admit(&start(1, "a", 1, 1), false), registered(None));
        members.add_copies(MemberId(1), 300, 3000);
        let held = Applied::NameHeld {
            holder: MemberId(1),
            messages: 300,
        };
        let before = members.clone();
        assert_eq!(members.admit(&start(2, "a", 1, 1), false), held);
        assert_eq!(members, before, "a refusal changes nothing");
        // The right disk is mounted again.
        assert_eq!(members.admit(&start(1, "a", 2, 2), false), registered(None));
        assert_eq!(
            members.admit(&start(2, "a", 1, 1), true),
            registered(Some(1))
        );
        assert!(!members.is_active(MemberId(1)) && members.is_active(MemberId(2)));
        assert_eq!(members.member(MemberId(1)).map(|m| m.records), Some(300));
        // Nothing was written to the new one yet, so the old one comes back with all its copies.
        assert_eq!(
            members.admit(&start(1, "a", 3, 3), false),
            registered(Some(2))
        );
        assert!(members.is_active(MemberId(1)) && !members.is_active(MemberId(2)));
        assert_eq!(members.id_of("a"), Some(MemberId(1)));
    }

    #[test]
    fn a_retired_id_comes_back_unless_its_disk_is_stale_or_its_name_is_used() {
        let mut members = Members::default();
        members.admit(&start(1, "a", 5, 5), false);
        members.add_copies(MemberId(1), 10, 100);
        members.admit(&start(2, "a", 1, 1), true);
        members.add_copies(MemberId(2), 1, 10);
        let held = Applied::NameHeld {
            holder: MemberId(2),
            messages: 1,
        };
        assert_eq!(members.admit(&start(1, "a", 6, 6), false), held);
        let stale = Applied::StaleIncarnation { registered: 5 };
        assert_eq!(members.admit(&start(1, "a", 5, 6), true), stale, "cloned");
        assert_eq!(members.admit(&start(1, "a", 4, 6), true), stale, "older");
        assert_eq!(members.admit(&start(1, "b", 6, 6), true), Applied::Retired);
        let retired = Some(MemberId(2));
        assert_eq!(
            members.admit(&start(1, "a", 6, 6), true),
            Applied::Registered { retired }
        );
        assert_eq!(members.member(MemberId(2)).map(|m| m.records), Some(1));
        assert_eq!(members.iter().count(), 2);
    }

    #[test]
    fn an_entry_of_an_older_build_retires_the_old_id_for_good() {
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
