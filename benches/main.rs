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
//! | `metadata` | what do placement, apply and the message index cost |

mod calls;
mod disk;
mod metadata;
mod parsing;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // Some forty measurements in all: a second and a half each keeps the whole within minutes.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    disk::all(&mut criterion);
    parsing::all(&mut criterion);
    calls::all(&mut criterion);
    metadata::all(&mut criterion);
    metadata::print_index_memory();
    criterion.final_summary();
}
