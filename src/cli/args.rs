//! The command line: subcommands and flags. The flags of the servers come from the tables of
//! settings.

mod bench;
mod kv;

use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use self::bench::{BenchArgs, Protocol};
pub use self::kv::{KvAction, KvArgs};
use crate::config::member::EngineKind;
use crate::config::{Kind, Setting, Sources, leader, member, units};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 no leader found or \
not enough members, 5 outcome unknown; unless it is 0 or 5 nothing has happened";

/// A fault-tolerant message store.
#[derive(Debug, Parser)]
#[command(name = "tolerex", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set up and run a whole cluster on this machine.
    Up(UpArgs),
    /// Run a leader.
    Leader(ServerArgs<Leader>),
    /// Run a member.
    Member(ServerArgs<Member>),
    /// Store a message.
    Set {
        /// Its key.
        key: OsString,
        /// The message; `-` reads it from standard input.
        message: OsString,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Write a message to standard output, its bytes as they are.
    Get {
        /// Its key.
        key: OsString,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Delete a message.
    Del {
        /// Its key.
        key: OsString,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Store, read, delete, compare-and-set, list messages, let them expire; with JSON.
    Kv {
        /// What to do.
        #[command(subcommand)]
        action: KvAction,
    },
    /// Show the state of the cluster.
    Status {
        /// One JSON object on one line.
        #[arg(long)]
        json: bool,
        /// Show it again each second, until Ctrl-C.
        #[arg(long)]
        watch: bool,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Show the group of leaders, or change it.
    Group {
        /// What to change; nothing: show it.
        #[command(subcommand)]
        action: Option<GroupAction>,
        /// One JSON object on one line.
        #[arg(long)]
        json: bool,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Talk to a leader, line by line.
    Shell {
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Stop a process of the cluster that `tolerex up` runs, in order (SIGTERM).
    Stop(ProcessArgs),
    /// Kill a process of the cluster that `tolerex up` runs (SIGKILL).
    Kill(ProcessArgs),
    /// Start a process that was stopped or has died, of the cluster that `tolerex up` runs.
    Start(StartArgs),
    /// Measure how fast a cluster stores and reads messages.
    ///
    /// Without --rate each connection sends its next requests when the last ones are answered. With
    /// it requests leave at a steady rate, and latency counts from when each was due, so that a
    /// server that stands still is charged for all that had to wait. What is read is stored first.
    /// The messages stay in the cluster, under ids from 9000000000000000 on.
    Bench(BenchArgs),
    /// Make development certificates.
    Certs {
        /// What to make.
        #[command(subcommand)]
        action: CertsAction,
    },
    /// Print a script by which a shell completes the lines of this command.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `tolerex group ...`.
#[derive(Clone, Debug, Subcommand)]
pub enum GroupAction {
    /// Add a leader that was started with --join; it gets a vote once it has caught up.
    Add {
        /// Its RPC address.
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Remove a leader: it takes part no more.
    Remove {
        /// Its id or its name, as the table shows them.
        id: String,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
    /// Make another leader the active one.
    Transfer {
        /// Its id or its name, as the table shows them.
        id: String,
        /// The cluster.
        #[command(flatten)]
        at: ClusterArgs,
    },
}

/// How a client finds its cluster.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// Client addresses of leaders, `A,B,C`; one leads to the others [default: 127.0.0.1:6666 and
    /// 6766 to 7066, where `tolerex up` puts a group].
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub addr: Vec<String>,
    /// The data directory of a cluster that `tolerex up` runs.
    #[arg(long, value_name = "DIR", conflicts_with = "addr")]
    pub data_dir: Option<PathBuf>,
    /// How long to look for a leader while one is being elected, up to 60 [default: 15].
    #[arg(long, value_name = "S")]
    pub timeout: Option<f64>,
}

/// `tolerex stop`, `kill` and `start`.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Its name, as `tolerex up` and cluster.json show it.
    pub name: String,
    /// The data directory of the running `tolerex up`.
    #[arg(long, value_name = "DIR", default_value = "tolerex-data")]
    pub data_dir: PathBuf,
}

/// `tolerex start`.
#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    /// Which process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Of a member: its data directory takes the name over from one that holds messages, whose
    /// copies are given up.
    #[arg(long)]
    pub replace: bool,
}

/// `tolerex up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Number of members [default: 3, or as many as the data directory has].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub members: Option<u16>,
    /// Number of leaders, 1, 3 or 5: a minority may fail [default: 1, or as many as there are].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=5))]
    pub leaders: Option<u16>,
    /// How many members hold each message, 1 to 7 [default: 2]. Only for a new data directory.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub tolerance: Option<u8>,
    /// How members are chosen for a message [default: least_loaded].
    #[arg(long, value_enum)]
    pub strategy: Option<StrategyArg>,
    /// What a member did before it acknowledges a record [default: sync, or as the cluster was set
    /// up]. May be another one at each start.
    #[arg(long, value_enum)]
    pub io: Option<IoArg>,
    /// How members keep payloads on disk [default: log, or as the cluster was set up]. Fixed by
    /// the first start.
    #[arg(long, value_enum)]
    pub engine: Option<EngineArg>,
    /// A member whose data directory takes its name over from one that holds messages, whose copies
    /// are given up. May be given several times.
    #[arg(long, value_name = "NAME")]
    pub replace: Vec<String>,
    /// Memory that all processes may take together, such as 2GiB; leaders share one half, members
    /// the other [default: what the machine and its control groups allow].
    #[arg(long, env = "TOLEREX_MEMORY_LIMIT", value_name = "SIZE")]
    #[arg(value_parser = units::flag_bytes)]
    pub memory_limit: Option<u64>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR", default_value = "tolerex-data")]
    pub data_dir: PathBuf,
    /// Added to every port.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub port_offset: u16,
    /// Print nothing but warnings, errors and the line that says ready.
    #[arg(long)]
    pub quiet: bool,
}

/// The placement strategies, as the settings spell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum StrategyArg {
    /// The members with the fewest records first.
    LeastLoaded,
    /// The better of two random choices.
    P2c,
}

impl StrategyArg {
    /// The value of the setting `strategy`.
    pub fn as_str(self) -> &'static str {
        match self {
            StrategyArg::LeastLoaded => "least_loaded",
            StrategyArg::P2c => "p2c",
        }
    }
}

/// The write modes, as the settings spell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IoArg {
    /// It is in the member's memory; written within 10 ms.
    Buffered,
    /// It is written to the operating system.
    Unbuffered,
    /// It is on the disk.
    Sync,
}

impl IoArg {
    /// The value of the setting `io`.
    pub fn as_str(self) -> &'static str {
        match self {
            IoArg::Buffered => "buffered",
            IoArg::Unbuffered => "unbuffered",
            IoArg::Sync => "sync",
        }
    }
}

/// The engines, as the settings spell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// In large files, one after the other.
    Log,
    /// One file for each message.
    Files,
}

impl EngineArg {
    /// The kind that the setting `engine` means by it.
    pub fn kind(self) -> EngineKind {
        match self {
            EngineArg::Log => EngineKind::Log,
            EngineArg::Files => EngineKind::Files,
        }
    }
}

/// `tolerex certs`.
#[derive(Clone, Debug, Subcommand)]
pub enum CertsAction {
    /// Make a certificate authority: ca.crt and ca.key.
    Init {
        /// Where the files go; made if it does not exist.
        dir: PathBuf,
    },
    /// Make a certificate for one process: NAME.crt and NAME.key.
    Issue {
        /// The directory with ca.crt and ca.key.
        dir: PathBuf,
        /// The node's name.
        #[arg(long)]
        name: String,
        /// What the process may do.
        #[arg(long, value_enum)]
        role: Role,
        /// More DNS names or IP addresses it is reached at.
        #[arg(long = "address", value_name = "HOST", value_delimiter = ',')]
        addresses: Vec<String>,
    },
}

/// What a process is: the CN of its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A leader.
    Leader,
    /// A member.
    Member,
    /// Anyone else.
    Client,
}

impl Role {
    /// The CN.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Member => "member",
            Role::Client => "client",
        }
    }
}

/// The command line of the `leader` binary.
#[derive(Debug, Parser)]
#[command(name = "leader", version, about = "A Tolerex leader")]
pub struct LeaderCli {
    /// The same as those of `tolerex leader`.
    #[command(flatten)]
    pub args: ServerArgs<Leader>,
}

/// The command line of the `member` binary.
#[derive(Debug, Parser)]
#[command(name = "member", version, about = "A Tolerex member")]
pub struct MemberCli {
    /// The same as those of `tolerex member`.
    #[command(flatten)]
    pub args: ServerArgs<Member>,
}

/// Which table of settings a server has.
pub trait Server {
    /// The table.
    const SETTINGS: &'static [Setting];
}

/// A leader.
#[derive(Clone, Debug)]
pub struct Leader;

/// A member.
#[derive(Clone, Debug)]
pub struct Member;

impl Server for Leader {
    const SETTINGS: &'static [Setting] = leader::SETTINGS;
}

impl Server for Member {
    const SETTINGS: &'static [Setting] = member::SETTINGS;
}

/// The flags of a server: one for each setting, and the two below.
#[derive(Clone, Debug)]
pub struct ServerArgs<S> {
    /// Settings given as flags, whole ones before parts of them, as [`Sources`] takes them.
    pub flags: Vec<(String, String)>,
    /// The file with settings.
    pub config: Option<PathBuf>,
    /// The pid of the `tolerex up` that started the process, which ends with it.
    pub supervised: Option<u32>,
    server: PhantomData<S>,
}

impl<S> ServerArgs<S> {
    /// Where this process's settings come from.
    pub fn sources(&self) -> Sources {
        // Names and values that are not UTF-8 cannot be settings.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Sources {
            flags: self.flags.clone(),
            environment,
            file: self.config.clone(),
        }
    }
}

/// The flags of one setting: its own, then the short ones.
fn flags_of(setting: &Setting) -> impl Iterator<Item = String> {
    let short = setting
        .short_flags
        .iter()
        .map(|(name, _)| (*name).to_owned());
    std::iter::once(setting.flag_name()).chain(short)
}

fn setting_arg(setting: &Setting, flag: String) -> Arg {
    let is_own = flag == setting.flag_name();
    let help = if is_own {
        let default = match setting.default {
            "" => String::new(),
            default => format!(" [default: {default}]"),
        };
        format!("{}{default}", capitalised(setting.meaning))
    } else {
        format!("The port of --{}", setting.flag_name())
    };
    let arg = Arg::new(flag.clone())
        .long(flag)
        .help(help)
        .action(ArgAction::Set);
    match setting.kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL"),
        _ if !is_own => arg.value_name("PORT"),
        _ => arg.value_name("VALUE"),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

impl<S: Server> Args for ServerArgs<S> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A TOML file with settings; flags and the environment go before it");
        let supervised = Arg::new("supervised")
            .long("supervised")
            .value_name("PID")
            .value_parser(clap::value_parser!(u32))
            .hide(true);
        let command = command.arg(config).arg(supervised);
        let settings = S::SETTINGS.iter();
        let args = settings.flat_map(|s| flags_of(s).map(move |flag| setting_arg(s, flag)));
        command.args(args.collect::<Vec<Arg>>())
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<S: Server> FromArgMatches for ServerArgs<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let settings = S::SETTINGS.iter();
        let mut flags = Vec::new();
        for flag in settings.flat_map(flags_of) {
            if let Some(value) = matches.get_one::<String>(&flag) {
                flags.push((flag, value.clone()));
            }
        }
        Ok(ServerArgs {
            flags,
            config: matches.get_one::<PathBuf>("config").cloned(),
            supervised: matches.get_one::<u32>("supervised").copied(),
            server: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_has_no_contradictions() {
        Cli::command().debug_assert();
        LeaderCli::command().debug_assert();
        MemberCli::command().debug_assert();
    }

    #[test]
    fn each_setting_is_a_flag_and_whole_ones_come_before_parts() {
        let line = "tolerex member --metrics 9092 --port 5557 --rpc-bind 0.0.0.0:1 --tls-ca x";
        let Ok(Command::Member(args)) = parse(line) else {
            panic!("not a member");
        };
        let flags: Vec<(&str, &str)> = args
            .flags
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let expected = [
            ("rpc-bind", "0.0.0.0:1"),
            ("port", "5557"),
            ("metrics", "9092"),
            ("tls-ca", "x"),
        ];
        assert_eq!(flags, expected);
    }

    #[test]
    fn a_switch_needs_no_value_and_takes_one() {
        for (line, value) in [
            ("tolerex leader --bootstrap --name a", "true"),
            ("tolerex leader --bootstrap=false", "false"),
        ] {
            let Ok(Command::Leader(args)) = parse(line) else {
                panic!("not a leader");
            };
            let bootstrap = args.flags.iter().find(|(name, _)| name == "bootstrap");
            assert_eq!(
                bootstrap.map(|(_, value)| value.as_str()),
                Some(value),
                "{line}"
            );
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "tolerex",
            "tolerex fly",
            "tolerex up --members 0",
            "tolerex up --tolerance 8",
            "tolerex up --strategy x",
            "tolerex up --io x",
            "tolerex up --engine x",
            "tolerex set 1",
            "tolerex get 1 --addr a:1 --data-dir d",
            "tolerex certs issue d --name n",
            "tolerex group add",
            "tolerex group fly 1",
            "tolerex kv",
            "tolerex kv cas k 1",
            "tolerex kv list --limit x",
            "tolerex completions dos",
            "tolerex bench --protocol gopher",
        ] {
            assert_eq!(parse(line).map(|_| ()).expect_err(line).exit_code(), 2);
        }
    }
}
