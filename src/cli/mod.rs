//! The `tolerex` command: servers, a local cluster, and a client, in one executable.
//!
//! Every subcommand ends with the same exit codes ([`exit::Exit`]), writes data to standard output
//! and everything else to standard error. The binaries in `bin/` call [`main`], [`leader_main`] and
//! [`member_main`] and do nothing else.

pub mod args;
pub mod certs;
pub mod cluster;
pub mod exit;
pub mod group;
pub mod kv;
pub mod load;
pub mod process;
pub mod shell;
pub mod signals;
pub mod status;
pub mod up;
pub mod visible;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;

use args::{Cli, Command, LeaderCli, MemberCli};
use exit::ToolError;
use up::control::{self, Verb};

use crate::disk::private;
use crate::resources::descriptors::Descriptors;

/// The `tolerex` binary.
pub fn main() -> ExitCode {
    private::restrict_umask();
    exit::finish(run(Cli::parse().command))
}

/// The `leader` binary: `tolerex leader`.
pub fn leader_main() -> ExitCode {
    private::restrict_umask();
    exit::finish(process::run_leader(&LeaderCli::parse().args))
}

/// The `member` binary: `tolerex member`.
pub fn member_main() -> ExitCode {
    private::restrict_umask();
    exit::finish(process::run_member(&MemberCli::parse().args))
}

fn run(command: Command) -> Result<(), ToolError> {
    match command {
        Command::Up(args) => up::run(&args),
        Command::Leader(args) => process::run_leader(&args),
        Command::Member(args) => process::run_member(&args),
        Command::Set { key, message, at } => kv::set(&at, &key, &message),
        Command::Get { key, at } => kv::get(&at, &key),
        Command::Del { key, at } => kv::del(&at, &key),
        Command::Kv { action } => kv::run(&action),
        Command::Status { json, watch, at } => status::run(&at, json, watch),
        Command::Group { action, json, at } => group::run(action.as_ref(), json, &at),
        Command::Stop(args) => control::run(Verb::Stop, &args),
        Command::Kill(args) => control::run(Verb::Kill, &args),
        Command::Start(args) => {
            let verb = if args.replace {
                Verb::Replace
            } else {
                Verb::Start
            };
            control::run(verb, &args.process)
        }
        Command::Shell { at } => shell::run(&at),
        Command::Bench(args) => {
            Descriptors::raise();
            load::run(&args)
        }
        Command::Certs { action } => certs::run(&action),
        Command::Completions { shell } => completions(shell),
    }
}

/// `tolerex completions SHELL`.
fn completions(shell: Shell) -> Result<(), ToolError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tolerex", &mut script);
    exit::print(&script)
}
