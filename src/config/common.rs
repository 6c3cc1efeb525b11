//! Settings that leaders and members share. Pure.

use super::{Kind, LOG_LEVELS, Setting};

/// The setting `log_level` of leaders and members.
pub(super) const LOG_LEVEL: Setting = Setting {
    name: "log_level",
    kind: Kind::OneOf(LOG_LEVELS),
    default: "info",
    originals: &[],
    short_flags: &[],
    meaning: "what is logged; RUST_LOG goes before it; re-read on SIGHUP",
};

/// The setting `memory_limit` of leaders and members.
pub(super) const MEMORY_LIMIT: Setting = Setting {
    name: "memory_limit",
    kind: Kind::Size(0, 1 << 40),
    default: "0",
    originals: &[],
    short_flags: &[],
    meaning: "memory this process may take, by which its budgets are sized; 0: what the machine \
              and its control groups allow",
};
