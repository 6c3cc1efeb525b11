//! Does every input of the fuzz corpora, and its neighbours, hold what the fuzz targets claim?
//!
//! The claims are in `tests/fuzz/checks/`; here each file of `tests/fuzz/corpus/<target>/` is tried
//! as it is, cut at every place, and with one byte changed at every place, on the stable compiler
//! and in seconds. What fails is named by its file, its change and its bytes.

#[path = "fuzz/checks/mod.rs"]
mod checks;

use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

/// The most places at which a file is cut and changed: longer files are tried at as many, spread
/// evenly.
const PLACES_MAX: usize = 256;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The names in a directory, without extensions.
fn stems(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let stem = |path: PathBuf| {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    paths.filter_map(stem).collect()
}

/// Inputs next to one: parts of it, and it with a byte changed. What is changed follows from the
/// place, so that a failure comes again.
fn neighbours(data: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    let step = data.len().div_ceil(PLACES_MAX).max(1);
    let places = (0..data.len()).step_by(step);
    places.flat_map(move |at| {
        let mut changed = data.to_vec();
        // One bit, a border of integers, or what ends lines and words.
        changed[at] = match at / step % 4 {
            0 => data[at] ^ 1 << (at % 8),
            1 => [0, 0x7f, 0x80, 0xff][at % 4],
            2 => data[at].wrapping_add(1),
            _ => b"\r\n :"[at % 4],
        };
        let cut = (format!("cut at {at}"), data[..at].to_vec());
        [cut, (format!("changed at {at}"), changed)]
    })
}

/// Runs the check of a target on an input; what it is called by, if the check fails.
fn fails(target: &str, called: &str, data: &[u8]) -> Option<String> {
    let outcome = panic::catch_unwind(|| checks::run(target, data));
    outcome
        .is_err()
        .then(|| format!("{called}: {}", data.escape_ascii()))
}

/// All of the corpus of a target.
fn run_corpus(target: &str) {
    let dir = dir().join("corpus").join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {target} is empty");
    for file in files {
        let data = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let called = file.display().to_string();
        let failed = fails(target, &called, &data).or_else(|| {
            let mut around = neighbours(&data);
            around.find_map(|(change, data)| fails(target, &format!("{called}, {change}"), &data))
        });
        if let Some(failed) = failed {
            panic!("{target} fails, see above, on {failed}");
        }
    }
}

macro_rules! corpora {
    ($($target:ident)*) => {
        /// The tests below.
        const TESTED: &[&str] = &[$(stringify!($target)),*];

        $(
            #[test]
            fn $target() {
                run_corpus(stringify!($target));
            }
        )*
    };
}

corpora! {
    batch command config configuration entries envelope frame hatokuse hint http journal records
    segment snapshot snapshot_file
}

#[test]
fn every_check_has_a_target_a_corpus_and_a_test() {
    let names = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    let checks: Vec<&str> = checks::CHECKS.iter().map(|(name, _)| *name).collect();
    let checks = names(&checks);
    assert_eq!(names(TESTED), checks, "tests");
    assert_eq!(stems(&dir().join("corpus")), checks, "corpora");
    assert_eq!(stems(&dir().join("fuzz_targets")), checks, "targets");
    let manifest = fs::read_to_string(dir().join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let bins = manifest["bin"].as_array().expect("targets");
    let bins: Vec<&str> = bins.iter().filter_map(|bin| bin["name"].as_str()).collect();
    assert_eq!(names(&bins), checks, "targets of the manifest");
}
