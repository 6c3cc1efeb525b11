//! Who is refused, on either side, and that it is said why.

use super::*;
use crate::rpc::message::Purpose;

/// Reason on the dialling side, as text.
fn reason(outcome: Result<Arc<Link>, GreetingError>) -> String {
    match outcome {
        Ok(link) => panic!("not refused: {}", link.peer()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_peer_with_another_identity_than_its_certificate_or_ours() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let refused = |identity: &LocalIdentity| {
        let tls = fixture.tls("leader-1", Role::Leader);
        let address = server.local_addr().to_string();
        let clock = fixture.clock.clone();
        reason(Link::dial(
            &address,
            &expect_member(),
            &tls,
            identity,
            1,
            clock,
        ))
    };
    let mut other = leader();
    other.cluster_id = ClusterId(8);
    let text = refused(&other);
    let clusters = "refused: cluster is 0000000000000008, not 0000000000000007";
    assert_eq!(text, clusters);
    let mut other = leader();
    other.name = "leader-2".to_owned();
    let text = refused(&other);
    assert!(
        text.contains("name is \"leader-2\", certificate is for [\"leader-1\"]"),
        "{text}"
    );
    let mut other = leader();
    other.role = Role::Member;
    let text = refused(&other);
    assert!(
        text.contains("role is member by hello, leader by certificate"),
        "{text}"
    );
    let mut other = leader();
    other.node_id = 0;
    // Undecodable input gets no answer.
    refused(&other);
    let mut other = leader();
    other.incarnation = 0;
    let text = refused(&other);
    assert!(text.contains("incarnation 0 is not above 1"), "{text}");
}

#[test]
fn another_protocol_version() {
    let fixture = fixture();
    let tls = fixture.tls("member-1", Role::Member);
    let mut hello = leader().hello(1);
    hello.protocol = 2;
    let error = crate::rpc::greeting::check_hello(&hello, &tls.own(), &member());
    let text = error.expect_err("refused").to_string();
    assert_eq!(text, "protocol version is 2, not 1");
}

#[test]
fn a_server_that_is_not_the_expected_one() {
    let fixture = fixture();
    let service = answering();
    let server = fixture.serve(service.clone());
    let tls = fixture.tls("leader-1", Role::Leader);
    let refused = |role, name: &str, node_id| {
        let expected = Expected {
            role,
            name: Some(name.to_owned()),
            node_id,
        };
        let address = server.local_addr().to_string();
        let clock = fixture.clock.clone();
        let outcome = Link::dial(&address, &expected, &tls, &leader(), 1, clock);
        assert!(matches!(outcome, Err(GreetingError::WrongPeer(_))));
        reason(outcome)
    };
    let text = refused(Role::Leader, "member-1", None);
    assert_eq!(text, "certificate is a member's and should be a leader's");
    let text = refused(Role::Member, "member-2", None);
    assert_eq!(text, "certificate is for [\"member-1\"], not \"member-2\"");
    let text = refused(Role::Member, "member-1", Some(12));
    assert!(
        text.contains("node id is 000000000000000b, not 000000000000000c"),
        "{text}"
    );
}

#[test]
fn a_certificate_of_another_ca_on_either_side() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let other_dir = tempfile::tempdir().expect("a directory");
    let other = TestPki::new(other_dir.path());
    let foreign = other.context("leader-1", Role::Leader, &fixture.clock);
    let address = server.local_addr().to_string();
    let dial = |tls: &TlsContext| {
        let clock = fixture.clock.clone();
        Link::dial(&address, &expect_member(), tls, &leader(), 1, clock)
    };
    let text = reason(dial(&foreign));
    assert!(text.contains("invalid peer certificate"), "{text}");
    let mut settings = other.issue("leader-1", Role::Leader);
    let ours = fixture.dir.path().join("ca.pem");
    let both = other_dir.path().join("both.pem");
    let read = |path: &Path| std::fs::read_to_string(path).expect("a CA");
    std::fs::write(&both, read(&ours) + &read(&settings.ca)).expect("written");
    // With our CA in place of its own, we find the mistake ourselves.
    settings.ca = ours;
    let error = TlsContext::load(settings.clone(), fixture.clock.clone()).err();
    let text = error.expect("found when loaded").to_string();
    assert!(text.contains("not valid under the CA"), "{text}");
    // Trusting both, it is the server that refuses.
    settings.ca = both;
    let foreign = TlsContext::load(settings, fixture.clock.clone()).expect("good");
    let text = reason(dial(&foreign));
    assert!(text.contains("received fatal alert"), "{text}");
}

#[test]
fn a_certificate_without_a_role() {
    let fixture = fixture();
    let settings = fixture.pki.issue_as("leader-1", "boss");
    let error = TlsContext::load(settings, fixture.clock.clone()).err();
    let text = error.expect("found when loaded").to_string();
    assert!(text.contains("common name [\"boss\"]"), "{text}");
}

#[test]
fn a_call_that_is_not_for_the_role() {
    let fixture = fixture();
    let server = fixture.serve(recorder(|_, _, _| panic!("not handled")));
    let call = |identity: LocalIdentity, request| {
        let link = fixture
            .dial_as(server.local_addr(), &identity, 0)
            .expect("a link");
        let answer = link.call_wait(0, request, fixture.in_time());
        assert!(link.wait_closed(SOON));
        match answer.expect("an answer") {
            Response::Refused(refusal) => refusal.to_string(),
            answer => panic!("{answer:?}"),
        }
    };
    let member = identity("member-2", Role::Member, 12);
    assert_eq!(call(member, release(1)), "release is for a leader to call");
    let client = identity("client-1", Role::Client, 0);
    assert_eq!(call(client, store("x", 1)), "store is for a leader to call");
    let heartbeat = Request::Heartbeat(HeartbeatRequest::default());
    assert_eq!(
        call(leader(), heartbeat),
        "heartbeat is for a member to call"
    );
}

/// What the server says to bytes that are not TLS, and that it goes on.
#[test]
fn plain_text() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let mut socket = TcpStream::connect(server.local_addr()).expect("a connection");
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    // An alert perhaps, then the end.
    let mut answer = Vec::new();
    _ = socket.read_to_end(&mut answer);
    assert!(answer.len() < 100);

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("sent");
    let (accepted, _) = listener.accept().expect("a connection");
    socket.write_all(b"SET a b\r\n").expect("sent");
    let tls = fixture.tls("member-1", Role::Member);
    let clock = &*fixture.clock;
    let outcome = Accepting::begin(accepted, 1, &tls, &member(), clock, Arc::default());
    match outcome.err().expect("refused") {
        GreetingError::Tls(TlsError::Broken(text)) => {
            assert!(text.contains("corrupt message"), "{text}");
        }
        error => panic!("{error:?}"),
    }
    fixture.dial(&server, 1);
}

#[test]
fn a_silent_dialler_does_not_hold_up_others() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let silent: Vec<TcpStream> = (0..10)
        .map(|_| TcpStream::connect(server.local_addr()).expect("a connection"))
        .collect();
    let begin = fixture.clock.now();
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(1, release(1), fixture.in_time());
    assert_eq!(answer, Ok(Response::Release));
    assert!(fixture.clock.now().since(begin) < Duration::from_secs(3));
    // A stop does not wait for them either.
    let begin = fixture.clock.now();
    server.stop(fixture.in_time()).expect("a stop in time");
    assert!(fixture.clock.now().since(begin) < Duration::from_secs(3));
    drop(silent);
}

#[test]
fn a_greeting_has_one_deadline_for_all_its_reads() {
    /// Each look at it takes 4.95 s.
    struct Hasty(crate::clock::ManualClock);
    impl Clock for Hasty {
        fn now(&self) -> crate::clock::Instant {
            self.0.advance(Duration::from_millis(4950));
            self.0.now()
        }
        fn wall_ms(&self) -> u64 {
            self.0.wall_ms()
        }
    }
    let fixture = fixture();
    let tls = fixture.tls("member-1", Role::Member);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("sent");
    let (accepted, _) = listener.accept().expect("a connection");
    // The first bytes of a TLS record that does not go on.
    socket.write_all(&[0x16, 3, 1, 2]).expect("sent");
    let clock = Hasty(crate::clock::ManualClock::default());
    let outcome = Accepting::begin(accepted, 1, &tls, &member(), &clock, Arc::default());
    let error = outcome.err().expect("given up");
    assert!(matches!(error, GreetingError::TimedOut), "{error:?}");
}

#[test]
fn connections_over_the_limit_are_closed() {
    let fixture = fixture();
    let server = Server::start(
        TcpListener::bind("127.0.0.1:0").expect("a port"),
        fixture.tls("member-1", Role::Member),
        member(),
        answering(),
        fixture.clock.clone(),
        Limits {
            connections: 1,
            ..Limits::default()
        },
    )
    .expect("a server");
    let first = fixture.dial(&server, 1);
    let second = fixture.dial_as(
        server.local_addr(),
        &identity("leader-2", Role::Leader, 2),
        1,
    );
    assert!(second.is_err());
    assert!(first.is_open());
}

/// Connections that say nothing and are renewed when they are closed, until dropped.
struct Silent {
    stop: Arc<AtomicUsize>,
    thread: Option<crate::threads::Thread>,
}

impl Silent {
    fn hold(address: SocketAddr, count: usize) -> Silent {
        let stop = Arc::new(AtomicUsize::new(0));
        let seen = stop.clone();
        let body = move || {
            let mut held: Vec<TcpStream> = Vec::new();
            while seen.load(Ordering::Relaxed) == 0 {
                held.retain(|socket| {
                    let mut socket = socket;
                    matches!(socket.read(&mut [0; 8]), Err(error)
                        if error.kind() == std::io::ErrorKind::WouldBlock)
                });
                while held.len() < count {
                    let Ok(socket) = TcpStream::connect(address) else {
                        break;
                    };
                    socket.set_nonblocking(true).expect("a socket");
                    held.push(socket);
                }
                crate::clock::sleep(Duration::from_millis(5));
            }
        };
        let thread = crate::threads::spawn("silent", body).expect("a thread");
        Silent {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|one| one.join());
    }
}

#[test]
fn silent_connections_that_are_renewed_keep_no_node_out() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let places = Limits::default().greetings;
    let silent = Silent::hold(server.local_addr(), places + 6);
    // All places were taken once.
    crate::clock::sleep(Duration::from_millis(200));
    for number in 1..=5 {
        let link = fixture.dial_as(server.local_addr(), &leader(), number);
        let link = link.expect("it is let in");
        let answer = link.call_wait(1, release(1), fixture.in_time());
        assert_eq!(answer, Ok(Response::Release));
    }
    drop(silent);
}

#[test]
fn an_id_stays_with_the_name_that_is_connected() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let first = fixture.dial(&server, 1);
    let thief = LocalIdentity {
        name: "leader-2".to_owned(),
        nonce: 77,
        ..leader()
    };
    let text = reason(fixture.dial_as(server.local_addr(), &thief, 9));
    assert_eq!(
        text,
        "refused: the id belongs to leader leader-1, which is connected"
    );
    assert!(first.is_open());
    let answer = first.call_wait(1, release(1), fixture.in_time());
    assert_eq!(answer, Ok(Response::Release));
}

#[test]
fn a_name_has_some_connections_and_no_more() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let links: Vec<_> = (1..=Limits::default().connections_per_name as u64 + 1)
        .map(|id| {
            let identity = LocalIdentity {
                node_id: id,
                ..leader()
            };
            fixture.dial_as(server.local_addr(), &identity, 1)
        })
        .collect();
    let (last, others) = links.split_last().expect("some");
    assert!(others.iter().all(|link| link.is_ok()));
    let text = last.as_ref().err().expect("refused").to_string();
    assert_eq!(text, "refused: 16 connections of leader-1 are open");
}

#[test]
fn a_frame_that_is_begun_is_finished_soon_or_its_connection_ends() {
    let fixture = fixture();
    let server = Server::start(
        TcpListener::bind("127.0.0.1:0").expect("a port"),
        fixture.tls("member-1", Role::Member),
        member(),
        answering(),
        fixture.clock.clone(),
        Limits {
            frame_timeout: Duration::from_millis(300),
            unfinished_bytes: 1 << 20,
            ..Limits::default()
        },
    )
    .expect("a server");
    let address = server.local_addr().to_string();
    let tls = fixture.tls("leader-1", Role::Leader);
    let begin = |id: u64, prefix: u32| {
        let socket = crate::rpc::greeting::connect(&address).expect("a connection");
        let identity = LocalIdentity {
            node_id: id,
            ..leader()
        };
        let clock = &*fixture.clock;
        let link = (1, Purpose::All);
        let greeted =
            crate::rpc::greeting::dial(socket, &expect_member(), &tls, &identity, link, clock);
        let mut greeted = greeted.expect("greeted");
        let mut cipher = Vec::new();
        let begun = [&prefix.to_be_bytes()[..], &[0; 10]].concat();
        greeted.session.send(&begun, &mut cipher);
        greeted.socket.write_all(&cipher).expect("sent");
        greeted
    };
    let ends = |mut greeted: crate::rpc::greeting::Greeted| {
        let within = Some(Duration::from_secs(20));
        greeted.socket.set_read_timeout(within).expect("a timeout");
        // An alert perhaps, then the end.
        let mut rest = Vec::new();
        let ended = greeted.socket.read_to_end(&mut rest);
        assert!(
            !matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "not ended"
        );
    };
    // A small one that does not go on, and one for which there is no room.
    ends(begin(1, 100));
    ends(begin(2, 8 << 20));
    // A slow one and a fast one go on beside each other.
    let slow = begin(3, 600 << 10);
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(1, release(1), fixture.in_time());
    assert_eq!(answer, Ok(Response::Release));
    drop(slow);
}
