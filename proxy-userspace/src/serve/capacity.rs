//! What a connection costs this machine, and so how many there may be. Nothing else reckons with that.

use std::num::NonZero;

use crate::config::Config;

/// Descriptors that setu needs besides those of connections and listeners.
const SPARE_DESCRIPTORS: u64 = 64;
/// Flows in the kernel at once, whatever the machine has: 384 MiB of maps.
const FLOWS_MAX: u32 = 1 << 20;
/// Of the machine's memory, one part in so many may be on its way in the kernel path; at most [`BUDGET_MAX`].
const BUDGET_PART: u64 = 16;
const BUDGET_MAX: u64 = 256 << 20;

/// Without a limit in the configuration, half of the memory may go to connections, and each is reckoned at this, bytes:
/// two sockets with a little in their buffers.
const CONNECTION_BYTES: u64 = 32 << 10;
/// Descriptors of a connection: its sockets.
const CONNECTION_FILES: u64 = 2;
/// Descriptors of a pipe: its ends.
const PIPE_FILES: u64 = 2;
/// One in so many descriptors may go to pipes, which bulk takes for the time in which it flows.
const PIPES_SHARE: u64 = 16;
/// More pipes than these are not needed: they are what a user may have without privileges (`pipe-user-pages-soft`,
/// proc_sys_fs(5), at 16 pages for each), some left for others.
const MAX_PIPES: u64 = 960;

/// How many connections the limit of open files and the machine's memory (bytes) allow beside so many listening sockets,
/// of which workers have duplicates.
pub(crate) fn connections(files: u64, listening: usize, memory: u64) -> u32 {
    possible(files, SPARE_DESCRIPTORS + 2 * listening as u64, memory)
}

/// The same with `spare` descriptors and those of [`pipes`] aside.
fn possible(files: u64, spare: u64, memory: u64) -> u32 {
    let for_pipes = u64::from(pipes(files)) * PIPE_FILES;
    let connections = files.saturating_sub(spare + for_pipes) / CONNECTION_FILES;
    u32::try_from(connections.min(memory / 2 / CONNECTION_BYTES)).unwrap_or(u32::MAX).max(1)
}

/// How many pipes the process may have at once under the limit of open files.
pub(crate) fn pipes(files: u64) -> u32 {
    u32::try_from((files / PIPES_SHARE / PIPE_FILES).min(MAX_PIPES)).unwrap_or(u32::MAX)
}

/// How many flows the kernel path gets room for: as many as there may be connections. The room is memory that the kernel
/// takes at once, whether or not there are flows.
pub(crate) fn flows(config: &Config, files: u64, memory: u64) -> u32 {
    let possible = possible(files, SPARE_DESCRIPTORS, memory);
    let wanted = config.limits.connections.map_or(possible, |wanted| wanted.get().min(possible));
    wanted.min(FLOWS_MAX)
}

/// Bytes that all flows together may have on their way in the kernel path.
pub(crate) fn budget(config: &Config, memory: u64) -> u64 {
    config.limits.kernel_bytes.map_or_else(|| (memory / BUDGET_PART).min(BUDGET_MAX), NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_flows_follows_files_memory_and_the_configured_limit() {
        let config = |text: &str| Config::parse("test", text).unwrap();
        let (any, few) = (config(""), config("[limits]\nconnections = 5000"));
        const UNIT: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        let by_files = possible(1_064, SPARE_DESCRIPTORS, u64::MAX);
        assert_eq!(flows(&any, 1_064, 64 * GIB), by_files);
        // What the unit sets says nothing of the machine.
        let by_memory = [GIB / 2, GIB, 4 * GIB].map(|memory| flows(&any, UNIT, memory));
        let possible = [GIB / 2, GIB, 4 * GIB].map(|memory| possible(u64::MAX, 0, memory));
        assert_eq!(by_memory, possible);
        assert!(by_memory[2] < flows(&any, UNIT, 1 << 50));
        assert_eq!(flows(&any, u64::MAX, 1 << 50), FLOWS_MAX);
        assert_eq!(flows(&few, UNIT, 4 * GIB), 5_000);
        assert_eq!(flows(&few, 1_064, 4 * GIB), by_files);
        assert_eq!(flows(&few, 0, 0), 1);
    }

    #[test]
    fn what_is_possible_follows_files_and_memory() {
        assert_eq!(pipes(20_000), 625);
        assert_eq!(possible(20_000, 64, 1 << 40), 9_968 - 625);
        assert_eq!(possible(1 << 20, 64, 1 << 30), 16_384);
        assert_eq!((possible(10, 64, 1 << 30), pipes(10)), (1, 0));
        assert_eq!(pipes(1 << 30), 960);
    }
}
