//! What the tests with real processes share.

// Each test binary uses a part of it.
#![allow(dead_code)]

pub mod client;
pub mod clients;
pub mod cluster;
pub mod figures;
pub mod group_client;
pub mod history;
pub mod http;
pub mod linearize;
pub mod load;
pub mod proxy;
pub mod readers;
pub mod speakers;
pub mod workload;

use std::time::Duration;

use tolerex::clock::{Clock, SystemClock, sleep};

/// Waits until `condition` holds; fails with `what` after `timeout`.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let deadline = clock.now() + timeout;
    while !condition() {
        assert!(clock.now() < deadline, "not within {timeout:?}: {what}");
        sleep(Duration::from_millis(10));
    }
}
