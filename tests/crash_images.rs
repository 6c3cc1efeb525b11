//! Crash images of the log: whatever a power failure leaves of unsynced writes, recovery keeps a
//! prefix of the groups with all that was synced (A6), never returns wrong bytes (A5), and never
//! cuts what is known to have been synced.
//!
//! A [`Run`] drives a log on the in-memory disk and remembers what it wrote and what was promised.
//! Images are exhaustive where they are few (every byte, every subset of sectors, every bit, every
//! failing call), and by seed otherwise; a failing seed is printed by proptest and kept by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tolerex::disk::log::{Location, Log, LogError, LogOptions, Record, Recovery};
use tolerex::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use tolerex::threads::StopSignal;

const DIR: &str = "/log";
/// A segment for tests that are not about rolling; the others use the smallest.
const LONG_SEGMENT_BYTES: u64 = 64 << 10;
const SHORT_SEGMENT_BYTES: u64 = 4 << 10;

/// Number and payload size of each record of a group.
type Group = Vec<(u64, usize)>;

type Opened = Result<(Log, Recovery, Group), LogError>;

/// The payload of a record follows from its number and size, so that wrong bytes show.
fn payload(number: u64, size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| (number as usize * 31 + at * 7) as u8)
        .collect()
}

/// Opens the log and checks every record that it has, visited and read.
fn open(fs: &MemFileSystem) -> Opened {
    open_with(fs, SHORT_SEGMENT_BYTES)
}

fn open_with(fs: &MemFileSystem, segment_bytes: u64) -> Opened {
    let options = LogOptions {
        segment_bytes,
        reserve_bytes: 0,
        salt: 1,
    };
    let mut seen = Vec::new();
    let mut locations: Vec<(Location, u64, usize)> = Vec::new();
    let opened = Log::open(
        Arc::new(fs.clone()),
        Path::new(DIR),
        options,
        &mut |location, record| {
            assert_eq!(record.payload, payload(record.number, record.payload.len()));
            assert_eq!(record.key, record.number.to_string().as_bytes());
            seen.push((record.number, record.payload.len()));
            locations.push((location, record.number, record.payload.len()));
            Ok(())
        },
    );
    let (log, recovery) = opened?;
    let reader = log.reader();
    for (location, number, size) in locations {
        let record = reader.read(location)?;
        assert_eq!(
            (record.number, &record.payload[..]),
            (number, &payload(number, size)[..])
        );
    }
    assert_eq!(recovery.records, seen.len() as u64);
    Ok((log, recovery, seen))
}

/// A log on a disk, what was written to it and how much of that must survive.
struct Run {
    fs: MemFileSystem,
    log: Log,
    groups: Vec<Group>,
    /// Groups that a crash must not take.
    promised: usize,
    next_number: u64,
}

impl Run {
    fn new(fs: MemFileSystem) -> Run {
        Run::with(fs, SHORT_SEGMENT_BYTES)
    }

    fn with(fs: MemFileSystem, segment_bytes: u64) -> Run {
        let (log, _, seen) = open_with(&fs, segment_bytes).expect("opened");
        assert_eq!(seen, []);
        Run {
            fs,
            log,
            groups: Vec::new(),
            promised: 0,
            next_number: 1,
        }
    }

    fn stage(&mut self, sizes: &[usize]) -> Result<Group, LogError> {
        let mut group = Group::new();
        for &size in sizes {
            let number = self.next_number;
            self.next_number += 1;
            let key = number.to_string();
            let payload = payload(number, size);
            let record = Record {
                kind: 1,
                number,
                key: key.as_bytes(),
                payload: &payload,
            };
            self.log.stage(&record)?;
            group.push((number, size));
        }
        Ok(group)
    }

    /// Writes a group; one that failed for another reason than space may be there or not.
    fn write(&mut self, sizes: &[usize]) -> Result<(), LogError> {
        let group = self.stage(sizes)?;
        let before = self.log.end().segment;
        let result = self.log.write();
        if self.log.end().segment > before {
            self.promised = self.groups.len();
        }
        if !matches!(result, Err(LogError::Refused(_))) {
            self.groups.push(group);
        }
        result
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.log.sync()?;
        self.promised = self.groups.len();
        Ok(())
    }

    fn idle(&mut self) -> Result<(), LogError> {
        self.log.idle()?;
        self.promised = self.groups.len();
        Ok(())
    }

    /// Checks what a recovery saw; returns how many groups it kept.
    fn check(&self, seen: &[(u64, usize)]) -> usize {
        let mut left = seen;
        let mut kept = 0;
        for group in &self.groups {
            let Some(rest) = left.strip_prefix(&group[..]) else {
                break;
            };
            left = rest;
            kept += 1;
        }
        assert_eq!(left, [], "not a prefix: {seen:?} of {:?}", self.groups);
        assert!(
            kept >= self.promised,
            "kept {kept} of {} promised",
            self.promised
        );
        kept
    }

    /// Crashes a copy of the disk, recovers it, and tries hard to bring back what was cut.
    fn check_image(&self, loss: Loss<'_>) {
        let fs = self.fs.fork();
        fs.crash(loss);
        let (log, recovery, seen) = open(&fs).expect("recovered");
        assert_eq!(recovery.damaged, []);
        self.check(&seen);
        drop(log);
        // What was recovered is durable, and recovering again changes nothing.
        fs.crash(Loss::Everything);
        let (mut log, again, seen_again) = open(&fs).expect("recovered again");
        assert_eq!((again.damaged, again.cut), (vec![], None));
        assert_eq!(seen, seen_again);
        // What was cut does not come back behind new groups.
        let payload = payload(9_999, 40);
        let record = Record {
            kind: 1,
            number: 9_999,
            key: b"9999",
            payload: &payload,
        };
        log.stage(&record).expect("staged");
        log.write().expect("written");
        log.sync().expect("synced");
        fs.crash(Loss::Nothing);
        let (_, last, seen_last) = open(&fs).expect("recovered at last");
        assert_eq!((last.damaged, last.cut), (vec![], None));
        assert_eq!(seen_last, [&seen[..], &[(9_999, 40)]].concat());
    }
}

/// Two synced groups, then three that are not: of 3, 2 and 1 sectors.
fn small_run() -> Run {
    let mut run = Run::with(MemFileSystem::new(), LONG_SEGMENT_BYTES);
    run.write(&[10, 20]).expect("written");
    run.write(&[600]).expect("written");
    run.sync().expect("synced");
    for sizes in [&[500, 700][..], &[40, 600], &[5]] {
        run.write(sizes).expect("written");
    }
    run
}

#[test]
fn a_cut_at_every_byte_of_the_unsynced_range_keeps_a_prefix() {
    let run = small_run();
    let unsynced = run.fs.unsynced().len();
    assert_eq!(unsynced, 6, "sectors");
    for bytes in 0..=unsynced as u64 * 512 {
        run.check_image(Loss::BehindBytes(bytes));
    }
}

#[test]
fn every_subset_of_unsynced_sectors_keeps_a_prefix() {
    let run = small_run();
    for subset in 0_u32..1 << run.fs.unsynced().len() {
        run.check_image(Loss::Choose(&mut |at, _| subset >> at & 1 == 1));
    }
}

#[test]
fn every_subset_is_recovered_after_a_crash_at_every_call_of_recovery() {
    let run = small_run();
    for subset in 0_u32..1 << run.fs.unsynced().len() {
        let image = run.fs.fork();
        image.crash(Loss::Choose(&mut |at, _| subset >> at & 1 == 1));
        for call in 0.. {
            let fs = image.fork();
            fs.fail(Operation::Any, call, Fault::ShortWrite);
            let interrupted = open(&fs).is_err();
            for loss in [
                Loss::Everything,
                Loss::Nothing,
                Loss::Random(u64::from(subset)),
            ] {
                let fs = fs.fork();
                fs.crash(loss);
                let (_, recovery, seen) = open(&fs).expect("recovered");
                assert_eq!(recovery.damaged, []);
                run.check(&seen);
            }
            // A process that starts again sees the page cache, whatever the disk has.
            fs.heal();
            let (_, _, seen) = open(&fs).expect("recovered");
            run.check(&seen);
            let before = seen;
            fs.crash(Loss::Everything);
            let (_, _, seen) = open(&fs).expect("recovered");
            assert_eq!(seen, before, "what a recovery returned is durable");
            if !interrupted {
                break;
            }
        }
    }
}

#[test]
fn segments_roll_through_every_crash() {
    let mut run = Run::new(MemFileSystem::new());
    for step in 0..12 {
        run.write(&[700, 300]).expect("written");
        for seed in 0..20 {
            run.check_image(Loss::Random(seed * 100 + step));
        }
        run.check_image(Loss::Everything);
        run.check_image(Loss::Nothing);
    }
    assert!(run.log.end().segment > 2, "{}", run.log.end());
}

fn files(fs: &MemFileSystem) -> Vec<PathBuf> {
    use tolerex::disk::fs::FileSystem;
    let names = fs.list(Path::new(DIR)).expect("listed");
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// Flips each bit of each file of a log without unsynced bytes, and hands on what was found.
fn flip_each_bit(run: &Run, check: impl Fn(&Path, u64, &Recovery, &[(u64, usize)])) {
    for path in files(&run.fs) {
        let length = run.fs.content(&path).expect("there").len() as u64;
        for bit in 0..length * 8 {
            let fs = run.fs.fork();
            assert!(fs.flip_bit(&path, bit / 8, (bit % 8) as u8));
            let (_, recovery, seen) = open(&fs).expect("opened");
            check(&path, bit / 8, &recovery, &seen);
        }
    }
}

#[test]
fn each_bit_flipped_below_the_known_synced_position_is_reported_and_cuts_nothing() {
    let mut run = Run::new(MemFileSystem::new());
    for sizes in [&[10, 20, 5][..], &[600], &[7]] {
        run.write(sizes).expect("written");
        run.sync().expect("synced");
    }
    run.idle().expect("idle");
    let all: Group = run.groups.concat();
    flip_each_bit(&run, |path, offset, recovery, seen| {
        let missing: Vec<_> = all.iter().filter(|record| !seen.contains(record)).collect();
        assert!(seen.iter().all(|record| all.contains(record)));
        if missing.is_empty() {
            return;
        }
        assert_eq!(recovery.cut, None, "byte {offset}");
        let damage = recovery.damaged.first().expect("reported");
        assert_eq!(damage.file, path.display().to_string());
        let around = damage.offset..damage.offset + damage.bytes;
        assert!(around.contains(&offset), "{damage} for byte {offset}");
        // What is not in the damaged group is all there.
        let hit = run.groups.iter().find(|group| group.contains(missing[0]));
        assert!(
            missing
                .iter()
                .all(|record| hit.is_some_and(|group| group.contains(record)))
        );
    });
}

#[test]
fn each_bit_flipped_in_sealed_segments_is_reported_and_cuts_nothing() {
    let mut run = Run::new(MemFileSystem::new());
    for _ in 0..5 {
        run.write(&[600, 300]).expect("written");
    }
    run.idle().expect("idle");
    let all: Group = run.groups.concat();
    flip_each_bit(&run, |path, offset, recovery, seen| {
        assert!(seen.iter().all(|record| all.contains(record)));
        let missing = all.iter().filter(|record| !seen.contains(record)).count();
        assert!(missing <= 2, "{path:?} {offset}");
        assert_eq!(
            missing > 0,
            recovery.damaged.iter().any(|bad| bad.offset >= 1024)
        );
        assert!(missing == 0 || recovery.cut.is_none(), "{path:?} {offset}");
    });
}

#[test]
fn each_bit_flipped_behind_the_known_synced_position_costs_a_tail_at_most() {
    let mut run = Run::new(MemFileSystem::new());
    for sizes in [&[10, 20][..], &[600], &[7]] {
        run.write(sizes).expect("written");
    }
    run.sync().expect("synced");
    run.promised = 0;
    flip_each_bit(&run, |_, offset, recovery, seen| {
        let kept = run.check(seen);
        if kept < run.groups.len() {
            assert!(recovery.cut.is_some(), "byte {offset}");
        }
    });
}

#[test]
fn what_only_the_page_cache_had_is_written_again() {
    let mut run = Run::new(MemFileSystem::new());
    run.write(&[10]).expect("written");
    run.sync().expect("synced");
    run.write(&[20]).expect("written");
    run.fs.fail(Operation::Sync, 0, Fault::Io);
    assert!(matches!(run.sync(), Err(LogError::Io { .. })));
    assert!(matches!(run.sync(), Err(LogError::Poisoned)));
    assert!(matches!(run.write(&[1]), Err(LogError::Poisoned)));
    assert!(matches!(run.log.idle(), Err(LogError::Poisoned)));
    // The process starts again on the same machine: the page cache still has the group.
    let (_, _, seen) = open(&run.fs).expect("opened");
    assert_eq!(seen, [(1, 10), (2, 20)]);
    run.fs.crash(Loss::Everything);
    let (_, _, seen) = open(&run.fs).expect("opened");
    assert_eq!(seen, [(1, 10), (2, 20)], "what was visited is durable");
}

#[test]
fn a_known_synced_position_told_only_behind_the_cut_still_holds_after_it() {
    // Group 1 is synced, group 2 tells so and is torn; group 1 then rots.
    let mut run = Run::new(MemFileSystem::new());
    run.write(&[10]).expect("written");
    run.sync().expect("synced");
    run.write(&[900, 40]).expect("written");
    run.fs.crash(Loss::Choose(&mut |at, _| at == 0));
    let path = files(&run.fs).remove(0);
    assert!(run.fs.flip_bit(&path, 1024 + 60, 0));
    for opening in 0..3 {
        let (_, recovery, seen) = open(&run.fs).expect("opened");
        assert_eq!(seen, []);
        assert_eq!(recovery.damaged.len(), 1, "opening {opening}");
        assert_eq!(recovery.cut.is_some(), opening == 0);
        run.fs.crash(Loss::Everything);
    }
}

/// A life of a log with rolls, idle times and a filler.
fn live(run: &mut Run, filler: bool) -> Result<(), LogError> {
    for step in 0..6 {
        match run.write(&[100 + step * 300, 20]) {
            Err(LogError::Refused(_)) => {}
            other => other?,
        }
        if step % 2 == 0 {
            run.sync()?;
        }
        if step % 3 == 0 {
            run.idle()?;
        }
        if filler {
            let filled = run.log.filler().fill(&StopSignal::default());
            drop(filled);
        }
    }
    Ok(())
}

#[test]
fn any_failing_call_leaves_a_log_that_recovers_and_refused_groups_do_not_come_back() {
    for fault in [Fault::Io, Fault::NoSpace, Fault::ShortWrite] {
        for filler in [false, true] {
            for call in 0.. {
                let mut run = Run::new(MemFileSystem::new());
                run.fs.fail(Operation::Any, call, fault);
                let lived = live(&mut run, filler);
                let failed = lived.is_err();
                let refused = run.groups.len() < 6 && !failed;
                if failed {
                    assert!(
                        matches!(run.write(&[1]), Err(LogError::Poisoned)),
                        "call {call}"
                    );
                } else {
                    run.fs.heal();
                    run.sync().expect("the log is valid");
                }
                for loss in [Loss::Everything, Loss::Nothing, Loss::Random(call)] {
                    let fs = run.fs.fork();
                    fs.crash(loss);
                    let (_, recovery, seen) = open(&fs).expect("recovered");
                    assert_eq!(recovery.damaged, []);
                    run.check(&seen);
                }
                let (_, _, seen) = open(&run.fs).expect("opened");
                run.check(&seen);
                let unhurt = !failed && !refused;
                run.fs.heal();
                if unhurt && call > 150 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_groups_and_leaves_the_log_valid() {
    for spare in 0..40 {
        let mut run = Run::new(MemFileSystem::new());
        run.write(&[10]).expect("written");
        run.fs.set_capacity(Some(2048 + spare * 100));
        let mut refused = 0;
        for _ in 0..6 {
            match run.write(&[700, 20]) {
                Ok(()) => run.sync().expect("synced"),
                Err(LogError::Refused(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            run.idle().expect("idle");
        }
        assert!(refused > 0);
        run.check_image_on_full_disk();
        run.fs.set_capacity(None);
        run.write(&[700]).expect("there is space again");
        run.sync().expect("synced");
        run.check_image(Loss::Everything);
        run.check_image(Loss::Nothing);
    }
}

#[test]
fn a_log_opened_on_a_full_disk_tells_what_is_synced_once_there_is_room() {
    let mut run = Run::new(MemFileSystem::new());
    run.write(&[22]).expect("written");
    run.sync().expect("synced");
    run.fs.set_capacity(Some(0));
    run.reopen();
    run.idle().expect("a full disk is no failure");
    run.fs.set_capacity(None);
    run.idle().expect("idle");
    assert!(run.fs.flip_bit(&files(&run.fs)[0], 1100, 0));
    let (_, recovery, seen) = open(&run.fs).expect("opened");
    assert_eq!(
        (seen.len(), recovery.damaged.len(), recovery.cut),
        (0, 1, None)
    );
}

impl Run {
    fn check_image_on_full_disk(&self) {
        for loss in [Loss::Everything, Loss::Nothing] {
            let fs = self.fs.fork();
            fs.crash(loss);
            let (_, recovery, seen) = open(&fs).expect("a full disk keeps no log from opening");
            assert_eq!(recovery.damaged, []);
            self.check(&seen);
        }
    }
}

/// What a random run does next.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<usize>),
    Sync,
    Idle,
    Fill,
    /// Power fails, by a seed; then the log is opened again.
    Crash(u64),
    /// Power fails, and again at a call of recovery.
    CrashTwice(u64, u64),
    /// The process ends and starts again.
    Restart,
    /// The disk has room for so many more bytes.
    Room(u64),
    /// The disk has room for anything.
    RoomForAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![8 => 0..200_usize, 3 => 200..1500_usize, 1 => 1500..9000_usize];
    let step = prop_oneof![
        10 => prop::collection::vec(size, 1..4).prop_map(Step::Write),
        3 => Just(Step::Sync),
        2 => Just(Step::Idle),
        1 => Just(Step::Fill),
        4 => any::<u64>().prop_map(Step::Crash),
        2 => (any::<u64>(), 0..12_u64).prop_map(|(seed, call)| Step::CrashTwice(seed, call)),
        1 => Just(Step::Restart),
        1 => (0..3000_u64).prop_map(Step::Room),
        2 => Just(Step::RoomForAll),
    ];
    prop::collection::vec(step, 1..40)
}

impl Run {
    fn reopen(&mut self) {
        let (log, recovery, seen) = open(&self.fs).expect("opened");
        assert_eq!(recovery.damaged, []);
        let kept = self.check(&seen);
        self.groups.truncate(kept);
        self.promised = kept;
        self.log = log;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(sizes) => match self.write(sizes) {
                Ok(()) | Err(LogError::Refused(_)) => {}
                Err(error) => panic!("{error}"),
            },
            Step::Sync => self.sync().expect("synced"),
            Step::Idle => self.idle().expect("idle"),
            Step::Fill => {
                // It may be short of space.
                let filled = self.log.filler().fill(&StopSignal::default());
                drop(filled);
            }
            Step::Crash(seed) => {
                self.fs.crash(Loss::Random(*seed));
                self.reopen();
            }
            Step::CrashTwice(seed, call) => {
                self.fs.crash(Loss::Random(*seed));
                self.fs.fail(Operation::Any, *call, Fault::Io);
                let interrupted = open(&self.fs);
                drop(interrupted);
                self.fs.crash(Loss::Random(seed.rotate_left(7)));
                self.reopen();
            }
            Step::Restart => self.reopen(),
            Step::Room(bytes) => {
                let paths = files(&self.fs);
                let contents = paths.iter().filter_map(|path| self.fs.content(path));
                let used: usize = contents.map(|content| content.len()).sum();
                self.fs.set_capacity(Some(used as u64 + bytes));
            }
            Step::RoomForAll => self.fs.set_capacity(None),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_life_with_any_crashes_keeps_a_prefix_with_all_that_was_promised(steps in steps()) {
        let mut run = Run::new(MemFileSystem::new());
        for step in &steps {
            run.step(step);
        }
        run.reopen();
    }

    #[test]
    fn any_flipped_bit_after_any_life_is_reported_where_it_costs_a_record(
        steps in steps(),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut run = Run::new(MemFileSystem::new());
        for step in &steps {
            run.step(step);
        }
        run.fs.set_capacity(None);
        run.idle().expect("idle");
        let bytes: Vec<(PathBuf, u64)> = files(&run.fs)
            .into_iter()
            .flat_map(|path| {
                let length = run.fs.content(&path).expect("there").len() as u64;
                (0..length).map(move |offset| (path.clone(), offset))
            })
            .collect();
        let (path, offset) = place.get(&bytes);
        run.fs.flip_bit(path, *offset, bit);
        let all: Group = run.groups.concat();
        for _ in 0..2 {
            let (_, recovery, seen) = open(&run.fs).expect("opened");
            let mut left = all.iter();
            prop_assert!(seen.iter().all(|record| left.any(|other| other == record)));
            prop_assert!(seen.len() == all.len() || !recovery.damaged.is_empty());
            run.fs.crash(Loss::Everything);
        }
    }
}

/// The last write of a start, which a crash cut short, needs no space at the next one.
#[test]
fn a_log_with_half_a_mark_opens_on_a_full_disk() {
    let mut run = Run::new(MemFileSystem::new());
    let steps = [
        Step::Room(560),
        Step::Crash(0),
        Step::CrashTwice(252284502414205160, 10),
    ];
    for step in &steps {
        run.step(step);
    }
    run.reopen();
}
