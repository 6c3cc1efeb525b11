//! Does `tolerex bench` measure a real cluster, and say so in the promised form?

mod support;

use support::client::Client;
use support::cluster::{Cluster, tolerex};

#[test]
#[ignore = "slow: starts a cluster"]
fn loads_are_done_and_measured() {
    let cluster = Cluster::start(&[]);
    let stored = cluster.bench("--connections 8 --pipeline 16 --count 500 --keys 500");
    assert_eq!(
        (&stored["ops"], &stored["errors"]),
        (&500.into(), &0.into())
    );
    assert_eq!(Client::connect(cluster.address()).command("COUNT"), "500");
    for flags in [
        "--connections 4 --seconds 0.5",
        "--connections 4 --seconds 0.5 --rate 200 --get-ratio 0.5 --keys 50",
        "--connections 2 --pipeline 3 --size 70000 --count 30 --get-ratio 1 --keys 9",
        "--protocol http --connections 4 --seconds 0.5 --rate 200 --get-ratio 0.5 --keys 50",
        "--protocol http --pipeline 3 --size 70000 --count 90 --get-ratio 1 --keys 9",
    ] {
        let found = cluster.bench(flags);
        let protocol = if flags.contains("http") {
            "http"
        } else {
            "hatokuse"
        };
        assert_eq!(found["protocol"], protocol);
        assert_eq!(found["errors"], 0, "{flags}: {found}");
        let number = |field: &str| found[field].as_f64().unwrap_or_else(|| panic!("{found}"));
        assert!(
            number("ops_per_s") > 0.0 && number("server_cpu_us_per_op") >= 0.0,
            "{found}"
        );
        let latencies = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"].map(number);
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{found}");
    }
}

#[test]
#[ignore = "slow: starts a cluster"]
fn a_load_over_http_stores_what_hatokuse_reads() {
    let cluster = Cluster::start(&[]);
    let flags = "--protocol http --connections 8 --pipeline 16 --size 5 --count 500 --keys 500";
    let stored = cluster.bench(flags);
    assert_eq!(
        (&stored["ops"], &stored["errors"]),
        (&500.into(), &0.into())
    );
    let mut client = Client::connect(cluster.address());
    assert_eq!(client.command("COUNT"), "500");
    assert_eq!(client.command("GET 9000000000000499"), "xxxxx");
}

#[test]
fn nobody_there_and_nonsense_have_their_exit_codes() {
    for (args, expected) in [
        (&["bench", "--addr", "127.0.0.1:1"][..], 4),
        (&["bench", "--get-ratio", "2"], 2),
        (&["bench", "--seconds", "1", "--count", "1"], 2),
        (&["bench", "--connections", "0"], 2),
        (&["bench", "--protocol", "gopher"], 2),
    ] {
        assert_eq!(tolerex(args).status.code(), Some(expected), "{args:?}");
    }
}
