//! What the threads of a server share, with their steps taken by hand.

use mio::Poll;

use super::*;
use crate::net::Call;
use crate::net::helpers;
use crate::net::mailbox::{Mailbox, WAKER};
use crate::net::newcomer::Newcomer;
use crate::net::places::Place;
use crate::net::shared::Shared;

/// Executes nothing.
pub struct Nothing;

impl Handler for Nothing {
    fn begin(&self, _: Batch, _: usize) -> Progress {
        unreachable!("there is no worker")
    }
}

/// What a server shares that has 14 ordinary places, 2 reserved ones, and no threads.
struct Stepped {
    shared: Shared,
    listener: TcpListener,
    /// Of the worker and of the thread that accepts.
    _polls: [Poll; 2],
}

impl Stepped {
    fn new() -> Stepped {
        let [work, accept] = [(); 2].map(|()| Poll::new().expect("a poll"));
        let limits = Limits {
            connections_max: 16,
            ..limits(1)
        };
        let budget = Budget::new(limits.budget_bytes);
        let mailbox = Arc::new(Mailbox::new(work.registry()).expect("a mailbox"));
        let (helpers, _) = helpers::queue(1);
        let waker = mio::Waker::new(accept.registry(), WAKER).expect("a waker");
        Stepped {
            shared: Shared::new(
                (Arc::new(Everything), Arc::new(Nothing)),
                SystemClock::shared(),
                (limits, budget),
                (vec![mailbox], helpers),
                waker,
            ),
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            _polls: [work, accept],
        }
    }

    /// A connection that was accepted at this time for a place, and its client.
    fn newcomer(&self, place: usize, accepted_at: Instant) -> (Newcomer, Client) {
        let address = self.listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("a connection");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let (stream, _) = self.listener.accept().expect("a connection");
        stream.set_nonblocking(true).expect("a socket");
        let newcomer = Newcomer {
            stream: Box::new(mio::net::TcpStream::from_std(stream)),
            caller: Caller {
                address: client.local_addr().expect("an address"),
            },
            sessions: Arc::new(Hurried),
            accepted_at,
            place,
            instead_of: None,
        };
        (newcomer, Client { stream: client })
    }
}

fn at(ms: u64) -> Instant {
    Instant::default() + Duration::from_millis(ms)
}

/// A newcomer is on its way to a reserved place while the worker there still serves the connection
/// that is to give way.
#[test]
fn a_reserved_place_stays_that_of_the_last_newcomer() {
    let stepped = Stepped::new();
    let shared = &stepped.shared;
    let place = shared.take_free(Place::Reserved, 0).expect("it is free");
    shared.begins_to_wait(place, at(1));
    assert!(shared.claim(place, at(1), at(2)));
    // The worker of the first one knows nothing of the second yet.
    shared.ends_to_wait(place, at(1));
    assert_eq!(shared.waiting(Place::Reserved), [(at(2), place)]);
    shared.begins_to_wait(place, at(1));
    assert_eq!(shared.waiting(Place::Reserved), [(at(2), place)]);
    assert!(!shared.claim(place, at(1), at(3)), "it is claimed already");
    assert!(shared.claim(place, at(2), at(3)));
    // The first one was busy when the second came, and waits when the third comes.
    shared.give_back(stepped.newcomer(place, at(2)).0, None);
    assert_eq!(shared.waiting(Place::Reserved), [(at(3), place)]);
    shared.give_back(stepped.newcomer(place, at(3)).0, Some(at(1)));
    assert_eq!(shared.waiting(Place::Reserved), [(at(1), place)]);
    let times = shared.returned().into_iter().map(|one| one.accepted_at);
    assert_eq!(times.collect::<Vec<_>>(), [at(2), at(3)]);
}

/// The connection in an ordinary place is used while a newcomer is on its way there.
#[test]
fn an_ordinary_place_is_claimed_for_one_newcomer_at_a_time() {
    let stepped = Stepped::new();
    let shared = &stepped.shared;
    let place = shared.take_free(Place::Ordinary, 0).expect("it is free");
    shared.begins_to_wait(place, at(1));
    assert!(shared.claim(place, at(1), at(20)));
    assert!(!shared.claim(place, at(1), at(21)));
    assert_eq!(shared.waiting(Place::Ordinary), []);
    shared.ends_to_wait(place, at(1));
    shared.begins_to_wait(place, at(19));
    shared.give_back(stepped.newcomer(place, at(20)).0, Some(at(19)));
    assert_eq!(shared.waiting(Place::Ordinary), [(at(19), place)]);
    // One that stays idle, but has input when the newcomer comes, waits again after its turn.
    assert!(shared.claim(place, at(19), at(30)));
    shared.give_back(stepped.newcomer(place, at(30)).0, None);
    assert_eq!(shared.waiting(Place::Ordinary), []);
    shared.begins_to_wait(place, at(31));
    assert_eq!(shared.waiting(Place::Ordinary), [(at(31), place)]);
}

/// All connections are closed, but a newcomer may still be on its way to a worker.
#[test]
fn a_stop_waits_for_the_thread_that_accepts() {
    let stepped = Stepped::new();
    let shared = &stepped.shared;
    shared.begin_stop(at(1000));
    assert!(!shared.has_stopped(at(1)));
    let place = shared.take_free(Place::Ordinary, 0).expect("it is free");
    shared.accepting_ended();
    assert!(!shared.has_stopped(at(2)));
    shared.free(place);
    assert!(shared.has_stopped(at(3)));
}

/// A client is not left without an answer, whichever thread its connection was on its way to.
#[test]
fn newcomers_that_nobody_will_take_are_closed() {
    let stepped = Stepped::new();
    let shared = &stepped.shared;
    let place = shared.take_free(Place::Ordinary, 0).expect("it is free");
    let (posted, mut of_posted) = stepped.newcomer(place, at(1));
    let (returned, mut of_returned) = stepped.newcomer(place, at(2));
    shared.hand_on(posted);
    shared.give_back(returned, None);
    shared.begin_stop(at(1000));
    let (late, mut of_late) = stepped.newcomer(place, at(3));
    shared.give_back(late, None);
    assert_eq!(of_late.rest(), "");
    shared.accepting_ended();
    assert_eq!(of_returned.rest(), "");
    shared.close();
    assert_eq!(of_posted.rest(), "");
    let (too_late, mut of_too_late) = stepped.newcomer(place, at(4));
    shared.hand_on(too_late);
    assert_eq!(of_too_late.rest(), "");
}

/// One that looked at the stop before it began has its call counted: workers wait for it.
#[test]
fn a_call_that_comes_during_a_stop_is_ended() {
    let stepped = Stepped::new();
    let shared = &stepped.shared;
    let (ended, ends) = crossbeam_channel::bounded(2);
    let call = || {
        let ended = ended.clone();
        Call {
            batch: Batch::Reads(Vec::new()),
            reply_growth: 1,
            handler: Arc::new(Nothing),
            done: Box::new(move |result| _ = ended.send(result.is_none())),
        }
    };
    shared.submit(call());
    shared.begin_stop(at(1000));
    shared.accepting_ended();
    assert!(!shared.has_stopped(at(1)), "a worker has the first one");
    shared.submit(call());
    assert_eq!(ends.try_recv(), Ok(true));
    shared.call_ended();
    assert!(shared.has_stopped(at(2)));
}
