//! What a web page can make a browser send has no effect, at either port, over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::cluster::Cluster;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends the pieces one by one, and takes what comes until the other side closes.
fn talk(address: &str, pieces: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_nodelay(true).expect("set");
    for piece in pieces {
        // It may be closed already.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    // A reset is as good an end as any; a time-out is none.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_request_to_the_text_port_executes_nothing_of_its_body() {
    let cluster = Cluster::start(&["--members", "1", "--tolerance", "1"]);
    let address = cluster.address().to_string();
    let mut client = cluster.client();
    assert_eq!(client.command("SET victim x"), "OK");
    let body = "SET pwned by-a-web-page\r\nDEL victim\r\nSETB pwned2 3\r\nabc\r\n";
    let head = format!("Content-Type: text/plain\r\nContent-Length: {}", body.len());
    let host = format!("Host: {address}");
    let request = |first: &str| format!("{first}\r\n{host}\r\n{head}\r\n\r\n{body}");
    // Longer than a line may be, so that it is skipped.
    let long = format!("POST /{} HTTP/1.0", "x".repeat(17 << 20));
    for first in [
        "POST / HTTP/1.1",
        "SET / HTTP/1.1",
        "QUERY /a?b HTTP/2",
        &long,
    ] {
        let request = request(first);
        let bytes = request.as_bytes();
        let shown = first.get(..20).unwrap_or(first);
        let answer = talk(&address, &[bytes]);
        assert!(
            answer.contains("this port does not speak HTTP"),
            "{shown}: {answer}"
        );
        if first.len() < 100 {
            let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
            let answer = talk(&address, &pieces);
            assert!(
                answer.contains("this port does not speak HTTP"),
                "{shown}: {answer}"
            );
        }
    }
    let before = format!("SET before 1\r\n{}", request("POST / HTTP/1.1"));
    talk(&address, &[before.as_bytes()]);
    for (key, value) in [
        ("pwned", "NOT_FOUND"),
        ("pwned2", "NOT_FOUND"),
        ("victim", "x"),
        ("before", "1"),
    ] {
        assert_eq!(client.command(&format!("GET {key}")), value, "{key}");
    }
    // A length that nobody waits for.
    let answer = talk(&address, &[b"SETB k 99999999999999999999\r\n"]);
    assert!(answer.contains("ERROR: message too large"), "{answer}");
}

#[test]
fn foreign_hosts_and_pages_are_refused() {
    let cluster = Cluster::start_with(
        &["--members", "1", "--tolerance", "1"],
        &[("TOLEREX_HTTP_HOSTS", "tolerex.example,other.example")],
    );
    let address = cluster.leaders("http").remove(0);
    let port = address.rsplit(':').next().expect("a port");
    let ask = |fields: &str, body: &str| {
        let length = body.len();
        let request = format!(
            "POST /batch HTTP/1.1\r\n{fields}Content-Type: application/x-www-form-urlencoded\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let answer = talk(&address, &[request.as_bytes()]);
        answer.get(9..12).unwrap_or_default().to_owned()
    };
    let set =
        |key: &str| format!(r#"{{"operations":[{{"type":"set","key":"{key}","value":"x"}}]}}"#);
    for (fields, status) in [
        ("Host: evil.example\r\n".to_owned(), "421"),
        (
            format!("Host: evil.example:{port}\r\nOrigin: http://evil.example:{port}\r\n"),
            "421",
        ),
        (
            format!("Host: {address}\r\nOrigin: http://evil.example\r\n"),
            "403",
        ),
        (format!("Host: {address}\r\nOrigin: null\r\n"), "403"),
        (
            format!("Host: {address}\r\nSec-Fetch-Site: cross-site\r\n"),
            "403",
        ),
    ] {
        assert_eq!(ask(&fields, &set("pwned")), status, "{fields}");
    }
    for fields in [
        format!("Host: {address}\r\n"),
        format!("Host: localhost:{port}\r\n"),
        "Host: [::1]\r\n".to_owned(),
        "Host: tolerex.example\r\nOrigin: https://tolerex.example\r\n".to_owned(),
        format!("Host: {address}\r\nOrigin: http://{address}\r\nSec-Fetch-Site: same-origin\r\n"),
        format!("Host: 127.0.0.7:1\r\nOrigin: http://{address}\r\nSec-Fetch-Site: cross-site\r\n"),
    ] {
        assert_eq!(ask(&fields, &set("good")), "200", "{fields}");
    }
    let mut client = cluster.client();
    assert_eq!(client.command("GET pwned"), "NOT_FOUND");
    assert_eq!(client.command("GET good"), "x");
}
