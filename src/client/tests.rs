//! The client against leaders that follow a script, over real loopback connections.
//!
//! A scripted leader greets as a leader does, takes one request after the other and does with each
//! what its script says next. What it was asked is kept.

mod calls;
mod pipelines;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use super::*;
use crate::clock::{Clock, sleep};
use crate::ids::Revision;
use crate::threads::{self, StopSignal, Thread};

/// What a leader does with a request.
#[derive(Clone, Debug)]
enum Does {
    /// Replies with this line; a payload may stand behind it.
    Says(String),
    /// Breaks the connection, having taken the request.
    Breaks,
    /// Does not answer.
    Silent,
}

fn says(line: &str) -> Does {
    Does::Says(line.to_owned())
}

fn points_to(address: &str) -> Does {
    Does::Says(format!("ERROR: not leader, leader is {address}"))
}

/// A leader that follows a script; the last entry is repeated.
struct Leader {
    address: String,
    stop: StopSignal,
    thread: Option<Thread>,
    asked: Arc<Mutex<Vec<String>>>,
    /// Connections that it took.
    accepted: Arc<AtomicU64>,
}

/// A port for a leader that is started later, or never.
fn reserve() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

/// An address at which nobody listens.
fn nobody() -> String {
    reserve().1
}

impl Leader {
    fn start(script: Vec<Does>) -> Leader {
        let (listener, address) = reserve();
        Leader::start_on(listener, address, script)
    }

    fn start_on(listener: TcpListener, address: String, script: Vec<Does>) -> Leader {
        let (stop, asked) = (StopSignal::default(), Arc::<Mutex<Vec<String>>>::default());
        let (stopped, seen) = (stop.clone(), Arc::clone(&asked));
        let accepted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&accepted);
        let body = move || {
            let mut script = script.into_iter().peekable();
            while let Ok((stream, _)) = listener.accept() {
                if stopped.is_stopped() {
                    return;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                // A client that goes away ends its connection, not the leader.
                _ = serve(stream, &mut script, &seen, &stopped);
            }
        };
        Leader {
            address,
            stop,
            thread: Some(threads::spawn("leader", body).expect("a thread")),
            asked,
            accepted,
        }
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.stop.stop();
        _ = std::net::TcpStream::connect(&self.address);
        self.thread.take().expect("it runs").join();
    }
}

fn serve(
    stream: std::net::TcpStream,
    script: &mut std::iter::Peekable<std::vec::IntoIter<Does>>,
    seen: &Mutex<Vec<String>>,
    stop: &StopSignal,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut stream = BufReader::new(stream);
    let rule = "-".repeat(50);
    let banner = format!("{rule}\r\nTOLEREX - n (leader)\r\n{rule}\r\ntolerex> ");
    stream.get_mut().write_all(banner.as_bytes())?;
    let mut line = Vec::new();
    loop {
        match stream.read_until(b'\n', &mut line) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !stop.is_stopped() => {
                continue;
            }
            Ok(1..) => {}
            Ok(_) | Err(_) => return Ok(()),
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if text == "PROMPT OFF" {
            stream.get_mut().write_all(b"OK\r\n")?;
            continue;
        }
        if let Some((_, rest)) = text.split_once("SETB ") {
            let bytes = rest.split(' ').nth(1).and_then(|bytes| bytes.parse().ok());
            stream.read_exact(&mut vec![0; bytes.unwrap_or(0) + 2])?;
        }
        if let Some((_, bytes)) = text.split_once("BATCH ") {
            stream.read_exact(&mut vec![0; bytes.parse().unwrap_or(0) + 2])?;
        }
        seen.lock().push(text);
        let does = script.next().expect("an entry");
        if script.peek().is_none() {
            *script = vec![does.clone()].into_iter().peekable();
        }
        match does {
            Does::Says(line) => stream
                .get_mut()
                .write_all(format!("{line}\r\n").as_bytes())?,
            Does::Breaks => return Ok(()),
            Does::Silent => {}
        }
    }
}

fn options(milliseconds: u64) -> ClientOptions {
    ClientOptions {
        deadline: Duration::from_millis(milliseconds),
        attempt_timeout: Duration::from_millis(200),
        ..ClientOptions::default()
    }
}

fn client(leaders: &[&str], options: ClientOptions) -> Client {
    Client::with_options(leaders.iter().copied(), options).expect("a client")
}

const KEY: Key = Key::Id(7);

/// What `OK 3` says.
fn revision() -> Revision {
    Revision::from_u64(3)
}

/// The tokens of requests, each of which carries one.
fn tokens(asked: &[String]) -> Vec<&str> {
    let token = asked.iter().map(|line| line.split(' ').nth(1));
    token.map(|token| token.expect("a token")).collect()
}

#[test]
fn a_call_is_one_request_on_one_connection() {
    let replies = [
        "OK 3",
        "VALUE 3 2\r\nab",
        "NOT_FOUND",
        "OK",
        "NOT_FOUND",
        "OK 5-9",
    ];
    let leader = Leader::start(replies.map(says).to_vec());
    let client = client(&[&leader.address], options(5000));
    assert_eq!(client.set(&KEY, b"ab"), Ok(revision()));
    let message = Message {
        revision: revision(),
        payload: b"ab".to_vec(),
    };
    assert_eq!(client.get(&KEY), Ok(Some(message)));
    assert_eq!(client.get(&KEY), Ok(None));
    assert_eq!(client.delete(&KEY), Ok(true));
    assert_eq!(client.delete(&KEY), Ok(false));
    assert_eq!(client.set_bulk(5, b"m"), Ok(5..=9));
    let asked = leader.asked();
    assert_eq!((asked.len(), leader.accepted()), (6, 1));
    assert_eq!(asked[1], "GETB 7");
    let writes = [&asked[0], &asked[3], &asked[4], &asked[5]].map(String::clone);
    let mut tokens = tokens(&writes);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 4, "each write has its own: {asked:?}");
}

#[test]
fn a_redirect_is_followed_and_remembered() {
    let leader = Leader::start(vec![says("OK 3")]);
    let follower = Leader::start(vec![points_to(&leader.address)]);
    let client = client(&[&follower.address], options(5000));
    for _ in 0..3 {
        assert_eq!(client.set(&KEY, b""), Ok(revision()));
    }
    assert_eq!(client.address().as_ref(), Some(&leader.address));
    assert_eq!((follower.asked().len(), leader.asked().len()), (1, 3));
}

#[test]
fn a_loop_of_four_redirects_ends_in_an_error() {
    let (listeners, places): (Vec<_>, Vec<_>) = (0..5).map(|_| reserve()).unzip();
    let started = listeners.into_iter().enumerate().map(|(number, listener)| {
        let next = points_to(&places[(number + 1) % 5]);
        Leader::start_on(listener, places[number].clone(), vec![next])
    });
    let leaders: Vec<Leader> = started.collect();
    let options = ClientOptions {
        patience: Patience::OneRound,
        ..options(5000)
    };
    let error = client(&[&places[0]], options)
        .set(&KEY, b"")
        .expect_err("no leader");
    assert_eq!(error.outcome(), Outcome::Failed);
    assert!(matches!(error, ClientError::NoLeader { .. }), "{error}");
    assert!(
        error.to_string().ends_with("more than 3 redirects"),
        "{error}"
    );
    let asked = leaders.iter().map(|leader| leader.asked().len());
    assert_eq!(asked.collect::<Vec<_>>(), [1, 1, 1, 1, 0]);
}

#[test]
fn a_redirect_to_a_dead_leader_is_no_end() {
    let dead = nobody();
    let (listener, place) = reserve();
    let follower = Leader::start(vec![points_to(&dead), points_to(&dead), points_to(&place)]);
    let leader = Leader::start_on(listener, place, vec![says("OK 3")]);
    let client = client(&[&dead, &follower.address], options(5000));
    assert_eq!(client.set(&KEY, b""), Ok(revision()));
    assert_eq!((follower.asked().len(), leader.asked().len()), (3, 1));
}

#[test]
fn a_lost_answer_is_unknown_without_a_token_and_repeated_with_it() {
    let bare = ClientOptions {
        tokens: false,
        ..options(5000)
    };
    for does in [Does::Breaks, Does::Silent, says("hello")] {
        let leader = Leader::start(vec![does.clone(), says("OK 3")]);
        let bare = ClientOptions {
            deadline: Duration::from_millis(300),
            ..bare.clone()
        };
        let error = client(&[&leader.address], bare)
            .set(&KEY, b"")
            .expect_err("unknown");
        assert_eq!(error.outcome(), Outcome::Unknown, "{does:?}: {error}");
        assert!(error.to_string().ends_with("may or may not have happened"));
        assert_eq!(leader.asked(), ["IF - SETB 7 0"], "{does:?}");
    }
    for does in [
        Does::Breaks,
        Does::Silent,
        says("ERROR: timed out, the write may or may not have happened"),
    ] {
        let leader = Leader::start(vec![does.clone(), says("OK 3")]);
        let other = Leader::start(vec![points_to(&leader.address)]);
        let leaders = [leader.address.as_str(), &other.address];
        assert_eq!(
            client(&leaders, options(5000)).set(&KEY, b""),
            Ok(revision()),
            "{does:?}"
        );
        let asked = leader.asked();
        let tokens = tokens(&asked);
        assert_eq!(tokens.len(), 2, "{does:?}");
        assert_eq!(tokens[0], tokens[1]);
    }
    // A token of the program's own.
    let leader = Leader::start(vec![Does::Breaks, says("OK 3")]);
    let token = Token::parse(b"mine").expect("a token");
    let client = client(&[&leader.address], bare);
    let stored = client.set_with(&KEY, b"", WriteOptions::once(token));
    assert_eq!(stored, Ok(revision()));
    assert_eq!(leader.asked(), ["ONCE mine IF - SETB 7 0"; 2]);
}

#[test]
fn reads_are_repeated_and_never_unknown() {
    let leader = Leader::start(vec![
        Does::Breaks,
        says("ERROR: timed out"),
        says("ERROR: message unavailable (replicas: )"),
        says("NOT_FOUND"),
    ]);
    assert_eq!(
        client(&[&leader.address], options(5000)).get(&KEY),
        Ok(None)
    );
    let broken = Leader::start(vec![Does::Breaks]);
    let error = client(&[&broken.address], options(300))
        .get(&KEY)
        .expect_err("no answer");
    assert_eq!(error.outcome(), Outcome::Failed, "{error}");
}

#[test]
fn a_client_waits_for_a_leader_until_the_deadline() {
    let none = says("ERROR: no leader elected");
    let leader = Leader::start(vec![none.clone(), none.clone(), none.clone(), says("OK 3")]);
    let waiting = client(&[&leader.address, &nobody()], options(5000));
    assert_eq!(waiting.set(&KEY, b""), Ok(revision()));
    assert_eq!(leader.asked().len(), 4);

    let leader = Leader::start(vec![none]);
    let clock = SystemClock::new();
    let begin = clock.now();
    let error = client(&[&leader.address], options(400))
        .set(&KEY, b"")
        .expect_err("none");
    let took = clock.now().since(begin);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(
        error.to_string(),
        format!("no leader: {}: no leader elected", leader.address)
    );
    // Rests of 20 to 200 ms.
    let asked = leader.asked().len();
    assert!((2..=12).contains(&asked), "{asked}");
}

#[test]
fn a_connection_that_was_closed_while_idle_costs_nothing() {
    let (listener, place) = reserve();
    let leader = Leader::start_on(listener, place.clone(), vec![says("OK 3")]);
    let bare = ClientOptions {
        tokens: false,
        ..options(5000)
    };
    let client = client(&[&place], bare);
    assert_eq!(client.set(&KEY, b""), Ok(revision()));
    drop(leader);
    let listener = (0..200).find_map(|_| {
        sleep(Duration::from_millis(5));
        TcpListener::bind(&place).ok()
    });
    let leader = Leader::start_on(listener.expect("the port again"), place, vec![says("OK 3")]);
    assert_eq!(client.set(&KEY, b""), Ok(revision()));
    assert_eq!(leader.asked(), ["IF - SETB 7 0"]);
}

#[test]
fn what_does_not_greet_as_a_leader_is_left() {
    for greeting in [
        "ERROR: too many connections\r\n",
        "SSH-2.0-x\r\n",
        "tolerex> ",
        &"x\r\n".repeat(1000),
    ] {
        let (listener, place) = reserve();
        let greeting = greeting.to_owned();
        let stranger = threads::spawn("stranger", move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(greeting.as_bytes()).expect("sent");
            // Until the client has given up; one that broke off in the middle resets.
            _ = stream.read_to_end(&mut Vec::new());
        });
        let leader = Leader::start(vec![says("OK 3")]);
        let options = ClientOptions {
            connect_timeout: Duration::from_millis(200),
            ..options(5000)
        };
        let client = client(&[&place, &leader.address], options);
        assert_eq!(client.set(&KEY, b""), Ok(revision()));
        drop(client);
        stranger.expect("a thread").join();
    }
}

#[test]
fn raw_commands_are_sent_as_they_are() {
    let leader = Leader::start(vec![
        says("node: n\r\nrole: leader\r\n"),
        says("ERROR: unknown command"),
        says("VALUE 1 3\r\na\nb"),
        Does::Breaks,
        Does::Breaks,
        says("OK"),
    ]);
    let client = client(&[&leader.address], options(5000));
    let raw = |line: &str| client.raw(line.as_bytes(), None);
    let text = |reply: Reply| String::from_utf8(reply.text()).expect("UTF-8");
    assert_eq!(
        raw("status").map(text),
        Ok("node: n\nrole: leader\n".to_owned())
    );
    let reply = raw("fly").expect("a reply");
    assert_eq!(text(reply.clone()), "ERROR: unknown command\n");
    assert!(matches!(reply.done(), Err(ClientError::Refused { .. })));
    assert_eq!(raw("GETB k").map(text), Ok("VALUE 1 3\na\nb\n".to_owned()));
    let error = raw("SET k m").expect_err("lost");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(raw("ONCE t SET k m").map(text), Ok("OK\n".to_owned()));
    assert!(matches!(raw("QUIT"), Err(ClientError::Invalid { .. })));
    assert_eq!(leader.asked().len(), 6);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_sent() {
    let none: [&str; 0] = [];
    for addresses in [&none[..], &["h"], &["h:1", "h:x"], &["h:1", ""]] {
        let refused = Client::new(addresses.iter().copied()).err();
        assert!(
            matches!(refused, Some(ClientError::Invalid { .. })),
            "{addresses:?}"
        );
    }
    for deadline in [Duration::ZERO, Duration::from_secs(61)] {
        let options = ClientOptions {
            deadline,
            ..ClientOptions::default()
        };
        let refused = Client::with_options(["h:1"], options).err();
        assert!(
            matches!(refused, Some(ClientError::Invalid { .. })),
            "{deadline:?}"
        );
    }
    let client = Client::new([nobody()]).expect("a client");
    assert!(matches!(
        client.set_bulk(2, b"a\nb"),
        Err(ClientError::Invalid { .. })
    ));
}

#[test]
fn clones_share_their_connections() {
    let leader = Leader::start(vec![says("OK 3")]);
    let client = client(&[&leader.address], options(2000));
    let other = client.clone();
    for client in [&client, &other, &client] {
        assert_eq!(client.set(&KEY, b""), Ok(revision()));
    }
    assert_eq!((tokens(&leader.asked()).len(), leader.accepted()), (3, 1));
    assert_eq!(other.address().as_ref(), Some(&leader.address));
}

#[test]
fn no_more_connections_are_kept_than_is_said() {
    let leader = Leader::start(vec![says("OK 3")]);
    let options = ClientOptions {
        idle_connections_max: 0,
        ..options(2000)
    };
    let client = client(&[&leader.address], options);
    for count in 1..=3 {
        assert_eq!(client.set(&KEY, b""), Ok(revision()));
        assert_eq!(leader.accepted(), count);
    }
}
