//! How a member registers with leaders, and what their answers make it do.

use super::*;

/// A leader that answers registrations with `answer` and reports what it was told.
struct FakeLeader {
    answer: Response,
    /// Before that, one answer for each call.
    script: Mutex<VecDeque<Response>>,
    /// What it says of the copies of who beats.
    has_all: Arc<AtomicBool>,
    told: Sender<Request>,
}

impl Service for FakeLeader {
    fn connected(&self, _: &PeerInfo) -> Result<(), Refusal> {
        Ok(())
    }

    fn handle(&self, _: &PeerInfo, _: CallInfo, request: Request, responder: Responder) {
        let scripted = self.script.lock().pop_front();
        responder.send(match request {
            _ if scripted.is_some() => scripted.expect("just seen"),
            Request::Register(_) => self.answer.clone(),
            _ => Response::Heartbeat(HeartbeatAnswer {
                has_all: self.has_all.load(Ordering::Acquire),
                ..HeartbeatAnswer::default()
            }),
        });
        _ = self.told.try_send(request);
    }

    fn disconnected(&self, _: &PeerInfo) {}
}

fn fake_leader(rig: &Rig, answer: Response) -> (Server, Receiver<Request>) {
    serve_fake(rig, Arc::default(), Vec::new(), answer)
}

fn serve_fake(
    rig: &Rig,
    has_all: Arc<AtomicBool>,
    script: Vec<Response>,
    answer: Response,
) -> (Server, Receiver<Request>) {
    let (told, requests) = bounded(100);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Arc::new(FakeLeader {
        answer,
        script: Mutex::new(script.into()),
        has_all,
        told,
    });
    let server = Server::start(
        listener,
        Arc::clone(&rig.tls),
        rig.leader_identity(),
        service,
        Arc::clone(&rig.clock),
        crate::rpc::server::Limits::default(),
    );
    (server.unwrap(), requests)
}

#[test]
fn a_member_registers_and_sends_its_counters() {
    let rig = Rig::new();
    let (leader, requests) = fake_leader(&rig, Response::Register);
    let leaders = vec![leader.local_addr().to_string()];
    let stop = StopSignal::default();
    let member = Member::start(&rig.settings(leaders), stop.clone()).unwrap();
    let member = RunningMember { member, stop };
    let Request::Register(registered) = requests.recv_timeout(PATIENCE).unwrap() else {
        panic!("the first call is no registration");
    };
    assert_eq!(registered.address, member.member.address().to_string());
    let link = rig.dial(&member, 1);
    rig.call(&link, store(fence(1, 1), &[1, 2]));
    loop {
        let Request::Heartbeat(heartbeat) = requests.recv_timeout(PATIENCE).unwrap() else {
            panic!("registered twice");
        };
        let HeartbeatRequest {
            records,
            bytes,
            free,
            seen,
        } = heartbeat;
        assert!(free > 0);
        if records == 2 {
            assert_eq!(bytes, 18);
            assert_eq!(seen.fence, fence(1, 1));
            assert_eq!(seen.revision, Some(revision(2)));
            break;
        }
    }
    member.stop();
    leader.stop(rig.clock.now() + PATIENCE).unwrap();
}

#[test]
fn a_note_of_losses_stays_until_a_leader_finds_all_copies() {
    let rig = Rig::new();
    let has_all = Arc::new(AtomicBool::new(false));
    let answer = Response::Register;
    let (leader, requests) = serve_fake(&rig, Arc::clone(&has_all), Vec::new(), answer);
    let settings = rig.settings(vec![leader.local_addr().to_string()]);
    let registered = || loop {
        if let Request::Register(request) = requests.recv_timeout(PATIENCE).unwrap() {
            return request.incomplete;
        }
    };
    let beats = |count| {
        for _ in 0..count {
            requests.recv_timeout(PATIENCE).unwrap();
        }
    };
    let note = settings.data_dir.join("incomplete");
    let start = || {
        let stop = StopSignal::default();
        let member = Member::start(&settings, stop.clone()).unwrap();
        RunningMember { member, stop }
    };
    let member = start();
    assert!(!registered());
    member.stop();
    identity::note_losses(&OsFileSystem, &settings.data_dir).unwrap();
    let member = start();
    assert!(registered());
    beats(2);
    assert!(note.exists(), "copies are missing still");
    has_all.store(true, Ordering::Release);
    // The answer to the first of them may have left before.
    beats(3);
    assert!(!note.exists());
    member.stop();
    let member = start();
    assert!(!registered());
    member.stop();
    leader.stop(rig.clock.now() + PATIENCE).unwrap();
}

#[test]
fn a_member_that_is_retired_registers_again_and_waits_for_its_name() {
    let rig = Rig::new();
    let held = Refusal::NameHeld {
        holder: MemberId(9),
        messages: 3,
        is_up: true,
    };
    let script = vec![
        Response::Register,
        Response::Heartbeat(HeartbeatAnswer::default()),
        Response::Refused(Refusal::Retired(MemberId(1))),
        Response::Refused(held.clone()),
        Response::Refused(held),
    ];
    let answer = Response::Register;
    let (leader, requests) = serve_fake(&rig, Arc::default(), script, answer);
    let stop = StopSignal::default();
    let settings = rig.settings(vec![leader.local_addr().to_string()]);
    let member = Member::start(&settings, stop.clone()).unwrap();
    let member = RunningMember { member, stop };
    let calls: Vec<bool> = (0..7)
        .map(|_| match requests.recv_timeout(PATIENCE).unwrap() {
            Request::Register(_) => true,
            Request::Heartbeat(_) => false,
            other => panic!("{other:?}"),
        })
        .collect();
    // It beats only as long as it is registered, and again when the name is free.
    assert_eq!(calls, [true, false, false, true, true, true, false]);
    member.stop();
    leader.stop(rig.clock.now() + PATIENCE).unwrap();
}

#[test]
fn a_member_whose_incarnation_is_stale_exits_at_each_start_with_both_numbers() {
    let rig = Rig::new();
    let refusal = Refusal::StaleIncarnation {
        incarnation: 1,
        registered: 5,
    };
    let (leader, _requests) = fake_leader(&rig, Response::Refused(refusal));
    let leaders = vec![leader.local_addr().to_string()];
    let member = Member::start(&rig.settings(leaders), StopSignal::default()).unwrap();
    let error = format!("{:#}", member.wait().unwrap_err());
    assert!(error.contains("incarnation 1 is not above 5"), "{error}");
    let member = rig.start();
    assert_eq!(rig.dial(&member, 1).peer().incarnation, 1, "not used up");
    member.stop();
    leader.stop(rig.clock.now() + PATIENCE).unwrap();
}
