//! Writes the figures that were measured into `benches/README.md`, `benches/modes.svg` and
//! `README.md`, so that none is typed by hand.
//!
//! `cargo bench --bench report`, behind the commands that measure (see `benches/README.md`). It
//! reads what they left below the target directory: criterion's `estimates.json` and `figures/`.
//! A table stands between `<!-- NAME -->` and `<!-- end -->`; one whose figures are not there stays
//! as it is.

#[allow(dead_code)]
#[path = "../tests/support/figures.rs"]
mod figures;
mod plot;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Below the target directory.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

const SIZES: [(u64, &str); 3] = [(100, "100 B"), (1024, "1 KiB"), (65536, "64 KiB")];
const WRITERS: [(u64, &str); 2] = [(1, "1 writer"), (64, "64 writers")];
const MODES: [&str; 6] = [
    "log-sync",
    "log-unbuffered",
    "log-buffered",
    "files-sync",
    "files-unbuffered",
    "files-buffered",
];

/// What criterion found: its median in nanoseconds, by the measurement's name.
struct Medians(BTreeMap<String, f64>);

impl Medians {
    fn read() -> Medians {
        let mut found = BTreeMap::new();
        let target = Path::new(TMP).parent().expect("the target directory");
        collect(&target.join("criterion"), &mut found);
        Medians(found)
    }

    /// Records a second of a write mode.
    fn rate(&self, size: u64, writers: u64, mode: &str) -> Option<f64> {
        let nanos = self.0.get(&format!("disk/{size}B/{writers}/{mode}"))?;
        Some(writers as f64 * 1e9 / nanos)
    }
}

fn collect(dir: &Path, found: &mut BTreeMap<String, f64>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("new") {
            collect(&path, found);
        } else if path.is_dir() {
            let of = |file: &str| read_json(&path.join(file));
            let name = of("benchmark.json").map(|json| json["full_id"].clone());
            let median = of("estimates.json").map(|json| json["median"]["point_estimate"].clone());
            let (name, median) = (name.unwrap_or_default(), median.unwrap_or_default());
            if let (Some(name), Some(median)) = (name.as_str(), median.as_f64()) {
                found.insert(name.to_owned(), median);
            }
        }
    }
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// What a command kept under a name that begins so, in the order of the names.
fn kept(prefix: &str) -> Vec<Value> {
    let entries = fs::read_dir(Path::new(TMP).join("figures"))
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let name = |path: &PathBuf| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    paths.retain(|path| name(path).is_some_and(|name| name.starts_with(prefix)));
    paths.iter().filter_map(|path| read_json(path)).collect()
}

fn rows(kept: &Value) -> impl Iterator<Item = &Value> {
    kept["figures"].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("?")
}

/// Thousands apart, and digits behind the point only where they tell something.
fn number(number: f64) -> String {
    let digits = match number.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    let plain = format!("{number:.digits$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

fn time(nanos: f64) -> String {
    match nanos {
        nanos if nanos < 1e3 => number(nanos) + " ns",
        nanos if nanos < 1e6 => number(nanos / 1e3) + " us",
        nanos => number(nanos / 1e6) + " ms",
    }
}

/// A field of `tolerex bench --json` or of its like, in microseconds there.
fn micros(details: &Value, field: &str) -> String {
    let micros = details[field].as_f64();
    micros.map_or(String::new(), |micros| time(micros * 1e3))
}

fn amount(value: &Value, unit: &str) -> String {
    let space = if unit == "/s" { "" } else { " " };
    value.as_f64().map_or(String::new(), |found| {
        format!("{}{space}{unit}", number(found))
    })
}

/// Every promised figure.
fn speed_table(all: &[Value]) -> String {
    let mut table = "| | found | must reach | aim | | p50 | p99 |\n\
                     |---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in all.iter().flat_map(rows) {
        let unit = text(row, "unit");
        let (found, must, aim) = (&row["found"], &row["must"], &row["aim"]);
        let reached = |limit: &Value| match text(row, "limit") {
            "at least" => found.as_f64() >= limit.as_f64(),
            _ => found.as_f64() <= limit.as_f64(),
        };
        let verdict = match (must.is_null(), reached(aim), reached(must)) {
            (true, ..) => "",
            (_, true, _) => "aim reached",
            (_, _, true) => "reached",
            _ => "**missed**",
        };
        let details = &row["details"];
        _ = writeln!(
            table,
            "| {} | {} | {} {} | {} | {verdict} | {} | {} |",
            text(row, "what"),
            amount(found, unit),
            text(row, "limit"),
            amount(must, unit),
            amount(aim, unit),
            micros(details, "p50_us"),
            micros(details, "p99_us"),
        );
    }
    table
}

/// The loads alone, for the front page.
fn short_table(all: &[Value]) -> String {
    let mut table = "| load | operations a second | p50 | p99 | CPU of all servers for each |\n\
                     |---|---|---|---|---|\n"
        .to_owned();
    for row in all.iter().flat_map(rows) {
        let details = &row["details"];
        let rate = match (details["ops_per_s"].as_f64(), text(row, "unit")) {
            (Some(rate), _) => number(rate),
            (None, "messages/s") => number(row["found"].as_f64().unwrap_or(0.0)),
            (None, _) => continue,
        };
        let what = text(row, "what").split(": ").next().unwrap_or("?");
        let (p50, p99) = (micros(details, "p50_us"), micros(details, "p99_us"));
        let cpu = micros(details, "server_cpu_us_per_op");
        _ = writeln!(table, "| {what} | {rate} | {p50} | {p99} | {cpu} |");
    }
    table
}

/// The comparison of the write modes.
fn modes_table(medians: &Medians) -> Option<String> {
    let mut table = String::from("| records/s |");
    let mut rule = String::from("|---|");
    for (_, writers) in WRITERS {
        for (_, size) in SIZES {
            _ = write!(table, " {writers}, {size} |");
            rule += "---|";
        }
    }
    table += &format!("\n{rule}\n");
    for mode in MODES {
        _ = write!(table, "| `{}` |", mode.replace('-', "` `"));
        for (writers, _) in WRITERS {
            for (size, _) in SIZES {
                _ = write!(table, " {} |", number(medians.rate(size, writers, mode)?));
            }
        }
        table.push('\n');
    }
    let lone = medians.0.get("disk/lone 4096B append and fdatasync")?;
    _ = writeln!(
        table,
        "\nA lone append of 4 KiB and its `fdatasync`, in the same run: {}.",
        time(*lone)
    );
    Some(table)
}

/// Everything else that criterion measured.
fn parts_table(medians: &Medians, memory: Option<&Value>) -> String {
    let mut table = "| part | time |\n|---|---|\n".to_owned();
    let parts = medians
        .0
        .iter()
        .filter(|(name, _)| !name.starts_with("disk/"));
    for (name, nanos) in parts {
        _ = writeln!(table, "| `{name}` | {} |", time(*nanos));
    }
    if let Some(memory) = memory {
        let of = |field: &str| {
            memory["figures"][field]
                .as_f64()
                .map_or(String::new(), number)
        };
        _ = writeln!(
            table,
            "| message index, for a message with a numeric id | {} to {} bytes |",
            of("least"),
            of("most")
        );
    }
    table
}

fn redis_table(kept: &Value) -> String {
    let redis = format!("Redis {}", text(&kept["figures"], "redis"));
    let mut table = "| load | generator | store | ops/s | p50 | p99 | CPU of all servers for each \
                     |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in kept["figures"]["rows"].as_array().into_iter().flatten() {
        let store = match text(row, "store") {
            "Redis" => &redis,
            other => other,
        };
        _ = writeln!(
            table,
            "| {} | {} | {store} | {} | {} | {} | {} |",
            text(row, "what"),
            text(row, "generator"),
            row["ops_per_s"].as_f64().map_or(String::new(), number),
            micros(row, "p50_us"),
            micros(row, "p99_us"),
            micros(row, "server_cpu_us_per_op"),
        );
    }
    table
}

fn wrk_table(kept: &Value) -> String {
    let mut table = "| load, 64 connections | ops/s | p50 | p99 | CPU of all servers for each | \
                     rate over that of HaToKuSe |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows(kept) {
        _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} |",
            text(row, "what"),
            row["ops_per_s"].as_f64().map_or(String::new(), number),
            micros(row, "p50_us"),
            micros(row, "p99_us"),
            micros(row, "server_cpu_us_per_op"),
            amount(&row["over"], "x"),
        );
    }
    table
}

/// Where and on what it was measured.
fn machine_table(all: &[Value]) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("?".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    let kib = field(&read("/proc/meminfo"), "MemTotal");
    let kib: f64 = kib.trim_end_matches(" kB").parse().unwrap_or(0.0);
    let mounts = read("/proc/mounts");
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<&str>>());
    let holds = |mount: &Vec<&str>| mount.len() > 3 && Path::new(TMP).starts_with(mount[1]);
    let mount = fields.filter(holds).max_by_key(|mount| mount[1].len());
    let mount = mount.map_or("?".to_owned(), |mount| {
        format!("{} on {} ({})", mount[2], mount[0], mount[3])
    });
    let mut commands: Vec<String> = all
        .iter()
        .map(|kept| {
            format!(
                "| `{}` | `{}` |\n",
                text(kept, "command"),
                text(kept, "commit")
            )
        })
        .collect();
    commands.sort();
    commands.dedup();
    format!(
        "| | |\n|---|---|\n\
         | processor | {}, family {}, model {}; {} cores |\n\
         | memory | {:.0} GiB |\n\
         | kernel | Linux {} |\n\
         | disk | {mount} |\n\n\
         | command | commit |\n|---|---|\n{}",
        field(&cpu, "model name"),
        field(&cpu, "cpu family"),
        field(&cpu, "model\t"),
        cpu.lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
        kib / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        commands.concat(),
    )
}

/// Puts a table between its marks.
fn replace(page: &mut String, name: &str, table: Option<String>) {
    let Some(table) = table else {
        println!("skipped: {name} was not measured, its table stays as it is");
        return;
    };
    let begin = format!("<!-- {name} -->\n");
    let (before, rest) = page.split_once(&begin).expect("the table's first mark");
    let (_, after) = rest
        .split_once("<!-- end -->")
        .expect("the table's last mark");
    *page = format!(
        "{before}{begin}\n{}\n\n<!-- end -->{after}",
        table.trim_end()
    );
}

fn main() {
    // Only when it is asked for by name, not by `cargo test --benches`.
    if std::env::args().skip(1).ne(["--bench".to_owned()]) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let medians = Medians::read();
    let (speed, memory, redis) = (kept("speed-"), kept("parts"), kept("beside-redis"));
    let by_wrk = kept("by-wrk");
    let is_measured = !speed.is_empty();

    let path = root.join("benches/README.md");
    let mut page = fs::read_to_string(&path).expect("benches/README.md");
    replace(&mut page, "machine", Some(machine_table(&kept(""))));
    replace(&mut page, "speed", is_measured.then(|| speed_table(&speed)));
    replace(&mut page, "modes", modes_table(&medians));
    let parts = !medians.0.is_empty();
    replace(
        &mut page,
        "parts",
        parts.then(|| parts_table(&medians, memory.first())),
    );
    replace(&mut page, "redis", redis.first().map(redis_table));
    replace(&mut page, "wrk", by_wrk.first().map(wrk_table));
    fs::write(&path, page).expect("written");
    match plot::svg(&|size, writers, mode| medians.rate(size, writers, mode)) {
        Some(svg) => fs::write(root.join("benches/modes.svg"), svg).expect("written"),
        None => println!("skipped: the write modes were not measured, modes.svg stays as it is"),
    }

    let path = root.join("README.md");
    let mut page = fs::read_to_string(&path).expect("README.md");
    let loads = ["speed-1", "speed-6", "speed-3"].map(kept);
    let short = short_table(&loads.concat());
    replace(&mut page, "speed", is_measured.then_some(short));
    fs::write(&path, page).expect("written");
}
