//! Settings that the leaders agree on, and the counter of fresh message ids. Pure.

/// Replicated settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How many members hold each message, 1..=7; `None` until it was set for the first time.
    pub tolerance: Option<u8>,
    /// The highest message id that a reservation took or passed over; 0 before the first. Only
    /// reservations move it, never a SET that names its id.
    pub reserved_until: u64,
}

impl Settings {
    /// The lowest `count` consecutive ids above `reserved_until` of which `is_used` names none, or
    /// `None` when there are not that many before the end of u64. Changes nothing.
    ///
    /// Each id is asked for at most once: a window of `count` ids is searched from its end, and the
    /// used id that is met first ends the part that is passed over. So the work of all reservations
    /// together is at most one question for each id that is taken or passed over.
    pub fn fresh_ids(&self, count: u64, is_used: impl Fn(u64) -> bool) -> Option<u64> {
        assert!(count > 0, "at least one id is reserved");
        let mut first = self.reserved_until.checked_add(1)?;
        // All ids from `first` up to, not including, this one are known to be free.
        let mut searched_until = first;
        loop {
            let last = first.checked_add(count - 1)?;
            let Some(used) = (searched_until..=last).rev().find(|id| is_used(*id)) else {
                return Some(first);
            };
            first = used.checked_add(1)?;
            // Between `used` and `last` all were free. Past the end of u64 the next round stops.
            searched_until = last.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(reserved_until: u64, count: u64, used: &[u64]) -> Option<u64> {
        let settings = Settings {
            tolerance: None,
            reserved_until,
        };
        settings.fresh_ids(count, |id| used.contains(&id))
    }

    #[test]
    fn fresh_ids_start_at_one_and_skip_used_ones() {
        assert_eq!(fresh(0, 3, &[]), Some(1));
        assert_eq!(fresh(0, 3, &[1]), Some(2));
        assert_eq!(fresh(0, 3, &[3]), Some(4));
        assert_eq!(fresh(0, 3, &[2, 5, 7, 9]), Some(10));
        assert_eq!(fresh(0, 3, &[2, 6, 7, 12]), Some(3));
        assert_eq!(fresh(5, 1, &[1, 2, 7]), Some(6));
    }

    #[test]
    fn ids_end_at_the_end_of_u64() {
        assert_eq!(fresh(u64::MAX, 1, &[]), None);
        assert_eq!(fresh(u64::MAX - 1, 1, &[]), Some(u64::MAX));
        assert_eq!(fresh(u64::MAX - 1, 1, &[u64::MAX]), None);
        assert_eq!(fresh(u64::MAX - 2, 2, &[]), Some(u64::MAX - 1));
        assert_eq!(fresh(u64::MAX - 2, 3, &[]), None);
        assert_eq!(fresh(u64::MAX - 3, 2, &[u64::MAX - 1]), None);
    }

    #[test]
    fn no_id_is_asked_for_twice() {
        let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let settings = Settings::default();
        let first = settings.fresh_ids(7, |id| {
            assert!(asked.borrow_mut().insert(id), "{id} was asked for twice");
            id < 1000 && id % 5 == 0
        });
        assert_eq!(first, Some(996));
    }
}
