//! A member whose disk is not mounted at a start, or has lost a segment; a second process with its
//! name.
//!
//! An empty disk makes a new id. An id that holds messages keeps its name (R11), so the member
//! waits, and its copies are there again when the disk is. What a segment held counts as missing.

use std::path::Path;

use tolerex::disk::fs::FileSystem;
use tolerex::disk::mem::MemFileSystem;
use tolerex::ids::{CallId, Revision};
use tolerex::protocol::reply::MemberState;
use tolerex::rpc::PeerInfo;
use tolerex::rpc::message::{RegisterRequest, Request, Seen};
use tolerex::rpc::server::{CallInfo, Responder, Service};

use crate::events::Event;
use crate::leader::now_of;
use crate::net::MS;
use crate::world::World;

/// Whose size and number nobody looks at.
const CALL: CallInfo = CallInfo {
    id: CallId(0),
    term: 0,
    bytes: 0,
};

impl World {
    pub(crate) fn lose_disk(&mut self) {
        if !self.has_faults() {
            return;
        }
        let pause = self.lot.u64(50..=600);
        self.after(pause * MS, Event::Disk);
        let member = self.plan.rotten;
        match self.lot.u32(..5) {
            0 | 1 if self.members[member].unmounted.is_some() => self.mount(member),
            0 | 1 => self.unmount(member),
            2 | 3 => self.second_process(member),
            _ => self.cut_segment(member),
        }
    }

    /// Ends the process, if there is one, and has it started again soon.
    fn restart(&mut self, member: usize) {
        if self.members[member].running.is_some() {
            self.crash_member(member, false);
        }
        self.members[member].fs.heal();
        let down = self.lot.u64(1..=60);
        self.after(down * MS, Event::StartMember { member });
    }

    /// The next starts find an empty disk.
    fn unmount(&mut self, member: usize) {
        let Some(id) = self.members[member].id else {
            return;
        };
        self.saw("disk not mounted");
        self.note(format_args!("M{member} without its disk"));
        self.restart(member);
        let node = &mut self.members[member];
        let disk = std::mem::replace(&mut node.fs, MemFileSystem::new());
        node.unmounted = Some((disk, id));
        node.id = None;
    }

    /// The next start finds the disk again. If the name has gone to the new id, which it does only
    /// when nothing was listed for the old one, it stays with the new disk.
    pub(crate) fn mount(&mut self, member: usize) {
        let Some((disk, id)) = self.members[member].unmounted.take() else {
            return;
        };
        let node = &self.members[member];
        let named = self.oracle.lock().id_of(&node.name);
        if node.id.is_some() && node.id == named {
            return self.note(format_args!("M{member} keeps the new disk"));
        }
        self.note(format_args!("M{member} with its disk"));
        self.restart(member);
        let node = &mut self.members[member];
        (node.fs, node.id) = (disk, Some(id));
    }

    /// Another process registers with the member's certificate, under an id of its own.
    fn second_process(&mut self, member: usize) {
        let Some(process) = &self.members[member].running else {
            return;
        };
        self.saw("second process");
        let info = PeerInfo {
            node_id: self.lot.u64(1..),
            nonce: self.lot.u64(..),
            incarnation: 1,
            ..process.info.clone()
        };
        self.note(format_args!("M{member} twice"));
        for leader in 0..self.plan.leaders {
            let epoch = self.leaders[leader].epoch;
            let request = Request::Register(RegisterRequest {
                address: format!("{}:1", info.name),
                zone: String::new(),
                seen: Seen::default(),
                replace: false,
                incomplete: false,
                records: Some(0),
            });
            let unanswered = Responder::calling(CallId(0), |_| ());
            if let Some(running) = self.leader(leader, epoch) {
                running.service.handle(&info, CALL, request, unanswered);
                self.advance(leader);
            }
        }
    }

    /// A segment of the member's log is cut to nothing. It may lose copies by that, so others must
    /// have them.
    fn cut_segment(&mut self, member: usize) {
        let node = &self.members[member];
        let (Some(id), None, true) = (node.id, &node.unmounted, self.plan.tolerance >= 2) else {
            return;
        };
        self.restart(member);
        let fs = self.members[member].fs.clone();
        let dir = Path::new("member/log");
        let mut names = fs.list(dir).unwrap_or_default();
        names.retain(|name| name.ends_with(".log"));
        let Some(name) = self.lot.choice(&names) else {
            return;
        };
        let cut = || {
            let file = fs.open(&dir.join(name))?;
            file.set_len(0)?;
            file.sync_all()
        };
        if cut().is_ok() {
            self.saw("disk without a segment");
            self.trace
                .note(self.now, format_args!("M{member} loses {name}"));
            self.oracle.lock().rotten.insert(id);
        }
    }

    /// Whether a heartbeat of the member would be answered by *retired*: its name has another id.
    pub(crate) fn has_lost_name(&self, member: usize) -> bool {
        let node = &self.members[member];
        let named = self.oracle.lock().id_of(&node.name);
        self.plan.loses_disks && named.is_some_and(|named| Some(named) != node.id)
    }

    /// A copy that the member lost and that the leader that serves counts all the same.
    pub(crate) fn counted_without_reason(&self) -> Option<Revision> {
        if !self.plan.loses_disks {
            return None;
        }
        let serving = self.leaders.iter().find(|one| one.serving().is_some())?;
        let leader = serving.running.as_ref()?;
        let node = &self.members[self.plan.rotten];
        let (id, process) = (node.id?, node.running.as_ref()?);
        let cluster = leader.shared.view.cluster.lock();
        let is_counted = |revision: &Revision| {
            let state = cluster.copy_state(id, *revision, now_of(leader));
            process.reader.length(*revision).is_none() && state != MemberState::Missing
        };
        let oracle = self.oracle.lock();
        oracle.listed(id).find(is_counted)
    }
}
