//! Sessions of any input: split in any way, it gives the same requests and output.

use proptest::prelude::*;

use super::*;

/// Pieces of sessions: valid, invalid and random.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let fixed = prop::sample::select(vec![
        "SET 1 hello\n",
        "SET 1 hello\r\n",
        "set  2\tx y  \n",
        "SET 1 \n",
        "SET 1\n",
        "GET 1\n",
        "gEt 2 \r\n",
        "GETB 1\n",
        "DEL 1\n",
        "ONCE t SET 1 x\n",
        "once t setb 1 5\r\nab\ncd\r\n",
        "ONCE u 3 SET bulk\n",
        "ONCE \u{a0} SETB 1 4\nabcd\n",
        "ONCE t GET 1\n",
        "3 SET bulk\n",
        "0 SET bulk\n",
        "SETB 1 5\r\nab\ncd\r\n",
        "SETB 2 0\n\n",
        "SETB k 3\nabcX",
        "SETB \u{a0} 4\nabcd\n",
        "SETB 1 70\n",
        "SETB 1 x\n",
        "WHERE 1\n",
        "COUNT\n",
        "STATUS\n",
        "STATUS JSON\n",
        "HELP me\n",
        "POST / HTTP/1.1\r\n",
        "Host: x\r\n",
        "\u{16}\u{3}\u{1}",
        "SET 1 / HTTP/1.1\n",
        "SETB 1 17\r\nGET / HTTP/1.1\r\n\r\n",
        "SETB 1 9999999999\n",
        "PROMPT OFF\n",
        "prompt on\n",
        "QUIT\n",
        "\n",
        " \t \r\n",
        "\r",
        "\n",
        " ",
    ]);
    // Around the limits of a payload and of a line, which is 64 and 1088 bytes here.
    let length = prop_oneof![0usize..140, 1070usize..1095, 1usize..1400];
    let long = (length, any::<bool>(), any::<bool>()).prop_map(|(length, is_padded, has_cr)| {
        let mut line = if is_padded {
            b"".to_vec()
        } else {
            b"SET 9 ".to_vec()
        };
        line.extend(std::iter::repeat_n(
            if is_padded { b' ' } else { b'z' },
            length,
        ));
        line.extend_from_slice(if is_padded { b"GET 1" } else { b"" });
        line.extend_from_slice(if has_cr { b"\r\n" } else { b"\n" });
        line
    });
    prop_oneof![
        8 => fixed.prop_map(|text| text.as_bytes().to_vec()),
        1 => long,
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

/// What a session makes of pieces: the requests one by one, and the output.
fn outcome(pieces: &[&[u8]], ends: bool) -> (Vec<String>, Vec<u8>, bool) {
    let mut session = open(64);
    let mut store = FakeStore::default();
    let mut output = Vec::new();
    let mut requests = Vec::new();
    let mut batches = execute(&mut *session, &mut store, &mut output);
    for piece in pieces {
        session.receive(piece);
        batches.extend(execute(&mut *session, &mut store, &mut output));
        assert!(session.bytes_held() <= 64 + super::super::LINE_ROOM + 2);
    }
    if ends {
        session.end_of_input();
        batches.extend(execute(&mut *session, &mut store, &mut output));
        assert!(session.wants_close() && session.bytes_held() == 0);
    }
    for batch in batches {
        match batch {
            Batch::Writes(writes) => {
                requests.extend(writes.iter().map(|write| format!("{write:?}")));
            }
            Batch::Reads(keys) => requests.extend(keys.iter().map(|key| format!("{key:?}"))),
            other => requests.push(format!("{other:?}")),
        }
    }
    (requests, output, session.wants_close())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_split_of_the_same_bytes_gives_the_same_requests_and_output(
        pieces in prop::collection::vec(piece(), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ends in any::<bool>(),
    ) {
        let input = pieces.concat();
        let whole = outcome(&[&input], ends);
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        prop_assert_eq!(&outcome(&bytes, ends), &whole);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        at.extend([0, input.len()]);
        at.sort_unstable();
        let parts: Vec<&[u8]> = at.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&outcome(&parts, ends), &whole);
    }

    #[test]
    fn giving_up_a_command_costs_that_command_only(
        commands in prop::collection::vec((0usize..3, any::<prop::sample::Index>()), 1..20),
    ) {
        let mut session = open(64);
        let mut store = FakeStore::default();
        let mut output = Vec::new();
        session.receive(b"PROMPT OFF\n");
        execute(&mut *session, &mut store, &mut output);
        for (kind, cut) in commands {
            output.clear();
            let text = ["SET 1 hello\r\n", "SETB 1 5\r\nab\ncd\r\n", "SET 1\n"][kind];
            let (front, back) = text.split_at(cut.index(text.len()));
            session.receive(front.as_bytes());
            execute(&mut *session, &mut store, &mut output);
            session.shed();
            session.receive(back.as_bytes());
            execute(&mut *session, &mut store, &mut output);
            let reply = String::from_utf8_lossy(&output);
            let usage = "ERROR: SET <id> <message>\r\n";
            let allowed = ["OK\r\n", usage, "ERROR: busy, try again\r\n"];
            // A SETB given up within its line leaves a payload that reads as a line of its own,
            // or two.
            let is_cut_off = kind == 1 && front.len() < 10 && !front.is_empty();
            let is_allowed = is_cut_off || allowed.contains(&&*reply);
            prop_assert!(is_allowed, "{text:?} {front:?} {reply:?}");
            prop_assert_eq!(session.bytes_held(), 0);
        }
    }

    #[test]
    fn what_is_written_parses_back(payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut session = open(64);
        let mut store = FakeStore::default();
        let mut output = Vec::new();
        session.receive(b"PROMPT OFF\n");
        session.receive(format!("SETB k {}\r\n", payload.len()).as_bytes());
        session.receive(&payload);
        session.receive(b"\r\nGETB k\n");
        execute(&mut *session, &mut store, &mut output);
        let mut expected = format!("OK\r\nOK\r\nVALUE 1 {}\r\n", payload.len()).into_bytes();
        expected.extend_from_slice(&payload);
        expected.extend_from_slice(b"\r\n");
        prop_assert!(output.ends_with(&expected));
    }
}
