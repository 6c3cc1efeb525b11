//! The `tolerex` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    tolerex::cli::main()
}
