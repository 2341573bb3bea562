//! Memory over time: what setu has resident, and what the kernel path has reserved.

use setu_tests::{Setu, maps};

/// Of the time, the first part is warm-up.
const WARM_UP: f64 = 0.3;
/// Resident memory may grow by one part in so many from the first half after the warm-up to the second, and by
/// [`SLACK`] KiB: allocators keep what a burst took.
const TOLERANCE: u64 = 10;
const SLACK: u64 = 2048;
/// The kernel's part is looked at each so many looks: bpftool costs more than reading /proc.
const KERNEL_EACH: u32 = 8;

/// What was seen.
pub(crate) struct Watch {
    kernel_path: bool,
    looks: u32,
    /// After the warm-up, KiB, with the part of the time.
    resident: Vec<(f64, u64)>,
    most: u64,
    pub(crate) most_reserved: u64,
}

impl Watch {
    /// Nothing was seen yet.
    pub(crate) fn new(setu: &Setu) -> Self {
        let kernel_path = maps::named(setu.pid(), "BUDGET").is_some();
        Self { kernel_path, looks: 0, resident: Vec::new(), most: 0, most_reserved: 0 }
    }

    /// Looks; `part` of the time is over.
    pub(crate) fn look(&mut self, setu: &Setu, part: f64) {
        let resident = setu.status("VmRSS");
        self.most = self.most.max(resident);
        if part > WARM_UP {
            self.resident.push((part, resident));
        }
        self.looks += 1;
        if self.kernel_path && self.looks.is_multiple_of(KERNEL_EACH) {
            self.most_reserved = self.most_reserved.max(reserved(setu));
        }
    }

    /// For the table: after the warm-up, and at most.
    pub(crate) fn resident(&self) -> String {
        format!("{}, {}", self.resident.first().map_or(0, |(_, kib)| *kib), self.most)
    }

    /// Says so when memory grew after the warm-up.
    pub(crate) fn growth(&self) -> Option<String> {
        let middle = (1.0 + WARM_UP) / 2.0;
        let mean = |later: bool| {
            let of: Vec<_> = self
                .resident
                .iter()
                .filter(|(part, _)| (*part > middle) == later)
                .map(|(_, kib)| *kib)
                .collect();
            of.iter().sum::<u64>() / (of.len() as u64).max(1)
        };
        let (first, second) = (mean(false), mean(true));
        (second > first + first / TOLERANCE + SLACK)
            .then(|| format!("resident memory grew from {first} KiB to {second} KiB"))
    }
}

/// Bytes that directions have reserved in the kernel path; 0 where there is none.
pub(crate) fn reserved(setu: &Setu) -> u64 {
    // `total`, then `reserved` (proxy_common::direction::Budget).
    maps::named(setu.pid(), "BUDGET").map_or(0, |map| maps::numbers(map)[1])
}
