//! The figures of Tolerex divided by those of Redis, and the limits that each quotient must keep.

use serde_json::Value;

use crate::support::figures::{Limit, Row};

/// The quotients, one row each: for each load and generator those that have a limit.
pub fn of(rows: &[Value]) -> Vec<Row> {
    use Limit::{AtLeast, AtMost};
    // Each measured row of Tolerex stands before that of Redis under the same load.
    let of_pair = |pair: &[Value]| {
        let [tolerex, redis] = pair else {
            unreachable!("a row for each store");
        };
        let what = tolerex["what"].as_str().expect("a load");
        let (rate, cpu) = ("ops_per_s", "server_cpu_us_per_op");
        let promised: &[(&str, &str, Limit)] = match what {
            "SET, 1 connection" => &[("p50", "p50_us", AtMost(1.05, 0.9))],
            "GET, 1 connection" => &[("p50", "p50_us", AtMost(1.05, 0.95))],
            "SET, 64 connections" => &[
                ("rate", rate, AtLeast(1.2, 1.5)),
                ("CPU of all servers", cpu, AtMost(1.0, 0.8)),
            ],
            "GET, 64 connections" => &[
                ("rate", rate, AtLeast(0.95, 1.15)),
                ("CPU of all servers", cpu, AtMost(1.3, 1.1)),
            ],
            "SET, 64 connections x pipeline 16" => &[
                ("rate", rate, AtLeast(1.2, 1.5)),
                ("p99", "p99_us", AtMost(1.5, 1.0)),
            ],
            "GET, 64 connections x pipeline 16" => &[("rate", rate, AtLeast(1.0, 1.3))],
            other => unreachable!("a load without promises: {other}"),
        };
        let row = |(name, field, limit): &(&str, &str, Limit)| {
            let [ours, theirs] = [tolerex, redis].map(|row| row[field].as_f64());
            let ratio = ours
                .zip(theirs)
                .map_or(f64::NAN, |(ours, theirs)| ours / theirs);
            let generator = tolerex["generator"].as_str().expect("a generator");
            let what = format!("{what}, generator {generator}: {name} over that of Redis");
            Row::new(&what, ratio, "x", *limit)
        };
        promised.iter().map(row).collect::<Vec<_>>()
    };
    rows.chunks(2).flat_map(of_pair).collect()
}
