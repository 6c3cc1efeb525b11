//! Who may connect to a leader, under which id, and with how much.

use bytes::Bytes;

use super::*;
use crate::ids::Fence;
use crate::leader::members::MemberService;
use crate::protocol::request::Batch;
use crate::rpc::greeting::{Expected, GreetingError};
use crate::rpc::link::Link;
use crate::rpc::message::{
    Purpose, Refusal, ReleaseRequest, Request, Response, StoreRecord, StoreRequest,
};
use crate::rpc::server::Service;
use crate::rpc::tls::TlsContext;
use crate::rpc::{LocalIdentity, PeerInfo};

/// An id that nobody has.
const NEW_ID: u64 = 0x77;

/// Dials the leader as `name` with an id.
fn dial(
    rig: &Rig,
    leader: &RunningLeader,
    name: &str,
    role: Role,
    node_id: u64,
) -> Result<Arc<Link>, GreetingError> {
    let tls = TlsContext::load(rig.tls(name), Arc::clone(&rig.clock)).unwrap();
    let identity = LocalIdentity {
        cluster_id: CLUSTER,
        name: name.to_owned(),
        node_id,
        incarnation: u64::from(role == Role::Member),
        nonce: 9,
        role,
    };
    let expected = Expected {
        role: Role::Leader,
        name: None,
        node_id: None,
    };
    let rpc = leader.leader.addresses().rpc.to_string();
    Link::dial(&rpc, &expected, &tls, &identity, 0, Arc::clone(&rig.clock))
}

#[test]
fn an_id_belongs_to_the_name_with_which_the_group_knows_it() {
    let rig = Rig::of(2, 2);
    let leader = rig.lead();
    let member = rig.join(1, &leader);
    rig.whole(1, &leader);
    rig.eventually("the leader says where it is", || {
        leader.client().one("GROUP JSON").contains("leader-1")
    });
    let shared = &leader.leader.shared;
    let leader_id = shared.view.peers.own_id().unwrap().0;
    let member_id = {
        let cluster = shared.view.cluster.lock();
        cluster.members().next().unwrap().id.0
    };
    // The real one is away: its place is not taken by another name all the same.
    member.stop();
    let refused = dial(&rig, &leader, "member-2", Role::Member, member_id);
    let expected = format!("id {member_id:016x} belongs to member member-1, not to member-2");
    let told = refused.err().expect("refused").to_string();
    assert_eq!(told, format!("refused: {expected}"));
    let service = MemberService::new(Arc::clone(shared));
    let peer = |role, name: &str, node_id| PeerInfo {
        connection: 1,
        address: leader.leader.addresses().rpc,
        role,
        name: name.to_owned(),
        node_id,
        incarnation: 1,
        nonce: 1,
        link: 1,
        purpose: Purpose::All,
        separates_fetches: true,
    };
    let refusal = Err(Refusal::Other(expected));
    let admits = |role, name, id| service.admits(&peer(role, name, id));
    assert_eq!(admits(Role::Member, "member-2", member_id), refusal);
    assert_eq!(admits(Role::Member, "member-1", member_id), Ok(()));
    let expected = format!("id {leader_id:016x} belongs to leader leader-1, not to leader-2");
    let refusal = Err(Refusal::Other(expected));
    assert_eq!(admits(Role::Leader, "leader-2", leader_id), refusal);
    assert_eq!(admits(Role::Leader, "leader-1", leader_id), Ok(()));
    // An id that the group does not know may be anybody's.
    for (name, role) in [("member-2", Role::Member), ("leader-2", Role::Leader)] {
        dial(&rig, &leader, name, role, NEW_ID).unwrap().close();
    }
    let refused = dial(&rig, &leader, "client-1", Role::Client, 0)
        .err()
        .unwrap();
    let expected = "refused: only members and leaders connect here";
    assert_eq!(refused.to_string(), expected);
    leader.stop();
}

#[test]
fn a_member_sends_small_frames_and_a_leader_large_ones() {
    let rig = Rig::of(2, 1);
    let leader = rig.lead();
    let deadline = || rig.clock.now() + PATIENCE;
    // What a member may not call is refused when it was read, and not read beyond the limit.
    let store = |bytes| {
        let record = StoreRecord {
            revision: Revision::new(1, 1),
            key: crate::ids::Key::Id(1),
            payload: Bytes::from(vec![b'x'; bytes]),
        };
        let fence = Fence { term: 1, link: 1 };
        let records = Arc::new(vec![record]);
        let request = Request::Store(StoreRequest { fence, records });
        let link = dial(&rig, &leader, "member-1", Role::Member, NEW_ID).unwrap();
        link.call_wait(0, request, deadline())
    };
    let reason = "store is for a leader to call".to_owned();
    let refused = Response::Refused(Refusal::Other(reason));
    assert_eq!(store(63 << 10), Ok(refused));
    let closed = store(64 << 10);
    assert!(closed.is_err(), "{closed:?}");
    let link = dial(&rig, &leader, "leader-2", Role::Leader, NEW_ID).unwrap();
    let fence = Fence { term: 1, link: 1 };
    let revisions = (0..30_000).map(|n| Revision::new(1, n)).collect();
    let request = Request::Release(ReleaseRequest { fence, revisions });
    let answer = link.call_wait(0, request, deadline()).unwrap();
    let reason = "a leader stores no payloads".to_owned();
    assert_eq!(answer, Response::Refused(Refusal::Other(reason)));
    let status = link.call_wait(0, Request::Forward(Batch::Count), deadline());
    assert_eq!(
        status,
        Ok(Response::Refused(Refusal::NotLeader)),
        "it is open"
    );
    link.close();
    leader.stop();
}
