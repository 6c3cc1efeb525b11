//! How fast is it? Every figure that was promised, with what must be reached.
//!
//! `cargo test --release --test speed -- --ignored --nocapture` prints the figures and fails where
//! one is missed; a debug build measures shortly and only prints. The loads are those of `tolerex
//! bench`, and the generator shares the machine with the cluster. In a binary of its own, and one
//! test at a time, so that nothing else runs beside it.
//!
//! A load that misses what it must reach is measured up to [`TRIES`] times: what else runs on a
//! machine can only hurt. Ratios of two loads are medians of alternating rounds.

mod support;
#[path = "speed/workers.rs"]
mod workers;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use support::client::Client;
use support::cluster::Cluster;
use support::figures::{Limit, Row, best_of, median, publish};
use support::http::Http;
use support::readers::{self, Readers};
use tolerex::clock::{Clock, SystemClock, sleep};

const COMMAND: &str = "cargo test --release --test speed -- --ignored --nocapture";

const IS_DEBUG: bool = cfg!(debug_assertions);

/// How long a load is measured.
const SECONDS: f64 = if IS_DEBUG { 0.3 } else { 3.0 };

/// The same for each load of a ratio.
const RATIO_SECONDS: f64 = if IS_DEBUG { 0.3 } else { 1.5 };

const TRIES: usize = if IS_DEBUG { 1 } else { 3 };

/// The same of a comparison of both protocols, whose limit holds on a shared machine too: a disk
/// that stalls in most rounds of one side and not of the other says nothing of either.
const PROTOCOL_TRIES: usize = if IS_DEBUG { 1 } else { 8 };

/// Rounds of a ratio.
const ROUNDS: usize = if IS_DEBUG { 1 } else { 3 };
/// "Many" messages.
const MESSAGES: u64 = if IS_DEBUG { 50_000 } else { 1_000_000 };

/// Small durable writes whose time a SET is compared with, before and after it.
const LONE_WRITES: usize = if IS_DEBUG { 50 } else { 500 };

/// Bulk writes of [`MESSAGES`] at whose end a leader's memory is measured at its peak.
const BULKS: u64 = if IS_DEBUG { 2 } else { 10 };

/// Keys of the loads that are compared with each other: few beside a million.
const FEW_KEYS: u64 = 10_000;

static ALONE: Mutex<()> = Mutex::new(());

/// Lets the tests of this binary run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock()
}

/// A load of `tolerex bench` in which nothing may fail.
fn load(cluster: &Cluster, flags: &str, seconds: f64) -> Value {
    let found = cluster.bench(&format!("{flags} --seconds {seconds}"));
    assert_eq!(found["errors"], 0, "{flags}: {found}");
    found
}

fn number(found: &Value, field: &str) -> f64 {
    found[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field}: {found}"))
}

/// The times of appends of 4 KiB, each followed by `fdatasync`, in microseconds.
fn lone_writes(dir: &Path) -> Vec<f64> {
    let path = dir.join("lone");
    let mut file = File::create(&path).expect("a file");
    let block = [b'x'; 4096];
    let clock = SystemClock::new();
    let one = |_| {
        let start = clock.now();
        file.write_all(&block).expect("the disk works");
        file.sync_data().expect("the disk works");
        clock.now().since(start).as_secs_f64() * 1e6
    };
    let times = (0..LONE_WRITES).map(one).collect();
    std::fs::remove_file(&path).expect("removed");
    times
}

/// SET with one connection, 64, and 64 with 16 in flight. `share` of what is promised for two
/// copies must be reached.
fn sets(cluster: &Cluster, copies: &str, share: f64) -> Vec<Row> {
    let one = || {
        let before = median(lone_writes(cluster.dir()));
        let found = load(cluster, "--connections 1", SECONDS);
        let after = median(lone_writes(cluster.dir()));
        let p50 = number(&found, "p50_us");
        // The smaller one: whatever else used the disk then would make a SET look good.
        let lone = before.min(after);
        println!("a lone 4 KiB append and fdatasync: {lone:.0} us, a SET: {p50:.0} us");
        let limit = Limit::AtMost(4.0 / share, 2.5 / share);
        let what = "1 connection: p50 over that of a lone 4 KiB append and fdatasync";
        let mut details = found;
        details["lone_us"] = lone.into();
        vec![Row::new(what, p50 / lone, "x", limit).with(&details)]
    };
    let many = || {
        let found = load(cluster, "--connections 64", SECONDS);
        let rate = Limit::AtLeast(20_000.0 * share, 35_000.0 * share);
        let cpu = Limit::AtMost(60.0 / share, 30.0 / share);
        let servers = number(&found, "server_cpu_us_per_op");
        vec![
            Row::new("64 connections", number(&found, "ops_per_s"), "/s", rate).with(&found),
            Row::new("64 connections: CPU of all servers", servers, "us", cpu),
        ]
    };
    let deep = || {
        let found = load(cluster, "--connections 64 --pipeline 16", SECONDS);
        let limit = Limit::AtLeast(100_000.0 * share, 200_000.0 * share);
        let what = "64 connections x pipeline 16";
        vec![Row::new(what, number(&found, "ops_per_s"), "/s", limit).with(&found)]
    };
    let rows = [
        best_of(TRIES, one),
        best_of(TRIES, many),
        best_of(TRIES, deep),
    ]
    .concat();
    let named = |row: Row| {
        let what = format!("SET{copies}, {}", row.what);
        Row { what, ..row }
    };
    rows.into_iter().map(named).collect()
}

fn gets(cluster: &Cluster) -> Vec<Row> {
    let get = |what: &str, flags: &str, must: f64, aim: f64| {
        best_of(TRIES, || {
            let found = load(cluster, &format!("--get-ratio 1 {flags}"), SECONDS);
            let limit = Limit::AtLeast(must, aim);
            vec![Row::new(what, number(&found, "ops_per_s"), "/s", limit).with(&found)]
        })
    };
    let many = get("GET, 64 connections", "--connections 64", 40e3, 80e3);
    let flags = "--connections 64 --pipeline 16";
    let deep = get("GET, 64 connections x pipeline 16", flags, 200e3, 400e3);
    [many, deep].concat()
}

#[test]
#[ignore = "slow: loads for some seconds"]
fn two_copies_are_as_fast_as_promised() {
    let _alone = alone();
    let cluster = Cluster::start(&[]);
    let rows = [sets(&cluster, "", 1.0), gets(&cluster)].concat();
    publish("speed-1-two-copies", COMMAND, &rows);
}

#[test]
#[ignore = "slow: loads for some seconds"]
fn three_copies_are_nearly_as_fast_as_two() {
    let _alone = alone();
    let cluster = Cluster::start(&["--tolerance", "3"]);
    publish(
        "speed-2-three-copies",
        COMMAND,
        &sets(&cluster, " at tolerance 3", 0.85),
    );
}

/// The rate of one `N SET x`.
fn bulk(cluster: &Cluster) -> Vec<Row> {
    let mut client = Client::connect(cluster.address());
    let clock = SystemClock::new();
    let start = clock.now();
    let reply = client.command(&format!("{MESSAGES} SET x"));
    let rate = MESSAGES as f64 / clock.now().since(start).as_secs_f64();
    assert!(reply.starts_with("OK "), "{reply}");
    let what = format!("one `{MESSAGES} SET x`");
    vec![Row::new(
        &what,
        rate,
        "messages/s",
        Limit::AtLeast(150e3, 300e3),
    )]
}

/// The rate of a load on `cluster` over that on `other`.
fn ratio(what: &str, flags: &str, clusters: [&Cluster; 2], limit: Limit) -> Vec<Row> {
    best_of(TRIES, || {
        let loads = clusters.map(|cluster| (cluster, flags));
        vec![Row::new(what, over(what, &by_turns(loads)), "x", limit)]
    })
}

/// Of each of two loads that alternate, the run with the median rate.
fn by_turns(loads: [(&Cluster, &str); 2]) -> [Value; 2] {
    let mut runs = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for ((cluster, flags), runs) in loads.iter().zip(&mut runs) {
            runs.push(load(cluster, flags, RATIO_SECONDS));
        }
    }
    runs.map(|mut runs| {
        runs.sort_by(|a, b| number(a, "ops_per_s").total_cmp(&number(b, "ops_per_s")));
        runs.swap_remove(runs.len() / 2)
    })
}

/// The rate of the first of two loads over that of the second.
fn over(what: &str, runs: &[Value; 2]) -> f64 {
    let [rate, base] = runs.each_ref().map(|run| number(run, "ops_per_s"));
    println!("{what}: {rate:.0}/s over {base:.0}/s");
    rate / base
}

#[test]
#[ignore = "slow: 1,000,000 messages"]
fn a_million_messages_take_little_memory_and_no_speed() {
    let _alone = alone();
    let [full, empty] = [Cluster::start(&[]), Cluster::start(&[])];
    // What a leader takes once is not a message's.
    let reply = full.client().command(&format!("{FEW_KEYS} SET x"));
    assert!(reply.starts_with("OK "), "{reply}");
    let before = full.resident_bytes("leader-1");
    let first = bulk(&full);
    let grown = full.resident_bytes("leader-1").saturating_sub(before);
    let each = grown as f64 / MESSAGES as f64;
    let what = "leader's memory for a stored message (numeric id)";
    let mut rows = vec![Row::new(what, each, "bytes", Limit::AtMost(64.0, 40.0))];
    let mut first = Some(first);
    rows.extend(best_of(TRIES, || {
        first.take().unwrap_or_else(|| bulk(&full))
    }));

    let limit = Limit::AtLeast(0.9, 1.0);
    // The last one has no limit: a lookup in memory is a large part of such a GET, and 40 MB of
    // tables do not fit the processor's caches as those of 10,000 messages do.
    for (name, pipeline, get_ratio, limit) in [
        ("SET", 16, 0, limit),
        ("GET", 1, 1, limit),
        ("GET", 16, 1, Limit::None),
    ] {
        let what = format!("{name} rate with {MESSAGES} messages stored, over that with none");
        let what = format!("{what}, 64 connections x pipeline {pipeline}");
        let flags = format!("--connections 64 --pipeline {pipeline} --keys {FEW_KEYS}");
        let flags = format!("{flags} --get-ratio {get_ratio}");
        rows.extend(ratio(&what, &flags, [&full, &empty], limit));
    }
    let what = format!("GET, 64 connections x pipeline 16, of {MESSAGES} keys, beyond the cache");
    // Once: stored again for each run, they would be read while members compact what was replaced.
    let many = format!("--connections 64 --pipeline 16 --keys {MESSAGES}");
    let stored = full.bench(&format!("{many} --count {MESSAGES}"));
    assert_eq!(stored["errors"], 0, "{stored}");
    let flags = format!("{many} --get-ratio 1 --stored");
    let cached = format!("--connections 64 --pipeline 16 --get-ratio 1 --keys {FEW_KEYS}");
    let compared = format!("{what}: rate over that from the cache");
    let limit = Limit::AtLeast(0.6, 0.8);
    rows.extend(best_of(TRIES, || {
        let runs = by_turns([(&full, flags.as_str()), (&full, cached.as_str())]);
        let rate = number(&runs[0], "ops_per_s");
        vec![
            Row::new(&what, rate, "/s", Limit::None).with(&runs[0]),
            Row::new(&compared, over(&compared, &runs), "x", limit).open(),
        ]
    }));
    publish("speed-3-many-messages", COMMAND, &rows);
}

/// The peak includes the snapshots that are taken on the way.
#[test]
#[ignore = "slow: 10,000,000 messages"]
fn ten_million_messages_take_little_memory_at_the_peak() {
    let _alone = alone();
    let cluster = Cluster::start(&[]);
    let before = cluster.resident_bytes("leader-1");
    for _ in 0..BULKS {
        // Each under fresh ids.
        let reply = cluster.client().command(&format!("{MESSAGES} SET x"));
        assert!(reply.starts_with("OK "), "{reply}");
    }
    let count = BULKS * MESSAGES;
    let grown = cluster.peak_bytes("leader-1").saturating_sub(before);
    let what = format!("leader's memory at the peak, for each of {count} messages (numeric id)");
    let each = grown as f64 / count as f64;
    let row = Row::new(&what, each, "bytes", Limit::AtMost(64.0, 48.0));
    publish("speed-3-peak", COMMAND, &[row]);
}

/// The turns of a leader's workers since its start, and those of a millisecond or longer.
fn turns(cluster: &Cluster) -> [f64; 2] {
    let address = cluster.leaders("http")[0].parse().expect("an address");
    let mut http = Http::connect(address, Duration::from_secs(20)).expect("a connection");
    let answer = http.ask("GET", "/stats", &[], b"").expect("a response");
    let stats = answer.json().expect("JSON");
    ["worker_turns", "long_worker_turns"].map(|field| number(&stats, field))
}

/// While a worker has a turn, all its other connections wait. The time in which the generator and
/// the members have the processor instead counts too.
#[test]
#[ignore = "slow: loads for some seconds"]
fn turns_of_workers_are_short() {
    let _alone = alone();
    let cluster = Cluster::start(&[]);
    let mut rows = Vec::new();
    for (what, flags) in [
        ("SET", ""),
        ("SET x pipeline 16", "--pipeline 16"),
        ("SET, blocking clients", "--blocking"),
        ("GET", "--get-ratio 1"),
        ("GET x pipeline 16", "--get-ratio 1 --pipeline 16"),
        ("GET, blocking clients", "--get-ratio 1 --blocking"),
        ("PUT over HTTP", "--protocol http"),
        ("GET over HTTP", "--protocol http --get-ratio 1"),
    ] {
        let flags = format!("--connections 64 --keys {FEW_KEYS} {flags}");
        let what = format!("{what}, 64 connections: turns of a worker of 1 ms and longer");
        rows.extend(best_of(TRIES, || {
            let before = turns(&cluster);
            load(&cluster, &flags, RATIO_SECONDS);
            let after = turns(&cluster);
            let [all, long] = [after[0] - before[0], after[1] - before[1]];
            println!("{what}: {long:.0} of {all:.0}");
            let limit = Limit::AtMost(0.1, 0.01);
            vec![Row::new(&what, 100.0 * long / all, "%", limit).open()]
        }));
    }
    publish("speed-9-turns", COMMAND, &rows);
}

/// Both as ratios of loads on one cluster, or on two that stand side by side.
#[test]
#[ignore = "slow: loads for some seconds"]
fn more_leaders_and_more_connections_cost_little() {
    let _alone = alone();
    let [three, one] = [Cluster::start(&["--leaders", "3"]), Cluster::start(&[])];
    let flags = format!("--connections 64 --keys {FEW_KEYS}");
    let reads = format!("{flags} --get-ratio 1");
    for cluster in [&three, &one] {
        // All that is read later is there, and in the cache.
        load(cluster, &flags, RATIO_SECONDS);
        load(cluster, &reads, RATIO_SECONDS);
    }
    let what = "GET rate with three leaders, over that with one, 64 connections";
    let limit = Limit::AtLeast(0.8, 0.9);
    let rows = ratio(what, &reads, [&three, &one], limit).into_iter();
    let mut rows: Vec<Row> = rows.map(Row::open).collect();
    drop(three);
    for (name, get_ratio) in [("SET", 0), ("GET", 1)] {
        let what = format!("{name} rate of 1,000 connections, over that of 64");
        let of = |count| format!("--connections {count} --keys {FEW_KEYS} --get-ratio {get_ratio}");
        let flags = [of(1000), of(64)];
        rows.extend(best_of(TRIES, || {
            let runs = by_turns(flags.each_ref().map(|flags| (&one, flags.as_str())));
            let limit = Limit::AtLeast(0.9, 1.0);
            vec![Row::new(&what, over(&what, &runs), "x", limit)]
        }));
    }
    publish("speed-4-more", COMMAND, &rows);
}

#[test]
#[ignore = "slow: loads on 30 members"]
fn thirty_members_are_nearly_as_fast_as_three() {
    let _alone = alone();
    let clusters = [Cluster::start(&["--members", "30"]), Cluster::start(&[])];
    let what = "SET rate with 30 members, over that with 3, 64 connections x pipeline 16";
    let flags = "--connections 64 --pipeline 16";
    let limit = Limit::AtLeast(0.7, 0.85);
    let rows = ratio(what, flags, clusters.each_ref(), limit);
    publish("speed-4-many-members", COMMAND, &rows);
}

/// A load over HTTP, and its rate over that of the same by HaToKuSe.
fn http(cluster: &Cluster, what: &str, flags: &str, limit: Limit) -> Vec<Row> {
    let flags = format!("--connections 64 --keys {FEW_KEYS} {flags}");
    let spoken = ["http", "hatokuse"].map(|protocol| format!("{flags} --protocol {protocol}"));
    let compared = format!("{what}: rate over that by HaToKuSe");
    best_of(PROTOCOL_TRIES, || {
        let runs = by_turns(spoken.each_ref().map(|flags| (cluster, flags.as_str())));
        let rate = number(&runs[0], "ops_per_s");
        vec![
            Row::new(what, rate, "/s", Limit::None).with(&runs[0]),
            Row::new(&compared, over(&compared, &runs), "x", limit),
        ]
    })
}

#[test]
#[ignore = "slow: loads for some seconds"]
fn http_is_nearly_as_fast_as_hatokuse() {
    let _alone = alone();
    let cluster = Cluster::start(&[]);
    let limit = Limit::Ratio(0.7, 0.85);
    // Those with 16 in flight have none: the processor's time is nearly all that they take, and
    // heads of 100 and 250 bytes are no trifle beside 100 bytes.
    let rows = [
        ("PUT over HTTP, 64 connections", "--get-ratio 0", limit),
        (
            "PUT over HTTP, 64 connections x pipeline 16",
            "--get-ratio 0 --pipeline 16",
            Limit::None,
        ),
        ("GET over HTTP, 64 connections", "--get-ratio 1", limit),
        (
            "GET over HTTP, 64 connections x pipeline 16",
            "--get-ratio 1 --pipeline 16",
            Limit::None,
        ),
    ]
    .map(|(what, flags, limit)| http(&cluster, what, flags, limit));
    publish("speed-6-http", COMMAND, &rows.concat());
}

/// Small writes beside clients that ask for large messages: one writer that sends one each 5 ms,
/// then 64 that send as fast as they are answered.
#[test]
#[ignore = "slow: loads for some seconds"]
fn writes_keep_their_pace_beside_large_reads() {
    let _alone = alone();
    let cluster = Cluster::start(&[]);
    readers::fill(&cluster);
    let time = Duration::from_secs_f64(SECONDS);
    let rate = |times: &[Duration]| times.len() as f64 / SECONDS;
    let p99 = |times: &[Duration]| times[times.len() * 99 / 100].as_secs_f64() * 1e3;
    let bench = || {
        let found = load(&cluster, "--connections 64", SECONDS);
        (number(&found, "ops_per_s"), number(&found, "p99_us") / 1e3)
    };
    let row = |what: String, found, unit, limit| Row::new(&what, found, unit, limit);
    let mut rows = Vec::new();
    for (who, reads) in [
        ("64 clients with 20 GETs of 1 MiB in flight", true),
        ("1,000 clients that ask for as much and read nothing", false),
    ] {
        rows.extend(best_of(TRIES, || {
            let usual = readers::write_for(&cluster, time);
            let (usual_fast, _) = bench();
            let address = cluster.address();
            let active = reads.then(|| Readers::start(address, 64));
            let silent = if reads { 0 } else { 1000 };
            let silent: Vec<_> = (0..silent).map(|_| readers::non_reader(address)).collect();
            let beside = readers::write_for(&cluster, time);
            let (fast, fast_p99) = bench();
            let took = active.map(Readers::finish);
            drop(silent);
            println!(
                "{who}: {} of {} writes, {fast:.0} of {usual_fast:.0}/s, {took:?} reads",
                beside.len(),
                usual.len()
            );
            let at_least_half = Limit::Ratio(0.5, 0.8);
            let soon = Limit::AtMost(100.0, 30.0);
            let shares = [
                ("SETs, one each 5 ms", rate(&beside) / rate(&usual)),
                ("SETs of 64 connections", fast / usual_fast),
            ]
            .map(|(what, share)| {
                let what = format!("{what}, beside {who}: rate over the usual");
                row(what, share, "x", at_least_half)
            });
            let waits = [
                ("one each 5 ms", p99(&beside)),
                ("64 connections", fast_p99),
            ]
            .map(|(what, ms)| row(format!("p99 of {what} beside {who}"), ms, "ms", soon));
            [shares, waits].concat()
        }));
    }
    publish("speed-7-beside-reads", COMMAND, &rows);
}

#[test]
#[ignore = "slow: waits for some seconds"]
fn idle_servers_are_small() {
    let _alone = alone();
    let cluster = Cluster::start(&[]);
    sleep(Duration::from_secs(3));
    let megabytes = |name: &str| cluster.resident_bytes(name) as f64 / 1e6;
    let members = ["member-1", "member-2", "member-3"].map(megabytes);
    let member = members.into_iter().fold(0.0, f64::max);
    let limit = Limit::AtMost(30.0, 15.0);
    let rows = [
        Row::new(
            "resident memory of an idle leader",
            megabytes("leader-1"),
            "MB",
            limit,
        ),
        Row::new("resident memory of an idle member", member, "MB", limit),
    ];
    publish("speed-5-memory", COMMAND, &rows);
}
