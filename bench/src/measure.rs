//! What a round costs: the machine's time, the proxy's, and that of others who disturb; and memory.

use std::{collections::HashMap, time::Instant};

use anyhow::{Result, ensure};
use procfs::{
    Current as _, CurrentSI as _, KernelStats, Meminfo,
    process::{Process, all_processes},
};
use serde::{Deserialize, Serialize};
use setu_tests::netns::Netns;

/// A share of the machine above which others disturb a round.
const FOREIGN_LIMIT: f64 = 0.03;
/// The same for time that the hypervisor gave to others.
const STEAL_LIMIT: f64 = 0.02;

/// What a stretch of time cost, in core-seconds unless it says otherwise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The stretch, seconds.
    pub(crate) seconds: f64,
    /// All that was not idle, the kernel's own work too.
    pub(crate) busy: f64,
    /// The proxy's processes, in user and kernel mode. What the kernel does for it in softirqs and kernel threads is
    /// not in it.
    pub(crate) own: f64,
    /// Context switches of the proxy's threads.
    pub(crate) switches: u64,
    /// Processes that are not of this run.
    pub(crate) foreign: f64,
    /// What the hypervisor took.
    pub(crate) steal: f64,
}

impl Cost {
    /// Cores that others had.
    pub(crate) fn others(&self) -> f64 {
        (self.foreign + self.steal) / self.seconds
    }

    /// Whether others had so much of the machine that the round does not count.
    pub(crate) fn is_disturbed(&self, processors: usize) -> bool {
        let capacity = self.seconds * processors as f64;
        self.foreign > FOREIGN_LIMIT * capacity || self.steal > STEAL_LIMIT * capacity
    }
}

/// Counters at one moment.
pub(crate) struct Counters {
    at: Instant,
    idle: f64,
    own: f64,
    switches: u64,
    foreign: f64,
    steal: f64,
}

impl Counters {
    /// Reads them; `proxy` is the proxy's first process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub(crate) fn read(proxy: Option<u32>) -> Result<Self> {
        let second = procfs::ticks_per_second() as f64;
        let total = KernelStats::current()?.total;
        let family = Family::read()?;
        let proxies = proxy.map_or_else(Vec::new, |proxy| family.descendants(proxy as i32));
        let ours = family.descendants(std::process::id() as i32);
        let ticks =
            |pids: &[i32]| pids.iter().filter_map(|pid| family.0.get(pid)).map(|one| one.ticks).sum::<u64>();
        let foreign = family.0.iter().filter(|(pid, member)| !ours.contains(pid) && !member.is_kernel(**pid));
        Ok(Self {
            at: Instant::now(),
            // Idle time is exact where busy time is sampled by the timer tick.
            idle: (total.idle + total.iowait.unwrap_or(0)) as f64 / second,
            own: ticks(&proxies) as f64 / second,
            switches: proxies.iter().map(|pid| switches(*pid)).sum(),
            // With those that have ended: a compiler's many short processes, say.
            foreign: foreign.map(|(_, one)| one.ticks + one.children).sum::<u64>() as f64 / second,
            steal: total.steal.unwrap_or(0) as f64 / second,
        })
    }

    /// What it cost to get from here to `later`.
    pub(crate) fn until(&self, later: &Self, processors: usize) -> Cost {
        let seconds = (later.at - self.at).as_secs_f64();
        let steal = later.steal - self.steal;
        Cost {
            seconds,
            busy: (seconds * processors as f64 - (later.idle - self.idle) - steal).max(0.0),
            own: later.own - self.own,
            switches: later.switches.saturating_sub(self.switches),
            foreign: (later.foreign - self.foreign).max(0.0),
            steal,
        }
    }
}

/// All processes, by id.
struct Family(HashMap<i32, Member>);

struct Member {
    parent: i32,
    ticks: u64,
    /// Of its children that have ended.
    children: u64,
}

impl Member {
    /// Kernel threads work for whoever there is; their time is in [`Cost::busy`] alone.
    fn is_kernel(&self, pid: i32) -> bool {
        pid == 2 || self.parent == 2
    }
}

impl Family {
    fn read() -> Result<Self> {
        let stats = all_processes()?.flatten().filter_map(|process| process.stat().ok());
        Ok(Self(
            stats
                .map(|stat| {
                    let children = (stat.cutime + stat.cstime).max(0) as u64;
                    (stat.pid, Member { parent: stat.ppid, ticks: stat.utime + stat.stime, children })
                })
                .collect(),
        ))
    }

    /// A process and all below it.
    fn descendants(&self, root: i32) -> Vec<i32> {
        let mut found = vec![root];
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            found.extend(self.0.iter().filter(|(_, member)| member.parent == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        found
    }
}

fn switches(pid: i32) -> u64 {
    let Ok(tasks) = Process::new(pid).and_then(|process| process.tasks()) else { return 0 };
    let statuses = tasks.flatten().filter_map(|task| task.status().ok());
    statuses
        .map(|status| {
            status.voluntary_ctxt_switches.unwrap_or(0) + status.nonvoluntary_ctxt_switches.unwrap_or(0)
        })
        .sum()
}

/// Memory in use, or what was added to it, bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Of the proxy's processes, shared pages by their share.
    pub(crate) resident: i64,
    /// What the proxy's connections hold, received and to be sent, as the kernel charges it to their sockets.
    pub(crate) buffers: i64,
    /// The kernel's objects, of the whole machine: sockets are among them, their buffers not.
    pub(crate) slab: i64,
    /// What is not available any more, of the whole machine: all of the above, buffers, and the load's own.
    pub(crate) unavailable: i64,
}

impl Memory {
    /// Reads it; `proxy` is the proxy's first process, `host` where it runs, alone.
    ///
    /// # Errors
    /// When /proc cannot be read, or `ss` fails.
    pub(crate) fn read(proxy: Option<u32>, host: &Netns) -> Result<Self> {
        let info = Meminfo::current()?;
        let proxies = match proxy {
            Some(proxy) => Family::read()?.descendants(proxy as i32),
            None => Vec::new(),
        };
        let resident = proxies.into_iter().map(resident).sum();
        let unavailable = info.mem_total as i64 - info.mem_available.unwrap_or(info.mem_free) as i64;
        Ok(Self { resident, buffers: buffers(host)?, slab: info.slab as i64, unavailable })
    }

    /// What was added from here to `later`.
    pub(crate) fn until(&self, later: &Self) -> Self {
        Self {
            resident: later.resident - self.resident,
            buffers: later.buffers - self.buffers,
            slab: later.slab - self.slab,
            unavailable: later.unavailable - self.unavailable,
        }
    }
}

/// A process's share of what is resident. It is 0 for one that has ended.
fn resident(pid: i32) -> i64 {
    let rollup = Process::new(pid).and_then(|process| process.smaps_rollup());
    let maps = rollup.map(|rollup| rollup.memory_map_rollup).into_iter().flatten();
    maps.filter_map(|map| map.extension.map.get("Pss").copied()).sum::<u64>() as i64
}

/// What the connections of a host hold.
fn buffers(host: &Netns) -> Result<i64> {
    let output = host.command("ss").args(["-Htnm", "state", "established"]).output()?;
    ensure!(output.status.success(), "ss failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).split("skmem:(").skip(1).map(charged).sum())
}

/// Of one socket, from the memory that `ss` tells of: `r`, received, and `w`, to be sent.
fn charged(memory: &str) -> i64 {
    let values = memory.split([',', ')']);
    values.filter_map(|value| value.strip_prefix(['r', 'w'])?.parse::<i64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn own_time_and_memory_are_seen() {
        // Tests beside this one are of the same process: what is right is bounded by what it used
        // in a longer time and in a shorter one, not by the clock.
        let used = || {
            let stat = Process::myself().unwrap().stat().unwrap();
            (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
        };
        let myself = Some(std::process::id());
        let earlier = used();
        let before = (Counters::read(myself).unwrap(), resident(std::process::id() as i32));
        let from = used();
        let begun = Instant::now();
        let mut filled = Vec::new();
        while begun.elapsed() < Duration::from_millis(300) {
            filled.extend([1_u8; 4096]);
            filled.truncate(64 << 20);
        }
        let to = used();
        let after = (Counters::read(myself).unwrap(), resident(std::process::id() as i32));
        let later = used();
        let cost = before.0.until(&after.0, 1);
        let right = (to - from).max(0.01)..=later - earlier + 0.001;
        assert!(right.contains(&cost.own), "{cost:?}, {right:?}");
        let grown = after.1 - before.1;
        assert!(grown > 0 && filled.capacity() as i64 > grown / 4, "{grown}");
    }

    #[test]
    fn what_sockets_hold_is_read() {
        let line = "skmem:(r1280,rb131072,t0,tb87040,f2816,w512,o0,bl0,d0) bbr";
        assert_eq!(line.split("skmem:(").skip(1).map(charged).sum::<i64>(), 1792);
    }

    #[test]
    fn a_disturbed_round_is_told_by_its_share_of_the_machine() {
        let quiet = Cost { seconds: 1.0, busy: 2.0, own: 1.0, switches: 1, foreign: 0.01, steal: 0.0 };
        assert!(!quiet.is_disturbed(2));
        assert!(Cost { foreign: 0.2, ..quiet.clone() }.is_disturbed(2));
        assert!(Cost { steal: 0.2, ..quiet }.is_disturbed(2));
    }
}
