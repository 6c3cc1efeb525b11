//! Many requests in flight.

use super::*;

#[test]
fn a_pipeline_gives_the_results_in_order() {
    let replies = ["OK 3", "VALUE 3 2\r\nab", "NOT_FOUND", "OK", "NOT_FOUND"];
    let leader = Leader::start(replies.map(says).to_vec());
    let client = client(&[&leader.address], options(5000));
    let mut pipeline = client.pipeline();
    assert!(pipeline.is_empty() && pipeline.run().is_empty());
    pipeline.set(&KEY, b"ab").get(&KEY).get(&Key::Id(8));
    pipeline.delete(&KEY).delete(&KEY);
    assert_eq!(pipeline.len(), 5);
    let message = Message {
        revision: revision(),
        payload: b"ab".to_vec(),
    };
    let expected = [
        Done::Stored(revision()),
        Done::Read(Some(message)),
        Done::Read(None),
        Done::Deleted(true),
        Done::Deleted(false),
    ];
    assert_eq!(pipeline.run(), expected.map(Ok));
    assert!(pipeline.is_empty());
    let asked = leader.asked();
    let writes = [&asked[0], &asked[3], &asked[4]].map(String::clone);
    let tokens: std::collections::HashSet<&str> = tokens(&writes).into_iter().collect();
    assert_eq!(tokens.len(), 3, "{asked:?}");
}

/// Runs a pipeline of three writes.
fn three_sets(client: &Client) -> Vec<Result<Done, ClientError>> {
    let mut pipeline = client.pipeline();
    for id in 1..=3 {
        pipeline.set(&Key::Id(id), b"");
    }
    pipeline.run()
}

#[test]
fn only_what_failed_of_a_pipeline_is_repeated() {
    let replies = ["OK 3", "ERROR: busy, try again", "OK 3", "OK 3"];
    let leader = Leader::start(replies.map(says).to_vec());
    let stored = three_sets(&client(&[&leader.address], options(5000)));
    assert_eq!(stored, vec![Ok(Done::Stored(revision())); 3]);
    let asked = leader.asked();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[3], asked[1], "under the same token");
    // What cannot be does not keep the others from being done.
    let replies = ["OK 3", "ERROR: message too large (limit 1 bytes)", "OK 3"];
    let leader = Leader::start(replies.map(says).to_vec());
    let stored = three_sets(&client(&[&leader.address], options(5000)));
    assert_eq!(
        (&stored[0], &stored[2]),
        (&Ok(Done::Stored(revision())), &Ok(Done::Stored(revision())))
    );
    assert!(matches!(stored[1], Err(ClientError::Refused { .. })));
}

#[test]
fn a_pipeline_is_redirected_as_a_whole() {
    let leader = Leader::start(vec![says("OK 3")]);
    let follower = Leader::start(vec![points_to(&leader.address)]);
    let client = client(&[&follower.address], options(5000));
    for _ in 0..2 {
        assert_eq!(three_sets(&client), vec![Ok(Done::Stored(revision())); 3]);
    }
    assert_eq!(follower.asked(), leader.asked()[..3]);
    assert_eq!(leader.asked().len(), 6);
}

#[test]
fn a_broken_pipeline_is_repeated_under_its_tokens_and_unknown_without() {
    let script = || vec![says("OK 3"), Does::Breaks, says("OK 3")];
    let leader = Leader::start(script());
    let stored = three_sets(&client(&[&leader.address], options(5000)));
    assert_eq!(stored, vec![Ok(Done::Stored(revision())); 3]);
    let asked = leader.asked();
    let tokens: std::collections::HashSet<&str> = tokens(&asked).into_iter().collect();
    assert_eq!(tokens.len(), 3, "{asked:?}");
    let bare = ClientOptions {
        tokens: false,
        ..options(5000)
    };
    let leader = Leader::start(script());
    let stored = three_sets(&client(&[&leader.address], bare));
    for result in &stored[1..] {
        let error = result.as_ref().expect_err("no answer");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    }
    // Nothing is sent again. (A reset may have taken the first reply with it.)
    assert_eq!(leader.asked().len(), 2);
}

#[test]
fn a_pipeline_without_a_leader_ends_once() {
    let dead = nobody();
    let options = ClientOptions {
        patience: Patience::OneRound,
        ..options(5000)
    };
    let client = client(&[&dead], options);
    let mut pipeline = client.pipeline();
    (0..1000).for_each(|id| _ = pipeline.set(&Key::Id(id), b"x"));
    let clock = SystemClock::new();
    let begin = clock.now();
    let results = pipeline.run();
    assert_eq!(results.len(), 1000);
    for result in results {
        let error = result.expect_err("nobody");
        assert!(matches!(error, ClientError::NoLeader { .. }), "{error}");
    }
    assert!(clock.now().since(begin) < Duration::from_secs(4));
}

/// A leader that waits until its replies are read, and a client that waits until it has sent all,
/// would wait for each other.
#[test]
fn replies_are_read_while_more_is_sent() {
    const MIB: usize = 1 << 20;
    let value = format!("VALUE 3 {}\r\n{}", 4 * MIB, "v".repeat(4 * MIB));
    let mut script = vec![says(&value); 10];
    script.push(says("OK 3"));
    let leader = Leader::start(script);
    let options = ClientOptions {
        attempt_timeout: Duration::from_secs(60),
        ..options(60_000)
    };
    let client = client(&[&leader.address], options);
    let mut pipeline = client.pipeline();
    (0..10).for_each(|_| _ = pipeline.get(&KEY));
    pipeline.set(&KEY, &vec![7; 16 * MIB]);
    let clock = SystemClock::new();
    let begin = clock.now();
    let results = pipeline.run();
    assert!(results.iter().all(Result::is_ok));
    let took = clock.now().since(begin);
    assert!(
        took < Duration::from_secs(30),
        "no time-out was waited for: {took:?}"
    );
    assert_eq!(leader.asked().len(), 11, "nothing was repeated");
}
