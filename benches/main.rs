//! The parts of Tolerex, each on its own, measured with criterion.
//!
//! `cargo bench` takes some minutes; `cargo bench -- NAME` runs those whose name contains it;
//! `cargo bench -- --test` runs each once. A whole cluster is measured by `tolerex bench`.
//!
//! | module | question |
//! |---|---|
//! | `disk` | what does a record cost in each engine and write mode |
//! | `parsing` | what does a command cost between socket and batch |
//! | `calls` | what does a round trip over TLS cost, and many at a time |
//! | `metadata` | what do placement, apply, a page of keys and the message index cost |
//!
//! More binaries, run by name: `beside_redis` and `by_wrk` compare, `report` writes all figures
//! down.

mod calls;
mod disk;
#[allow(dead_code)]
#[path = "../tests/support/figures.rs"]
mod figures;
mod metadata;
mod parsing;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // Some sixty measurements in all: two seconds each keep the whole within minutes.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    disk::all(&mut criterion);
    parsing::all(&mut criterion);
    calls::all(&mut criterion);
    metadata::all(&mut criterion);
    let memory = metadata::index_memory();
    let args: Vec<String> = std::env::args().collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if has("--bench") && !has("--test") {
        figures::keep("parts", "cargo bench", &memory);
    }
    criterion.final_summary();
}
