//! Places for those who are inspected. When all are taken, whoever has been silent for longest gives his to who comes:
//! a client speaks at once, and a flood does not.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

/// All places.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    taken: u32,
    /// Those who have said nothing, in the order in which they came.
    silent: BTreeMap<u64, Arc<Place>>,
    next: u64,
}

/// One that is taken.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    /// Somebody else has it now.
    lost: AtomicBool,
    told: Notify,
}

impl Place {
    #[cfg(test)]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Ends when the place was given to another.
    pub(super) async fn crowded_out(&self) {
        self.told.notified().await;
    }
}

impl Places {
    /// Takes one of so many. `None`: all are taken by clients that have spoken.
    pub(super) fn take(&self, most: u32) -> Option<Arc<Place>> {
        let mut table = self.table();
        if table.taken < most {
            table.taken += 1;
        } else {
            let (_, oldest) = table.silent.pop_first()?;
            oldest.lost.store(true, Ordering::Relaxed);
            oldest.told.notify_one();
        }
        let number = table.next;
        table.next += 1;
        let place = Arc::new(Place { number, lost: AtomicBool::new(false), told: Notify::new() });
        table.silent.insert(number, place.clone());
        Some(place)
    }

    /// Its client has spoken: it is not taken away any more.
    pub(super) fn heard(&self, place: &Place) {
        self.table().silent.remove(&place.number);
    }

    /// Gives one back, unless it was lost before.
    pub(super) fn give_back(&self, place: &Place) {
        let mut table = self.table();
        table.silent.remove(&place.number);
        if !place.lost.load(Ordering::Relaxed) {
            table.taken -= 1;
        }
    }

    pub(super) fn taken(&self) -> u32 {
        self.table().taken
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No panic can happen under the lock, but were there one, the counts would still be usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost(place: &Place) -> bool {
        place.lost.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn who_has_been_silent_for_longest_goes_and_who_has_spoken_stays() {
        let places = Places::default();
        let [spoken, old, young] = [0; 3].map(|_| places.take(3).unwrap());
        places.heard(&spoken);
        let newest = places.take(3).unwrap();
        assert_eq!([&spoken, &old, &young, &newest].map(|place| is_lost(place)), [false, true, false, false]);
        old.crowded_out().await;
        assert_eq!(places.taken(), 3);
        for place in [&young, &newest] {
            places.heard(place);
        }
        assert!(places.take(3).is_none(), "all have spoken");
        for place in [spoken, old, young, newest] {
            places.give_back(&place);
        }
        assert_eq!(places.taken(), 0);
    }
}
