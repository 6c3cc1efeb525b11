//! Sets up the data directory of a local cluster, or checks that it fits what is asked for.
//!
//! | path | what |
//! |---|---|
//! | `cluster.json` | the processes; its presence says that the directory is set up |
//! | `certs/` | the development authority, and certificate and key of each process |
//! | `config/NAME.toml` | settings of each process; written once, then the user's |
//! | `config/tolerance.conf` | the tolerance, as the leader reads it |
//! | `config/bootstrapped` | the leader group exists: it is never bootstrapped again |
//! | `config/gathered` | all leaders had a vote once: none is added again by itself |
//! | `NAME/` | data of each process, and its log `NAME.log`; made by its start |
//! | `up.lock` | locked by the running `tolerex up` |
//! | `up.sock` | where `tolerex stop`, `kill` and `start` reach it |
//!
//! Files that exist are kept, so that an interrupted set-up is continued by the next `up`, and what
//! else lies in the directory is left alone.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::super::args::{self, UpArgs};
use super::super::certs;
use super::super::exit::ToolError;
use super::manifest::{Manifest, Process, Role, State};
use super::ports::{self, Addresses};
use crate::config::leader::LeaderConfig;
use crate::config::{Sources, tolerance};
use crate::disk::fs::OsFileSystem;
use crate::disk::private;
use crate::ids::ClusterId;
use crate::storage::opening;

/// Members of a new cluster that was not told how many.
const MEMBERS_DEFAULT: u16 = 3;

/// One process to be started.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its node name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its own directory, with data and log.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub addresses: Addresses,
}

/// A cluster that is ready to be started.
#[derive(Debug)]
pub struct Plan {
    /// The data directory; absolute.
    pub dir: PathBuf,
    /// Leaders first, then members, each by number.
    pub processes: Vec<Planned>,
    /// Of all nodes.
    pub cluster_id: ClusterId,
    /// Whether the leader group must still be made.
    pub bootstrap: bool,
    /// Whether leaders must still be added to it.
    pub gathers: bool,
    /// What the user should know about it.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The processes of one role.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Planned> {
        self.processes
            .iter()
            .filter(move |process| process.role == role)
    }

    /// Where clients reach the leaders.
    pub fn client_addresses(&self) -> Vec<String> {
        let leaders = self.of_role(Role::Leader);
        let addresses = leaders.filter_map(|leader| leader.addresses.hatokuse);
        addresses.map(|address| address.to_string()).collect()
    }
}

/// The row of a process in `cluster.json`.
pub fn row(planned: &Planned, pid: u32, state: State) -> Process {
    Process {
        name: planned.name.clone(),
        role: planned.role,
        pid,
        state,
        data_dir: planned.data_dir.clone(),
        rpc: planned.addresses.rpc.to_string(),
        hatokuse: planned
            .addresses
            .hatokuse
            .map(|address| address.to_string()),
        http: planned.addresses.http.map(|address| address.to_string()),
    }
}

/// Decides which processes there will be, without touching anything.
pub fn plan(
    args: &UpArgs,
    dir: &Path,
    existing: Option<&Manifest>,
) -> Result<Vec<Planned>, ToolError> {
    let count = |role| existing.map(|manifest| manifest.of_role(role).count());
    if let Some(leaders) = args.leaders.filter(|leaders| leaders % 2 == 0) {
        let text = format!(
            "--leaders {leaders}: survives no more losses than one fewer; accepted: 1, 3, 5"
        );
        return Err(ToolError::usage(text));
    }
    if let (Some(asked), Some(present)) = (args.leaders, count(Role::Leader))
        && usize::from(asked) != present
    {
        let text = format!("--leaders {asked}: {} has {present} leaders", dir.display());
        return Err(ToolError::usage(text));
    }
    let members = match (args.members, count(Role::Member)) {
        (Some(asked), Some(present)) if usize::from(asked) < present => {
            return Err(ToolError::usage(format!(
                "--members {asked}: {} has {present} members, and each holds messages; accepted: \
                 {present} or more",
                dir.display()
            )));
        }
        (Some(asked), _) => asked,
        (None, Some(present)) => u16::try_from(present).unwrap_or(u16::MAX),
        (None, None) => MEMBERS_DEFAULT,
    };
    if existing.is_none() {
        check_tolerance(args.tolerance, members)?;
    }
    let names: Vec<String> = (1..=members).map(|n| format!("member-{n}")).collect();
    if let Some(name) = args.replace.iter().find(|name| !names.contains(name)) {
        let text = format!("--replace {name}: accepted: {}", names.join(", "));
        return Err(ToolError::usage(text));
    }
    let leaders = match (args.leaders, count(Role::Leader)) {
        (_, Some(present)) => u16::try_from(present).unwrap_or(u16::MAX),
        (asked, None) => asked.unwrap_or(1),
    };
    let leaders = (1..=leaders).map(|number| (Role::Leader, number));
    let all = leaders.chain((1..=members).map(|number| (Role::Member, number)));
    let planned = all.map(|(role, number)| {
        let name = format!("{}-{number}", role.as_str());
        Ok(Planned {
            role,
            data_dir: dir.join(&name),
            addresses: ports::addresses(role, number, args.port_offset)?,
            name,
        })
    });
    let planned: Vec<Planned> = planned.collect::<Result<_, ToolError>>()?;
    existing.map_or(Ok(()), |existing| check_addresses(&planned, existing))?;
    Ok(planned)
}

/// Leaders of a group know each other by their addresses: were all to move at once, none would
/// find another.
fn check_addresses(planned: &[Planned], existing: &Manifest) -> Result<(), ToolError> {
    if existing.of_role(Role::Leader).count() == 1 {
        return Ok(());
    }
    for row in existing.of_role(Role::Leader) {
        let place = planned.iter().find(|planned| planned.name == row.name);
        let rpc = place.map(|planned| planned.addresses.rpc.to_string());
        if let Some(rpc) = rpc.filter(|rpc| *rpc != row.rpc) {
            return Err(ToolError::usage(format!(
                "--port-offset: {} would move to {rpc}, and the other leaders know it at {}; \
                 accepted: the offset with which the cluster was set up",
                row.name, row.rpc
            )));
        }
    }
    Ok(())
}

fn check_tolerance(asked: Option<u8>, members: u16) -> Result<(), ToolError> {
    let tolerance = asked.unwrap_or(tolerance::TOLERANCE_DEFAULT);
    if u16::from(tolerance) <= members {
        return Ok(());
    }
    let text = match asked {
        Some(tolerance) => format!(
            "--tolerance {tolerance}: each message needs {tolerance} members, there would be \
             {members}; accepted: 1 to {members}"
        ),
        None => format!(
            "--members {members}: the default tolerance {tolerance} needs {tolerance} members; \
             give --tolerance {members}, which survives no loss, or more members"
        ),
    };
    Err(ToolError::usage(text))
}

/// Makes what is missing of the files that the processes need.
pub fn prepare(
    args: &UpArgs,
    dir: &Path,
    processes: Vec<Planned>,
    existing: Option<&Manifest>,
) -> Result<Plan> {
    check_engine(args, &processes)?;
    let config = dir.join("config");
    private::create_dir_all(&config)
        .with_context(|| format!("cannot create {}", config.display()))?;
    let warnings = prepare_tolerance(args, &config, existing.is_some())?;
    let certs = dir.join("certs");
    if !has_pair(&certs, "ca") {
        // Certificates of another authority would be refused by the new ones.
        if let Some(old) = processes
            .iter()
            .find(|planned| has_pair(&certs, &planned.name))
        {
            let (dir, name) = (certs.display(), &old.name);
            bail!("{dir} holds {name}.crt but not ca.crt and ca.key; restore them, or remove all");
        }
        certs::init(&certs)?;
    }
    let cluster_id = match &processes.first() {
        Some(leader) => cluster_id_of(&config_path(dir, &leader.name))?,
        None => None,
    };
    let cluster_id = match cluster_id {
        Some(id) => id,
        None if existing.is_none() => new_cluster_id()?,
        None => {
            let path = config_path(dir, "leader-1");
            return Err(anyhow!("{} names no cluster_id", path.display()));
        }
    };
    for planned in &processes {
        let role = match planned.role {
            Role::Leader => args::Role::Leader,
            Role::Member => args::Role::Member,
        };
        if !has_pair(&certs, &planned.name) {
            certs::issue(&certs, &planned.name, role, &[])?;
        }
        let text = render_config(args, dir, planned, &processes, cluster_id);
        write_if_absent(&config_path(dir, &planned.name), &text)?;
    }
    Ok(Plan {
        bootstrap: !is_bootstrapped(dir),
        gathers: !gathered_path(dir).exists(),
        dir: dir.to_owned(),
        processes,
        cluster_id,
        warnings,
    })
}

/// Refuses another engine than that of a member's data before anything is started: each member
/// would refuse it by itself, one after the other.
fn check_engine(args: &UpArgs, processes: &[Planned]) -> Result<()> {
    let Some(wanted) = args.engine else {
        return Ok(());
    };
    let members = processes
        .iter()
        .filter(|planned| planned.role == Role::Member);
    for member in members {
        let dir = member.data_dir.as_path();
        opening::check_engine(&OsFileSystem, dir, wanted.kind())
            .with_context(|| format!("cannot look at {}", dir.display()))??;
    }
    Ok(())
}

/// The settings file of a process.
pub fn config_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("config").join(format!("{name}.toml"))
}

/// The file that says that the leader group exists.
///
/// A leader whose data was wiped must not be bootstrapped into an empty group: that would be the
/// loss of every message, reported to nobody.
fn bootstrapped_path(dir: &Path) -> PathBuf {
    dir.join("config").join("bootstrapped")
}

/// Whether the leader group exists.
pub fn is_bootstrapped(dir: &Path) -> bool {
    bootstrapped_path(dir).exists()
}

/// Notes that the leader group exists.
pub fn note_bootstrapped(dir: &Path) -> Result<()> {
    let text = "The leader group exists. `tolerex up` will not make another one here.\n";
    write_if_absent(&bootstrapped_path(dir), text)
}

/// The file that says that all leaders had a vote once. An interrupted set-up is continued by the
/// next `up`; later one that takes no part was removed, or has lost its data.
fn gathered_path(dir: &Path) -> PathBuf {
    dir.join("config").join("gathered")
}

/// Notes that all leaders have a vote.
pub fn note_gathered(dir: &Path) -> Result<()> {
    let text = "All leaders have had a vote. `tolerex up` adds none by itself any more.\n";
    write_if_absent(&gathered_path(dir), text)
}

fn prepare_tolerance(args: &UpArgs, config: &Path, is_existing: bool) -> Result<Vec<String>> {
    let path = config.join("tolerance.conf");
    if !is_existing {
        let wanted = args.tolerance.unwrap_or(tolerance::TOLERANCE_DEFAULT);
        write_if_absent(&path, &tolerance::render(wanted))?;
        let present = tolerance::read(&path).map_err(|error| anyhow!(error))?;
        if present != wanted {
            return Err(anyhow!(
                "{} is there already and says TOLERANCE={present}, not {wanted}; change or \
                 remove it",
                path.display()
            ));
        }
    }
    let present = tolerance::read(&path).ok();
    Ok(match args.tolerance {
        Some(asked) if is_existing && present != Some(asked) => vec![format!(
            "--tolerance {asked} is ignored: the cluster exists. To change its tolerance, change \
             {} and send SIGHUP to leader-1",
            path.display()
        )],
        _ => Vec::new(),
    })
}

fn has_pair(certs: &Path, stem: &str) -> bool {
    ["crt", "key"]
        .iter()
        .all(|end| certs.join(format!("{stem}.{end}")).exists())
}

fn cluster_id_of(path: &Path) -> Result<Option<ClusterId>> {
    if !path.exists() {
        return Ok(None);
    }
    let sources = Sources {
        file: Some(path.to_owned()),
        ..Sources::default()
    };
    Ok(LeaderConfig::load(&sources)?.config.cluster_id)
}

fn new_cluster_id() -> Result<ClusterId> {
    let random = getrandom::u64().map_err(|error| anyhow!("no random numbers: {error}"))?;
    Ok(ClusterId(random.max(1)))
}

fn render_config(
    args: &UpArgs,
    dir: &Path,
    planned: &Planned,
    all: &[Planned],
    cluster_id: ClusterId,
) -> String {
    let mut table = toml::Table::new();
    let mut put = |key: &str, value: String| table.insert(key.to_owned(), value.into());
    put("name", planned.name.clone());
    put("base_dir", dir.to_string_lossy().into_owned());
    put("data_dir", planned.name.clone());
    put("cluster_id", cluster_id.to_string());
    put("rpc_bind", planned.addresses.rpc.to_string());
    match planned.role {
        Role::Leader => {
            if let Some(address) = planned.addresses.hatokuse {
                put("hatokuse_bind", address.to_string());
            }
            if let Some(address) = planned.addresses.http {
                put("http_bind", address.to_string());
            }
            if let Some(strategy) = args.strategy {
                put("strategy", strategy.as_str().to_owned());
            }
            if !is_first(planned) {
                table.insert("join".to_owned(), true.into());
            }
        }
        Role::Member => {
            put("leaders", leader_addresses(all));
            if let Some(io) = args.io {
                put("io", io.as_str().to_owned());
            }
            if let Some(engine) = args.engine {
                put("engine", engine.kind().to_string());
            }
        }
    }
    format!(
        "# Settings of {}. Written by `tolerex up` when the cluster was set up, not changed by it\n\
         # later: edit it as you like. Names, directories and addresses are given by `tolerex up`\n\
         # as flags, which go before this file; they stand here for starting the process by hand.\n\
         {table}",
        planned.name
    )
}

/// Whether it is the leader that makes the group; the others wait to be added.
pub fn is_first(planned: &Planned) -> bool {
    planned.role == Role::Leader && planned.name == "leader-1"
}

/// The leaders' RPC addresses, with commas.
pub fn leader_addresses(all: &[Planned]) -> String {
    let leaders = all.iter().filter(|planned| planned.role == Role::Leader);
    leaders
        .map(|leader| leader.addresses.rpc.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

fn write_if_absent(path: &Path, text: &str) -> Result<()> {
    let write = || match private::options().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all()),
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::exit::Exit;
    use super::*;
    use crate::config::member::{EngineKind, MemberConfig, WriteMode};

    fn args(dir: &Path) -> UpArgs {
        UpArgs {
            replace: Vec::new(),
            members: None,
            leaders: None,
            tolerance: None,
            strategy: None,
            io: None,
            engine: None,
            memory_limit: None,
            data_dir: dir.to_owned(),
            port_offset: 0,
            quiet: true,
        }
    }

    /// Sets up as `up` does, without starting anything.
    fn set_up(args: &UpArgs) -> anyhow::Result<Plan> {
        let dir = args.data_dir.as_path();
        let existing = Manifest::read(dir)?;
        let processes = plan(args, dir, existing.as_ref()).map_err(|error| anyhow!("{error}"))?;
        let plan = prepare(args, dir, processes, existing.as_ref())?;
        let rows = plan
            .processes
            .iter()
            .map(|planned| row(planned, 1, State::Stopped));
        let processes = rows.collect();
        Manifest { processes }.write(dir)?;
        Ok(plan)
    }

    fn file(plan: &Plan, name: &str) -> Sources {
        Sources {
            file: Some(config_path(&plan.dir, name)),
            ..Sources::default()
        }
    }

    #[test]
    fn leaders_are_added_until_all_had_a_vote_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let asked = UpArgs {
            leaders: Some(3),
            ..args(dir.path())
        };
        let plan = set_up(&asked).expect("set up");
        assert!(plan.bootstrap && plan.gathers);
        // The first one served before the others were there, and then all was interrupted.
        note_bootstrapped(dir.path()).expect("noted");
        let plan = set_up(&asked).expect("set up");
        assert!(!plan.bootstrap && plan.gathers);
        note_gathered(dir.path()).expect("noted");
        let plan = set_up(&asked).expect("set up");
        assert!(!plan.bootstrap && !plan.gathers);
    }

    #[test]
    fn a_new_directory_gets_what_the_processes_need() {
        let dir = tempfile::tempdir().expect("a directory");
        let asked = UpArgs {
            tolerance: Some(3),
            strategy: Some(args::StrategyArg::P2c),
            io: Some(args::IoArg::Buffered),
            engine: Some(args::EngineArg::Files),
            ..args(dir.path())
        };
        let plan = set_up(&asked).expect("set up");
        assert!(plan.bootstrap && plan.warnings.is_empty());
        let leader = LeaderConfig::load(&file(&plan, "leader-1"))
            .expect("valid")
            .config;
        assert_eq!(leader.cluster_id, Some(plan.cluster_id));
        assert_eq!(leader.strategy, crate::config::leader::Strategy::P2c);
        assert_eq!(leader.data_dir, dir.path().join("leader-1"));
        assert_eq!(tolerance::read(&leader.tolerance_conf), Ok(3));
        let member = MemberConfig::load(&file(&plan, "member-3"))
            .expect("valid")
            .config;
        assert_eq!(member.cluster_id, Some(plan.cluster_id));
        assert_eq!(member.leaders, [leader.rpc_bind.to_string()]);
        assert_eq!(member.rpc_bind.port(), 5558);
        assert_eq!(
            (member.io, member.engine),
            (WriteMode::Buffered, EngineKind::Files)
        );
        for path in [&leader.tls.ca, &leader.tls.key, &member.tls.cert] {
            assert!(path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn an_existing_cluster_is_kept_and_may_move_and_grow() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = set_up(&args(dir.path())).expect("set up");
        note_bootstrapped(dir.path()).expect("noted");
        let kept = ["certs/ca.crt", "certs/member-1.key", "config/leader-1.toml"];
        let read = |name: &&str| fs::read(dir.path().join(name)).expect("a file");
        let before: Vec<Vec<u8>> = kept.iter().map(read).collect();
        let grown = UpArgs {
            members: Some(5),
            tolerance: Some(3),
            port_offset: 7,
            ..args(dir.path())
        };
        let plan = set_up(&grown).expect("set up again");
        assert_eq!(before, kept.iter().map(read).collect::<Vec<_>>());
        assert_eq!((plan.cluster_id, plan.bootstrap), (first.cluster_id, false));
        assert_eq!(plan.processes.len(), 6);
        assert_eq!(plan.processes[0].addresses.rpc.port(), 5562);
        let warning = plan.warnings.concat();
        assert!(warning.contains("--tolerance 3 is ignored"), "{warning}");
        let later = set_up(&args(dir.path())).expect("set up again");
        assert_eq!((later.processes.len(), later.warnings.len()), (6, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_as_usage() {
        let dir = tempfile::tempdir().expect("a directory");
        set_up(&args(dir.path())).expect("set up");
        let existing = Manifest::read(dir.path()).expect("readable");
        let refused = |asked: UpArgs, existing: Option<&Manifest>| {
            let error = plan(&asked, dir.path(), existing).expect_err("refused");
            assert_eq!(error.exit, Exit::Usage, "{error}");
        };
        let fits = args(dir.path());
        refused(
            UpArgs {
                members: Some(2),
                ..fits.clone()
            },
            existing.as_ref(),
        );
        refused(
            UpArgs {
                leaders: Some(3),
                ..fits.clone()
            },
            existing.as_ref(),
        );
        refused(
            UpArgs {
                members: Some(1),
                ..fits.clone()
            },
            None,
        );
        refused(
            UpArgs {
                tolerance: Some(4),
                ..fits.clone()
            },
            None,
        );
        refused(
            UpArgs {
                port_offset: 60_000,
                ..fits
            },
            None,
        );
    }

    #[test]
    fn an_interrupted_set_up_is_continued() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = set_up(&args(dir.path())).expect("set up");
        fs::remove_file(dir.path().join("cluster.json")).expect("removed");
        fs::remove_file(config_path(dir.path(), "member-2")).expect("removed");
        let again = set_up(&args(dir.path())).expect("continued");
        assert_eq!(
            (again.cluster_id, again.bootstrap),
            (first.cluster_id, true)
        );
        assert!(config_path(dir.path(), "member-2").exists());
    }

    #[test]
    fn a_lost_authority_is_not_replaced_behind_certificates_it_signed() {
        let dir = tempfile::tempdir().expect("a directory");
        set_up(&args(dir.path())).expect("set up");
        fs::remove_file(dir.path().join("certs/ca.key")).expect("removed");
        let error = set_up(&args(dir.path())).expect_err("refused").to_string();
        assert!(
            error.contains("leader-1.crt but not ca.crt and ca.key"),
            "{error}"
        );
    }

    #[test]
    fn the_first_of_several_leaders_makes_the_group_and_none_moves_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let three = UpArgs {
            leaders: Some(3),
            ..args(dir.path())
        };
        let plan = set_up(&three).expect("set up");
        let joins = ["leader-1", "leader-2", "leader-3"].map(|name| {
            let loaded = LeaderConfig::load(&file(&plan, name)).expect("valid");
            loaded.config.join
        });
        assert_eq!(joins, [false, true, true]);
        let member = MemberConfig::load(&file(&plan, "member-1")).expect("valid");
        assert_eq!(member.config.leaders.len(), 3);
        // As many as there are, without being told.
        let again = set_up(&args(dir.path())).expect("set up");
        assert_eq!(again.of_role(Role::Leader).count(), 3);
        let moved = UpArgs {
            port_offset: 20,
            ..args(dir.path())
        };
        let error = set_up(&moved).expect_err("refused").to_string();
        assert!(error.contains("the offset with which"), "{error}");
        let even = UpArgs {
            leaders: Some(4),
            ..args(dir.path())
        };
        let error = set_up(&even).expect_err("refused").to_string();
        assert!(error.contains("accepted: 1, 3, 5"), "{error}");
    }
}
