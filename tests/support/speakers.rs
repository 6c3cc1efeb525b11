//! The commands of a history in the words of each client protocol, and what the answers mean.
//!
//! HaToKuSe takes one part at a time, HTTP batches too; times to live are changed and asked for by
//! HaToKuSe alone. An answer that the protocol does not have panics.

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};

use super::group_client::{Asked, GroupClient, Route, Seat};
use super::history::{Ask, Command, Condition, Life, Outcome, Part, Told};
use super::http::{Http, Response};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A client of all leaders that asks for commands of a history.
pub enum Speaker {
    /// By lines of text.
    Hatokuse(GroupClient),
    /// By HTTP/1.1.
    Http(Seat<Http>),
}

impl Speaker {
    /// One that speaks HaToKuSe.
    pub fn hatokuse(route: Route) -> Speaker {
        Speaker::Hatokuse(GroupClient::new(route))
    }

    /// One that speaks HTTP.
    pub fn http(route: Route) -> Speaker {
        Speaker::Http(Seat::new(route))
    }

    /// Asks once, as the holder of a token if there is one. What came of it, and what went wrong,
    /// without what differs from one time to the next.
    pub fn ask(&mut self, command: &Command, token: Option<&str>) -> (Outcome, Option<String>) {
        match self {
            Speaker::Hatokuse(client) => {
                let mut line = line_of(command);
                if let Some(token) = token {
                    line = format!("ONCE {token} {line}");
                }
                settle(client.ask(&line), |reply| {
                    let trouble = reply.strip_prefix("ERROR: ").map(|reply| {
                        let same = reply.split(" (").next().unwrap_or(reply);
                        same.split(" is ").next().unwrap_or(same).to_owned()
                    });
                    (outcome_of_line(command, &reply), trouble)
                })
            }
            Speaker::Http(seat) => {
                let asked = ask_by_http(seat, command, token);
                settle(asked, |response| outcome_of_response(command, &response))
            }
        }
    }
}

fn settle<R>(
    asked: Asked<R>,
    read: impl FnOnce(R) -> (Outcome, Option<String>),
) -> (Outcome, Option<String>) {
    match asked {
        Asked::NotSent => (Outcome::Failed, Some("not reached".to_owned())),
        Asked::Broken => (Outcome::Unknown, Some("no reply".to_owned())),
        Asked::Reply(reply) => read(reply),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("keys and values are text")
}

fn known(revision: u64) -> Option<u64> {
    (revision > 0).then_some(revision)
}

/// A command as a line of HaToKuSe.
pub fn line_of(command: &Command) -> String {
    match command {
        Command::Set { key, value } => format!("SET {} {}", text(key), text(value)),
        Command::Get { key } => format!("GET {}", text(key)),
        Command::Del { key } => format!("DEL {}", text(key)),
        Command::Bulk { count, value } => format!("{count} SET {}", text(value)),
        Command::Parts { parts, .. } => match parts.as_slice() {
            [part] => line_of_part(part),
            _ => panic!("{command}: a batch is asked for by HTTP"),
        },
    }
}

fn line_of_part(part: &Part) -> String {
    let condition = match part.condition {
        Some(Condition::Revision(revision)) => revision.to_string(),
        Some(Condition::Absent) => "0".to_owned(),
        Some(Condition::Exists) => "*".to_owned(),
        None => "-".to_owned(),
    };
    let key = text(&part.key);
    match &part.ask {
        Ask::Set { value, life: None } => format!("IF {condition} SET {key} {}", text(value)),
        Ask::Del => format!("IF {condition} DEL {key}"),
        Ask::Expire(Some(life)) => format!("EXPIRE {key} {}", life.asked / SECOND),
        Ask::Expire(None) => format!("PERSIST {key}"),
        Ask::Left => format!("TTL {key}"),
        Ask::Get | Ask::Set { .. } => panic!("{part}: not by HaToKuSe"),
    }
}

/// What a reply line means.
pub fn outcome_of_line(command: &Command, reply: &str) -> Outcome {
    if let Some(error) = reply.strip_prefix("ERROR: ") {
        let stored = error.split_once("(stored ").map(|(_, ids)| {
            let ids = ids.trim_end_matches(')');
            (ids != "none").then(|| ids_of(ids).unwrap_or_else(|| panic!("{reply}")))
        });
        return match stored {
            Some(stored) => Outcome::Partial { stored },
            None if error.contains("may or may not") => Outcome::Unknown,
            None => Outcome::Failed,
        };
    }
    if let Command::Parts { parts, .. } = command {
        return Outcome::Told(vec![told_by_line(&parts[0].ask, reply)]);
    }
    match (command, reply) {
        (_, "NOT_FOUND") => Outcome::NotFound,
        (Command::Get { .. }, value) => Outcome::Found(Bytes::from(value.to_owned())),
        (Command::Set { .. } | Command::Del { .. }, "OK") => Outcome::Ok,
        (Command::Bulk { .. }, reply) => match reply.strip_prefix("OK ").and_then(ids_of) {
            Some((first, last)) => Outcome::Ids { first, last },
            None => panic!("{command}: {reply}"),
        },
        (command, reply) => panic!("{command}: {reply}"),
    }
}

fn told_by_line(ask: &Ask, reply: &str) -> Told {
    let number = |text: &str| text.parse::<u64>().ok();
    let (word, rest) = reply.split_once(' ').unwrap_or((reply, ""));
    match (ask, word, number(rest)) {
        (_, "NOT_FOUND", None) => Told::NotFound,
        (_, "MISMATCH", Some(revision)) => Told::Mismatch(known(revision)),
        (Ask::Set { .. }, "OK", Some(revision)) => Told::Stored(revision),
        (Ask::Del | Ask::Expire(_), "OK", None) => Told::Done,
        (Ask::Left, "NONE", None) => Told::Left(None),
        (Ask::Left, seconds, None) if number(seconds).is_some() => {
            Told::Left(number(seconds).map(|seconds| seconds * SECOND))
        }
        _ => panic!("{ask:?}: {reply}"),
    }
}

fn ids_of(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn ms(life: &Option<Life>) -> Option<String> {
    life.map(|life| format!("{}ms", life.asked / MS))
}

fn ask_by_http(seat: &mut Seat<Http>, command: &Command, token: Option<&str>) -> Asked<Response> {
    let Command::Parts { parts, is_atomic } = command else {
        panic!("{command}: in parts by HTTP");
    };
    let (mut fields, mut body) = (Vec::new(), Vec::new());
    let (method, target);
    if let [part] = parts.as_slice() {
        target = match &part.ask {
            Ask::Set { life, .. } if life.is_some() => {
                format!("/kv/{}?ttl={}", text(&part.key), ms(life).expect("it is"))
            }
            _ => format!("/kv/{}", text(&part.key)),
        };
        method = match &part.ask {
            Ask::Set { value, .. } => {
                body.extend_from_slice(value);
                "PUT"
            }
            Ask::Get => "GET",
            Ask::Del => "DELETE",
            Ask::Expire(_) | Ask::Left => panic!("{part}: not by HTTP"),
        };
        fields.extend(part.condition.map(|condition| match condition {
            Condition::Revision(revision) => ("If-Match", format!("\"{revision}\"")),
            Condition::Absent => ("If-None-Match", "*".to_owned()),
            Condition::Exists => ("If-Match", "*".to_owned()),
        }));
    } else {
        (method, target) = ("POST", "/batch".to_owned());
        let operations: Vec<Value> = parts.iter().map(operation).collect();
        body = json!({ "atomic": is_atomic, "operations": operations })
            .to_string()
            .into_bytes();
        fields.push(("Content-Type", "application/json".to_owned()));
    }
    fields.extend(token.map(|token| ("Idempotency-Key", token.to_owned())));
    let fields = fields.iter().map(|(name, value)| (*name, value.as_str()));
    let fields: Vec<(&str, &str)> = fields.collect();
    let asked = seat.ask(Http::connect, |http| {
        http.ask(method, &target, &fields, &body)
    });
    if let Asked::Reply(response) = &asked {
        match response.status {
            307 => seat.follow(&leader_of(response)),
            503 | 504 => seat.leave(),
            _ => {}
        }
    }
    asked
}

/// `host:port` of its Location.
fn leader_of(response: &Response) -> String {
    let location = response.field("location").expect("where the leader is");
    let leader = location.strip_prefix("http://").expect("an URL");
    let leader: SocketAddr = leader
        .split('/')
        .next()
        .and_then(|leader| leader.parse().ok())
        .unwrap_or_else(|| panic!("{location}"));
    leader.to_string()
}

fn operation(part: &Part) -> Value {
    let mut operation = match &part.ask {
        Ask::Set { value, life } => {
            let mut set = json!({ "type": "set", "value": text(value) });
            if let Some(ttl) = ms(life) {
                set["ttl"] = ttl.into();
            }
            set
        }
        Ask::Get => json!({ "type": "get" }),
        Ask::Del => json!({ "type": "delete" }),
        Ask::Expire(_) | Ask::Left => panic!("{part}: not by HTTP"),
    };
    operation["key"] = text(&part.key).into();
    match part.condition {
        Some(Condition::Revision(revision)) => {
            operation["if_revision"] = revision.to_string().into()
        }
        Some(Condition::Absent) => operation["if_revision"] = 0.into(),
        Some(Condition::Exists) => panic!("{part}: not in a batch"),
        None => {}
    }
    operation
}

fn outcome_of_response(command: &Command, response: &Response) -> (Outcome, Option<String>) {
    let Command::Parts { parts, .. } = command else {
        panic!("{command}: in parts by HTTP");
    };
    let json = response.json().unwrap_or_default();
    if let Some(results) = json["results"].as_array() {
        assert_eq!(results.len(), parts.len(), "{command}: {json}");
        return (outcome_of_results(parts, results), None);
    }
    let told = match (&parts[0].ask, response.status) {
        (Ask::Set { .. }, 200 | 201) => Told::Stored(response.revision().expect("an ETag")),
        (Ask::Get, 200) => Told::Found {
            value: Bytes::copy_from_slice(&response.body),
            revision: Some(response.revision().expect("an ETag")),
        },
        (Ask::Del, 204) => Told::Done,
        (Ask::Del | Ask::Get, 404) => Told::NotFound,
        (Ask::Set { .. } | Ask::Del, 412) => {
            Told::Mismatch(known(revision_of(&json).expect("a revision")))
        }
        (_, 307 | 409 | 500 | 503 | 504) => {
            let kind = json["type"].as_str().unwrap_or("no type").to_owned();
            let is_unknown = json["outcome"] == "unknown";
            let outcome = [Outcome::Failed, Outcome::Unknown][usize::from(is_unknown)].clone();
            return (outcome, Some(kind));
        }
        (_, status) => panic!("{command}: {status} {json}"),
    };
    (Outcome::Told(vec![told]), None)
}

fn outcome_of_results(parts: &[Part], results: &[Value]) -> Outcome {
    if results.iter().any(|result| result["outcome"] == "unknown") {
        return Outcome::Unknown;
    }
    let pairs = parts.iter().zip(results);
    let told: Vec<Told> = pairs
        .map(|(part, result)| told_by_result(part, result))
        .collect();
    Outcome::of_parts(told)
}

/// It is a string.
fn revision_of(json: &Value) -> Option<u64> {
    json["revision"].as_str()?.parse().ok()
}

fn told_by_result(part: &Part, result: &Value) -> Told {
    let revision = revision_of(result);
    let error = result["error"].as_str().unwrap_or_default();
    match (result["status"].as_str(), &part.ask) {
        (Some("ok"), Ask::Set { .. }) => Told::Stored(revision.expect("a revision")),
        (Some("ok"), Ask::Get) => Told::Found {
            value: Bytes::from(result["value"].as_str().expect("a value").to_owned()),
            revision,
        },
        (Some("ok"), Ask::Del) => Told::Done,
        (Some("not_found"), _) => Told::NotFound,
        (Some("failed"), _) => match revision {
            Some(revision) => Told::Mismatch(known(revision)),
            None if error.starts_with("nothing of the batch") => Told::NotApplied,
            None => Told::Failed,
        },
        _ => panic!("{part}: {result}"),
    }
}
