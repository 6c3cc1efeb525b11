//! Damages a file of a sample directory at one place after another and has each image judged.
//!
//! A [`Sample`] is a directory on a disk in memory, with nothing unsynced, and a judge that opens
//! an image of it by the code that a member or leader opens it with. Images are forks of the disk,
//! so only what the opening writes is copied; they are judged by two threads.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tolerex::disk::mem::{Loss, MemFileSystem};

/// What is done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A bit of a byte is turned.
    Flip(u64, u8),
    /// The file ends before this byte.
    Cut(u64),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Flip(byte, bit) => write!(f, "byte {byte}, bit {bit} flipped"),
            Damage::Cut(byte) => write!(f, "cut at byte {byte}"),
        }
    }
}

/// What became of an image that was read right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is there.
    Whole,
    /// A prefix is there, and all of it below the known-synced offset.
    Prefix,
    /// Something is missing, and a report names the file and the offset.
    Reported,
}

/// What is wrong with the reading of an image, or how it was read right.
pub type Verdict = Result<Outcome, String>;

type Judge = Box<dyn Fn(&MemFileSystem, Damage) -> Verdict + Send + Sync>;

/// A directory with the file that is damaged.
pub struct Sample {
    pub name: &'static str,
    pub fs: MemFileSystem,
    pub file: PathBuf,
    /// Opens an image and compares what it reads. A panic is a failure too.
    pub judge: Judge,
}

/// Which bytes of a file are damaged.
#[derive(Clone, Copy)]
pub struct Share {
    /// All of the first so many.
    pub first: u64,
    /// And every so manieth.
    pub step: u64,
}

impl Share {
    fn has(&self, byte: u64) -> bool {
        byte < self.first || byte.is_multiple_of(self.step)
    }
}

/// How many images there were of each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub whole: u64,
    pub prefix: u64,
    pub reported: u64,
}

impl Figures {
    pub fn all(&self) -> u64 {
        self.whole + self.prefix + self.reported
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Whole => self.whole += 1,
            Outcome::Prefix => self.prefix += 1,
            Outcome::Reported => self.reported += 1,
        }
    }

    fn add(&mut self, other: Figures) {
        self.whole += other.whole;
        self.prefix += other.prefix;
        self.reported += other.reported;
    }
}

/// Failures that are told before a sample is given up.
const FAILURES_MAX: usize = 5;

impl Sample {
    /// Takes the disk as it is: what is not on it yet, gets there.
    pub fn new(
        name: &'static str,
        fs: &MemFileSystem,
        file: &Path,
        judge: impl Fn(&MemFileSystem, Damage) -> Verdict + Send + Sync + 'static,
    ) -> Sample {
        let fs = fs.fork();
        fs.crash(Loss::Nothing);
        Sample {
            name,
            fs,
            file: file.to_owned(),
            judge: Box::new(judge),
        }
    }

    pub fn length(&self) -> u64 {
        self.fs.content(&self.file).expect("the file").len() as u64
    }

    /// The image with this damage.
    fn image(&self, damage: Damage) -> MemFileSystem {
        let fs = self.fs.fork();
        let is_done = match damage {
            Damage::Flip(byte, bit) => fs.flip_bit(&self.file, byte, bit),
            Damage::Cut(byte) => fs.cut(&self.file, byte),
        };
        assert!(is_done, "{damage}: there is no such byte");
        fs
    }

    fn judge(&self, damage: Damage) -> Verdict {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            (self.judge)(&self.image(damage), damage)
        }));
        judged
            .unwrap_or_else(|panic| Err(format!("panic: {}", text_of(&*panic))))
            .map_err(|what| format!("{}: {damage}: {what}", self.name))
    }

    /// Judges the images with damage at every `stride`th byte of the share, from `first` on.
    fn part(&self, share: Share, first: u64, stride: usize) -> (Figures, Vec<String>) {
        let (mut figures, mut failures) = (Figures::default(), Vec::new());
        let bytes = (0..self.length()).filter(|byte| share.has(*byte));
        for byte in bytes.skip(first as usize).step_by(stride) {
            let flips = (0..8).map(|bit| Damage::Flip(byte, bit));
            for damage in flips.chain([Damage::Cut(byte)]) {
                match self.judge(damage) {
                    Ok(outcome) => figures.count(outcome),
                    Err(failure) => failures.push(failure),
                }
            }
            if failures.len() >= FAILURES_MAX {
                break;
            }
        }
        (figures, failures)
    }

    /// Flips all bits of the share's bytes and cuts the file at each of them; fails with the first
    /// images that were read wrong.
    pub fn run(&self, share: Share) -> Figures {
        const THREADS: u64 = 2;
        let mut figures = Figures::default();
        let mut failures = Vec::new();
        std::thread::scope(|scope| {
            let parts =
                [0, 1].map(|first| scope.spawn(move || self.part(share, first, THREADS as usize)));
            for part in parts {
                let (counted, failed) = part.join().expect("panics are caught");
                figures.add(counted);
                failures.extend(failed);
            }
        });
        assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
        figures
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("of an unknown kind")
}

/// Whether a report names the file, and an offset in it.
pub fn names(report: &str, file: &Path) -> bool {
    let file = file.display().to_string();
    let damaged = format!("{file} is damaged at offset ");
    let journal = format!("{file} at offset ");
    report.contains(&damaged) || report.contains(&journal)
}
