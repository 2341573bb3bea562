//! setu's controller: accepts clients, dials WhatsApp for them, and hands each connection to the kernel.
//!
//! Modules in the order of a connection's way; `docs/architecture.md` walks it.

pub mod addr;
pub mod admin;
pub mod check;
pub mod cli;
pub mod close_reason;
pub mod config;
mod connection;
pub mod doctor;
pub mod inspect;
mod lifecycle;
pub mod limits;
pub mod listener;
pub mod metrics;
mod opening;
pub mod privilege;
pub mod proxy_protocol;
pub mod relay;
pub mod route;
pub mod share;
pub mod status;
mod sys;
pub mod tls;
mod upstream;
mod worker;

use std::{num::NonZero, time::Duration};

use anyhow::bail;
use tracing::{info, warn};

use cli::ServeArgs;
use config::{Config, PathChoice};
use lifecycle::Prepared;
use relay::sockmap::{self, Loaded};

/// Descriptors that setu needs besides those of connections and listeners.
const SPARE_DESCRIPTORS: u64 = 64;
/// Flows in the kernel at once, whatever the machine has: 384 MiB of maps.
const FLOWS_MAX: u32 = 1 << 20;
/// Of the machine's memory, one part in so many may be on its way in the kernel path; at most [`BUDGET_MAX`].
const BUDGET_PART: u64 = 16;
const BUDGET_MAX: u64 = 256 << 20;

/// Runs setu until it is told to stop.
///
/// # Errors
/// What kept it from starting: a port, a forced path that is not available.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let prepared = Prepared::new(args)?;
    let kernel = load_kernel_path(&prepared)?;
    privilege::drop_all(prepared.config(), prepared.file())?;
    prepared.serve(kernel)
}

/// Decides on the path: tries the kernel's, unless the configuration says otherwise.
fn load_kernel_path(prepared: &Prepared) -> anyhow::Result<Option<Loaded>> {
    let config = prepared.config();
    if config.path == PathChoice::Userspace {
        return Ok(None);
    }
    let reason = match try_kernel_path(config, prepared.files(), prepared.recall()) {
        Ok(loaded) => return Ok(Some(loaded)),
        Err(reason) => reason,
    };
    if config.path == PathChoice::Sockmap {
        bail!(
            "relay.path = \"sockmap\" is not available: {reason:#}. Give setu the privileges, or set relay.path = \
             \"auto\"; `setu check` says what this machine can do."
        );
    }
    warn!(reason = format!("{reason:#}"), "the kernel path is not available, bytes go through userspace");
    Ok(None)
}

fn try_kernel_path(config: &Config, files: u64, recall: Option<Duration>) -> anyhow::Result<Loaded> {
    let checks = sockmap::probe().map_err(anyhow::Error::msg)?;
    for check in &checks {
        if let Err(error) = &check.result {
            bail!("the self-test failed: {}: {error}", check.name);
        }
    }
    info!(checks = checks.len(), "the kernel path passed its self-test");
    let flows = flows(config, files, sys::total_memory());
    let budget = config
        .limits
        .kernel_bytes
        .map_or_else(|| (sys::total_memory() / BUDGET_PART).min(BUDGET_MAX), NonZero::get);
    let log_transitions = tracing::enabled!(tracing::Level::TRACE);
    let limits = sockmap::Limits::new(flows, budget, config.timeouts.idle);
    let limits = sockmap::Limits { recall, log_transitions, ..limits };
    let limits = if config.path == PathChoice::Auto { limits.only_quiet() } else { limits };
    Ok(Loaded::new(limits)?)
}

/// How many flows the kernel path gets room for: as many as there may be connections. The room is memory that the kernel
/// takes at once, whether or not there are flows.
fn flows(config: &Config, files: u64, memory: u64) -> u32 {
    let possible = limits::possible(files, SPARE_DESCRIPTORS, memory);
    let wanted = config.limits.connections.map_or(possible, |wanted| wanted.get().min(possible));
    wanted.min(FLOWS_MAX)
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
        let by_files = limits::possible(1_064, SPARE_DESCRIPTORS, u64::MAX);
        assert_eq!(flows(&any, 1_064, 64 * GIB), by_files);
        // What the unit sets says nothing of the machine.
        let by_memory = [GIB / 2, GIB, 4 * GIB].map(|memory| flows(&any, UNIT, memory));
        let possible = [GIB / 2, GIB, 4 * GIB].map(|memory| limits::possible(u64::MAX, 0, memory));
        assert_eq!(by_memory, possible);
        assert!(by_memory[2] < flows(&any, UNIT, 1 << 50));
        assert_eq!(flows(&any, u64::MAX, 1 << 50), FLOWS_MAX);
        assert_eq!(flows(&few, UNIT, 4 * GIB), 5_000);
        assert_eq!(flows(&few, 1_064, 4 * GIB), by_files);
        assert_eq!(flows(&few, 0, 0), 1);
    }
}
