//! Requests that take too long to come, and several doors of one server.

use bytes::Bytes;

use super::*;
use crate::protocol::Session;
use crate::protocol::output::Output;

/// How long a line may take.
const LINE_TIME: Duration = Duration::from_millis(300);

/// Sessions that send each line back, and are in a hurry.
pub struct Hurried;

#[derive(Default)]
struct HurriedSession {
    line: Vec<u8>,
    deadline: Option<Instant>,
    output: Output,
    is_over: bool,
    is_reserved: bool,
    is_patient: bool,
}

/// Sessions that send each line back, whenever it comes.
pub struct Patient;

impl Sessions for Patient {
    fn open(&self, _: &Caller) -> Box<dyn Session> {
        Box::new(HurriedSession {
            is_patient: true,
            ..HurriedSession::default()
        })
    }

    fn open_reserved(&self, caller: &Caller) -> Box<dyn Session> {
        Hurried.open_reserved(caller)
    }

    fn refusal(&self) -> Bytes {
        Hurried.refusal()
    }
}

impl Sessions for Hurried {
    fn open(&self, _: &Caller) -> Box<dyn Session> {
        Box::new(HurriedSession::default())
    }

    fn open_reserved(&self, _: &Caller) -> Box<dyn Session> {
        Box::new(HurriedSession {
            is_reserved: true,
            ..HurriedSession::default()
        })
    }

    fn refusal(&self) -> Bytes {
        Bytes::from_static(b"full\r\n")
    }
}

impl Session for HurriedSession {
    fn receive(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' {
                self.output.extend(&std::mem::take(&mut self.line));
                self.deadline = None;
            }
        }
    }

    fn end_of_input(&mut self) {
        self.is_over = true;
    }

    fn next_batch(&mut self) -> Option<Batch> {
        None
    }

    fn complete(&mut self, _replies: Vec<Reply>) {
        unreachable!("it offers no batch");
    }

    fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn wants_close(&self) -> bool {
        self.is_over
    }

    fn is_idle(&self) -> bool {
        self.line.is_empty() && self.output.is_empty()
    }

    fn bytes_held(&self) -> usize {
        self.line.len() + self.output.len()
    }

    fn input_bytes(&self) -> usize {
        self.line.len()
    }

    fn input_bytes_expected(&self) -> usize {
        0
    }

    fn shed(&mut self) {}

    fn input_deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.is_patient || (self.line.is_empty() && !self.is_reserved) {
            return None;
        }
        Some(*self.deadline.get_or_insert(now + LINE_TIME))
    }

    fn input_timed_out(&mut self) {
        self.output.extend(match self.is_reserved {
            true => b"full\r\n",
            false => b"late\r\n",
        });
        self.is_over = true;
    }

    fn release_buffers(&mut self) {
        self.output.release_buffers();
    }
}

fn hurried(fixture: &Fixture) -> Client {
    fixture.at_door(1)
}

#[test]
fn a_request_that_does_not_come_in_time_is_answered_so() {
    let fixture = Fixture::new(limits(2));
    let mut client = hurried(&fixture);
    client.send("one\r\n");
    assert_eq!(client.line(), "one");
    let began = fixture.clock.now();
    client.send("tw");
    assert_eq!(client.rest(), "late\r\n");
    assert!(fixture.clock.now().since(began) >= LINE_TIME);
    drop(client);
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
    fixture.stop();
}

/// Bytes that come one by one do not prolong its time.
#[test]
fn a_request_that_drips_is_answered_so() {
    let fixture = Fixture::new(limits(2));
    let client = hurried(&fixture);
    let mut sender = client.stream.try_clone().expect("a clone");
    let dripping = spawn("drips", move || {
        // It ends with the connection, or the test fails for its patience.
        while sender.write_all(b"x").is_ok() {
            sleep(LINE_TIME / 10);
        }
    });
    let mut client = client;
    let mut answer = [0; 6];
    client.stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"late\r\n");
    drop(client);
    dripping.expect("a thread").join();
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
    fixture.stop();
}

#[test]
fn a_connection_that_waits_between_requests_may_take_its_time() {
    let fixture = Fixture::new(limits(2));
    let (mut idle, mut prompt) = (hurried(&fixture), hurried(&fixture));
    prompt.send("on");
    prompt.send("e\r\n");
    sleep(LINE_TIME * 2);
    idle.send("late but whole\r\n");
    prompt.send("two\r\n");
    assert_eq!(idle.line(), "late but whole");
    assert_eq!((prompt.line(), prompt.line()), ("one".into(), "two".into()));
    fixture.stop();
}

#[test]
fn all_doors_share_the_limits_and_refuse_in_their_own_words() {
    let limits = Limits {
        connections_max: 3,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let (mut plain, mut other) = (fixture.program(), hurried(&fixture));
    plain.send("SET 1 x\n");
    other.send("hello\r\n");
    assert_eq!((plain.line(), other.line()), ("OK".into(), "hello".into()));
    assert_eq!(hurried(&fixture).rest(), "full\r\n");
    let mut stranger = fixture.stranger();
    stranger.send("GET 1\n");
    let told = stranger.rest();
    assert!(told.ends_with("ERROR: too many connections\r\n"), "{told}");
    fixture.stop();
}
