//! Whether there is a kernel path, decided once at the start.

use std::time::Duration;

use anyhow::bail;
use tracing::{info, warn};

use crate::{
    config::{Config, PathChoice},
    relay::sockmap::{self, Loaded},
    serve::capacity::Machine,
};

/// Decides on the path: tries the kernel's, unless the configuration says otherwise.
///
/// # Errors
/// A path that was asked for by name is not available.
pub(super) fn load(
    config: &Config,
    machine: &Machine,
    recall: Option<Duration>,
) -> anyhow::Result<Option<Loaded>> {
    if config.path == PathChoice::Userspace {
        return Ok(None);
    }
    let reason = match try_to_load(config, machine, recall) {
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

fn try_to_load(config: &Config, machine: &Machine, recall: Option<Duration>) -> anyhow::Result<Loaded> {
    let checks = sockmap::probe().map_err(anyhow::Error::msg)?;
    for check in &checks {
        if let Err(error) = &check.result {
            bail!("the self-test failed: {}: {error}", check.name);
        }
    }
    info!(checks = checks.len(), "the kernel path passed its self-test");
    let (flows, budget) = (machine.flows(config), machine.budget(config));
    let log_transitions = tracing::enabled!(tracing::Level::TRACE);
    let limits = sockmap::Limits::new(flows, budget, config.timeouts.idle);
    let limits = sockmap::Limits { recall, log_transitions, ..limits };
    let limits = if config.path == PathChoice::Sockmap { limits } else { limits.only_quiet() };
    Ok(Loaded::new(limits)?)
}
