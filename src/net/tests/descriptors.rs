//! What happens when the process has no file descriptors left.

use std::io::{Read, Seek};
use std::net::TcpListener;
use std::time::Duration;

use super::{Fixture, limits};
use crate::clock::sleep;

/// Says to the test below that it has a process for itself.
pub(super) const ALONE: &str = "TOLEREX_TEST_ALONE";

/// In a process of its own, as the limit on descriptors is the process's.
#[test]
fn without_descriptors_accepting_pauses_and_goes_on() {
    let name = "net::tests::descriptors::accepts_at_the_limit_of_descriptors";
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("a process");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run in a process of its own by the test above"]
fn accepts_at_the_limit_of_descriptors() {
    if std::env::var_os(ALONE).is_none() {
        println!("runs only in a process that another test starts for it");
        return;
    }
    let fixture = Fixture::new(limits(1));
    let mut served = fixture.program();
    let mut stat = std::fs::File::open("/proc/self/stat").expect("a Linux system");
    // Takes every descriptor but one, which the next client's socket takes.
    let mut files: Vec<TcpListener> = Vec::new();
    let limit = rustix::process::Rlimit {
        current: Some(64),
        maximum: Some(64),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a limit");
    while let Ok(file) = TcpListener::bind("127.0.0.1:0") {
        files.push(file);
    }
    files.pop();
    let mut waiting = fixture.stranger();
    let before = cpu_ticks(&mut stat);
    sleep(Duration::from_millis(500));
    let spent = cpu_ticks(&mut stat) - before;
    assert!(spent < 20, "{spent} ticks of 10 ms were spent waiting");
    served.send("COUNT\n");
    assert_eq!(served.line(), "0");
    drop(files);
    waiting.read_until("tolerex> ");
    fixture.stop();
}

/// Processor time of this process in ticks of 10 ms, by its `/proc/self/stat`.
fn cpu_ticks(stat: &mut std::fs::File) -> u64 {
    let mut text = String::new();
    stat.rewind().expect("a file");
    stat.read_to_string(&mut text).expect("text");
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks = fields.skip(11).take(2);
    ticks
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum()
}
