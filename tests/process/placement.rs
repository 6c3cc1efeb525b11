//! Copies go to as many members as they should, evenly.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::cluster::Cluster;
use crate::support::load;
use crate::support::wait_until;
use crate::{copies, set_all};

#[test]
fn each_tolerance_from_1_to_7_places_so_many_copies() {
    let cluster = Cluster::start(&["--members", "7", "--tolerance", "7"]);
    let mut client = cluster.client();
    let mut expected = 0;
    for tolerance in [7, 1, 2, 3, 4, 5, 6] {
        let path = cluster.dir().join("config/tolerance.conf");
        fs::write(path, format!("TOLERANCE={tolerance}\n")).expect("written");
        cluster.signal("leader-1", Signal::HUP);
        let what = format!("tolerance {tolerance} holds");
        wait_until(&what, Duration::from_secs(10), || {
            client.status()["tolerance"] == tolerance
        });
        set_all(&mut client, &format!("t{tolerance}"), 0..20, "v");
        for number in 0..20 {
            let place = client.command(&format!("WHERE t{tolerance}-{number}"));
            let replicas = place.split_once("replicas=").expect("replicas").1;
            let mut names: Vec<&str> = replicas.split(',').collect();
            assert!(names.iter().all(|name| name.ends_with(":up")), "{place}");
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), tolerance, "{place}");
        }
        expected += 20 * tolerance as u64;
        assert_eq!(copies(&client.status()), expected);
    }
}

fn spread(strategy: &str) -> f64 {
    let cluster = Cluster::start(&["--members", "6", "--strategy", strategy]);
    let connections = 5;
    let found = load::count(
        cluster.address(),
        connections,
        16,
        10_000,
        |connection, n| format!("SET {connection}-{n} message"),
    );
    assert_eq!(found, 0, "errors");
    let status = cluster.client().status();
    assert_eq!(status["messages"], 10_000);
    assert_eq!(status["strategy"], strategy);
    assert_eq!(copies(&status), 20_000);
    let members = status["members"].as_array().expect("members").iter();
    let held: Vec<u64> = members
        .map(|member| member["messages"].as_u64().expect("a number"))
        .collect();
    let (least, most) = (held.iter().min(), held.iter().max());
    let spread = *most.expect("members") as f64 / *least.expect("members") as f64;
    eprintln!("{strategy}: {held:?}, the fullest holds {spread:.3} times the emptiest");
    spread
}

#[test]
fn ten_thousand_messages_are_spread_evenly_by_least_loaded() {
    assert!(spread("least_loaded") <= 1.05);
}

#[test]
#[ignore = "slow: as the one above, by the other strategy"]
fn ten_thousand_messages_are_spread_evenly_by_p2c() {
    assert!(spread("p2c") <= 1.2);
}
