//! Any operations on any engine in any mode, with crashes anywhere.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Store(u64, u8, usize),
    Release(u64),
    Commit,
    Discard,
    /// A commit on a disk that has no space.
    CommitFull,
    Flush,
    Idle,
    /// An orderly end and a start.
    Restart,
    ProcessCrash,
    /// A power failure that loses a part of what is unsynced.
    PowerLoss(u64),
}

fn any_change() -> impl Strategy<Value = Step> {
    let length = prop_oneof![0usize..40, 0usize..3000];
    prop_oneof![
        3 => (0u64..12, 0u8..2, length).prop_map(|(n, v, length)| Step::Store(n, v, length)),
        1 => (0u64..12).prop_map(Step::Release),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => any_change(),
        6 => Just(Step::Commit),
        1 => Just(Step::Discard),
        2 => Just(Step::CommitFull),
        2 => Just(Step::Flush),
        2 => Just(Step::Idle),
        1 => Just(Step::Restart),
        1 => Just(Step::ProcessCrash),
        1 => any::<u64>().prop_map(Step::PowerLoss),
    ]
}

fn any_engine() -> impl Strategy<Value = (EngineKind, WriteMode)> {
    prop::sample::select(every().collect::<Vec<_>>())
}

fn execute(pair: &mut Pair, step: Step) {
    match step {
        Step::Store(number, variant, length) => _ = pair.store(number, variant, length),
        Step::Release(number) => pair.release(number),
        Step::Commit => _ = pair.commit(),
        Step::Discard => {
            pair.engine.discard();
            pair.model.discard();
            pair.releases.clear();
            pair.compare();
        }
        Step::CommitFull => {
            limit(&pair.fs, 6 << 10);
            assert_ne!(pair.commit(), Committed::Full);
            pair.fs.set_capacity(None);
            pair.flush();
        }
        Step::Flush => {
            pair.commit();
            pair.flush();
        }
        Step::Idle => {
            pair.commit();
            pair.idle();
        }
        Step::Restart => {
            pair.commit();
            pair.engine.close().unwrap();
            pair.settled();
            pair.process_crash();
        }
        Step::ProcessCrash => pair.process_crash(),
        Step::PowerLoss(seed) => pair.power_loss(Loss::Random(seed)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any operations give the same answers, contents and counters as the model; after any crash
    /// all is there that the write mode promised, and nothing that was not committed.
    #[test]
    fn every_engine_behaves_as_the_model(
        (kind, mode) in any_engine(),
        steps in prop::collection::vec(any_step(), 0..60),
    ) {
        let mut pair = Pair::new(kind, mode);
        for step in steps {
            execute(&mut pair, step);
        }
        pair.commit();
        pair.idle();
        pair.power_loss(Loss::Everything);
    }

    /// When the disk fails in a commit and the power goes, the log has all of the group or nothing;
    /// of files each record is as it was before or as it should be. All else is untouched.
    #[test]
    fn a_failed_commit_leaves_old_or_new(
        (kind, mode) in any_engine(),
        before in prop::collection::vec(any_step(), 0..20),
        group in prop::collection::vec(any_change(), 1..8),
        calls in 0u64..12,
        seed in any::<u64>(),
    ) {
        let mut pair = Pair::new(kind, mode);
        for step in before {
            execute(&mut pair, step);
        }
        pair.commit();
        pair.idle();
        for step in group {
            execute(&mut pair, step);
        }
        pair.note_between();
        pair.fs.fail(Operation::Any, calls, Fault::ShortWrite);
        let committed = pair.engine.commit().and_then(|_| pair.engine.flush());
        let failed = committed.is_err();
        pair.fs.heal();
        pair.model.set_space(Committed::Done);
        pair.model.commit().unwrap();
        let new = pair.model.contents();
        pair.history.push(new);
        if !failed && mode == WriteMode::Sync {
            pair.settled();
        }
        pair.power_loss(Loss::Random(seed));
        pair.store(NUMBERS - 1, 1, 10);
        prop_assert_eq!(pair.commit(), Committed::Done);
    }
}
