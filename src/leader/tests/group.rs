//! Three whole leaders in this process: what a follower does with commands, and one that was
//! removed.

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::clock::Instant;
use crate::error::Failure;
use crate::ids::{CallId, Key, Token};
use crate::leader::forward::Onward;
use crate::leader::handler::ClientHandler;
use crate::leader::links::MemberLink;
use crate::net::room::Need;
use crate::net::{Handler, Progress};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Write};
use crate::rpc::LocalIdentity;
use crate::rpc::greeting::Expected;
use crate::rpc::link::{CallError, Completion, Link};
use crate::rpc::message::{Refusal, Request, Response};
use crate::rpc::tls::TlsContext;

fn settings(rig: &Rig, number: usize, redirect: Redirect) -> Settings {
    let name = format!("leader-{number}");
    Settings {
        data_dir: rig.data_dir(&name),
        tls: rig.tls(&name),
        bootstrap: match number {
            1 => Bootstrap::New,
            _ => Bootstrap::Join,
        },
        name,
        redirect,
        ..rig.leader_settings()
    }
}

fn start(settings: Settings) -> RunningLeader {
    let stop = StopSignal::default();
    let leader = Leader::start(settings, stop.clone()).unwrap();
    RunningLeader { leader, stop }
}

/// Three leaders in one group, the first one active, and two members.
fn group(rig: &Rig, redirect: Redirect) -> (Vec<RunningLeader>, Vec<RunningMember>) {
    let leaders: Vec<_> = (1..=3)
        .map(|number| start(settings(rig, number, redirect)))
        .collect();
    let mut client = leaders[0].client();
    for (count, leader) in leaders.iter().enumerate().skip(1) {
        let add = format!("GROUP ADD {}", leader.leader.addresses().rpc);
        rig.eventually("the first one says where it is", || {
            leaders[0].client().one("GROUP JSON").contains("leader-1")
        });
        assert_eq!(client.one(&add), "OK");
        rig.eventually("it is a voter", || {
            let group = leaders[0].client().one("GROUP JSON");
            group.matches(r#""role":"voter""#).count() == count + 1
        });
    }
    let members: Vec<_> = (1..=2).map(|n| rig.join_all(n, &leaders)).collect();
    for leader in &leaders {
        rig.whole(2, leader);
    }
    let active = leaders[0].leader.addresses().client.to_string();
    for follower in &leaders[1..] {
        let shared = &follower.leader.shared;
        rig.eventually("it knows the leader and has a link to it", || {
            shared.leader_address().as_ref() == Some(&active)
                && shared.view.peers.link(id(&leaders[0])).is_some()
        });
    }
    (leaders, members)
}

fn id(leader: &RunningLeader) -> crate::ids::PeerId {
    leader.leader.shared.view.peers.own_id().unwrap()
}

fn stop(leaders: Vec<RunningLeader>, members: Vec<RunningMember>) {
    leaders.into_iter().rev().for_each(RunningLeader::stop);
    members.into_iter().for_each(RunningMember::stop);
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn set(key: u64) -> Batch {
    let payload = Bytes::from_static(b"x");
    Batch::Writes(vec![Write::set(Key::Id(key), payload, None)])
}

#[test]
fn a_follower_passes_commands_on_and_answers_in_their_order() {
    let rig = Rig::of(3, 2);
    let (leaders, members) = group(&rig, Redirect::Forward);
    let mut client = leaders[1].client();
    let asked = lines(
        "SET a 1\nGET a\n5 SET x\nCOUNT\nGET 5\nDEL a\nGET a\nDEL a\nONCE t SET b 2\nSET b 3\n\
         ONCE t SET b 2\nGET b\nnonsense\nONCE u 2 SET y\nONCE u 2 SET y\nCOUNT",
    );
    let expected = "OK\n1\nOK 1-5\n6\nx\nOK\nNOT_FOUND\nNOT_FOUND\nOK\nOK\nOK\n3\n\
                    ERROR: unknown command\nOK 6-7\nOK 6-7\n8";
    assert_eq!(client.ask(&asked).join("\n"), expected);
    let place = client.one("WHERE b");
    assert!(
        place.starts_with("revision=") && place.contains("member-1@"),
        "{place}"
    );
    // Many at once, by both followers, seen by all.
    let sets: Vec<String> = (0..5000).map(|n| format!("SET k{n} {n}")).collect();
    let replies = leaders[2].client().ask(&sets);
    assert!(replies.iter().all(|reply| reply == "OK"), "{replies:?}");
    let gets: Vec<String> = (0..5000).map(|n| format!("GET k{n}")).collect();
    let found: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
    assert_eq!(client.ask(&gets), found);
    // More than is answered at a time, and more than a peer is sent at a time.
    let large = "z".repeat(300_000);
    let sets: Vec<String> = (0..60).map(|n| format!("SET l{n} {large}")).collect();
    assert!(client.ask(&sets).iter().all(|reply| reply == "OK"));
    let gets: Vec<String> = (0..60).map(|n| format!("GET l{n}")).collect();
    assert!(client.ask(&gets).iter().all(|reply| *reply == large));
    // About the follower itself.
    assert!(client.one("STATUS JSON").contains(r#""role":"follower""#));
    let active = leaders[0].leader.addresses().client;
    let refused = format!("ERROR: not leader, leader is {active}");
    assert_eq!(client.one("GROUP TRANSFER leader-2"), refused);
    stop(leaders, members);
}

#[test]
fn what_was_passed_on_is_not_passed_on_again() {
    let rig = Rig::of(3, 2);
    let (leaders, members) = group(&rig, Redirect::Forward);
    // The third one passes on to the second one, as if it led.
    let (name, target) = ("leader-3", &leaders[1]);
    let tls = TlsContext::load(rig.tls(name), Arc::clone(&rig.clock)).unwrap();
    let identity = LocalIdentity {
        cluster_id: CLUSTER,
        name: name.to_owned(),
        node_id: id(&leaders[2]).0,
        incarnation: 0,
        nonce: 9,
        role: Role::Leader,
    };
    let expected = Expected {
        role: Role::Leader,
        name: None,
        node_id: None,
    };
    let rpc = target.leader.addresses().rpc.to_string();
    let link = Link::dial(&rpc, &expected, &tls, &identity, 0, Arc::clone(&rig.clock)).unwrap();
    let deadline = rig.clock.now() + PATIENCE;
    let answer = link
        .call_wait(0, Request::Forward(set(7)), deadline)
        .unwrap();
    let leader = Some(leaders[0].leader.addresses().client.to_string());
    let refused = Reply::Failed(Failure::NotLeader { leader });
    assert_eq!(answer, Response::Forward(vec![refused]));
    assert_eq!(leaders[0].client().one("GET 7"), "NOT_FOUND");
    link.close();
    stop(leaders, members);
}

/// What [`Made::call`] does.
enum Way {
    /// There is no link.
    None,
    /// The call is refused on the spot.
    NotSent(CallError),
    /// The call ends so.
    Ends(Result<Response, CallError>),
}

/// A link that is made up; counts its calls.
struct Made {
    way: Mutex<Way>,
    calls: Mutex<usize>,
}

impl Onward for Arc<Made> {
    fn link(&self) -> Option<Arc<dyn MemberLink>> {
        match *self.way.lock() {
            Way::None => None,
            Way::NotSent(_) | Way::Ends(_) => Some(Arc::clone(self) as _),
        }
    }
}

impl MemberLink for Made {
    fn number(&self) -> u64 {
        1
    }

    fn name(&self) -> &str {
        "made up"
    }

    fn call(
        &self,
        _term: u64,
        _request: Request,
        _deadline: Instant,
        completion: Completion,
    ) -> Result<CallId, CallError> {
        *self.calls.lock() += 1;
        match &*self.way.lock() {
            Way::None => unreachable!("there is no link"),
            Way::NotSent(error) => return Err(error.clone()),
            Way::Ends(result) => completion(result.clone()),
        }
        Ok(CallId(1))
    }

    fn close(&self) {}
}

#[test]
fn a_batch_that_is_passed_on_has_one_of_three_outcomes() {
    let rig = Rig::of(2, 0);
    // It waits to be added, so it does not serve and knows no leader.
    let leader = start(settings(&rig, 2, Redirect::Reply));
    let made = Arc::new(Made {
        way: Mutex::new(Way::None),
        calls: Mutex::new(0),
    });
    let shared = Arc::clone(&leader.leader.shared);
    let own = shared.client_address.clone();
    let handler = ClientHandler::new(shared).passing_on(Arc::new(Arc::clone(&made)));
    let outcome = |way: Way, batch: Batch| {
        *made.way.lock() = way;
        let mut progress = handler.begin(batch, 1);
        loop {
            match progress {
                Progress::Done(replies, _) => return replies,
                Progress::Subscribed(..) => panic!("nobody subscribes"),
                Progress::Parked(parked) => progress = parked.resume(),
            }
        }
    };
    let failed = |failure| vec![Reply::Failed(failure)];
    let nobody = || Failure::NotLeader { leader: None };
    let lost = || CallError::LinkLost(Arc::from("cut"));
    let read = || Batch::Reads(vec![Key::Id(1)]);
    let bulk = || Batch::Bulk {
        count: 3,
        payload: Bytes::new(),
        token: Token::parse(b"t").ok(),
    };
    // Not sent: nothing happened.
    assert_eq!(outcome(Way::None, set(1)), failed(nobody()));
    assert_eq!(*made.calls.lock(), 0);
    for (error, failure) in [(lost(), nobody()), (CallError::Busy, Failure::Busy)] {
        assert_eq!(outcome(Way::NotSent(error), set(1)), failed(failure));
    }
    // Answered.
    let revision = Revision::new(1, 1);
    let stored = vec![Reply::Stored {
        revision,
        created: true,
    }];
    let answer = || Way::Ends(Ok(Response::Forward(stored.clone())));
    assert_eq!(outcome(answer(), set(1)), stored);
    let refused = |refusal| Way::Ends(Ok(Response::Refused(refusal)));
    assert_eq!(
        outcome(refused(Refusal::Busy), set(1)),
        failed(Failure::Busy)
    );
    assert_eq!(
        outcome(refused(Refusal::NotLeader), set(1)),
        failed(nobody())
    );
    // Each thinks that the other one leads: the client is not sent in circles.
    let leader_is = |leader| failed(Failure::NotLeader { leader });
    let circle = Way::Ends(Ok(Response::Forward(leader_is(Some(own)))));
    assert_eq!(outcome(circle, set(1)), failed(nobody()));
    // No answer: unknown for what writes, harmless for what reads.
    for error in [lost(), CallError::TimedOut] {
        for write in [set(1), bulk()] {
            let way = Way::Ends(Err(error.clone()));
            assert_eq!(outcome(way, write), failed(Failure::WriteTimedOut));
        }
    }
    assert_eq!(outcome(Way::Ends(Err(lost())), read()), failed(nobody()));
    let way = Way::Ends(Err(CallError::TimedOut));
    assert_eq!(outcome(way, read()), failed(Failure::ReadTimedOut));
    // An answer that could not be encoded, or was dropped: it may have been done.
    let way = refused(Refusal::Other("not handled".to_owned()));
    assert_eq!(outcome(way, set(1)), failed(Failure::WriteTimedOut));
    leader.stop();
}

#[test]
fn forwarded_replies_have_their_room_before_they_are_fetched() {
    let rig = Rig::of(3, 2);
    let (leaders, members) = group(&rig, Redirect::Forward);
    let large = "z".repeat(300_000);
    assert_eq!(leaders[0].client().one(&format!("SET 7 {large}")), "OK");
    let shared = Arc::clone(&leaders[1].leader.shared);
    rig.eventually("the follower knows of it", || {
        shared.view.metadata.find(&Key::Id(7)).is_some()
    });
    let value = Reply::Value {
        revision: Revision::new(1, 1),
        payload: Bytes::from(large),
    };
    let made = Arc::new(Made {
        way: Mutex::new(Way::Ends(Ok(Response::Forward(vec![value.clone()])))),
        calls: Mutex::new(0),
    });
    let handler = ClientHandler::new(Arc::clone(&shared));
    let handler = handler.passing_on(Arc::new(Arc::clone(&made)));
    let read = || handler.begin(Batch::Reads(vec![Key::Id(7)]), 6);
    // Other replies have all the room for replies.
    let need = Need {
        reply_bytes: net::Limits::default().budget_bytes / 4 * 3,
        fetches: Vec::new(),
    };
    let others = shared.budget.request(need, shared.clock.now(), || ());
    let others = others.unwrap().take();
    let parked = |progress| match progress {
        Progress::Parked(parked) => parked,
        Progress::Done(replies, _) | Progress::Subscribed(replies, _) => {
            panic!("it does not wait: {replies:?}")
        }
    };
    let waits = parked(parked(read()).resume());
    assert_eq!(*made.calls.lock(), 0);
    // It has waited for too long.
    let given_up = parked(read());
    rig.eventually("its time is over", || {
        shared.clock.now() >= given_up.deadline()
    });
    let busy = vec![Reply::Failed(Failure::Busy)];
    match given_up.resume() {
        Progress::Done(replies, _) => assert_eq!(replies, busy),
        Progress::Subscribed(..) | Progress::Parked(_) => panic!("it waits on"),
    }
    assert_eq!(*made.calls.lock(), 0);
    drop(others);
    match parked(waits.resume()).resume() {
        Progress::Done(replies, room) => {
            assert_eq!(replies, [value]);
            assert_eq!(room.unwrap().bytes(), 6 * 300_000);
        }
        Progress::Subscribed(..) | Progress::Parked(_) => panic!("its answer is there"),
    }
    assert_eq!(*made.calls.lock(), 1);
    assert_eq!(shared.budget.used(), 0);
    stop(leaders, members);
}

#[test]
fn one_that_was_removed_while_it_was_away_says_so_and_sends_clients_on() {
    let rig = Rig::of(3, 2);
    let (mut leaders, members) = group(&rig, Redirect::Reply);
    let away = leaders.pop().unwrap();
    let addresses = away.leader.addresses();
    away.stop();
    assert_eq!(leaders[0].client().one("GROUP REMOVE leader-3"), "OK");
    let again = start(Settings {
        rpc_bind: addresses.rpc,
        client_bind: addresses.client,
        ..settings(&rig, 3, Redirect::Reply)
    });
    rig.eventually("it says that it was removed", || {
        let status = again.client().one("STATUS JSON");
        status.contains(r#""role":"removed""#)
    });
    let active = leaders[0].leader.addresses().client;
    let sent_on = format!("ERROR: not leader, leader is {active}");
    assert_eq!(again.client().one("SET a 1"), sent_on);
    // Under its old id it does not come back: its log may be an older copy.
    let add = format!("GROUP ADD {}", addresses.rpc);
    let refused = leaders[0].client().one(&add);
    assert!(refused.contains("started with --join"), "{refused}");
    again.stop();
    std::fs::remove_dir_all(rig.data_dir("leader-3")).unwrap();
    let again = start(Settings {
        rpc_bind: addresses.rpc,
        client_bind: addresses.client,
        ..settings(&rig, 3, Redirect::Reply)
    });
    // Added again under a new one, it is as any other.
    assert_eq!(leaders[0].client().one(&add), "OK");
    rig.eventually("it follows again", || {
        let status = again.client().one("STATUS JSON");
        status.contains(r#""role":"follower""#)
    });
    leaders.push(again);
    stop(leaders, members);
}
