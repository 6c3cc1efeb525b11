//! Does the group stay right, and serve where it can, when the network between its nodes fails?
//!
//! Three leaders, three members and two clients with an address each; one scenario a test, each on
//! two networks: [`namespaces`], with the kernel's own TCP and real cuts, which is skipped with its
//! reason where the machine does not allow that; and [`proxies`] in user space, which runs
//! everywhere. Every scenario prints its events, operations and unavailable time, and every
//! client's history passes the checker.
//!
//! `cargo test --test netns -- --ignored --nocapture`

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod namespaces;
mod network;
mod proxies;
mod scenarios;

/// On the kernel's network.
mod in_namespaces {
    use crate::namespaces::inside;
    use crate::scenarios::*;

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn a_cut_is_silent_and_one_way() {
        inside(
            "in_namespaces::a_cut_is_silent_and_one_way",
            |mut network| {
                network.check_cut();
            },
        );
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_cut_from_everyone() {
        inside("in_namespaces::leader_cut_from_everyone", |network| {
            play(network, &LEADER_CUT_FROM_EVERYONE);
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_cut_from_its_peers_only() {
        inside("in_namespaces::leader_cut_from_its_peers_only", |network| {
            play(network, &LEADER_CUT_FROM_PEERS);
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn halves() {
        inside("in_namespaces::halves", |network| play(network, &HALVES));
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_is_not_heard() {
        inside("in_namespaces::leader_is_not_heard", |network| {
            play(network, &LEADER_NOT_HEARD);
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_does_not_hear() {
        inside("in_namespaces::leader_does_not_hear", |network| {
            play(network, &LEADER_HEARS_NOBODY);
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn member_does_not_hear_the_leader() {
        inside(
            "in_namespaces::member_does_not_hear_the_leader",
            |network| {
                play(network, &MEMBER_DOES_NOT_HEAR);
            },
        );
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn bridge_node() {
        inside("in_namespaces::bridge_node", |network| {
            play(network, &BRIDGE)
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn flapping_link() {
        inside("in_namespaces::flapping_link", |network| {
            play(network, &FLAPPING)
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn round_trips_take_200_ms_longer() {
        inside("in_namespaces::round_trips_take_200_ms_longer", |network| {
            play(network, &DELAY);
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn round_trips_take_400_ms_longer() {
        inside("in_namespaces::round_trips_take_400_ms_longer", |network| {
            play(network, &LONG_DELAY);
        });
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn ten_percent_are_lost() {
        inside("in_namespaces::ten_percent_are_lost", |network| {
            play(network, &LOSS)
        });
    }
}

/// Through proxies.
mod through_proxies {
    use crate::proxies::ProxyNetwork;
    use crate::scenarios::*;

    fn run(scenario: &Scenario) {
        play(ProxyNetwork::new(), scenario);
    }

    #[test]
    fn leader_cut_from_everyone() {
        run(&LEADER_CUT_FROM_EVERYONE);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_cut_from_its_peers_only() {
        run(&LEADER_CUT_FROM_PEERS);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn halves() {
        run(&HALVES);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_is_not_heard() {
        run(&LEADER_NOT_HEARD);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn leader_does_not_hear() {
        run(&LEADER_HEARS_NOBODY);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn member_does_not_hear_the_leader() {
        run(&MEMBER_DOES_NOT_HEAR);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn bridge_node() {
        run(&BRIDGE);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn flapping_link() {
        run(&FLAPPING);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn round_trips_take_200_ms_longer() {
        run(&DELAY);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn round_trips_take_400_ms_longer() {
        run(&LONG_DELAY);
    }

    #[test]
    #[ignore = "slow: a cluster and some seconds of faults"]
    fn ten_percent_are_lost() {
        run(&LOSS);
    }
}
