//! The `member` binary: the same as `tolerex member`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tolerex::cli::member_main()
}
