//! Places in the table of flows.
//!
//! A place is given out again only a grace period after both names of the flow before were deleted: a program that still runs
//! with it would translate by the new flow's numbers.

use std::collections::VecDeque;

use super::grace::Number;

/// Which places are free.
#[derive(Debug)]
pub(super) struct Indices {
    /// Those from here on were never used.
    fresh: u32,
    most: u32,
    /// Those that were, with the grace period that must be over.
    freed: VecDeque<(u32, Number)>,
}

impl Indices {
    pub(super) fn new(most: u32) -> Self {
        Self { fresh: 0, most, freed: VecDeque::new() }
    }

    /// Takes one. `None`: all are in use, or not free yet.
    pub(super) fn take(&mut self, is_over: impl Fn(Number) -> bool) -> Option<u32> {
        if self.freed.front().is_some_and(|(_, number)| is_over(*number)) {
            return self.freed.pop_front().map(|(index, _)| index);
        }
        let index = self.fresh;
        (index < self.most).then(|| {
            self.fresh += 1;
            index
        })
    }

    /// Gives one back.
    pub(super) fn free(&mut self, index: u32, after: Number) {
        self.freed.push_back((index, after));
    }

    /// How many are in use or were: none at or above this is.
    pub(super) fn end(&self) -> u32 {
        self.fresh
    }

    /// Takes over a table in which these are in use.
    pub(super) fn restore(&mut self, in_use: impl Fn(u32) -> bool, now: Number) {
        self.fresh = (0..self.most).rev().find(|index| in_use(*index)).map_or(0, |last| last + 1);
        self.freed = (0..self.fresh).filter(|index| !in_use(*index)).map(|index| (index, now)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_only_after_its_grace_period() {
        let mut indices = Indices::new(2);
        let never = |_| false;
        assert_eq!([indices.take(never), indices.take(never), indices.take(never)], [Some(0), Some(1), None]);
        indices.free(0, Number::test(7));
        assert_eq!(indices.take(|number| number < Number::test(7)), None);
        assert_eq!(indices.take(|number| number <= Number::test(7)), Some(0));
    }

    #[test]
    fn what_a_predecessor_left_is_in_use() {
        let mut indices = Indices::new(8);
        indices.restore(|index| [1, 3].contains(&index), Number::test(1));
        assert_eq!(indices.end(), 4);
        let mut taken: Vec<_> = std::iter::from_fn(|| indices.take(|_| true)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 2, 4, 5, 6, 7]);
    }
}
