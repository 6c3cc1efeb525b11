//! Conditions, times to live, listings and batches as requests.

use super::*;

#[test]
fn conditions_times_and_listings_are_asked_for_and_understood() {
    let replies = [
        "MISMATCH 3",
        "MISMATCH 0",
        "OK 3",
        "NOT_FOUND",
        "OK",
        "NOT_FOUND",
        "9",
        "NONE",
        "NOT_FOUND",
        "a 3 1\r\n9 3 2\r\nMORE 9\r\n",
        "",
    ];
    let leader = Leader::start(replies.map(says).to_vec());
    let client = client(&[&leader.address], options(5000));
    let mismatch = |revision| ClientError::Mismatch { revision };
    let set = client.set_if(&KEY, b"x", Condition::Absent);
    assert_eq!(set, Err(mismatch(Some(revision()))));
    let deleted = client.delete_if(&KEY, Condition::Exists);
    assert_eq!(deleted, Err(mismatch(None)));
    assert_eq!(mismatch(None).outcome(), Outcome::Failed);
    let set = client.set_if(&KEY, b"", Condition::Revision(Revision::from_u64(2)));
    assert_eq!(set, Ok(revision()));
    assert_eq!(client.delete_if(&KEY, Condition::Absent), Ok(false));
    let time = Duration::from_millis(1001);
    assert_eq!(client.expire(&KEY, time), Ok(true));
    assert_eq!(client.persist(&KEY), Ok(false));
    assert_eq!(
        client.ttl(&KEY),
        Ok(TimeToLive::Left(Duration::from_secs(9)))
    );
    assert_eq!(client.ttl(&KEY), Ok(TimeToLive::Endless));
    assert_eq!(client.ttl(&KEY), Ok(TimeToLive::Missing));
    let listed: Result<Vec<ListedKey>, ClientError> = client.list("p").collect();
    let listed = listed.expect("two pages");
    let word = Key::parse(b"a").expect("a key");
    let keys = [(word, 1), (Key::Id(9), 2)].map(|(key, bytes)| ListedKey {
        key,
        revision: revision(),
        bytes,
    });
    assert_eq!(listed, keys);
    let asked = leader.asked();
    let commands = asked.iter().map(|line| match line.strip_prefix("ONCE ") {
        Some(rest) => rest.split_once(' ').expect("a token").1,
        None => line,
    });
    let expected = [
        "IF 0 SETB 7 1",
        "IF * DEL 7",
        "IF 2 SETB 7 0",
        "IF 0 DEL 7",
        "EXPIRE 7 2",
        "PERSIST 7",
        "TTL 7",
        "TTL 7",
        "TTL 7",
        "LIST 1000 p*",
        "LIST 1000 p* 9",
    ];
    assert_eq!(commands.collect::<Vec<_>>(), expected);
    for time in [Duration::ZERO, Duration::MAX] {
        let refused = client.expire(&KEY, time);
        assert!(
            matches!(refused, Err(ClientError::Invalid { .. })),
            "{time:?}"
        );
    }
    let refused = client.list("a b").next().expect("an error");
    assert!(matches!(refused, Err(ClientError::Invalid { .. })));
}

#[test]
fn a_set_with_a_time_to_live_is_a_batch_of_one() {
    let json = r#"{"results":[{"status":"ok","revision":3}]}"#;
    let answer = says(&format!("BATCH {}\r\n{json}", json.len()));
    let leader = Leader::start(vec![answer]);
    let client = client(&[&leader.address], options(5000));
    let lasting = || WriteOptions::lasting(Duration::from_secs(3));
    assert_eq!(client.set_with(&KEY, b"x", lasting()), Ok(revision()));
    let mut pipeline = client.pipeline();
    pipeline
        .set_with(&KEY, b"x", lasting())
        .delete_with(&KEY, lasting());
    let results = pipeline.set_with(&KEY, b"", lasting()).run();
    let stored = Ok(Done::Stored(revision()));
    assert_eq!((&results[0], &results[2]), (&stored, &stored));
    assert!(matches!(results[1], Err(ClientError::Invalid { .. })));
    let results = client.batch().set(&KEY, b"x").run();
    assert_eq!(results, Ok(vec![stored]));
    assert_eq!(tokens(&leader.asked()).len(), 4);
}
