//! x
pub mod manifest;
use super::args::UpArgs;
use super::exit::ToolError;
/// x
pub fn run(_args: &UpArgs) -> Result<(), ToolError> {
    Ok(())
}
