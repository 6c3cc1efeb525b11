//! The simulation: a whole cluster in one thread, with invented time, disks, network and disasters.
//!
//! Leaders, members and clients are the real code, without its threads and sockets: the group's
//! node, journal and snapshots, the state machine, batches, housekeeping, the append thread's
//! and the
//! readers' work. A seed decides everything. Each seed runs twice and must leave the same trace.
//!
//! What is checked: `oracle` after every event, `nemesis` for liveness, the checker of
//! histories for
//! every answer. What is not in it: TLS, frames, the protocols of clients and the hand-over between
//! threads; they have suites of their own.
//!
//! ```text
//! cargo test --test sim
//! SEEDS=1..50000 cargo test --release --test sim campaign -- --ignored --nocapture
//! SEED=7 cargo test --release --test sim replay -- --ignored --nocapture
//! ```
//!
//! `WITHOUT=net,disk` switches kinds of faults off.

#[path = "../support/history.rs"]
#[allow(dead_code)]
mod history;
#[path = "../support/linearize.rs"]
#[allow(dead_code)]
mod linearize;

mod client;
mod clock;
mod leader;
mod member;
mod nemesis;
mod net;
mod oracle;
mod plan;
mod stepping;
mod storing;
mod trace;
mod world;

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tolerex::clock::{Clock, SystemClock};

use plan::{Kind, Plan};
use world::{Report, World};

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
        }
    })
}

/// Both runs of a seed; what is wrong with it, and how to see it.
fn check(seed: u64, without: &[Kind]) -> Result<Report, String> {
    let first = run(seed, without, false);
    if let Some(violation) = &first.violation {
        return Err(format!(
            "seed {seed}: {violation}\n{}\nSEED={seed} cargo test --release --test sim replay -- \
             --ignored --nocapture",
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

/// Runs seeds on both cores.
fn check_all(seeds: impl Iterator<Item = u64> + Send) -> Vec<String> {
    let clock = SystemClock::new();
    let began = clock.now();
    let without = without();
    let seeds = Mutex::new(seeds);
    let failures = Mutex::new(Vec::new());
    let [count, events, operations, done] = [const { AtomicU64::new(0) }; 4];
    let work = || {
        while let Some(seed) = { seeds.lock().next() } {
            match check(seed, &without) {
                Ok(report) => {
                    events.fetch_add(report.events, Ordering::Relaxed);
                    operations.fetch_add(report.operations.0 as u64, Ordering::Relaxed);
                    done.fetch_add(report.operations.1 as u64, Ordering::Relaxed);
                }
                Err(failure) => {
                    println!("{failure}\n");
                    failures.lock().push(failure);
                }
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let seconds = clock.now().since(began).as_secs_f64();
    let get = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let seeds = get(&count);
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.1} a second; {} events, {} operations, {} done; \
         {} failed",
        seeds as f64 / seconds,
        get(&events),
        get(&operations),
        get(&done),
        failures.lock().len(),
    );
    failures.into_inner()
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

fn fail_if_any(failures: &[String]) {
    let seeds = failures.len();
    assert!(failures.is_empty(), "{seeds} seeds failed, see above");
}

#[test]
fn usual_seeds_hold_all_invariants() {
    fail_if_any(&check_all(USUAL));
}

#[test]
fn seeds_that_failed_once_hold_all_invariants() {
    let lines = include_str!("seeds.txt").lines();
    let seeds = lines.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    let seeds: Vec<u64> = seeds.collect();
    fail_if_any(&check_all(seeds.into_iter()));
}

#[test]
#[ignore = "slow: 2,000 seeds, or SEEDS=first..last"]
fn campaign() {
    let range = std::env::var("SEEDS").unwrap_or_else(|_| "201..2200".to_owned());
    let (first, last) = range.split_once("..").expect("SEEDS=first..last");
    fail_if_any(&check_all(number("SEEDS", first)..=number("SEEDS", last)));
}

/// Each fault that is found by its seed; the table in `tests/README.md`.
#[cfg(feature = "deliberate-faults")]
const FOUND: &[(tolerex::faults::Fault, u64)] = &{
    use tolerex::faults::Fault;
    [
        (Fault::AcknowledgeBeforeSync, 9),
        (Fault::JournalBeforeSync, 1),
        (Fault::SendBeforePersist, 1),
        (Fault::ServeBeforeNoOp, 28),
        (Fault::ProposeInOtherTerm, 307),
        (Fault::IgnoreFence, 123),
        (Fault::CountFailedCopy, 3),
        (Fault::SnapshotWithoutLastEntry, 3),
        (Fault::UnknownAsFailed, 247),
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
    let range = std::env::var("SEEDS").unwrap_or_else(|_| "1..2000".to_owned());
    let (first, last) = range.split_once("..").expect("SEEDS=first..last");
    let seeds = number("SEEDS", first)..=number("SEEDS", last);
    let only = std::env::var("FAULT").unwrap_or_default();
    for fault in Fault::ALL {
        let name = format!("{fault:?}");
        if !only.is_empty() && !only.split(',').any(|one| one == name) {
            continue;
        }
        faults::set(Some(fault));
        let found = seeds
            .clone()
            .find_map(|seed| Some((seed, run(seed, &[], false).violation?)));
        faults::set(None);
        match found {
            Some((seed, what)) => println!("{fault:?}: {seed}: {:.160}", what.replace('\n', " ")),
            None => println!("{fault:?}: not found"),
        }
    }
}

#[test]
#[ignore = "slow: shows one run; give SEED"]
fn replay() {
    let Ok(seed) = std::env::var("SEED") else {
        return;
    };
    let seed = number("SEED", &seed);
    println!("{:?}", Plan::new(seed, &without()));
    let report = run(seed, &without(), true);
    println!("{} events, hash {:016x}", report.events, report.hash);
    println!("{:?} operations and done", report.operations);
    if let Some(violation) = report.violation {
        panic!("seed {seed}: {violation}");
    }
}
