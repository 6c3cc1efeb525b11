//! The `leader` binary: the same as `tolerex leader`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tolerex::cli::leader_main()
}
