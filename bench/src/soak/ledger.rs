//! What clients did and found.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// After a fault, connections may break for so long: what was dialed when the endpoint died is closed at the latest when
/// the connect timeout of 5 s is over.
const AFTERMATH: Duration = Duration::from_secs(8);

/// Counts, and what must not be.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) messages: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) media: AtomicU64,
    pub(crate) media_bytes: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) probes: AtomicU64,
    faults: AtomicU64,
    broken: AtomicU64,
    last_fault: Mutex<Option<Instant>>,
    /// Wrong bytes, and ends without a fault: the first few, and how many.
    wrong: Mutex<(Vec<String>, usize)>,
}

/// How a client's connection ended, when it was not to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It broke: allowed after a fault.
    Broken(std::io::Error),
    /// Other bytes came than should: never allowed.
    Wrong(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Ledger {
    /// A fault was injected.
    pub(crate) fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last_fault.lock() {
            *last = Some(Instant::now());
        }
    }

    /// A client of this kind failed, which it may have noticed late.
    pub(crate) fn failed(&self, kind: &str, failure: Failure, late: Duration) {
        let aftermath = AFTERMATH + late;
        let recent = self.last_fault.lock().is_ok_and(|last| last.is_some_and(|at| at.elapsed() < aftermath));
        let text = match failure {
            Failure::Broken(_) if recent => {
                self.broken.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Failure::Broken(error) => format!("{kind}: broke without a fault: {error}"),
            Failure::Wrong(what) => format!("{kind}: {what}"),
        };
        if let Ok(mut wrong) = self.wrong.lock() {
            wrong.1 += 1;
            if wrong.0.len() < 10 {
                wrong.0.push(text);
            }
        }
    }

    /// Adds to a count.
    pub(crate) fn count(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }

    /// Rows of the table.
    pub(crate) fn rows(&self) -> Vec<(&'static str, u64)> {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let wrong = self.wrong.lock().map_or(u64::MAX, |wrong| wrong.1 as u64);
        vec![
            ("messages of chats, each compared", of(&self.messages)),
            ("connections that came and went", of(&self.connections)),
            ("pieces of media with the right SHA-256", of(&self.media)),
            ("bytes of media", of(&self.media_bytes)),
            ("readers that stalled and went on", of(&self.stalls)),
            ("hostile probes, none of which was served", of(&self.probes)),
            ("endpoints killed and restarted", of(&self.faults)),
            ("connections that a fault broke", of(&self.broken)),
            ("wrong bytes, or ends without a fault", wrong),
        ]
    }

    /// What must not be.
    pub(crate) fn findings(&self) -> Vec<String> {
        self.wrong.lock().map_or_else(|_| vec!["a client panicked".into()], |wrong| wrong.0.clone())
    }
}
