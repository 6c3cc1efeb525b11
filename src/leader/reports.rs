//! What members have seen of leaders, and whether this one may serve above all of it. Pure.
//!
//! A leader whose directory is an older copy (a restored backup, a disk that was rolled back) does
//! not know in which terms it served since, and which revisions it gave out. The members know: each
//! tells the highest fence that it has executed and the furthest entry that a leader said is
//! committed, at registration and with each heartbeat, to every leader, active or not. From that
//! follows, for the term that this leader leads:
//!
//! * **Enough members have told** when so many of the N registered ones have that every message
//!   with `tolerance` copies has one at a member that told: N - tolerance + 1, at least one. After
//!   [`SILENT_MEMBERS_WAIT`] those that have told are enough; the log says so.
//! * A fence of **this term or a later one that this leader did not send** means that the term is
//!   used: it goes on above it, and never serves in it. A fence of this term is its own by its link
//!   number: each start counts links from a random number on. A committed entry of this term behind
//!   the last one that is applied here means the same, since members are told of no later one.
//! * A term that is more than [`TERMS_AHEAD_MAX`] above all others is no term: a member that tells
//!   such a one is not obeyed, and left to refuse what it is sent.
//! * A **committed entry that is missing** here, since it stands above the log with which the term
//!   was begun: acknowledged writes are lost. See [`Verdict::Lost`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::ids::{LogPosition, MemberId, Revision};
use crate::rpc::message::Seen;

/// How long a leader waits for members that do not tell. Long enough for a member to read a large
/// log at its start; at ten times of it a lost member would hold up every start for minutes.
pub const SILENT_MEMBERS_WAIT: Duration = Duration::from_secs(15);

/// How far a term may be above all that others tell. An election takes some 0.3 s at least, so
/// these are days of elections without a leader.
pub const TERMS_AHEAD_MAX: u64 = Revision::TERM_BELIEVED_MAX;

/// Members that are remembered; more are passed over. A cluster has some tens.
const REPORTS_MAX: usize = 4096;

/// What the reports mean for the term that this leader leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may serve. `silent` members have not told what they have seen, and more than may be.
    Serve {
        /// How many more should have told.
        silent: usize,
        /// A committed entry that is not in the log: this leader is the only one, so nobody has it.
        lost: Option<Lost>,
    },
    /// Not yet.
    Wait {
        /// Members that have told.
        have: usize,
        /// As many as must.
        need: usize,
    },
    /// The term was used by somebody else: go on above this one.
    Leave {
        /// The highest term that was used.
        above: u64,
        /// Who said so.
        member: MemberId,
    },
    /// Committed entries are missing here, and another leader may have them: it must not serve.
    Lost(Lost),
}

/// A committed entry that is not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Who told of it.
    pub member: MemberId,
    /// The entry.
    pub committed: LogPosition,
}

/// What is judged: the term that this leader leads, and its surroundings.
pub struct Case<'a> {
    /// The term.
    pub term: u64,
    /// The last entry before those of the term.
    pub behind: LogPosition,
    /// The last entry that is applied: no member was told of a later one by this leader.
    pub applied: u64,
    /// When it began to lead it.
    pub since: Instant,
    /// The members that are registered.
    pub registered: &'a [MemberId],
    /// Copies of each message.
    pub tolerance: usize,
    /// Whether there is no other leader.
    pub is_alone: bool,
    /// Committed entries up to here may be missing.
    pub accepts_loss: LogPosition,
    /// Whether a link number is one of this start.
    pub is_own_link: &'a dyn Fn(u64) -> bool,
}

/// What each member has told since this start.
#[derive(Debug, Default)]
pub struct Reports {
    seen: BTreeMap<MemberId, Seen>,
}

impl Reports {
    /// A member has told what it has seen. True if that is more than before.
    pub fn add(&mut self, member: MemberId, seen: Seen) -> bool {
        if self.seen.len() >= REPORTS_MAX && !self.seen.contains_key(&member) {
            return false;
        }
        self.seen.insert(member, seen) != Some(seen)
    }

    /// What a member has told.
    pub fn of(&self, member: MemberId) -> Option<&Seen> {
        self.seen.get(&member)
    }

    /// The members whose terms are so far above all others that they are not obeyed.
    pub fn absurd(&self, term: u64) -> Vec<MemberId> {
        let mut known: Vec<(u64, MemberId)> = self
            .seen
            .iter()
            .map(|(member, seen)| (seen.fence.term.max(seen.committed.term), *member))
            .collect();
        known.sort_unstable();
        let mut highest = term;
        let mut absurd = Vec::new();
        for (told, member) in known {
            match told > highest.saturating_add(TERMS_AHEAD_MAX) {
                true => absurd.push(member),
                false => highest = highest.max(told),
            }
        }
        absurd
    }

    /// How many of the registered members have told, and how many must.
    pub fn count(&self, registered: &[MemberId], tolerance: usize) -> (usize, usize) {
        let need = match registered.len() {
            0 => 0,
            count => (count + 1).saturating_sub(tolerance).max(1),
        };
        let told = |member: &&MemberId| self.seen.contains_key(*member);
        (registered.iter().filter(told).count(), need)
    }

    /// The furthest committed entry that members tell of which are believed in `term`.
    pub fn furthest_committed(&self, term: u64) -> LogPosition {
        let absurd = self.absurd(term);
        let believed = self.seen.iter().filter(|(id, _)| !absurd.contains(id));
        let told = believed.map(|(_, seen)| seen.committed);
        told.max().unwrap_or_default()
    }

    /// Whether the leader may serve.
    pub fn judge(&self, case: &Case<'_>, now: Instant) -> Verdict {
        let absurd = self.absurd(case.term);
        let believed = || self.seen.iter().filter(|(id, _)| !absurd.contains(id));
        let is_used = |seen: &Seen| {
            let Seen {
                fence, committed, ..
            } = seen;
            let is_other = fence.term == case.term && !(case.is_own_link)(fence.link);
            let is_beyond = committed.term == case.term && committed.index > case.applied;
            fence.term > case.term || committed.term > case.term || is_other || is_beyond
        };
        let used = believed().filter(|(_, seen)| is_used(seen));
        let term = |seen: &Seen| seen.fence.term.max(seen.committed.term);
        if let Some((member, seen)) = used.max_by_key(|(_, seen)| term(seen)) {
            let (above, member) = (term(seen), *member);
            return Verdict::Leave { above, member };
        }
        let is_missing =
            |seen: &Seen| seen.committed.term < case.term && seen.committed > case.behind;
        let missing = believed().filter(|(_, seen)| is_missing(seen));
        let lost = missing.max_by_key(|(_, seen)| seen.committed);
        let lost = lost.map(|(member, seen)| Lost {
            member: *member,
            committed: seen.committed,
        });
        if let Some(lost) = lost
            && !case.is_alone
            && lost.committed > case.accepts_loss
        {
            return Verdict::Lost(lost);
        }
        let (have, need) = self.count(case.registered, case.tolerance);
        if have < need && now.since(case.since) < SILENT_MEMBERS_WAIT {
            return Verdict::Wait { have, need };
        }
        let silent = need.saturating_sub(have);
        Verdict::Serve { silent, lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Fence;

    const MEMBERS: [MemberId; 3] = [MemberId(1), MemberId(2), MemberId(3)];

    fn seen(term: u64, link: u64) -> Seen {
        Seen {
            fence: Fence { term, link },
            ..Seen::default()
        }
    }

    fn committed(term: u64, index: u64) -> Seen {
        Seen {
            committed: LogPosition { term, index },
            ..seen(term, 100)
        }
    }

    /// Led since the origin of time, with links from 100 on.
    fn judge(reports: &Reports, term: u64, is_alone: bool, seconds: u64) -> Verdict {
        let case = Case {
            term,
            behind: LogPosition { term: 4, index: 40 },
            applied: 99,
            since: Instant::default(),
            registered: &MEMBERS,
            tolerance: 2,
            is_alone,
            accepts_loss: LogPosition { term: 4, index: 60 },
            is_own_link: &|link| link >= 100,
        };
        reports.judge(&case, Instant::default() + Duration::from_secs(seconds))
    }

    const SERVE: Verdict = Verdict::Serve {
        silent: 0,
        lost: None,
    };

    #[test]
    fn it_serves_when_every_message_has_a_copy_at_a_member_that_told() {
        let mut reports = Reports::default();
        let wait = |have| Verdict::Wait { have, need: 2 };
        assert_eq!(judge(&reports, 5, true, 0), wait(0));
        assert!(reports.add(MemberId(1), seen(3, 7)));
        assert!(!reports.add(MemberId(1), seen(3, 7)), "nothing new");
        // One that is not registered counts for nothing here.
        reports.add(MemberId(9), seen(0, 0));
        assert_eq!(judge(&reports, 5, true, 14), wait(1));
        let late = Verdict::Serve {
            silent: 1,
            lost: None,
        };
        assert_eq!(judge(&reports, 5, true, 15), late);
        reports.add(MemberId(3), seen(4, 1));
        assert_eq!(judge(&reports, 5, true, 0), SERVE);
    }

    #[test]
    fn a_term_that_somebody_else_used_is_left() {
        let mut reports = Reports::default();
        for member in MEMBERS {
            reports.add(member, seen(4, 9));
        }
        assert_eq!(judge(&reports, 5, true, 0), SERVE);
        // Its own links, in its own term.
        reports.add(MemberId(2), seen(5, 100));
        assert_eq!(judge(&reports, 5, true, 0), SERVE);
        for told in [seen(5, 99), seen(6, 1), committed(6, 1), committed(5, 100)] {
            reports.add(MemberId(2), told);
            let leave = Verdict::Leave {
                above: told.fence.term,
                member: MemberId(2),
            };
            assert_eq!(judge(&reports, 5, true, 0), leave);
        }
        let later = judge(&reports, 7, true, 0);
        assert!(
            matches!(later, Verdict::Serve { silent: 0, .. }),
            "{later:?}"
        );
    }

    #[test]
    fn a_committed_entry_that_is_missing_is_noticed() {
        let mut reports = Reports::default();
        for member in MEMBERS {
            reports.add(member, committed(4, 40));
        }
        assert_eq!(judge(&reports, 5, false, 0), SERVE);
        // Up to 60 it is accepted.
        reports.add(MemberId(2), committed(4, 60));
        assert!(matches!(
            judge(&reports, 5, false, 0),
            Verdict::Serve { lost: Some(_), .. }
        ));
        reports.add(MemberId(2), committed(4, 61));
        let lost = Lost {
            member: MemberId(2),
            committed: LogPosition { term: 4, index: 61 },
        };
        assert_eq!(reports.furthest_committed(5), lost.committed);
        assert_eq!(judge(&reports, 5, false, 0), Verdict::Lost(lost));
        // Nobody else could have it.
        let serve = Verdict::Serve {
            silent: 0,
            lost: Some(lost),
        };
        assert_eq!(judge(&reports, 5, true, 0), serve);
        // What it has committed itself.
        reports.add(MemberId(2), committed(5, 99));
        assert_eq!(judge(&reports, 5, false, 0), SERVE);
    }

    #[test]
    fn a_member_with_an_absurd_term_is_not_obeyed_and_holds_up_nobody() {
        let mut reports = Reports::default();
        reports.add(MemberId(1), seen(4, 9));
        reports.add(MemberId(2), seen(5 + TERMS_AHEAD_MAX + 1, 1));
        assert_eq!(reports.absurd(5), [MemberId(2)]);
        assert_eq!(judge(&reports, 5, true, 0), SERVE);
        // Two that agree are no better, but the step from one to the other is small.
        reports.add(MemberId(3), seen(5 + TERMS_AHEAD_MAX, 1));
        assert_eq!(reports.absurd(5), []);
        let above = 5 + TERMS_AHEAD_MAX + 1;
        let leave = Verdict::Leave {
            above,
            member: MemberId(2),
        };
        assert_eq!(judge(&reports, 5, true, 0), leave);
    }
}
