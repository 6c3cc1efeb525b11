//! Do the real binaries start, serve, take faults and stop as they say?
//!
//! Every test has clusters of its own, on ports that no other test uses, and waits for nothing
//! without a limit. Faults are signals to real processes: SIGKILL for a crash, SIGSTOP for one that
//! is silent with its connections open.

#[path = "../support/mod.rs"]
mod support;

mod browsers;
mod by_hand;
mod client;
mod conditions;
mod cycles;
mod damage;
mod descriptors;
mod directory;
mod failover;
mod faults;
mod forward;
mod http;
mod identity;
mod large_reads;
mod logs;
mod members;
mod memory;
mod minority;
mod once;
mod placement;
mod places;
mod private;
mod races;
mod readme;
mod refusals;
mod signals;
mod space;
mod stalls;
mod tool;
mod turns;

use std::process::Output;

use support::client::Client;

/// Sends `SET PREFIX-N VALUE` for each number, pipelined; all must be acknowledged.
fn set_all(client: &mut Client, prefix: &str, numbers: std::ops::Range<u64>, value: &str) {
    let numbers: Vec<u64> = numbers.collect();
    for numbers in numbers.chunks(500) {
        let commands: Vec<String> = numbers
            .iter()
            .map(|number| format!("SET {prefix}-{number} {value}-{number}"))
            .collect();
        let replies = client.pipeline(&commands).expect("replies");
        for (command, reply) in commands.iter().zip(replies) {
            assert_eq!(reply, "OK", "{command}");
        }
    }
}

/// Reads back what [`set_all`] wrote.
fn get_all(client: &mut Client, prefix: &str, numbers: std::ops::Range<u64>, value: &str) {
    let numbers: Vec<u64> = numbers.collect();
    for numbers in numbers.chunks(500) {
        let commands: Vec<String> = numbers
            .iter()
            .map(|number| format!("GET {prefix}-{number}"))
            .collect();
        let replies = client.pipeline(&commands).expect("replies");
        for (number, reply) in numbers.iter().zip(replies) {
            assert_eq!(reply, format!("{value}-{number}"), "GET {prefix}-{number}");
        }
    }
}

/// Copies that members hold by `STATUS`, of all members.
fn copies(status: &serde_json::Value) -> u64 {
    let members = status["members"].as_array().expect("members");
    members
        .iter()
        .map(|member| member["messages"].as_u64().expect("a number"))
        .sum()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
