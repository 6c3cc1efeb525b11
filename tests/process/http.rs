//! HTTP as curl and raw sockets see it, against real processes.
//!
//! curl is asked for what it is the judge of: chunked uploads, HEAD, ranges, 100-continue,
//! redirects, keep-alive. What no orderly client sends goes over a raw socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tolerex::clock::{Clock, SystemClock, sleep};

use crate::support::cluster::{Cluster, member};
use crate::support::wait_until;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// `curl -s ARGS`. Every test of this file needs it, so it has to be there.
fn curl(args: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["-s", "--max-time", "30"]).args(args);
    // Nothing of the caller's may lead it elsewhere.
    command.env_remove("http_proxy").env("NO_PROXY", "*");
    command.output().expect("curl runs")
}

/// Its status and body.
fn ask(args: &[&str]) -> (u16, String) {
    let output = curl(&[&["-w", "\n%{http_code}"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

/// The head of the last response, in lower case, and the body.
fn with_head(args: &[&str]) -> (String, String) {
    let output = curl(&[&["-i"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut rest = text.as_str();
    loop {
        let (head, body) = rest.split_once("\r\n\r\n").expect("a response");
        // 100-continue and redirects come before it.
        if !body.starts_with("HTTP/1.1 ") {
            return (head.to_lowercase(), body.to_owned());
        }
        rest = body;
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines();
    lines.map(|line| line.split_once(": ")).find_map(|pair| {
        let (known, value) = pair?;
        (known == name).then_some(value)
    })
}

fn http(cluster: &Cluster) -> String {
    cluster.leaders("http").remove(0)
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

fn rest_of(mut stream: &TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an orderly end");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn curl_stores_reads_and_deletes() {
    let cluster = Cluster::start(&[]);
    let kv = format!("http://{}/kv", http(&cluster));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("payload");
    // Text at its begin, and no text as a whole.
    let mut payload = b"hello\n".to_vec();
    payload.extend((0..300_000u32).map(|number| (number % 251) as u8));
    std::fs::write(&file, &payload).expect("written");
    let file = file.to_str().expect("UTF-8");
    let url = format!("{kv}/a%2Fb");

    assert_eq!(ask(&["-T", file, &url]).0, 201);
    let chunked = ["-T", file, "-H", "Transfer-Encoding: chunked", &url];
    assert_eq!(ask(&chunked).0, 200);
    let waiting = ["-T", file, "-H", "Expect: 100-continue", &url];
    assert_eq!(ask(&waiting).0, 200);
    assert_eq!(curl(&[&url]).stdout, payload);

    let (head, body) = with_head(&["-I", &url]);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = payload.len().to_string();
    assert_eq!(field(&head, "content-length"), Some(length.as_str()));
    assert_eq!(
        field(&head, "content-type"),
        Some("application/octet-stream")
    );
    assert_eq!(body, "");

    let (head, body) = with_head(&["-r", "0-4", &url]);
    assert!(head.starts_with("http/1.1 206"), "{head}");
    let range = format!("bytes 0-4/{length}");
    assert_eq!(
        (field(&head, "content-range"), &*body),
        (Some(&*range), "hello")
    );
    assert_eq!(ask(&["-r", "400000-", &url]).0, 416);

    let etag = field(&head, "etag").expect("an entity tag").to_owned();
    let not_changed = format!("If-None-Match: {etag}");
    assert_eq!(ask(&["-H", &not_changed, &url]), (304, String::new()));
    let (status, json) = ask(&["-H", "Accept: application/json", &url]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (status, &json["key"], &json["encoding"]),
        (200, &"a/b".into(), &"base64".into())
    );

    // One connection for both.
    let twice = curl(&[
        "-w",
        "%{num_connects} ",
        "-o",
        "/dev/null",
        &url,
        "-o",
        "/dev/null",
        &url,
    ]);
    assert_eq!(String::from_utf8_lossy(&twice.stdout), "1 0 ");

    assert_eq!(ask(&["-X", "DELETE", &url]).0, 204);
    assert_eq!(ask(&["-X", "DELETE", &url]).0, 404);
    assert_eq!(ask(&[&url]).0, 404);
    // The same key space as that of the text protocol.
    assert_eq!(ask(&["-X", "PUT", "-d", "x y", &format!("{kv}/10")]).0, 201);
    assert_eq!(cluster.client().command("GET 10"), "x y");
}

#[test]
fn conditions_times_batches_and_listings_work() {
    let cluster = Cluster::start(&[]);
    let base = format!("http://{}", http(&cluster));
    let put = |key: &str, value: &str, more: &[&str]| {
        let url = format!("{base}/kv/{key}");
        with_head(&[&["-X", "PUT", "-d", value, &url], more].concat())
    };
    let (head, _) = put("k", "one", &["-H", "If-None-Match: *"]);
    assert!(head.starts_with("http/1.1 201"), "{head}");
    let etag = field(&head, "etag").expect("an entity tag").to_owned();
    let (head, body) = put("k", "two", &["-H", "If-None-Match: *"]);
    assert!(head.starts_with("http/1.1 412"), "{head}");
    let problem: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(problem["type"], "/problems/precondition-failed");
    assert_eq!(problem["revision"].to_string(), etag);
    let (head, _) = put("k", "two", &["-H", &format!("If-Match: {etag}")]);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let (head, _) = put("k", "three", &["-H", &format!("If-Match: {etag}")]);
    assert!(head.starts_with("http/1.1 412"), "{head}");

    let (head, _) = put("short?ttl=100ms", "x", &[]);
    assert!(head.starts_with("http/1.1 201"), "{head}");
    wait_until("it has expired", PATIENCE, || {
        ask(&[&format!("{base}/kv/short")]).0 == 404
    });

    let batch = r#"{"operations":[{"type":"set","key":"b1","value":"x"},{"type":"get","key":"k"},
        {"type":"delete","key":"none"},{"type":"set","key":"b2","value":"é","if_revision":0}]}"#;
    let json = "Content-Type: application/json";
    let (status, body) = ask(&["-d", batch, "-H", json, &format!("{base}/batch")]);
    let results: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let results = results["results"].as_array().expect("results");
    let states: Vec<_> = results
        .iter()
        .map(|result| result["status"].clone())
        .collect();
    assert_eq!(
        (status, states),
        (
            200,
            vec!["ok".into(), "ok".into(), "not_found".into(), "ok".into()]
        )
    );
    assert_eq!(results[1]["value"], "two");

    let mut after = String::new();
    let mut found = Vec::new();
    loop {
        let (status, page) = ask(&[&format!("{base}/kv?limit=2{after}")]);
        assert_eq!(status, 200, "{page}");
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let keys = page["keys"].as_array().expect("keys").iter();
        found.extend(keys.map(|key| key["key"].as_str().expect("text").to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(found, ["b1", "b2", "k"]);

    // A repeat of a write gets the first answer.
    let token = ["-H", "Idempotency-Key: t1"];
    let (first, _) = put("once", "x", &token);
    let (second, _) = put("once", "x", &token);
    assert_eq!(field(&first, "etag"), field(&second, "etag"));
    assert!(second.starts_with("http/1.1 201"), "{second}");
}

#[test]
fn followers_redirect_and_nodes_tell_of_themselves() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let all = cluster.leaders("http");
    let url = |address: &str, path: &str| format!("http://{address}{path}");
    let json = |address: &str, path: &str| -> serde_json::Value {
        let (status, body) = ask(&[&url(address, path)]);
        assert!(status == 200 || status == 503, "{status} {body}");
        serde_json::from_str(&body).expect("JSON")
    };
    wait_until("each leader knows the active one", PATIENCE, || {
        all.iter().all(|address| {
            let leader = json(address, "/status")["leader"]["http"].clone();
            leader
                .as_str()
                .is_some_and(|leader| all.iter().any(|one| one == leader))
        })
    });
    for (number, address) in all.iter().enumerate() {
        // It may have moved meanwhile: whoever is asked, the message is there.
        let stored = url(address, &format!("/kv/k{number}"));
        assert_eq!(
            ask(&["-L", "-X", "PUT", "-d", "x", &stored]).0,
            201,
            "{address}"
        );
        assert_eq!(ask(&["-L", &stored]), (200, "x".to_owned()));
    }
    let statuses = all.iter().map(|address| ask(&[&url(address, "/kv/k0")]).0);
    assert!(statuses.into_iter().any(|status| status == 307));
    // Who waits to be told whether to send a body is sent on without it, and need not send it
    // twice.
    let statuses = all.iter().map(|address| {
        let stream = connect(address);
        let head = b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\n\
              Expect: 100-continue\r\nContent-Length: 9\r\n";
        (&stream)
            .write_all(&[head, &b"\r\n"[..]].concat())
            .expect("sent");
        let mut status = [0; 12];
        (&stream).read_exact(&mut status).expect("a status");
        String::from_utf8_lossy(&status[9..]).into_owned()
    });
    let mut statuses: Vec<String> = statuses.collect();
    statuses.sort_unstable();
    assert_eq!(statuses, ["100", "307", "307"]);
    let info = json(&all[1], "/cluster/info");
    assert_eq!(info["leaders"].as_array().expect("leaders").len(), 3);
    assert_eq!(info["tolerance"], 2);
    for path in ["/health", "/livez", "/readyz"] {
        wait_until("all is well", PATIENCE, || {
            json(&all[2], path)["status"] == "ok"
        });
    }
    let stats = json(&all[0], "/stats");
    assert!(stats["worker_turns"].as_u64() > Some(0), "{stats}");
    let kinds = stats["requests"].as_array().expect("kinds");
    assert!(
        kinds
            .iter()
            .any(|kind| kind["kind"] == "write" && kind["requests"] != 0)
    );
}

#[test]
fn without_members_writes_and_readiness_say_so() {
    let cluster = Cluster::start(&[]);
    let base = format!("http://{}", http(&cluster));
    for name in ["member-1", "member-2"] {
        cluster.kill(name);
        cluster.wait_for_state(name, "down");
    }
    assert_eq!(
        member(&cluster.client().status(), "member-1")["state"],
        "down"
    );
    let (head, body) = with_head(&["-X", "PUT", "-d", "x", &format!("{base}/kv/k")]);
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert_eq!(field(&head, "retry-after"), Some("1"));
    let problem: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(problem["type"], "/problems/not-enough-members");
    assert_eq!(problem["outcome"], "failed");
    let (status, body) = ask(&[&format!("{base}/readyz")]);
    assert!(status == 503 && body.contains("members"), "{status} {body}");
    assert_eq!(ask(&[&format!("{base}/readyz?exclude=members")]).0, 200);
    assert_eq!(ask(&[&format!("{base}/livez")]).0, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let cluster = Cluster::start(&[]);
    let stream = connect(&http(&cluster));
    let mut requests = String::new();
    for number in 0..500 {
        let body = format!("body {number}");
        let length = body.len();
        requests += &format!(
            "PUT /kv/p HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        requests += "GET /kv/p HTTP/1.1\r\nHost: localhost\r\n\r\n";
    }
    (&stream).write_all(requests.as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let text = rest_of(&stream);
    let mut rest = text.as_str();
    for number in 0..500 {
        let body = format!("\r\n\r\nbody {number}");
        let at = rest.find(&body).unwrap_or_else(|| panic!("no {number}"));
        rest = &rest[at + body.len()..];
    }
    assert_eq!(text.matches("HTTP/1.1 20").count(), 1000);
}

#[test]
fn a_refusal_arrives_while_the_body_is_still_sent() {
    let cluster = Cluster::start(&[]);
    let address = http(&cluster);
    for head in [
        "PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000000\r\n\r\n",
        "PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2625a00\r\n",
        "PUT /kv/k HTTP/1.1\r\nContent-Length: 40000000\r\n\r\n",
        "PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ] {
        // As clients do that send all before they read.
        let stream = connect(&address);
        let sender = stream.try_clone().expect("a clone");
        let sending = tolerex::threads::spawn("sends", move || {
            _ = (&sender).write_all(head.as_bytes());
            let piece = vec![b'x'; 1 << 16];
            for _ in 0..600 {
                // The server may close once it has drained enough.
                if (&sender).write_all(&piece).is_err() {
                    break;
                }
            }
            _ = sender.shutdown(Shutdown::Write);
        });
        let text = rest_of(&stream);
        sending.expect("a thread").join();
        assert!(text.starts_with("HTTP/1.1 4"), "{head}: {text}");
        assert!(text.contains("Connection: close"), "{text}");
    }
    let (status, _) = ask(&[&format!("http://{address}/kv/k")]);
    assert_eq!(status, 404);
}

#[test]
#[ignore = "slow: a head has ten seconds"]
fn a_client_that_drips_is_told_408_and_others_are_served() {
    let cluster = Cluster::start(&[]);
    let address = http(&cluster);
    let clock = SystemClock::new();
    let began = clock.now();
    let dripping: Vec<TcpStream> = (0..100).map(|_| connect(&address)).collect();
    for mut stream in &dripping {
        stream
            .write_all(b"PUT /kv/drip HTTP/1.1\r\nHost: localhost\r\nX: ")
            .expect("sent");
        stream.set_nonblocking(true).expect("a socket");
    }
    let mut told = 0;
    while told < dripping.len() {
        assert!(
            clock.now().since(began) < Duration::from_secs(60),
            "{told} were told"
        );
        for mut stream in &dripping {
            // It may be over.
            _ = stream.write(b"x");
            let mut buffer = [0; 1024];
            match stream.read(&mut buffer) {
                Ok(count) if buffer[..count].starts_with(b"HTTP/1.1 408 ") => told += 1,
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        let (status, _) = ask(&[&format!("http://{address}/livez")]);
        assert_eq!(status, 200);
        sleep(Duration::from_millis(200));
    }
    assert!(clock.now().since(began) >= Duration::from_secs(10));
}

#[test]
fn beyond_the_connection_limit_the_answer_is_503() {
    let cluster = Cluster::start_with(&[], &[("TOLEREX_CONNECTIONS_MAX", "20")]);
    let address = http(&cluster);
    let held: Vec<TcpStream> = (0..20).map(|_| connect(&address)).collect();
    wait_until("one more is refused", PATIENCE, || {
        let (head, body) = with_head(&[&format!("http://{address}/kv/k")]);
        head.starts_with("http/1.1 503")
            && field(&head, "retry-after") == Some("1")
            && body.contains("/problems/too-many-connections")
    });
    drop(held);
    wait_until("there is room", PATIENCE, || {
        ask(&[&format!("http://{address}/livez")]).0 == 200
    });
}

#[test]
#[ignore = "slow: opens 10,000 connections"]
fn ten_thousand_idle_connections_do_not_hinder_another() {
    // Both ends of each connection are in processes of this machine, this end in this one.
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 11_000) {
        println!("skipped: no process may have 11,000 files open here");
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("a limit");
    let cluster = Cluster::start(&[]);
    let address = http(&cluster);
    let idle: Vec<TcpStream> = (0..10_000).map(|_| connect(&address)).collect();
    let stats = || -> serde_json::Value {
        let (_, stats) = ask(&[&format!("http://{address}/stats")]);
        serde_json::from_str(&stats).expect("JSON")
    };
    wait_until("all are accepted", PATIENCE, || {
        stats()["connections"]
            .as_u64()
            .is_some_and(|count| count >= 10_000)
    });
    let held = stats()["client_bytes_held"].as_u64().expect("a number");
    assert!(held < 100_000, "{held} bytes are held");
    let url = format!("http://{address}/kv/k");
    assert_eq!(ask(&["-X", "PUT", "-d", "x", &url]).0, 201);
    // The first and the last of them are served still.
    for mut stream in [&idle[0], &idle[9_999]] {
        let request = "GET /kv/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("sent");
        assert!(rest_of(stream).ends_with("\r\n\r\nx"));
    }
}
