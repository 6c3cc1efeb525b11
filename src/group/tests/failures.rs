//! Disks that fail, fill up, lose power or are damaged: what a group says, keeps and refuses.

use std::sync::atomic::AtomicUsize;

use super::gated::{Gated, start_gated};
use super::*;
use crate::disk::mem::{Fault, Loss, Operation};

#[test]
fn a_failed_sync_ends_all_acknowledgement() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    assert!(matches!(
        outcome(&propose(&run.handle, term, b"kept")),
        ProposalOutcome::Applied(_)
    ));
    disk.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(
        outcome(&propose(&run.handle, term, b"x")),
        ProposalOutcome::Unknown
    );
    let error = run.failures.recv_timeout(LONG).unwrap();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    // The disk is well again, and still nothing is taken.
    disk.sync_fails.store(false, Ordering::SeqCst);
    assert_eq!(
        outcome(&propose(&run.handle, term, b"y")),
        ProposalOutcome::NotProposed(Reason::Stopped)
    );
    assert!(!run.handle.status().serving);
    run.group.stop();
    let run = start(Arc::new(disk), root.path(), Bootstrap::Existing);
    assert_eq!(
        run.seen.entries().first().map(Vec::as_slice),
        Some(&b"kept"[..])
    );
    run.group.stop();
}

#[test]
fn an_entry_that_cannot_be_applied_ends_the_group_with_one_line() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    let outcome_ = outcome(&propose(&run.handle, term, LATER));
    assert_eq!(outcome_, ProposalOutcome::Unknown);
    let error = run.failures.recv_timeout(LONG).unwrap().to_string();
    let expected = "entry 3 of the log cannot be applied: it is of a later version. Passed over, \
                    this leader would differ from the others: start the version of the program \
                    that wrote it";
    assert_eq!(error, expected);
    run.group.stop();
    // A version that knows it goes on, and notes that it is committed.
    let (begun, _has_begun) = bounded(1);
    let (_, gate) = bounded(1);
    let machine = Gated { begun, gate };
    let (group, handle) = start_gated(machine, os(), root.path(), Bootstrap::Existing);
    let term = handle.status().term;
    for _ in 0..2 {
        let applied = outcome(&propose(&handle, term, b"x"));
        assert!(
            matches!(applied, ProposalOutcome::Applied(_)),
            "{applied:?}"
        );
    }
    group.stop();
    // Then it is refused before anything runs.
    assert_eq!(refusal(os(), root.path(), Bootstrap::Existing), expected);
}

#[test]
fn a_full_disk_refuses_proposals_and_goes_on_when_there_is_space() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    disk.is_full.store(true, Ordering::SeqCst);
    let waits = propose(&run.handle, term, b"waits");
    let refused = ProposalOutcome::NotProposed(Reason::DiskFull);
    let clock = SystemClock::new();
    let deadline = clock.now() + LONG;
    let mut early = Vec::new();
    loop {
        let proposal = propose(&run.handle, term, b"early");
        match proposal.recv_timeout(Duration::from_millis(5)) {
            Ok(outcome) => {
                assert_eq!(outcome, refused);
                break;
            }
            Err(_) => early.push(proposal),
        }
        assert!(clock.now() < deadline, "it is not refused");
    }
    assert!(waits.try_recv().is_err(), "it is appended and not decided");
    assert!(run.handle.status().serving, "reads go on");
    disk.is_full.store(false, Ordering::SeqCst);
    for receiver in [waits].iter().chain(&early) {
        assert!(matches!(outcome(receiver), ProposalOutcome::Applied(_)));
    }
    assert!(matches!(
        outcome(&propose(&run.handle, term, b"after")),
        ProposalOutcome::Applied(_)
    ));
    run.group.stop();
}

#[test]
fn a_stop_on_a_full_disk_leaves_the_outcome_unknown() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    disk.is_full.store(true, Ordering::SeqCst);
    let waits = propose(&run.handle, term, b"waits");
    run.group.stop_within(Duration::from_millis(50));
    assert_eq!(outcome(&waits), ProposalOutcome::Unknown);
}

#[test]
fn a_damaged_journal_is_refused_by_file_and_offset() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    for _ in 0..10 {
        outcome(&propose(&run.handle, term, &[7; 700]));
    }
    run.group.stop();
    let segment = root.path().join(JOURNAL_DIR).join("00000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes
        .windows(100)
        .position(|window| window == [7; 100])
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let text = refusal(os(), root.path(), Bootstrap::Existing);
    assert!(text.contains("00000001.log at offset"), "{text}");
}

#[test]
fn a_power_failure_at_any_moment_keeps_what_was_acknowledged() {
    power_failures(u64::MAX);
}

#[test]
fn a_power_failure_while_snapshots_are_taken_keeps_what_was_acknowledged() {
    assert!(power_failures(16 << 10) > 0, "no snapshot was read");
}

/// Returns how many starts began with a snapshot.
fn power_failures(snapshot_bytes: u64) -> usize {
    let disk = MemFileSystem::new();
    let dir = Path::new("group");
    let begin = |disk, bootstrap| {
        let run = try_start_with(Arc::new(disk), dir, bootstrap, snapshot_bytes).unwrap();
        assert!(run.handle.wait_serving(LONG), "it does not serve");
        run
    };
    let run = begin(disk.clone(), Bootstrap::New);
    let mut restored = 0;
    let term = run.handle.status().term;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let stop = StopSignal::default();
    let proposer = {
        let (handle, stop) = (run.handle.clone(), stop.clone());
        let acknowledged = acknowledged.clone();
        let body = move || {
            let mut number = 0_u64;
            while !stop.is_stopped() {
                // A few in flight, so that writes overlap.
                let mut waiting = Vec::new();
                for _ in 0..5 {
                    waiting.push(propose(&handle, term, &number.to_le_bytes()));
                    number += 1;
                }
                for receiver in &waiting {
                    assert!(matches!(outcome(receiver), ProposalOutcome::Applied(_)));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        crate::threads::spawn("proposer", body).unwrap()
    };
    for seed in 0..20 {
        stop.wait_timeout(Duration::from_millis(5));
        let promised = acknowledged.load(Ordering::SeqCst);
        let after = disk.fork();
        after.crash(Loss::Random(seed));
        let again = begin(after, Bootstrap::Existing);
        assert!(again.handle.status().term > term);
        restored += usize::from(again.seen.0.lock().restored_index > 0);
        let entries = again.seen.entries();
        assert!(entries.len() >= promised, "seed {seed}");
        for (number, entry) in (0_u64..).zip(&entries) {
            assert_eq!(*entry, number.to_le_bytes(), "seed {seed}");
        }
        again.group.stop();
    }
    stop.stop();
    proposer.join();
    run.group.stop();
    restored
}

#[test]
fn a_damaged_or_missing_snapshot_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    fill(&run, 300);
    run.group.stop();
    let dir = root.path().join(snapshots::SNAPSHOT_DIR);
    let path = dir.join(&OsFileSystem.list(&dir).unwrap()[0]);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[2000] ^= 4;
    std::fs::write(&path, bad).unwrap();
    let text = refusal(os(), root.path(), Bootstrap::Existing);
    assert!(text.contains(".snapshot is damaged at offset"), "{text}");
    std::fs::remove_file(&path).unwrap();
    let text = refusal(os(), root.path(), Bootstrap::Existing);
    assert!(text.contains("does not follow"), "{text}");
    std::fs::write(&path, good).unwrap();
    start(os(), root.path(), Bootstrap::Existing).group.stop();
}

#[test]
fn a_failure_at_any_step_loses_nothing_that_was_acknowledged() {
    let dir = Path::new("group");
    let disk = MemFileSystem::new();
    try_start_with(Arc::new(disk.clone()), dir, Bootstrap::New, 8 << 10)
        .unwrap()
        .group
        .stop();
    let mut restored = 0;
    for step in (0..400).step_by(7) {
        let disk = disk.fork();
        disk.fail(Operation::Any, step, Fault::Io);
        let applied =
            match try_start_with(Arc::new(disk.clone()), dir, Bootstrap::Existing, 8 << 10) {
                Ok(run) => {
                    run.handle.wait_serving(Duration::from_millis(20));
                    let applied = fill(&run, 60);
                    run.group.stop();
                    applied
                }
                Err(_) => 0,
            };
        disk.heal();
        disk.crash(Loss::Random(step));
        let run = try_start_with(Arc::new(disk), dir, Bootstrap::Existing, 8 << 10).unwrap();
        // The last one may be committed by the first entry of the new term only.
        assert!(run.handle.wait_serving(LONG), "step {step}");
        let entries = run.seen.entries();
        assert!(entries.len() >= applied, "step {step}");
        for (number, entry) in (0_u64..).zip(&entries) {
            assert_eq!(entry[..8], number.to_le_bytes(), "step {step}");
        }
        restored += usize::from(run.seen.0.lock().restored_index > 0);
        run.group.stop();
    }
    assert!(restored > 20, "{restored}");
}

#[test]
fn a_crash_while_a_group_is_made_is_made_good_by_the_next_bootstrap() {
    let dir = Path::new("group");
    for step in 0..60 {
        let disk = MemFileSystem::new();
        disk.fail(Operation::Any, step, Fault::Io);
        if let Ok(run) = try_start(Arc::new(disk.clone()), dir, Bootstrap::New) {
            run.handle.wait_serving(Duration::from_millis(20));
            run.group.stop();
        }
        disk.heal();
        disk.crash(Loss::Random(step));
        let run = start(Arc::new(disk.clone()), dir, Bootstrap::New);
        let peer = run.group.peer();
        run.group.stop();
        disk.crash(Loss::Everything);
        let run = start(Arc::new(disk), dir, Bootstrap::Existing);
        assert_eq!(run.group.peer(), peer);
        run.group.stop();
    }
}
