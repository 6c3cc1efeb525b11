//! Whether the term that this leader leads is open to clients: kept up to date as members tell what
//! they have seen ([`reports`](crate::leader::reports)), looked at by all threads.
//!
//! The group begins a term as soon as its first entry is applied. It is open when the reports allow
//! it; until then members are registered and the group of leaders can be changed, and that is all.
//! A report that forbids it later closes it at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{error, info, warn};
use parking_lot::Mutex;

use crate::clock::Instant;
use crate::error::Failure;
use crate::ids::{Fence, LogPosition, MemberId};
use crate::leader::reports::{Case, Lost, Reports, TERMS_AHEAD_MAX, Verdict};
use crate::leader::state::Shared;
use crate::rpc::message::Seen;

/// The state of the term.
#[derive(Default)]
pub struct Gate {
    /// The term that is open to clients; 0 if none is.
    open: AtomicU64,
    /// The highest term that somebody else used.
    left: AtomicU64,
    /// Members tell nothing: every term is open.
    is_unguarded: AtomicBool,
    /// Guards only itself.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reports: Reports,
    led: Option<Led>,
    /// Of an only leader that left a term: what stood before that term. What it appended in it is
    /// not what members miss.
    left_behind: Option<LogPosition>,
    /// What was found lost since the start, for people.
    loss: Option<String>,
    /// Committed entries up to here may be missing, as people have decided.
    accepts_loss: LogPosition,
    /// What the group was told of members.
    group_knows: Option<(LogPosition, bool)>,
    /// Members that tell absurd terms, and were logged.
    absurd: Vec<MemberId>,
}

/// The term that is led.
struct Led {
    term: u64,
    behind: LogPosition,
    /// When it was looked at first.
    since: Option<Instant>,
    /// What was found last, and is in the log.
    verdict: Option<Verdict>,
}

/// What a look needs beside the reports.
pub struct Surroundings<'a> {
    /// The members that are registered.
    pub registered: &'a [MemberId],
    /// Copies of each message.
    pub tolerance: usize,
    /// The last entry that is applied. Asked for after the reports were taken: members may have
    /// been told of it just now, and say so.
    pub applied: &'a dyn Fn() -> u64,
    /// Whether there is no other leader.
    pub is_alone: bool,
    /// Whether a link number is one of this start.
    pub is_own_link: &'a dyn Fn(u64) -> bool,
}

impl Gate {
    /// Every term that nobody else used is open from here on, and none is stepped over: for a
    /// simulation whose members tell nothing.
    pub fn leave_open(&self) {
        self.is_unguarded.store(true, Ordering::Release);
    }

    /// Committed entries up to `position` may be missing: people have decided so.
    pub fn accept_loss(&self, position: LogPosition) {
        self.state.lock().accepts_loss = position;
    }

    /// Hands on what members know to be committed beyond what may be missing, and whether enough of
    /// them have told, when that has changed. It counts as handed on if `hand_on` says so.
    pub fn tell_group(
        &self,
        (term, registered, tolerance): (u64, &[MemberId], usize),
        hand_on: impl FnOnce(LogPosition, bool) -> bool,
    ) {
        let mut state = self.state.lock();
        let (have, need) = state.reports.count(registered, tolerance);
        let committed = state.reports.furthest_committed(term);
        let committed = match committed > state.accepts_loss {
            true => committed,
            false => LogPosition::default(),
        };
        let news = (committed, have >= need);
        if state.group_knows != Some(news) && hand_on(news.0, news.1) {
            state.group_knows = Some(news);
        }
    }

    /// The group leads `term`; `behind` is the last entry before it.
    pub fn begin(&self, term: u64, behind: LogPosition) {
        let mut state = self.state.lock();
        let behind = state.left_behind.take().unwrap_or(behind);
        state.led = Some(Led {
            term,
            behind,
            since: None,
            verdict: None,
        });
    }

    /// No term is led.
    pub fn end(&self) {
        self.open.store(0, Ordering::Release);
        self.state.lock().led = None;
    }

    /// Whether `term` is open to clients.
    pub fn is_open(&self, term: u64) -> bool {
        self.is_unguarded.load(Ordering::Acquire) || self.open.load(Ordering::Acquire) == term
    }

    /// Whether somebody else used `term`, as far as is known: nothing is to be done in it.
    pub fn is_left(&self, term: u64) -> bool {
        term <= self.left()
    }

    /// The highest term that somebody else used, as far as is known; 0 if none was.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Which acknowledged writes are lost, as found since the start, for people.
    pub fn loss(&self) -> Option<String> {
        self.state.lock().loss.clone()
    }

    /// A member tells what it has seen. True if that is news.
    pub fn told(&self, member: MemberId, seen: Seen) -> bool {
        self.state.lock().reports.add(member, seen)
    }

    /// A member refuses what carries a lower fence than this one. True if that is news.
    pub fn refused(&self, member: MemberId, highest: Fence) -> bool {
        let mut state = self.state.lock();
        let mut seen = state.reports.of(member).copied().unwrap_or_default();
        seen.fence = highest.max(seen.fence);
        state.reports.add(member, seen)
    }

    /// Why the term that is led is not open; none if it is, or if none is led.
    pub fn hindrance(&self) -> Option<Failure> {
        if self.is_unguarded.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        match state.led.as_ref()?.verdict? {
            Verdict::Serve { .. } => None,
            Verdict::Wait { have, need } => Some(Failure::LeaderWaits { have, need }),
            Verdict::Leave { above, .. } => Some(Failure::TermOver { above }),
            Verdict::Lost(_) => Some(Failure::LeaderIncomplete),
        }
    }

    /// Judges the reports, at `now` if time counts, and opens or closes the term. The term above
    /// which the group must go on, if that is so.
    pub fn look(&self, now: Option<Instant>, around: &Surroundings<'_>) -> Option<u64> {
        let mut state = self.state.lock();
        let State {
            reports,
            led,
            left_behind,
            loss,
            accepts_loss,
            absurd,
            ..
        } = &mut *state;
        let led = led.as_mut()?;
        if let (None, Some(now)) = (led.since, now) {
            led.since = Some(now);
        }
        let now = now.unwrap_or_default();
        let case = Case {
            term: led.term,
            behind: led.behind,
            applied: (around.applied)(),
            since: led.since.unwrap_or(now),
            registered: around.registered,
            tolerance: around.tolerance,
            is_alone: around.is_alone,
            accepts_loss: *accepts_loss,
            is_own_link: around.is_own_link,
        };
        let verdict = reports.judge(&case, now);
        let found = reports.absurd(led.term);
        for member in found.iter().filter(|member| !absurd.contains(member)) {
            let fence = reports.of(*member).map(|seen| seen.fence);
            error!(
                "member {member} has executed fence {}, a term more than {TERMS_AHEAD_MAX} above \
                 all others: it is not believed, and refuses what it is sent",
                fence.unwrap_or_default()
            );
        }
        *absurd = found;
        let is_known = led.verdict == Some(verdict);
        led.verdict = Some(verdict);
        let (open, above) = match verdict {
            Verdict::Serve { .. } => (led.term, None),
            Verdict::Wait { .. } | Verdict::Lost(_) => (0, None),
            Verdict::Leave { above, .. } => (0, Some(above)),
        };
        if let Some(above) = above {
            self.left.fetch_max(above, Ordering::AcqRel);
            *left_behind = around.is_alone.then_some(led.behind);
        }
        self.open.store(open, Ordering::Release);
        if !is_known {
            if let Verdict::Serve {
                lost: Some(lost), ..
            } = verdict
            {
                *loss = Some(describe(led, reports, lost));
            }
            report(led, loss.as_deref(), verdict);
        }
        above.filter(|_| !self.is_unguarded.load(Ordering::Acquire))
    }
}

impl Shared {
    /// The term that this leader leads, whether clients are served in it already or not: members
    /// register, and the group of leaders is changed.
    pub fn leading_term(&self) -> Option<u64> {
        let status = self.group.status();
        (status.serving && !self.view.gate.is_left(status.term)).then_some(status.term)
    }

    /// Why nobody is served, if this leader knows more than that none is elected.
    pub fn hindrance(&self) -> Option<Failure> {
        let gate = &self.view.gate;
        if let Some(failure) = gate.hindrance() {
            return Some(failure);
        }
        let status = self.group.status();
        if status.leader.is_some() {
            return None;
        }
        let above = gate.left();
        if above > 0 && status.term <= above {
            return Some(Failure::TermOver { above });
        }
        self.group.obstacle().map(|_| Failure::LeaderIncomplete)
    }

    /// What is committed, for members to bear witness: nothing unless this leader serves.
    pub fn committed(&self) -> LogPosition {
        let Some(term) = self.serving_term() else {
            return LogPosition::default();
        };
        // Where a term is served, its first entry is applied, and all behind it are of the term.
        let index = self.group.status().applied;
        LogPosition { term, index }
    }

    /// A member tells what it has seen of leaders.
    pub fn told(&self, member: MemberId, seen: Seen) {
        if self.view.gate.told(member, seen) {
            self.look_at_gate();
        }
    }

    /// Opens or closes the gate as the reports of members demand, and goes on in a later term if
    /// this one was used.
    pub fn look_at_gate(&self) {
        let is_own_link = |number| self.links.has_numbered(number);
        let now = Some(self.clock.now());
        let applied = || self.group.status().applied;
        self.view
            .tell_group(self.group.status().term, |committed, is_enough| {
                self.group.members_told(committed, is_enough)
            });
        if let Some(above) = self.view.look_at_gate(now, &applied, &is_own_link) {
            self.group.leave_terms(above);
        }
    }

    /// A member refuses a request: it has executed this fence.
    pub fn refused(&self, member: MemberId, highest: Fence) {
        if highest.is_absurd_above(self.group.status().term) {
            if self.view.cluster.lock().isolate(member, highest) {
                error!(
                    "member {member} has executed fence {highest}, which no leader of this group \
                     can have made: it is isolated, neither written to nor read from"
                );
            }
            return;
        }
        if self.view.gate.refused(member, highest) {
            self.look_at_gate();
        }
    }
}

/// How the line begins that tells of lost writes, here and in the log.
pub const OLDER_COPY: &str = "this leader's directory is an older copy";

/// Which acknowledged writes are lost.
fn describe(led: &Led, reports: &Reports, lost: Lost) -> String {
    let (behind, Lost { member, committed }) = (led.behind, lost);
    let revision = reports.of(member).and_then(|seen| seen.revision);
    let revision = revision.map_or("none".to_owned(), |one| one.to_string());
    format!(
        "{OLDER_COPY}: its log ended at entry {behind}, and member {member} knows of committed \
         entries up to {committed} (highest revision {revision}). Acknowledged writes behind the \
         copy are LOST: their messages are not found"
    )
}

/// Says in the log what was found.
fn report(led: &Led, loss: Option<&str>, verdict: Verdict) {
    let Led { term, behind, .. } = led;
    match verdict {
        Verdict::Serve { silent, lost } => {
            if silent > 0 {
                warn!(
                    "{silent} members too few have told what they have seen, and are waited for no \
                     longer: a term that only those know may be used again"
                );
            }
            if let (Some(_), Some(loss)) = (lost, loss) {
                error!("{loss}. It serves what it has, in term {term}");
            }
            info!("term {term} is open to clients");
        }
        Verdict::Wait { have, need } => {
            info!("waiting for members to tell what they have seen: {have} of {need}");
        }
        Verdict::Leave { above, member } => error!(
            "member {member} has executed requests of term {above}, and this leader in term {term} \
             did not send them: another one leads, or this directory is older than what it served; \
             it goes on above term {above}"
        ),
        Verdict::Lost(Lost { member, committed }) => error!(
            "this leader's log ended at entry {behind} when it was elected, and member {member} \
             knows of committed entries up to {committed}: this leader or one that voted for it \
             runs on an older copy of its directory. It does not serve. Stop the leaders that were \
             restored, and start those that have the entries; if there are none, all leaders \
             started with --accept-loss {}.{} give them up",
            committed.term, committed.index
        ),
    }
}
