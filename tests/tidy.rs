//! Does the code keep the house rules: layers, purity, headers, sizes, and one place for a library?
//!
//! Reads the sources as text. A module behind `#[cfg(test)]`, in its file or in one of its own, is
//! free of the rules for layers and sizes; comments are free of all but the columns. A file may be
//! longer than the limit if its header gives a reason after [`LONG_BECAUSE`].

use std::fs;
use std::path::{Path, PathBuf};

/// The layer table of `src/lib.rs`: rows from the bottom up. A module may use those of lower rows.
const LAYERS: &[&[&str]] = &[
    &[
        "error",
        "ids",
        "clock",
        "threads",
        "logging",
        "metrics",
        "config",
        "faults",
        "resources",
    ],
    &["protocol"],
    &["rpc", "net", "disk"],
    &["metadata", "cluster", "topics", "storage"],
    &["coordinator", "replica", "group"],
    &["leader", "member", "client"],
    &["cli"],
    &["testing"],
];

/// Who may use whom within a row.
const SIDEWAYS: &[(&str, &str)] = &[
    ("cluster", "metadata"),
    ("config", "ids"),
    ("threads", "clock"),
    ("logging", "clock"),
    ("logging", "threads"),
    ("error", "ids"),
];

/// Modules that are stepped: a directory, or a file.
const PURE: &[&str] = &[
    "protocol",
    "metadata",
    "cluster",
    "topics",
    "coordinator",
    "replica",
    "group/core.rs",
    "group/proposals.rs",
    "group/reads.rs",
    "rpc/frame.rs",
    "client/answer.rs",
    "client/attempts.rs",
    "client/done.rs",
    "client/error.rs",
    "client/request.rs",
    "error.rs",
    "ids.rs",
];

/// What a pure module does not name.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "parking_lot",
    "crossbeam_channel",
    "crate::threads",
    "dyn Clock",
];

/// Libraries that are named in one place only.
const ONE_PLACE: &[(&str, &[&str])] = &[
    ("raft", &["group/"]),
    ("protobuf", &["group/"]),
    ("rustls", &["rpc/tls"]),
    ("mio", &["net/"]),
    ("httparse", &["protocol/http/", "cli/load/replies.rs"]),
    ("prost", &["rpc/envelope.rs", "rpc/envelope/stores.rs"]),
    ("rcgen", &["cli/certs.rs", "rpc/testing.rs"]),
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/"]),
    ("signal_hook", &["cli/"]),
];

/// What stands at the top, beside what `.gitignore` names.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "build.rs",
    "config",
    "proto",
    "src",
    "tests",
];

const LINES_MAX: usize = 500;
const LONG_BECAUSE: &str = "//! Longer than 500 lines because";
const COLUMNS_MAX: usize = 100;

/// A source file.
struct Source {
    /// Relative to the repository.
    path: String,
    text: String,
    /// Whether all of it is a test.
    is_test: bool,
}

/// Whether two lines begin a test module, which goes on with `end`.
fn is_test_module(pair: &[&str], end: &str) -> bool {
    let [attribute, module] = pair else {
        return false;
    };
    let is_module = module.starts_with("mod ") || module.starts_with("pub(crate) mod ");
    *attribute == "#[cfg(test)]" && is_module && module.ends_with(end)
}

impl Source {
    /// The lines before the tests; none of a file that is a test.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| is_test_module(pair, " {"));
        let end = if self.is_test {
            0
        } else {
            tests.unwrap_or(lines.len())
        };
        lines
            .into_iter()
            .take(end)
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }

    /// The files of the test modules it declares.
    fn test_modules(&self) -> Vec<String> {
        let dir = match self.path.rsplit_once('/') {
            Some((dir, "lib.rs" | "mod.rs")) => dir,
            _ => self.path.trim_end_matches(".rs"),
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let declared = lines.windows(2).filter(|pair| is_test_module(pair, ";"));
        let name = |pair: &[&str]| pair[1].split_whitespace().last().map(str::to_owned);
        let names = declared.filter_map(name);
        names
            .map(|name| format!("{dir}/{}", name.trim_end_matches(';')))
            .collect()
    }

    /// The lines before the tests, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self
            .shipped()
            .filter(|(_, line)| !line.trim_start().starts_with("//"));
        lines.map(|(number, line)| (number, line.split(" // ").next().unwrap_or(line)))
    }

    /// The path below `src/`, for library files.
    fn in_library(&self) -> Option<&str> {
        self.path.strip_prefix("src/")
    }

    /// The top-level module it belongs to.
    fn module(&self) -> Option<&str> {
        let first = self.in_library()?.split('/').next()?;
        Some(first.strip_suffix(".rs").unwrap_or(first))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for top in ["src", "tests", "benches", "build.rs"] {
        collect(&root().join(top), &mut found);
    }
    assert!(found.iter().any(|source| source.path == "src/lib.rs"));
    let tests: Vec<String> = found.iter().flat_map(Source::test_modules).collect();
    for source in &mut found {
        let stem = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let is_in = |test: &String| {
            let rest = stem.strip_prefix(test.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        source.is_test = source.path.starts_with("tests/") || tests.iter().any(is_in);
    }
    found
}

fn collect(path: &Path, found: &mut Vec<Source>) {
    // What fuzzing builds is not ours.
    if path.ends_with("fuzz/target") {
        return;
    }
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a directory");
        entries.for_each(|entry| collect(&entry.expect("an entry").path(), found));
    } else if path.extension().is_some_and(|extension| extension == "rs") && path.exists() {
        let relative = path.strip_prefix(root()).expect("below the root");
        found.push(Source {
            path: relative.to_string_lossy().into_owned(),
            text: fs::read_to_string(path).expect("readable"),
            is_test: false,
        });
    }
}

/// Fails with every complaint at once.
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `line` names the crate `name` as the begin of a path.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let starts = before.is_none_or(|c| !is_word(c) && c != ':' && c != '.');
        starts && after.starts_with("::")
    })
}

/// The top-level modules that code names by `crate::`, also in groups: `use crate::{a::X, b}`.
fn used_modules(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(std::mem::take(&mut item)),
                        c if depth == 0 => item.push(c),
                        _ => {}
                    }
                }
                found.push(item);
            }
            None => found.push(rest.to_owned()),
        }
    }
    let first = |path: String| {
        path.trim()
            .chars()
            .take_while(|c| is_word(*c))
            .collect::<String>()
    };
    found
        .into_iter()
        .map(first)
        .filter(|name| !name.is_empty())
        .collect()
}

fn row(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

#[test]
fn modules_use_lower_layers_only() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(module) = source
            .module()
            .filter(|name| !["lib", "bin"].contains(name))
        else {
            continue;
        };
        let Some(own) = row(module) else {
            complaints.push(format!("{}: {module} is in no layer", source.path));
            continue;
        };
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        for used in used_modules(&code.join("\n")) {
            let is_allowed = used == module
                || SIDEWAYS.contains(&(module, used.as_str()))
                || row(&used).is_some_and(|other| other < own);
            if !is_allowed {
                complaints.push(format!("{}: {module} must not use {used}", source.path));
            }
        }
    }
    report(complaints);
}

#[test]
fn the_check_of_layers_sees_every_form_of_a_path() {
    let code = "use crate::{a::{b, c}, d};\nlet x = crate::e::f(); use crate::g;\n$crate::h::i!()";
    assert_eq!(used_modules(code), ["a", "d", "e", "g", "h"]);
    assert!(names_crate("use mio::Poll;", "mio") && names_crate("fn f(p: &mio::Poll)", "mio"));
    assert!(!names_crate("self::mio::x", "mio") && !names_crate("hermio::x", "mio"));
}

#[test]
fn pure_modules_touch_nothing() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(path) = source.in_library() else {
            continue;
        };
        let is_pure = PURE.iter().any(|pure| {
            path == *pure
                || path
                    .strip_prefix(pure)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        for (number, line) in source.code().filter(|_| is_pure) {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                complaints.push(format!("src/{path}:{number}: pure, but names {word}"));
            }
        }
    }
    report(complaints);
}

#[test]
fn a_library_is_named_in_one_place() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(path) = source.in_library() else {
            continue;
        };
        for (library, places) in ONE_PLACE {
            if places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            for (number, line) in source.code().filter(|(_, line)| names_crate(line, library)) {
                let line = line.trim();
                complaints.push(format!(
                    "src/{path}:{number}: {library} has its place: {line}"
                ));
            }
        }
    }
    report(complaints);
}

#[test]
fn every_file_begins_with_what_it_is() {
    let without = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "));
    report(
        without
            .map(|source| format!("{}: no header", source.path))
            .collect(),
    );
}

#[test]
fn files_and_lines_are_short() {
    let mut complaints = Vec::new();
    for source in sources() {
        let lines = source.shipped().count();
        if lines > LINES_MAX && !source.text.contains(LONG_BECAUSE) {
            complaints.push(format!("{}: {lines} lines without tests", source.path));
        }
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                complaints.push(format!("{}:{}: {columns} columns", source.path, index + 1));
            }
        }
    }
    report(complaints);
}

#[test]
fn nothing_is_put_off_in_comments() {
    let mut complaints = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            for word in [
                concat!("TO", "DO"),
                concat!("FIX", "ME"),
                concat!("XX", "X"),
            ] {
                let mut words = line.split(|c| !is_word(c));
                if words.any(|found| found == word) {
                    complaints.push(format!("{}:{}: {word}", source.path, index + 1));
                }
            }
        }
    }
    report(complaints);
}

#[test]
fn the_top_level_is_as_agreed() {
    let ignored = fs::read_to_string(root().join(".gitignore")).expect("a .gitignore");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let mut complaints = Vec::new();
    for entry in fs::read_dir(root()).expect("a directory") {
        let name = entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned();
        if !TOP_LEVEL.contains(&name.as_str()) && !ignored.contains(&name.as_str()) {
            complaints.push(format!("{name} does not belong to the top level"));
        }
    }
    report(complaints);
}
