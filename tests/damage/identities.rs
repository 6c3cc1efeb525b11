//! The small files that say who a process is: of a member `member.id`, `incarnation`, `fence` and
//! `cluster.id`, of a leader `peer.id`.
//!
//! None of them may be taken for new, or for a lower value: neither of both starts. A member that
//! is told to gives up its id, durably, and gets another under which it holds nothing.

use std::path::Path;
use std::sync::Arc;

use tolerex::disk::atomic_file;
use tolerex::disk::cluster_file;
use tolerex::disk::fs::FileSystem;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::{Loss, MemFileSystem};
use tolerex::ids::{ClusterId, Fence};
use tolerex::member::identity::{self, Identity};
use tolerex::replica::fence;
use tolerex::storage::opening::{self, StoreOptions};
use tolerex::storage::{EngineKind, WriteMode};

use super::campaign::{Outcome, Sample, Verdict, names};

/// Opens a member's directory in the order in which a member does.
pub fn start(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    options: &StoreOptions,
) -> anyhow::Result<(opening::Store, Identity)> {
    start_with(fs, dir, options, false)
}

fn start_with(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    options: &StoreOptions,
    replace: bool,
) -> anyhow::Result<(opening::Store, Identity)> {
    fs.create_dir_all(dir)?;
    opening::check_engine(fs.as_ref(), dir, options.engine)??;
    cluster_file::bind(fs.as_ref(), dir, ClusterId(7))?;
    let past = identity::examine(fs.as_ref(), dir, options.engine, replace)?;
    let store = opening::open(fs, dir, options)?;
    let identity = identity::begin(fs.as_ref(), dir, past, &mut || Ok(fastrand::u64(..)))?;
    Ok((store, identity))
}

fn options() -> StoreOptions {
    StoreOptions {
        engine: EngineKind::Log,
        io: WriteMode::Sync,
        log: LogOptions {
            reserve_bytes: 0,
            ..LogOptions::default()
        },
    }
}

fn start_member(fs: &MemFileSystem) -> Result<Identity, String> {
    start_member_with(fs, false)
}

fn start_member_with(fs: &MemFileSystem, replace: bool) -> Result<Identity, String> {
    let disk: Arc<dyn FileSystem> = Arc::new(fs.clone());
    let started = start_with(&disk, Path::new("data"), &options(), replace);
    started
        .map(|(_, identity)| identity)
        .map_err(|error| format!("{error:#}"))
}

const FENCE: Fence = Fence { term: 5, link: 300 };

/// A member's directory after two starts and a raised fence, and who it is.
fn member() -> (MemFileSystem, Identity) {
    let fs = MemFileSystem::new();
    start_member(&fs).expect("a new member");
    let path = identity::fence_path(Path::new("data"));
    atomic_file::write(&fs, &path, &fence::encode(FENCE)).expect("raised");
    let identity = start_member(&fs).expect("started again");
    assert_eq!((identity.incarnation, identity.fence), (2, FENCE));
    (fs, identity)
}

/// Reading the file is an error that names it and where it is bad.
fn is_refused(fs: &MemFileSystem, path: &Path) -> Result<(), String> {
    match atomic_file::read(fs, path) {
        Err(error) if names(&error.to_string(), path) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(content) => Err(format!("it is read as {content:?}")),
    }
}

/// An identity with a damaged part does not start, and is as it was; when it is given up, that is
/// done before anything else is made.
fn judge_member(fs: &MemFileSystem, path: &Path, old: Identity) -> Verdict {
    is_refused(fs, path)?;
    for _ in 0..2 {
        match start_member(fs) {
            Err(error) if names(&error, path) && error.contains("--replace") => {}
            other => return Err(format!("without leave to give its id up: {other:?}")),
        }
    }
    let examined = fs.fork();
    let past = identity::examine(&examined, Path::new("data"), EngineKind::Log, true);
    match past {
        Ok(identity::Past::None) => {}
        other => return Err(format!("the past is {other:?}")),
    }
    // Durably: not even a power failure right now brings the old id back.
    for crashed in [false, true] {
        let fs = if crashed { examined.fork() } else { fs.fork() };
        if crashed {
            fs.crash(Loss::Everything);
        }
        let new = start_member_with(&fs, true)?;
        if new.id == old.id || new.incarnation != 1 {
            return Err(format!("after {old:?} it is {new:?}"));
        }
    }
    Ok(Outcome::Reported)
}

fn member_file(name: &'static str, file: &str) -> Sample {
    let (fs, old) = member();
    let path = Path::new("data").join(file);
    let damaged = path.clone();
    Sample::new(name, &fs, &path, move |fs, _| {
        judge_member(fs, &damaged, old)
    })
}

/// The file that binds the directory of a member or a leader to its cluster.
fn cluster_id() -> Sample {
    let path = Path::new("data/cluster.id");
    Sample::new(
        "cluster.id",
        &member().0,
        path,
        |fs, _| match start_member(fs) {
            Err(error) if names(&error, Path::new("data/cluster.id")) => Ok(Outcome::Reported),
            other => Err(format!("{other:?}")),
        },
    )
}

pub fn samples() -> Vec<Sample> {
    vec![
        member_file("member.id", "member.id"),
        member_file("incarnation", "incarnation"),
        member_file("fence", "fence"),
        cluster_id(),
    ]
}
