//! The simulation: a whole cluster in one thread, with invented time, disks, network and disasters.
//!
//! Leaders, members and clients are the real code, without its threads and sockets: the group's
//! node, journal and snapshots, the state machine, batches, housekeeping, the append thread's
//! and the readers' work. A seed decides everything. Each seed runs twice and must leave the same
//! trace.
//!
//! What is checked: `oracle` after every event, `settle` for liveness, the checker of histories for
//! every answer; `census` says whether all that is meant to happen does. What is not in it: TLS,
//! frames, the protocols of clients and the hand-over between threads; they have suites of their
//! own.
//!
//! ```text
//! cargo test --test sim
//! SEEDS=1..50000 cargo test --release --test sim -- --ignored
//! SEED=7 cargo test --release --test sim -- --ignored
//! ```
//!
//! `WITHOUT=net,disk` switches kinds of faults off, `THREADS=1` runs on one core.

#[path = "../support/history.rs"]
#[allow(dead_code)]
mod history;
#[path = "../support/linearize.rs"]
#[allow(dead_code)]
mod linearize;

mod census;
mod client;
mod clock;
mod copies;
mod disks;
mod dispatch;
mod events;
mod group;
mod leader;
mod member;
mod nemesis;
mod net;
mod oracle;
mod peers;
mod plan;
mod settle;
mod stepping;
mod storing;
mod trace;
mod world;

use std::io::Write;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;
use tolerex::clock::{Clock, SystemClock};

use census::Census;
use plan::{Kind, Plan};
use world::{Report, World};

/// After so many seeds a line says how far it is.
const PROGRESS: u64 = 1_000;

/// Seeds of the usual test.
const USUAL: RangeInclusive<u64> = 1..=200;

/// One run; a panic of the code under test is a violation.
fn run(seed: u64, without: &[Kind], prints: bool) -> Report {
    let plan = Plan::new(seed, without);
    let world = AssertUnwindSafe(|| World::new(plan, prints).run());
    catch_unwind(world).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Report {
            hash: 0,
            events: 0,
            violation: Some(format!("panic: {}", text.unwrap_or_default())),
            tail: String::new(),
            operations: (0, 0),
            census: Census::default(),
        }
    })
}

/// Both runs of a seed; what is wrong with it, and how to see it.
fn check(seed: u64, without: &[Kind]) -> Result<Report, String> {
    let first = run(seed, without, false);
    if let Some(violation) = &first.violation {
        return Err(format!(
            "seed {seed}: {violation}\n{}\nSEED={seed} cargo test --release --test sim -- \
             --ignored",
            first.tail
        ));
    }
    let second = run(seed, without, false);
    if first.hash != second.hash {
        return Err(format!(
            "seed {seed}: two runs differ, of {} and {} events",
            first.events, second.events
        ));
    }
    Ok(first)
}

/// What seeds came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    events: u64,
    operations: usize,
    done: usize,
    census: Census,
    failures: Vec<String>,
}

impl Sum {
    fn add(&mut self, checked: Result<Report, String>) {
        self.seeds += 1;
        match checked {
            Ok(report) => {
                self.events += report.events;
                self.operations += report.operations.0;
                self.done += report.operations.1;
                self.census.add(&report.census);
            }
            Err(failure) => {
                say(&format!("{failure}\n"));
                self.failures.push(failure);
            }
        }
    }

    fn line(&self, seconds: f64) -> String {
        format!(
            "{} seeds in {seconds:.1} s, {:.1} a second; {} events, {} operations, {} done; {} \
             failed",
            self.seeds,
            self.seeds as f64 / seconds,
            self.events,
            self.operations,
            self.done,
            self.failures.len(),
        )
    }
}

/// Prints a line even where a test that passes prints nothing.
fn say(text: &str) {
    _ = writeln!(std::io::stdout(), "{text}");
}

/// Runs seeds on both cores, or on as many as `THREADS` says.
fn check_all(seeds: impl Iterator<Item = u64> + Send) -> Sum {
    let clock = SystemClock::new();
    let began = clock.now();
    let without = without();
    let seeds = Mutex::new(seeds);
    let sum = Mutex::new(Sum::default());
    let work = || {
        while let Some(seed) = { seeds.lock().next() } {
            let checked = check(seed, &without);
            let mut sum = sum.lock();
            sum.add(checked);
            if sum.seeds.is_multiple_of(PROGRESS) {
                let line = sum.line(clock.now().since(began).as_secs_f64());
                say(&format!("to {seed}: {line}"));
            }
        }
    };
    let threads = std::env::var("THREADS").map_or(2, |text| number("THREADS", &text));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let sum = sum.into_inner();
    say(&sum.line(clock.now().since(began).as_secs_f64()));
    sum
}

fn without() -> Vec<Kind> {
    let names = std::env::var("WITHOUT").unwrap_or_default();
    let named = |kind: &Kind| names.split(',').any(|name| name == kind.name());
    Kind::ALL.into_iter().filter(named).collect()
}

fn number(name: &str, text: &str) -> u64 {
    let parsed = text.trim_start_matches('=').parse();
    parsed.unwrap_or_else(|_| panic!("{name} is {text:?}, not a number"))
}

impl Sum {
    fn expect_no_failure(&self) {
        let seeds = self.failures.len();
        assert!(seeds == 0, "{seeds} seeds failed, see above");
    }
}

#[test]
fn usual_seeds_hold_all_invariants_and_meet_all_that_can_happen() {
    let sum = check_all(USUAL);
    sum.expect_no_failure();
    println!("{}", sum.census.lines());
    if without().is_empty() {
        assert_eq!(sum.census.missing(), Vec::<&str>::new(), "never happened");
    }
}

#[test]
fn seeds_that_failed_once_hold_all_invariants() {
    let lines = include_str!("seeds.txt").lines();
    let seeds = lines.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    let seeds: Vec<u64> = seeds.collect();
    check_all(seeds.into_iter()).expect_no_failure();
}

#[test]
#[ignore = "slow: 2,000 seeds, or SEEDS=first..last, or one with its trace: SEED=number"]
fn campaign() {
    if let Ok(seed) = std::env::var("SEED") {
        return replay(number("SEED", &seed));
    }
    let range = std::env::var("SEEDS").unwrap_or_else(|_| "201..2200".to_owned());
    let (first, last) = range.split_once("..").expect("SEEDS=first..last");
    check_all(number("SEEDS", first)..=number("SEEDS", last)).expect_no_failure();
}

/// One run with its trace.
fn replay(seed: u64) {
    say(&format!("{:?}", Plan::new(seed, &without())));
    let report = run(seed, &without(), true);
    say(&format!(
        "{} events, hash {:016x}\n{:?} operations and done",
        report.events, report.hash, report.operations
    ));
    if let Some(violation) = report.violation {
        panic!("seed {seed}: {violation}");
    }
}

/// Each fault that is found by its seed; the table in `tests/README.md`.
#[cfg(feature = "deliberate-faults")]
const FOUND: &[(tolerex::faults::Fault, u64)] = &{
    use tolerex::faults::Fault;
    [
        (Fault::AcknowledgeBeforeSync, 5),
        (Fault::JournalBeforeSync, 28),
        (Fault::VoteNotPersisted, 11719),
        (Fault::SendBeforePersist, 299),
        (Fault::ReadWithoutReadIndex, 699),
        (Fault::ServeBeforeNoOp, 59),
        (Fault::ProposeInOtherTerm, 1545),
        (Fault::IgnoreFence, 5),
        (Fault::FenceNotPersisted, 54705),
        (Fault::CountFailedCopy, 12),
        (Fault::CountEarlierTermCopy, 56),
        (Fault::ReleaseBeforeNoOp, 13),
        (Fault::ReplayReleases, 1),
        (Fault::SnapshotWithoutLastEntry, 1),
        (Fault::TornTailKept, 21),
        (Fault::UnknownAsFailed, 405),
        (Fault::CompareWhenProposed, 7),
        (Fault::RefusedTransactionInPart, 2),
        (Fault::TransactionTokenForgotten, 1),
        (Fault::OldExpiryOfNewMessage, 11),
        (Fault::SnapshotWithoutExpiry, 4),
        (Fault::NewIdRetiresHolder, 7),
        (Fault::OlderCopyVotes, 735),
    ]
};

#[cfg(feature = "deliberate-faults")]
#[test]
fn deliberate_faults_are_found_by_their_seeds() {
    for (fault, seed) in FOUND {
        tolerex::faults::set(Some(*fault));
        let with = run(*seed, &[], false).violation;
        tolerex::faults::set(None);
        assert!(with.is_some(), "{fault:?} is not found by seed {seed}");
        let without = run(*seed, &[], false).violation;
        assert_eq!(without, None, "seed {seed} without {fault:?}");
    }
}

/// The first seed of a range that finds each fault, to be named in `tests/README.md`.
#[cfg(feature = "deliberate-faults")]
#[test]
#[ignore = "slow: looks for seeds; give SEEDS and perhaps FAULT"]
fn hunt() {
    use tolerex::faults::{self, Fault};
    let (Ok(range), only) = (std::env::var("SEEDS"), std::env::var("FAULT")) else {
        return;
    };
    let (first, last) = range.split_once("..").expect("SEEDS=first..last");
    let seeds = number("SEEDS", first)..=number("SEEDS", last);
    let is_meant = |fault: &Fault| {
        let name = format!("{fault:?}");
        let named = |only: &String| only.split(',').any(|one| one == name);
        only.as_ref().ok().is_none_or(named)
    };
    // A part of what it must show itself by, if that matters.
    let says = std::env::var("SAYS").unwrap_or_default();
    for fault in Fault::ALL.into_iter().filter(is_meant) {
        let found = seeds.clone().find_map(|seed| {
            faults::set(Some(fault));
            let with = run(seed, &[], false).violation;
            faults::set(None);
            // Found by all means, if it is that fault.
            let without = with.is_some() && run(seed, &[], false).violation.is_some();
            with.filter(|what| !without && what.contains(&says))
                .map(|what| (seed, what))
        });
        say(&match found {
            Some((seed, what)) => {
                format!("{fault:?}: {seed}: {:.160}", what.replace('\n', " "))
            }
            None => format!("{fault:?}: not found"),
        });
    }
}
