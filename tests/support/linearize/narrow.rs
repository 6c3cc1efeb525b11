//! What of a failure is needed, for its report.

/// Leaves out answers that a failure does not need, as long as the rest is still wrong, in at most
/// so many tries. To forget an answer only allows more orders, so what is left is wrong by itself.
pub(super) fn narrowed<T: Clone>(
    items: &[T],
    tries_max: usize,
    is_answered: impl Fn(&T) -> bool,
    forget: impl Fn(&mut T),
    is_wrong: impl Fn(&[T]) -> bool,
) -> Vec<T> {
    let mut items = items.to_vec();
    let mut tries = 0;
    let mut chunk = items.len();
    loop {
        let mut needed: Vec<usize> = (0..items.len()).collect();
        needed.retain(|index| is_answered(&items[*index]));
        chunk = (chunk / 2).clamp(1, needed.len().max(1));
        let mut is_smaller = false;
        for some in needed.chunks(chunk) {
            let mut fewer = items.clone();
            some.iter().for_each(|index| forget(&mut fewer[*index]));
            tries += 1;
            if tries > tries_max {
                return items;
            }
            if is_wrong(&fewer) {
                items = fewer;
                is_smaller = true;
            }
        }
        if chunk == 1 && !is_smaller {
            return items;
        }
    }
}
