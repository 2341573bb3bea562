//! What a setu holds of the machine: before and after a fault it must be the same.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Setu, maps, network::Network};

/// How long the last bytes, timers and grace periods may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ends of pipes that workers keep for the next bulk streams, at most.
const PIPES: usize = 2 * 2 * 64;

/// What a setu holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Open descriptors, but for pipes.
    pub descriptors: usize,
    /// Ends of pipes.
    pub pipes: usize,
    /// Threads.
    pub threads: u64,
    /// Entries of the kernel path's maps of sockets, and of their directions.
    pub entries: [usize; 2],
    /// TCP connections of its host that have not ended.
    pub connections: usize,
}

impl Level {
    /// The level now.
    #[must_use]
    pub fn of(setu: &Setu, network: &Network) -> Self {
        let entries = |name| maps::named(setu.pid(), name).map_or(0, maps::entries);
        Self {
            descriptors: setu.descriptors() - setu.pipes(),
            pipes: setu.pipes(),
            threads: setu.status("Threads"),
            entries: [entries("SOCKETS"), entries("SOURCES")],
            connections: network.connections(),
        }
    }

    /// Whether no more is held than `before`.
    #[must_use]
    pub fn is_back_at(self, before: Self) -> bool {
        self.descriptors <= before.descriptors
            && self.pipes <= before.pipes + PIPES
            && self.threads <= before.threads
            && self.entries == before.entries
            && self.connections <= before.connections
    }

    /// Waits until setu holds no more than this.
    pub fn wait(self, setu: &Setu, network: &Network) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(setu, network);
            if now.is_back_at(self) {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?}, and {self:?} before\n{}", setu.tail());
            thread::sleep(Duration::from_millis(50));
        }
    }
}
