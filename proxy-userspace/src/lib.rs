//! setu's controller: accepts clients, dials WhatsApp for them, and hands each connection to the kernel.
//!
//! Modules in the order of a connection's way; `docs/architecture.md` walks it.

pub mod addr;
pub mod check;
pub mod cli;
pub mod close_reason;
pub mod config;
mod connection;
pub mod inspect;
pub mod limits;
pub mod listener;
mod opening;
pub mod privilege;
pub mod proxy_protocol;
pub mod relay;
pub mod route;
pub mod share;
mod sys;
pub mod tls;
mod upstream;
mod worker;

use std::{
    num::NonZero,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use close_reason::{CloseReason, Counters, Path};
use config::{Config, Listener, Mode, PathChoice};
use relay::sockmap::{self, Running};
use tls::{Acceptor, CertificateError, TlsSettings};
use upstream::Upstreams;
use worker::Shared;

/// Descriptors that setu needs besides those of connections.
const SPARE_DESCRIPTORS: u64 = 64;
/// How often sources of connections are looked over.
const FORGET: Duration = Duration::from_secs(5);
/// Of the machine's memory, one part in so many may be on its way in the kernel path; at most [`BUDGET_MAX`].
const BUDGET_PART: u64 = 16;
const BUDGET_MAX: u64 = 256 << 20;

/// Runs setu until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting: a port, a forced path that is not available.
pub fn run(config: Config) -> anyhow::Result<()> {
    let files = sys::raise_file_limit().context("the limit of open files cannot be read")?;
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let acceptor = start_tls(&config)?;
    let bound = listener::bind::bind_all(&config, workers)?;
    let kernel = start_kernel_path(&config, files)?;

    let counters = Arc::<Counters>::default();
    let names = config.listeners.iter().map(|listener| listener.name.as_str().into()).collect();
    let own = bound.iter().map(|bound| bound.address).collect();
    let (upstreams, background) = Upstreams::new(&config, own);
    let limits = Arc::new(limits::Limits::new(
        &config.limits,
        limits::possible(files, SPARE_DESCRIPTORS, sys::total_memory()),
    ));
    info!(connections = limits.connections(), files, "limits");
    let shared = Arc::new(Shared {
        config,
        upstreams,
        limits: limits.clone(),
        acceptor: acceptor.clone(),
        counters: counters.clone(),
        names,
    });
    let mut sockets: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    let mut listening = Vec::new();
    for address in bound {
        listening.push((shared.names[address.listener].clone(), address.address));
        for (worker, socket) in sockets.iter_mut().zip(address.sockets) {
            worker.push((address.listener, socket));
        }
    }
    let (stop, stopped) = watch::channel(false);
    let handle = |kernel: &Running| kernel.handle();
    let threads = sockets
        .into_iter()
        .enumerate()
        .map(|(number, sockets)| {
            worker::start(number, shared.clone(), kernel.as_ref().map(handle), sockets, stopped.clone())
        })
        .collect::<Result<Vec<_>, _>>()
        .context("a worker could not start")?;
    // Waiting for signals must be set up before anyone is told that setu is ready.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = runtime.block_on(async {
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)))
    });
    let (mut terminate, mut interrupt) = signals.context("signals cannot be awaited")?;
    for (listener, address) in listening {
        info!(%listener, %address, "listening");
    }
    let path = if kernel.is_some() { Path::Sockmap } else { Path::Userspace };
    info!(%path, "ready");

    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = background.run() => {}
            () = watch_certificate(acceptor.as_deref()) => {}
            () = forget_sources(&limits) => {}
        }
    });
    info!("stopping");
    counters.stop();
    // An error means that no worker is left.
    let _ = stop.send(true);
    for thread in threads {
        if thread.join().is_err() {
            warn!("a worker had panicked");
        }
    }
    if let Some(kernel) = kernel {
        let handle = kernel.handle();
        drop(kernel);
        tell_kernel_counts(handle.counts());
    }
    for reason in CloseReason::ALL {
        let count = counters.closed(*reason);
        if count > 0 {
            info!(%reason, count, "closed connections");
        }
    }
    for (failure, count) in shared.upstreams.name_failures() {
        if count > 0 {
            info!(reason = failure.name(), count, "failed lookups");
        }
    }
    let stale = shared.upstreams.stale_answers();
    if stale > 0 {
        info!(stale, "connections by addresses past their time");
    }
    info!("stopped");
    Ok(())
}

/// Logs what became of flows in the kernel.
fn tell_kernel_counts(counts: &sockmap::Counts) {
    for refusal in sockmap::Refusal::ALL {
        let count = counts.refused(refusal);
        if count > 0 {
            info!(reason = refusal.name(), count, "flows that the kernel did not take");
        }
    }
    let (congested, resumed) = (counts.congested(), counts.resumed());
    if congested > 0 {
        info!(congested, resumed, "flows that left the kernel for a slow reader, and came back");
    }
}

/// Loads the certificate, where a listener needs one.
fn start_tls(config: &Config) -> Result<Option<Arc<Acceptor>>, CertificateError> {
    let ends_tls = |listener: &Listener| matches!(listener.mode, Mode::ChatTls { .. } | Mode::Auto { .. });
    if !config.listeners.iter().any(ends_tls) {
        return Ok(None);
    }
    let acceptor = Acceptor::new(TlsSettings::from(&config.tls))?;
    info!(certificate = %acceptor.description().source, "TLS");
    Ok(Some(Arc::new(acceptor)))
}

/// Takes up new certificate files, for ever.
async fn watch_certificate(acceptor: Option<&Acceptor>) {
    match acceptor {
        Some(acceptor) => acceptor.watch().await,
        None => std::future::pending().await,
    }
}

/// Forgets clients that are gone, for ever.
async fn forget_sources(limits: &limits::Limits) {
    let mut ticks = tokio::time::interval(FORGET);
    loop {
        ticks.tick().await;
        limits.sweep(Instant::now());
    }
}

/// Decides on the path: tries the kernel's, unless the configuration says otherwise.
fn start_kernel_path(config: &Config, files: u64) -> anyhow::Result<Option<Running>> {
    if config.path == PathChoice::Userspace {
        return Ok(None);
    }
    let reason = match try_kernel_path(config, files) {
        Ok(running) => return Ok(Some(running)),
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

fn try_kernel_path(config: &Config, files: u64) -> anyhow::Result<Running> {
    let checks = sockmap::probe().map_err(anyhow::Error::msg)?;
    for check in &checks {
        if let Err(error) = &check.result {
            bail!("the self-test failed: {}: {error}", check.name);
        }
    }
    info!(checks = checks.len(), "the kernel path passed its self-test");
    let flows =
        u32::try_from(files.saturating_sub(SPARE_DESCRIPTORS) / 2).unwrap_or(u32::MAX).clamp(1, 1 << 20);
    let limits = sockmap::Limits {
        flows,
        budget: config
            .limits
            .kernel_bytes
            .map_or_else(|| (sys::total_memory() / BUDGET_PART).min(BUDGET_MAX), NonZero::get),
        idle: config.timeouts.idle,
        log_transitions: tracing::enabled!(tracing::Level::TRACE),
    };
    Ok(Running::start(limits)?)
}
