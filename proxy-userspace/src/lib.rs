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
    let flows =
        u32::try_from(files.saturating_sub(SPARE_DESCRIPTORS) / 2).unwrap_or(u32::MAX).clamp(1, 1 << 20);
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
