//! What a client does after each answer or failure: whom to ask next, when to rest, when to stop.
//! Pure.
//!
//! A call is a series of **rounds**. In a round every address is asked at most once: the one that
//! led last first, then the others as given. An address that an answer names comes next, at most
//! [`REDIRECTS_MAX`] of them in a round. After a round without a leader the client rests, from
//! [`PAUSE_MIN`] doubling up to [`PAUSE_MAX`], by chance up to half of it less: so many clients
//! that lost the same leader do not come back in step.
//!
//! Invariants:
//! * A request that may not be repeated is never asked again after an attempt that may have done
//!   it.
//! * A write is told as failed only if no attempt may have done it (R15): once one may have, it is
//!   done or unknown.
//! * No attempt begins at or after the deadline, but the first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{Answer, UNKNOWN, error_of};
use super::error::ClientError;
use super::options::Patience;
use crate::clock::Instant;
use crate::error::Outcome;

/// Redirects followed in a round. A group has at most five leaders; a hint that is wrong three
/// times comes from a group that is electing, and a rest does more good.
pub const REDIRECTS_MAX: usize = 3;

/// The first rest and the longest. An election takes 0.3 s or more, so a shorter rest asks in vain;
/// one of twice the longest would be felt as a longer fail-over.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// What of the request and the options decides.
#[derive(Clone, Debug)]
pub struct Policy {
    /// See [`Patience`].
    pub patience: Patience,
    /// No attempt begins from then on.
    pub deadline: Instant,
    /// How long an attempt may wait that may be repeated.
    pub attempt_timeout: Duration,
    /// How long any attempt may wait beyond that.
    pub extra: Duration,
    /// Whether it may change something.
    pub is_write: bool,
    /// Whether it may be sent again when its outcome is not known.
    pub is_repeatable: bool,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The call begins.
    Start,
    /// The rest is over.
    Rested,
    /// The address could not be reached, and why; nothing was sent.
    Unreachable(String),
    /// No answer came, and why; the request may have been sent.
    Lost(String),
    /// An answer came: its first line.
    Answered(Vec<u8>),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the request to this address; an answer may take until then.
    Ask {
        /// `host:port`.
        address: String,
        /// The wait is over then.
        until: Instant,
    },
    /// Wait until then.
    Rest {
        /// The end of the rest.
        until: Instant,
    },
    /// The last answer is the one for the caller.
    Reply,
    /// There is no answer for the caller.
    GiveUp(ClientError),
}

/// One call under way.
pub struct Attempts {
    policy: Policy,
    /// As the client was given them; not empty.
    addresses: Arc<[String]>,
    random: fastrand::Rng,
    /// Whom to ask in this round, in this order.
    turns: VecDeque<String>,
    /// Who was asked in this round, the last one being asked now or answered last.
    asked: Vec<String>,
    /// Hints followed in this round.
    redirects: usize,
    /// What those who were asked in this round said, or why they could not be asked.
    tried: Vec<String>,
    /// Whether anybody took the request in this round.
    is_anybody_there: bool,
    /// Who answered last in this round: it leads, or may know by now who does.
    answered: Option<String>,
    /// What the active leader said, if it was asked last and could not do it.
    refusal: Option<ClientError>,
    /// Whether an attempt may have done the write.
    may_have_happened: bool,
    /// The next rest, at most.
    pause: Duration,
}

impl Attempts {
    /// A call to one of `addresses`, beginning with `first`. `random` makes the rests uneven.
    pub fn new(
        policy: Policy,
        addresses: Arc<[String]>,
        first: Option<&str>,
        random: fastrand::Rng,
    ) -> Attempts {
        assert!(!addresses.is_empty(), "somebody can be asked");
        let mut attempts = Attempts {
            policy,
            addresses,
            random,
            turns: VecDeque::new(),
            asked: Vec::new(),
            redirects: 0,
            tried: Vec::new(),
            is_anybody_there: false,
            answered: None,
            refusal: None,
            may_have_happened: false,
            pause: PAUSE_MIN,
        };
        attempts.begin_round(first.map(str::to_owned));
        attempts
    }

    /// Takes what has happened; says what is to be done.
    pub fn step(&mut self, event: Event, now: Instant) -> Step {
        match event {
            Event::Start => return self.ask_next(now),
            Event::Rested if now >= self.policy.deadline => return self.give_up(),
            Event::Rested => {}
            Event::Unreachable(why) => self.note(&why),
            Event::Lost(why) => {
                self.is_anybody_there = true;
                self.note(&why);
                self.may_have_happened |= self.policy.is_write;
                if !self.policy.is_repeatable {
                    return self.give_up();
                }
            }
            Event::Answered(line) => {
                self.is_anybody_there = true;
                self.answered = self.asked.last().cloned();
                if let Some(end) = self.answered(&line, now) {
                    return end;
                }
            }
        }
        if now >= self.policy.deadline {
            return self.give_up();
        }
        self.ask_next(now)
    }

    /// Takes an answer; says what is to be done unless it is to ask the next one.
    fn answered(&mut self, line: &[u8], now: Instant) -> Option<Step> {
        let answer = Answer::of(line);
        let Some(error) = error_of(line) else {
            return Some(Step::Reply);
        };
        self.note(&match &error {
            ClientError::NoLeader { tried } => tried.clone(),
            other => other.to_string(),
        });
        let patience = self.policy.patience;
        let is_repeated = match answer.clone() {
            Answer::NotLeader(leader) => {
                if let Some(leader) = leader {
                    self.follow(leader);
                }
                return None;
            }
            Answer::Done | Answer::Refused => false,
            Answer::Later => patience == Patience::UntilDeadline || self.may_have_happened,
            Answer::Partial => self.policy.is_repeatable,
            Answer::Unknown => {
                self.may_have_happened |= self.policy.is_write;
                self.policy.is_repeatable
            }
        };
        self.refusal = Some(match error {
            // Nothing can have happened by a read.
            ClientError::Unknown { reason } if !self.policy.is_write => {
                ClientError::Unavailable { reason }
            }
            error => error,
        });
        Some(if is_repeated && patience != Patience::OneRound {
            self.rest(now)
        } else if self.may_have_happened && answer != Answer::Unknown {
            // An earlier attempt may have done what this one did not.
            self.give_up()
        } else {
            Step::Reply
        })
    }

    /// Asks the next one of the round; after the last rests or gives up.
    fn ask_next(&mut self, now: Instant) -> Step {
        let Some(address) = self.turns.pop_front() else {
            let is_over = match self.policy.patience {
                Patience::UntilDeadline => false,
                Patience::WhileElecting => !self.is_anybody_there,
                Patience::OneRound => true,
            };
            return if is_over {
                self.give_up()
            } else {
                self.rest(now)
            };
        };
        self.asked.push(address.clone());
        self.refusal = None;
        let Policy {
            deadline,
            attempt_timeout,
            extra,
            ..
        } = self.policy;
        let mut until = deadline;
        if self.policy.is_repeatable {
            until = until.min(now + attempt_timeout);
        }
        let until = until + extra;
        Step::Ask { address, until }
    }

    /// Ends the round with a rest; the next one begins with whoever answered last.
    fn rest(&mut self, now: Instant) -> Step {
        let most = u64::try_from(self.pause.as_nanos()).unwrap_or(u64::MAX);
        let until = now + Duration::from_nanos(self.random.u64(most / 2..=most));
        if until >= self.policy.deadline {
            return self.give_up();
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let first = self.answered.take();
        self.begin_round(first);
        Step::Rest { until }
    }

    fn begin_round(&mut self, first: Option<String>) {
        self.turns.clear();
        self.asked.clear();
        self.redirects = 0;
        self.is_anybody_there = false;
        let others = self.addresses.iter();
        let others = others.filter(|address| Some(*address) != first.as_ref());
        self.turns.extend(first.iter().chain(others).cloned());
    }

    /// Turns to the leader that an answer names.
    fn follow(&mut self, leader: String) {
        if self.asked.contains(&leader) {
            return;
        }
        if self.redirects == REDIRECTS_MAX {
            self.tried
                .push(format!("more than {REDIRECTS_MAX} redirects"));
            return;
        }
        self.redirects += 1;
        self.turns.retain(|address| *address != leader);
        self.turns.push_front(leader);
    }

    /// Keeps what the one that was asked last said.
    fn note(&mut self, why: &str) {
        if self.asked.len() == 1 {
            self.tried.clear();
        }
        let address = self.asked.last().map_or("", String::as_str);
        self.tried.push(format!("{address}: {why}"));
    }

    fn give_up(&self) -> Step {
        let tried = self.tried.join("; ");
        Step::GiveUp(match self.refusal.clone() {
            Some(ClientError::Partial { reason, stored, .. }) if self.may_have_happened => {
                let outcome = Outcome::Unknown;
                ClientError::Partial {
                    reason,
                    stored,
                    outcome,
                }
            }
            _ if self.may_have_happened => {
                let is_said = tried.contains(UNKNOWN);
                let reason = if is_said {
                    tried
                } else {
                    format!("{tried}; {UNKNOWN}")
                };
                ClientError::Unknown { reason }
            }
            Some(refusal) => refusal,
            None => ClientError::NoLeader { tried },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(is_write: bool, is_repeatable: bool) -> Policy {
        Policy {
            patience: Patience::UntilDeadline,
            deadline: Instant::default() + 10 * SECOND,
            attempt_timeout: 3 * SECOND,
            extra: Duration::ZERO,
            is_write,
            is_repeatable,
        }
    }

    const READ: (bool, bool) = (false, true);
    const TOKEN: (bool, bool) = (true, true);
    const BARE: (bool, bool) = (true, false);

    fn event(word: &str) -> Event {
        match word {
            "start" => Event::Start,
            "rested" => Event::Rested,
            "unreachable" => Event::Unreachable("refused".to_owned()),
            "lost" => Event::Lost("cut".to_owned()),
            line => Event::Answered(line.as_bytes().to_vec()),
        }
    }

    /// A step in a word or two.
    fn told(step: &Step) -> String {
        match step {
            Step::Ask { address, .. } => address.clone(),
            Step::Rest { .. } => "rest".to_owned(),
            Step::Reply => "reply".to_owned(),
            Step::GiveUp(error) => format!("{:?}: {error}", error.outcome()),
        }
    }

    fn attempts(policy: Policy, addresses: &str, first: Option<&str>) -> Attempts {
        let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
        Attempts::new(policy, addresses.into(), first, fastrand::Rng::with_seed(7))
    }

    /// Plays `event -> step` lines, all within the first second.
    fn play(policy: Policy, addresses: &str, script: &[(&str, &str)]) {
        let mut attempts = attempts(policy, addresses, None);
        for (number, (word, expected)) in script.iter().enumerate() {
            let step = attempts.step(event(word), Instant::default());
            assert_eq!(told(&step), *expected, "{number}: {word} of {script:?}");
        }
    }

    const UNKNOWN_REPLY: &str = "ERROR: timed out, the write may or may not have happened";

    #[test]
    fn the_leader_is_found_and_followed() {
        for script in [
            &[("start", "a:1"), ("OK", "reply")][..],
            &[("start", "a:1"), ("unreachable", "b:1"), ("OK", "reply")],
            &[
                ("start", "a:1"),
                ("ERROR: not leader, leader is c:1", "c:1"),
                ("NOT_FOUND", "reply"),
            ],
            // A leader that is not in the list; then nobody is asked twice in a round.
            &[
                ("start", "a:1"),
                ("ERROR: not leader, leader is x:1", "x:1"),
                ("unreachable", "b:1"),
                ("ERROR: not leader, leader is x:1", "c:1"),
                ("ERROR: no leader elected", "rest"),
                // Who answered last is asked first.
                ("rested", "c:1"),
                ("unreachable", "a:1"),
            ],
            // A hint that is no address is none.
            &[
                ("start", "a:1"),
                ("ERROR: not leader, leader is \u{1b}[2J", "b:1"),
            ],
            // Three redirects are followed, the fourth is not.
            &[
                ("start", "a:1"),
                ("ERROR: not leader, leader is w:1", "w:1"),
                ("ERROR: not leader, leader is x:1", "x:1"),
                ("ERROR: not leader, leader is y:1", "y:1"),
                ("ERROR: not leader, leader is z:1", "b:1"),
                ("ERROR: not leader, leader is z:1", "c:1"),
                ("unreachable", "rest"),
            ],
        ] {
            for (is_write, is_repeatable) in [READ, TOKEN, BARE] {
                play(policy(is_write, is_repeatable), "a:1,b:1,c:1", script);
            }
        }
    }

    #[test]
    fn only_what_is_safe_is_repeated() {
        for ((is_write, is_repeatable), script) in [
            (READ, &[("start", "a:1"), ("lost", "b:1")][..]),
            (TOKEN, &[("start", "a:1"), ("lost", "b:1")]),
            (
                BARE,
                &[
                    ("start", "a:1"),
                    (
                        "lost",
                        "Unknown: a:1: cut; the write may or may not have happened",
                    ),
                ],
            ),
            (
                TOKEN,
                &[
                    ("start", "a:1"),
                    (UNKNOWN_REPLY, "rest"),
                    ("rested", "a:1"),
                    ("OK", "reply"),
                ],
            ),
            (BARE, &[("start", "a:1"), (UNKNOWN_REPLY, "reply")]),
            // What the leader did not do may be done again by anyone.
            (
                BARE,
                &[
                    ("start", "a:1"),
                    ("ERROR: busy, try again", "rest"),
                    ("rested", "a:1"),
                    ("ERROR: message too large (limit 9 bytes)", "reply"),
                ],
            ),
            // A bulk write that ended on the way goes on under its token alone.
            (
                TOKEN,
                &[
                    ("start", "a:1"),
                    ("ERROR: busy, try again (stored 1-5)", "rest"),
                ],
            ),
            (
                BARE,
                &[
                    ("start", "a:1"),
                    ("ERROR: busy, try again (stored 1-5)", "reply"),
                ],
            ),
        ] {
            play(policy(is_write, is_repeatable), "a:1,b:1", script);
        }
    }

    #[test]
    fn failed_is_not_said_of_what_may_have_happened() {
        let why = "a:1: cut; b:1: message too large; the write may or may not have happened";
        let script = [
            ("start", "a:1"),
            ("lost", "b:1"),
            ("ERROR: message too large", &format!("Unknown: {why}")),
        ];
        play(policy(true, true), "a:1,b:1", &script);
        // Of a read nothing can have happened.
        let script = [
            ("start", "a:1"),
            ("lost", "b:1"),
            ("ERROR: GET <id>", "reply"),
        ];
        play(policy(false, true), "a:1,b:1", &script);
        let mut waiting = attempts(policy(true, true), "a:1,b:1", None);
        for word in ["start", "lost", "ERROR: busy, try again (stored 4-5)"] {
            waiting.step(event(word), Instant::default());
        }
        let end = waiting.step(Event::Rested, Instant::default() + 10 * SECOND);
        let Step::GiveUp(ClientError::Partial { stored, .. }) = &end else {
            panic!("{end:?}");
        };
        assert_eq!(*stored, Some((4, 5)));
        assert_eq!(told(&end), "Unknown: busy, try again (stored 4-5)");
    }

    #[test]
    fn who_is_less_patient_is_told_earlier() {
        let with = |patience| Policy {
            patience,
            ..policy(true, true)
        };
        let nobody = "Failed: no leader: a:1: refused; b:1: refused";
        let script = [("start", "a:1"), ("unreachable", "b:1")];
        for (patience, then) in [
            (Patience::UntilDeadline, "rest"),
            (Patience::WhileElecting, nobody),
            (Patience::OneRound, nobody),
        ] {
            let script = [&script[..], &[("unreachable", then)]].concat();
            play(with(patience), "a:1,b:1", &script);
        }
        let none = "ERROR: no leader elected";
        let given_up = "Failed: no leader: a:1: refused; b:1: no leader elected";
        for (patience, then) in [
            (Patience::UntilDeadline, "rest"),
            (Patience::WhileElecting, "rest"),
            (Patience::OneRound, given_up),
        ] {
            let script = [&script[..], &[(none, then)]].concat();
            play(with(patience), "a:1,b:1", &script);
        }
        for (patience, then) in [
            (Patience::UntilDeadline, "rest"),
            (Patience::WhileElecting, "reply"),
            (Patience::OneRound, "reply"),
        ] {
            let script = [("start", "a:1"), ("ERROR: busy, try again", then)];
            play(with(patience), "a:1,b:1", &script);
        }
    }

    #[test]
    fn a_rest_that_would_outlast_the_deadline_is_the_end() {
        let mut attempts = attempts(policy(true, true), "a:1", None);
        attempts.step(Event::Start, Instant::default());
        let almost = Instant::default() + (10 * SECOND - Duration::from_millis(1));
        let end = attempts.step(event("unreachable"), almost);
        assert_eq!(told(&end), "Failed: no leader: a:1: refused");
    }

    #[test]
    fn the_leader_of_last_time_is_asked_first() {
        let mut attempts = attempts(policy(true, true), "a:1,b:1", Some("x:1"));
        let mut ask = |word| told(&attempts.step(event(word), Instant::default()));
        assert_eq!(
            [ask("start"), ask("lost"), ask("lost")],
            ["x:1", "a:1", "b:1"]
        );
    }

    #[test]
    fn an_attempt_waits_as_long_as_it_may() {
        for ((is_write, is_repeatable), begin, extra, seconds) in [
            (READ, 0, 0, 3),
            (TOKEN, 0, 2, 5),
            (TOKEN, 9, 2, 12),
            (BARE, 0, 0, 10),
            (BARE, 4, 5, 15),
        ] {
            let policy = Policy {
                extra: extra * SECOND,
                ..policy(is_write, is_repeatable)
            };
            let begin = Instant::default() + begin * SECOND;
            let step = attempts(policy, "a:1", None).step(Event::Start, begin);
            let Step::Ask { until, .. } = step else {
                panic!("{step:?}");
            };
            assert_eq!(until, Instant::default() + seconds * SECOND);
        }
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use proptest::prelude::*;

    const LINES: &[&str] = &[
        "OK",
        "NOT_FOUND",
        "ERROR: no leader elected",
        "ERROR: not leader, leader is a:1",
        "ERROR: not leader, leader is b:1",
        "ERROR: not leader, leader is v:1",
        "ERROR: not leader, leader is w:1",
        "ERROR: not leader, leader is x:1",
        "ERROR: not leader, leader is y:1",
        "ERROR: busy, try again",
        "ERROR: busy, try again (stored 1-2)",
        "ERROR: timed out, the write may or may not have happened",
        "ERROR: unknown command",
    ];

    const ADDRESSES: [&str; 3] = ["a:1", "b:1", "c:1"];

    /// What may come back from an attempt, and after how many milliseconds.
    fn outcomes() -> impl Strategy<Value = Vec<(Event, u64)>> {
        let answer = proptest::sample::select(LINES)
            .prop_map(|line| Event::Answered(line.as_bytes().to_vec()));
        let event = prop_oneof![
            4 => answer,
            1 => Just(Event::Lost("cut".to_owned())),
            2 => Just(Event::Unreachable("refused".to_owned())),
        ];
        proptest::collection::vec((event, 0..400_u64), 400)
    }

    fn policies() -> impl Strategy<Value = Policy> {
        let kinds = vec![(false, true), (true, true), (true, false)];
        let patience = vec![
            Patience::UntilDeadline,
            Patience::WhileElecting,
            Patience::OneRound,
        ];
        let parts = (
            proptest::sample::select(kinds),
            proptest::sample::select(patience),
        );
        parts.prop_map(|((is_write, is_repeatable), patience)| Policy {
            patience,
            deadline: Instant::default() + Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(1),
            extra: Duration::ZERO,
            is_write,
            is_repeatable,
        })
    }

    /// Whether an attempt that ended so may have done a write.
    fn is_open(event: &Event) -> bool {
        match event {
            Event::Lost(_) => true,
            Event::Answered(line) => Answer::of(line) == Answer::Unknown,
            Event::Start | Event::Rested | Event::Unreachable(_) => false,
        }
    }

    fn check(policy: &Policy, outcomes: Vec<(Event, u64)>, seed: u64) -> Result<(), TestCaseError> {
        let deadline = policy.deadline;
        let random = fastrand::Rng::with_seed(seed);
        let addresses = ADDRESSES.map(str::to_owned).into();
        let mut attempts = Attempts::new(policy.clone(), addresses, None, random);
        let mut now = Instant::default();
        let mut event = Event::Start;
        let (mut asked, mut may_have_happened) = (Vec::<String>::new(), false);
        let mut outcomes = outcomes.into_iter();
        loop {
            let last = event.clone();
            match attempts.step(event, now) {
                Step::Ask { address, until } => {
                    prop_assert!(policy.is_repeatable || !may_have_happened);
                    prop_assert!(now < deadline && until > now && until <= deadline);
                    prop_assert!(!asked.contains(&address), "{} twice", address);
                    asked.push(address);
                    // The first one may be who answered last, wherever that was.
                    let hinted = asked.iter().skip(1);
                    let hinted = hinted.filter(|one| !ADDRESSES.contains(&one.as_str()));
                    prop_assert!(hinted.count() <= REDIRECTS_MAX);
                    let Some((next, ms)) = outcomes.next() else {
                        return Ok(()); // Long enough.
                    };
                    now = now + Duration::from_millis(ms);
                    may_have_happened |= policy.is_write && is_open(&next);
                    event = next;
                }
                Step::Rest { until } => {
                    prop_assert!(policy.patience != Patience::OneRound);
                    prop_assert!(until > now && until < deadline);
                    prop_assert!(until.since(now) <= PAUSE_MAX);
                    (now, event) = (until, Event::Rested);
                    asked.clear();
                }
                Step::Reply => {
                    let Event::Answered(line) = last else {
                        return Err(TestCaseError::fail("a reply without an answer"));
                    };
                    let answer = Answer::of(&line);
                    prop_assert!(!matches!(answer, Answer::NotLeader(_)));
                    let is_told = matches!(answer, Answer::Done | Answer::Unknown);
                    prop_assert!(is_told || !may_have_happened);
                    return Ok(());
                }
                Step::GiveUp(error) => {
                    let is_unknown = error.outcome() == Outcome::Unknown;
                    prop_assert_eq!(is_unknown, may_have_happened, "{}", error);
                    return Ok(());
                }
            }
        }
    }

    proptest! {
        /// Whatever comes back: nothing that may have been done is sent again without a token, or
        /// told as failed; no round follows more than three hints, or asks anyone twice; nothing
        /// begins after the deadline; and it ends.
        #[test]
        fn any_series_of_outcomes_is_handled_safely(
            outcomes in outcomes(),
            policy in policies(),
            seed in any::<u64>(),
        ) {
            check(&policy, outcomes, seed)?;
        }
    }
}
