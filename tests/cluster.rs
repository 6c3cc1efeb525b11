//! The cluster in this process (`tolerex::testing`): does it do what its documentation says?

use tolerex::client::{
    Batch, Client, ClientError, Condition, Done, Message, Outcome, TimeToLive, WriteOptions,
};
use tolerex::ids::{Key, Token};
use tolerex::testing::Cluster;

const KEY: Key = Key::Id(1);

fn payload(client: &Client) -> Option<Vec<u8>> {
    let found = client.get(&KEY).expect("read");
    found.map(|message| message.payload)
}

#[test]
fn a_client_outlives_each_leader_and_member() {
    let mut cluster = Cluster::start(3, 3, 2).expect("a cluster");
    let client = cluster.client().expect("a client");
    assert_eq!(cluster.addresses().len(), 3);
    client.set(&KEY, b"first").expect("stored");
    let first = cluster.leader().expect("one leads").to_owned();
    cluster.desert(&first).expect("it ran");
    assert_eq!(payload(&client), Some(b"first".to_vec()));
    let second = cluster.leader().expect("one leads").to_owned();
    assert_ne!(second, first);
    cluster.start_again(&first).expect("started");
    // In order it hands over: the client is told by the one that goes, or finds the next one.
    cluster.stop(&second).expect("stopped");
    client.set(&KEY, b"second").expect("stored");
    cluster.start_again(&second).expect("started");
    cluster.stop("member-1").expect("stopped");
    client.set(&KEY, b"third").expect("stored");
    cluster.start_again("member-1").expect("started");
    cluster.desert("member-2").expect("stopped");
    assert_eq!(payload(&client), Some(b"third".to_vec()));
}

#[test]
fn a_batch_takes_effect_as_a_whole_or_each_by_itself() {
    let cluster = Cluster::start(1, 2, 2).expect("a cluster");
    let client = cluster.client().expect("a client");
    let other = Key::parse(b"other").expect("a key");
    let mut batch = client.batch();
    batch
        .set(&KEY, b"\xff")
        .get(&KEY)
        .delete(&other)
        .get(&other);
    let results = batch.run().expect("done");
    let Ok(Done::Stored(revision)) = results[0] else {
        panic!("{results:?}");
    };
    let message = Message {
        revision,
        payload: b"\xff".to_vec(),
    };
    assert_eq!(results[1], Ok(Done::Read(Some(message))));
    assert_eq!(
        results[2..],
        [Ok(Done::Deleted(false)), Ok(Done::Read(None))]
    );
    let fails = WriteOptions::on(Condition::Absent);
    let mismatch = Err(ClientError::Mismatch {
        revision: Some(revision),
    });
    // Nothing is done, because of the second one.
    let run = |batch: &mut Batch<'_>| {
        let batch = batch.set(&other, b"x").set_with(&KEY, b"y", &fails);
        batch.run().expect("answered")
    };
    let results = run(client.batch().atomic());
    assert_eq!(results[1], mismatch);
    assert_eq!(
        results[0].as_ref().expect_err("nothing").outcome(),
        Outcome::Failed
    );
    assert_eq!(client.get(&other), Ok(None));
    // The first one is done all the same.
    let results = run(&mut client.batch());
    assert_eq!(results[1], mismatch);
    assert!(results[0].is_ok() && client.get(&other).expect("read").is_some());
    let token = Token::parse(b"mine").expect("a token");
    let add = |client: &Client| {
        let mut batch = client.batch();
        batch
            .once(token.clone())
            .set(&KEY, b"once")
            .run()
            .expect("done")
    };
    assert_eq!(add(&client), add(&client), "one write, asked for twice");
    let options = WriteOptions::lasting(std::time::Duration::from_secs(3000));
    client.set_with(&KEY, b"lasting", options).expect("stored");
    assert!(matches!(client.ttl(&KEY), Ok(TimeToLive::Left(_))));
}

#[test]
fn a_cluster_that_is_alone_keeps_its_messages_through_a_restart() {
    let mut cluster = Cluster::start(1, 1, 1).expect("a cluster");
    let client = cluster.client().expect("a client");
    client.set(&KEY, &vec![7; 1 << 20]).expect("stored");
    for name in ["leader-1", "member-1"] {
        cluster.stop(name).expect("stopped");
    }
    assert_eq!(cluster.leader(), None);
    for name in ["member-1", "leader-1"] {
        cluster.start_again(name).expect("started");
    }
    assert_eq!(payload(&client), Some(vec![7; 1 << 20]));
}

#[test]
fn what_cannot_be_is_refused() {
    for (leaders, members, tolerance) in [(0, 1, 1), (2, 2, 2), (1, 1, 2), (1, 1, 0), (1, 8, 8)] {
        let started = Cluster::start(leaders, members, tolerance);
        let error = started.err().expect("refused").to_string();
        assert!(error.contains("accepted"), "{error}");
    }
    let mut cluster = Cluster::start(1, 1, 1).expect("a cluster");
    assert!(cluster.start_again("leader-1").is_err());
    assert!(cluster.stop("leader-2").is_err());
    cluster.stop("member-1").expect("stopped");
    assert!(cluster.stop("member-1").is_err());
}
