//! HTTP as another generator than ours sees it, and HaToKuSe beside it, by turns.
//!
//! `cargo bench --bench by_wrk` takes a minute and needs wrk (`apt-get install wrk`), which runs
//! `benches/wrk.lua`. Both protocols' messages have 100 bytes and 10,000 ids; each generator has
//! one thread and 64 connections. A pair is one run of each, one after the other; the medians of
//! all pairs are shown, and the median of their quotients.

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::cluster::Cluster;
use support::figures::{keep, median};
use tolerex::cli::load::cpu::CpuTime;

const COMMAND: &str = "cargo bench --bench by_wrk";

const PAIRS: usize = 5;
const SECONDS: u32 = 2;
const KEYS: u64 = 10_000;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/wrk.lua");

/// Whether there is a wrk; asked for its version it says how it is used, too, and fails.
fn has_wrk() -> bool {
    Command::new("wrk").arg("--version").output().is_ok()
}

/// What a run of wrk came to, as `tolerex bench` would say it.
fn wrk(cluster: &Cluster, method: &str) -> Value {
    let leader = cluster.field("leader-1", "http");
    let leader = format!("http://{}", leader.as_str().expect("an address"));
    let names = ["leader-1", "member-1", "member-2", "member-3"];
    let pids = names.map(|name| cluster.pid(name));
    let before = CpuTime::now(&pids).expect("the servers run");
    let time = format!("{SECONDS}s");
    let flags = [
        "-t", "1", "-c", "64", "-d", &time, "-s", SCRIPT, &leader, "--", method,
    ];
    let output = Command::new("wrk").args(flags).output().expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let mut found: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(found["errors"], 0, "{text}");
    let (servers, _) = CpuTime::now(&pids).expect("the servers run").since(before);
    let cpu = servers.as_secs_f64() * 1e6 / number(&found, "ops");
    found["server_cpu_us_per_op"] = cpu.into();
    found
}

fn number(found: &Value, field: &str) -> f64 {
    found[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field}: {found}"))
}

/// A request by both generators; the row of each.
fn measure(cluster: &Cluster, method: &str, name: &str, read: u8) -> [Value; 2] {
    let flags = format!("--seconds {SECONDS} --keys {KEYS} --get-ratio {read}");
    let mut runs = [Vec::new(), Vec::new()];
    let mut quotients = Vec::new();
    for _ in 0..PAIRS {
        let hatokuse = cluster.bench(&flags);
        assert_eq!(hatokuse["errors"], 0, "{hatokuse}");
        let http = wrk(cluster, method);
        quotients.push(number(&http, "ops_per_s") / number(&hatokuse, "ops_per_s"));
        runs[0].push(hatokuse);
        runs[1].push(http);
    }
    let quotient = median(quotients);
    let [hatokuse, http] = runs.map(|runs| {
        let of = |field| median(runs.iter().map(|run| number(run, field)).collect());
        let fields = ["ops_per_s", "p50_us", "p99_us", "server_cpu_us_per_op"];
        Value::from_iter(fields.map(|field| (field, of(field))))
    });
    let named = |mut row: Value, what: String, quotient: Option<f64>| {
        row["what"] = what.into();
        row["over"] = quotient.into();
        println!("{row}");
        row
    };
    [
        named(
            hatokuse,
            format!("{name} by HaToKuSe, `tolerex bench`"),
            None,
        ),
        named(http, format!("{method} by HTTP, wrk"), Some(quotient)),
    ]
}

fn main() {
    // Only when it is asked for by name, not by `cargo test --benches`.
    if std::env::args().skip(1).ne(["--bench".to_owned()]) {
        return;
    }
    if !has_wrk() {
        println!("skipped: wrk is not installed");
        return;
    }
    let cluster = Cluster::start(&[]);
    // All that is read is there.
    cluster.bench(&format!("--pipeline 16 --count {KEYS} --keys {KEYS}"));
    let puts = measure(&cluster, "PUT", "SET", 0);
    let gets = measure(&cluster, "GET", "GET", 1);
    keep("by-wrk", COMMAND, &json!([puts, gets].concat()));
}
