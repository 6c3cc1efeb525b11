//! Tokens through snapshots.

use super::*;

#[test]
fn the_bytes_of_tokens_in_a_snapshot_are_these() {
    let mut h = Harness::new(10);
    h.reserve(400, "b", 300);
    h.part(400, "b", &[2, 3, 5]);
    let chunks = snapshot(&mut h, |_| {});
    // Version 2, index 4, 3 messages, 2 members, ids up to 300, no tolerance, clock, one token.
    let head = [1, 2, 4, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0xac, 2, 0, 0x90, 3, 1];
    assert_eq!(chunks[0], head);
    let bulk = [4, 1, 1, b'b', 0xf4, 3, 4, 1, 0xac, 2, 2, 1, 2, 1, 1];
    assert_eq!(chunks[2], bulk);
    let read = restored(&chunks).expect("valid");
    assert_eq!(read.state.digest(), h.state.digest());
    let mut fewer = chunks.clone();
    fewer[0][17] = 2;
    let error = restored(&fewer).err().expect("refused").to_string();
    assert!(error.contains("number of tokens"), "{error}");
    let twice = [&chunks[..], &chunks[2..3]].concat();
    let error = restored(&twice).err().expect("refused").to_string();
    assert!(error.contains("there twice"), "{error}");
}

#[test]
fn a_state_without_tokens_is_written_in_version_1() {
    let mut h = Harness::new(10);
    h.apply(Change::ReserveIds { count: 3 });
    assert_eq!(snapshot(&mut h, |_| {})[0][..2], [1, 1]);
    h.write(1, &[("a", delete(1))]);
    assert_eq!(snapshot(&mut h, |_| {})[0][..2], [1, 2]);
}

#[test]
fn tokens_of_a_snapshot_are_as_they_were_at_its_index() {
    let mut h = Harness::new(100_000);
    for chunk in 0..100 {
        let names: Vec<String> = (0..100)
            .map(|n| format!("{:0>60}", chunk * 100 + n))
            .collect();
        let writes: Vec<_> = names.iter().map(|text| (&**text, delete(1))).collect();
        h.write(0, &writes);
    }
    let digest = h.state.digest();
    let chunks = snapshot(&mut h, |h| {
        let set = h.set(1, 1);
        h.write(99, &[("new", set)]);
        h.write(100, &[("newer", delete(1))]);
    });
    assert!(chunks.len() > 10, "{}", chunks.len());
    assert_ne!(h.state.digest(), digest);
    assert_eq!(restored(&chunks).expect("valid").state.digest(), digest);
}
