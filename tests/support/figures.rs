//! What the tests of speed find: rows with what was promised, printed as a table, checked, and kept
//! below the target directory for `cargo bench --bench report`.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

/// What was promised for a figure.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// More is better: what it must reach, and what was aimed at.
    AtLeast(f64, f64),
    /// Less is better.
    AtMost(f64, f64),
    /// More is better, of one load over another that alternates with it: what else runs on the
    /// machine slows both, so that all of it is checked on a shared one too.
    Ratio(f64, f64),
    /// Nothing.
    None,
}

/// A figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// The load, and what of it.
    pub what: String,
    /// What was found.
    pub found: f64,
    /// Of `found` and of the limit.
    pub unit: &'static str,
    /// What was promised.
    pub limit: Limit,
    /// Whether it is known that this is not reached yet: it is shown, and fails nothing.
    pub is_open: bool,
    /// What else was found: what `tolerex bench --json` printed, or nothing.
    pub details: Value,
}

impl Row {
    /// A figure without details.
    pub fn new(what: &str, found: f64, unit: &'static str, limit: Limit) -> Row {
        Row {
            what: what.to_owned(),
            found,
            unit,
            limit,
            is_open: false,
            details: Value::Null,
        }
    }

    /// The same, of which it is known that the promise is not reached yet.
    pub fn open(self) -> Row {
        let is_open = true;
        Row { is_open, ..self }
    }

    /// The same with what else the load came to.
    pub fn with(self, details: &Value) -> Row {
        let details = details.clone();
        Row { details, ..self }
    }

    /// Whether it is what it must be.
    pub fn is_kept(&self) -> bool {
        let share = share();
        match self.limit {
            Limit::AtLeast(must, _) => self.found >= must * share,
            Limit::AtMost(must, _) => self.found <= must / share,
            Limit::Ratio(must, _) => self.found >= must,
            Limit::None => true,
        }
    }

    /// The better one of two.
    fn or_better(self, other: Row) -> Row {
        let is_better = match self.limit {
            Limit::AtLeast(..) | Limit::Ratio(..) => other.found > self.found,
            Limit::AtMost(..) => other.found < self.found,
            Limit::None => false,
        };
        if is_better { other } else { self }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, must, aim) = match self.limit {
            Limit::AtLeast(must, aim) | Limit::Ratio(must, aim) => ("at least", must, aim),
            Limit::AtMost(must, aim) => ("at most", must, aim),
            Limit::None => return write!(f, "{}: {:.2} {}", self.what, self.found, self.unit),
        };
        let missed = match (self.is_kept(), self.is_open) {
            (true, _) => "",
            (false, true) => "not reached yet: ",
            (false, false) => "MISSED: ",
        };
        write!(
            f,
            "{missed}{}: {:.2} {} ({kind} {must:.2}, aim {aim:.2})",
            self.what, self.found, self.unit
        )
    }
}

/// How much of what is promised must be reached: all of it, unless `FIGURES_SHARE` says less. The
/// promises hold for a machine that does nothing else; one that is shared says what share of them
/// it checks, so that what others do there is not taken for a regression.
fn share() -> f64 {
    let share = std::env::var("FIGURES_SHARE").map(|text| text.parse().expect("a number"));
    share.unwrap_or(1.0)
}

/// Measures until every row is what it must be, at most so many times: what else runs on the
/// machine can only hurt. Keeps the best of each row.
pub fn best_of(tries: usize, mut measure: impl FnMut() -> Vec<Row>) -> Vec<Row> {
    let mut best = measure();
    for _ in 1..tries {
        if best.iter().all(|row| row.is_kept() || row.is_open) {
            break;
        }
        best.iter().for_each(|row| println!("once more: {row}"));
        let rows = best.into_iter().zip(measure());
        best = rows.map(|(old, new)| old.or_better(new)).collect();
    }
    best
}

/// The middle one.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The commit that is measured; with a `+` if files differ from it.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().to_owned()).filter(|_| output.status.success())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    // What is published here is no part of what is measured.
    let paths = ["src", "benches/*.rs", "tests", "Cargo.toml", "Cargo.lock"];
    let changed = git(&[&["status", "--porcelain", "--"], &paths[..]].concat());
    let differs = changed.is_none_or(|changed| !changed.is_empty());
    commit + if differs { "+" } else { "" }
}

/// Keeps figures as `name` for the report.
pub fn keep(name: &str, command: &str, figures: &Value) {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("figures");
    fs::create_dir_all(&dir).expect("a directory");
    let all = json!({ "command": command, "commit": commit(), "figures": figures });
    fs::write(dir.join(format!("{name}.json")), all.to_string()).expect("written");
}

/// Prints the rows. In a release build keeps them, and fails if one is not what it must be; a debug
/// build says nothing about speed.
pub fn publish(name: &str, command: &str, rows: &[Row]) {
    rows.iter().for_each(|row| println!("{name}: {row}"));
    if cfg!(debug_assertions) {
        println!("measured only: the limits hold for a release build");
        return;
    }
    let as_json = |row: &Row| {
        let (kind, must, aim) = match row.limit {
            Limit::AtLeast(must, aim) | Limit::Ratio(must, aim) => {
                ("at least", Some(must), Some(aim))
            }
            Limit::AtMost(must, aim) => ("at most", Some(must), Some(aim)),
            Limit::None => ("", None, None),
        };
        json!({
            "what": row.what, "found": row.found, "unit": row.unit, "limit": kind, "must": must,
            "aim": aim, "details": row.details,
        })
    };
    keep(name, command, &rows.iter().map(as_json).collect());
    let missed: Vec<String> = rows
        .iter()
        .filter(|row| !row.is_kept() && !row.is_open)
        .map(Row::to_string)
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
