//! What `tolerex up` is to note in its data directory, and notes as soon as it can.

use super::super::exit::ToolError;
use super::{Up, setup, warn};

/// What is to be noted in the data directory. A cluster that runs does not end because it cannot be
/// now, as on a full disk: each look at the children tries it again.
#[derive(Default)]
pub(super) struct Owed {
    /// `cluster.json` is not up to date.
    pub(super) manifest: bool,
    /// The leader group exists.
    pub(super) bootstrapped: bool,
    /// All leaders have had a vote.
    pub(super) gathered: bool,
    /// The last attempt failed, which was said.
    is_failing: bool,
}

impl Up {
    /// Notes what is owed, or says once that it cannot be done now.
    pub(super) fn pay(&mut self) {
        let paid = self.try_pay();
        if let (Err(error), false) = (&paid, self.owed.is_failing) {
            warn(&format!("warning: {}; it is tried again", error.text));
        }
        self.owed.is_failing = paid.is_err();
    }

    fn try_pay(&mut self) -> Result<(), ToolError> {
        if self.owed.manifest {
            self.write_manifest()?;
            self.owed.manifest = false;
        }
        if self.owed.bootstrapped {
            setup::note_bootstrapped(&self.plan.dir)?;
            self.owed.bootstrapped = false;
        }
        if self.owed.gathered {
            setup::note_gathered(&self.plan.dir)?;
            self.owed.gathered = false;
        }
        Ok(())
    }
}
