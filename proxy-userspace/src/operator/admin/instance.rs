//! Gathers what is known of this process into a [`Status`].

use std::{
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{
    history::{self, History, Span},
    readiness::Readiness,
    status::{
        self, Bytes, Certificate, Endpoint, Kernel, Limits, Listener, Process, Reload, Standing, Status,
    },
};
use crate::{
    account::{CloseReason, ListenerCounts, Path, Purpose, Side},
    config::Config,
    log,
    operator::{
        share::{self, Link, Ports, ShareError},
        text::seconds,
    },
    relay::{
        Refusal,
        sockmap::Handle,
        wire::{self, WireRefusal},
    },
    serve::shared::Shared,
    sys::sandbox,
    upstream,
};

/// Digits of the configuration's hash that are shown: enough to see that two machines run the same.
const HASH_DIGITS: usize = 12;

/// The running setu.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Of the current configuration.
    shared: watch::Receiver<Arc<Shared>>,
    reloads: watch::Receiver<Reload>,
    /// What else there is to look at.
    notes: watch::Receiver<Vec<String>>,
    kernel: Option<Handle>,
    /// What became of flows that were to go on the wire, where there is one.
    wire: Option<Arc<wire::Counts>>,
    /// The limit of open files.
    files: u64,
    started: SystemTime,
    begun: Instant,
    /// Whether it is over that setu waits for a first answer of WhatsApp's: new upstreams of a reload do not bring it back.
    settled: AtomicBool,
    history: Mutex<History>,
}

impl Instance {
    /// It starts now. `settled`: in the place of one that served already.
    pub(crate) fn new(
        shared: watch::Receiver<Arc<Shared>>,
        reloads: watch::Receiver<Reload>,
        notes: watch::Receiver<Vec<String>>,
        kernel: Option<Handle>,
        wire: Option<Arc<wire::Counts>>,
        files: u64,
        settled: bool,
    ) -> Self {
        let started = SystemTime::now();
        Self {
            shared,
            reloads,
            notes,
            kernel,
            wire,
            files,
            started,
            begun: Instant::now(),
            settled: settled.into(),
            history: Mutex::new(History::new(seconds(started))),
        }
    }

    /// Takes a sample each minute, for ever.
    pub(super) async fn sample(&self) {
        let mut ticks = tokio::time::interval(history::INTERVAL);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let status = self.status();
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.push(status.now, status.connections(), status.counts());
        }
    }

    /// `admin.hosts`.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.shared.borrow().config.admin_hosts.clone()
    }

    /// The link for phones to this host, or else to the first of `tls.names`, if there is one; with these ports.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn share(&self, host: Option<&str>, ports: &Ports) -> Result<Option<Link>, ShareError> {
        let shared = self.shared.borrow().clone();
        let config = &shared.config;
        let named = || config.tls.names.first().map(ToString::to_string);
        let host = host.map(ToOwned::to_owned).or_else(named);
        host.map(|host| share::link(config, &host, ports)).transpose()
    }

    /// As it is now.
    pub(crate) fn status(&self) -> Status {
        let shared = self.shared.borrow().clone();
        let Shared { config, upstreams, limits, acceptor, counters, .. } = &*shared;
        let endpoints: Vec<_> = upstreams
            .status()
            .into_iter()
            .filter(|endpoint| config.leads_to(&endpoint.upstream))
            .map(endpoint)
            .collect();
        let Readiness { unanswered, problems, degraded } = Readiness::new(config, &endpoints);
        let settles = unanswered.is_empty() || self.begun.elapsed() >= config.ready_after;
        let starting = !(self.settled.fetch_or(settles, Ordering::Relaxed) || settles);
        let (problems, degraded) = if starting { (unanswered, Vec::new()) } else { (problems, degraded) };
        let reload = self.reloads.borrow().clone();
        let stopping = counters.is_draining();
        let closed = CloseReason::ALL.iter().map(|reason| (reason.name().into(), counters.closed(*reason)));
        let bytes =
            Bytes { to_upstream: counters.bytes(Side::Client), to_client: counters.bytes(Side::Upstream) };
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = |limit: Option<NonZero<u32>>| limit.map(|limit| limit.get().into());
        Status {
            ready: problems.is_empty() && !stopping,
            starting,
            problems,
            degraded,
            notes: reload
                .note()
                .into_iter()
                .chain(
                    self.wire.iter().filter(|counts| counts.has_no_keeper()).map(|_| wire::NO_KEEPER.into()),
                )
                .chain(self.wire.iter().filter(|counts| counts.waits()).map(|_| wire::WAITS.into()))
                .chain(self.notes.borrow().clone())
                .collect(),
            reload,
            stopping,
            now: seconds(SystemTime::now()),
            started: seconds(self.started),
            version: env!("CARGO_PKG_VERSION").into(),
            configuration: fingerprint(config),
            listeners: counters.listeners().iter().map(|counts| listener(counts, config)).collect(),
            closed: closed.filter(|(_, count)| *count > 0).collect(),
            bytes,
            endpoints,
            name_failures: upstreams
                .name_failures()
                .map(|(failure, count)| (failure.name().into(), count))
                .into(),
            stale_answers: upstreams.stale_answers(),
            kernel: self.kernel.as_ref().map(|kernel| Kernel {
                flows: kernel.counts().flows(),
                reserved: kernel.counts().reserved(),
                budget: kernel.budget(),
                congested: kernel.counts().congested(),
                streams: kernel.counts().streams(),
                resumed: kernel.counts().resumed(),
            }),
            fallbacks: self.kernel.iter().flat_map(fallbacks).collect(),
            wire: self.wire.as_ref().map(|counts| status::Wire {
                keeper: !counts.has_no_keeper(),
                flows: counts.flows(),
                handed_over: counts.handed_over(),
                busy: counts.busy(),
                torn: counts.torn(),
            }),
            wire_refused: self.wire.iter().flat_map(|counts| refusals(counts)).collect(),
            limits: Limits {
                connections: limits.connections().into(),
                pending: limits.pending().into(),
                files: self.files,
                per_source: limit(config.limits.per_source),
                per_source_rate: limit(config.limits.per_source_rate),
            },
            log_lines_lost: log::lost(),
            pending: limits.pending_now().into(),
            certificate: acceptor
                .as_ref()
                .map(|acceptor| Certificate { not_after: seconds(acceptor.description().not_after) }),
            process: process(),
            sandbox: sandbox::reach().map(<[_]>::to_vec),
            history: history.samples(Span::Hour),
            history_day: history.samples(Span::Day),
            history_week: history.samples(Span::Week),
            month: history.month(bytes.to_upstream, bytes.to_client),
        }
    }
}

fn listener(counts: &ListenerCounts, config: &Config) -> Listener {
    let configured = config.listeners.iter().find(|listener| listener.name == counts.name);
    Listener {
        name: counts.name.clone(),
        accepted: counts.accepted(),
        active: Path::ALL.map(|path| (path.name().into(), counts.active(path))).into(),
        addresses: configured.map(|listener| listener.bind.clone()).unwrap_or_default(),
        useful: Purpose::ALL.map(|purpose| (purpose.name().into(), counts.useful(purpose))).into(),
    }
}

fn endpoint(endpoint: upstream::EndpointStatus) -> Endpoint {
    Endpoint {
        upstream: endpoint.upstream,
        endpoint: endpoint.endpoint,
        standing: match endpoint.standing {
            upstream::Standing::Untried => Standing::Untried,
            upstream::Standing::Up => Standing::Up,
            upstream::Standing::Down => Standing::Down,
        },
        seconds: Instant::now().saturating_duration_since(endpoint.since).as_secs(),
        last_error: endpoint.last_error.map(|reason| reason.name().into()),
        connections: endpoint.connections as u64,
    }
}

fn refusals(counts: &wire::Counts) -> impl Iterator<Item = (String, u64)> {
    WireRefusal::ALL.iter().map(|refusal| (refusal.name().into(), counts.refused(*refusal)))
}

fn fallbacks(kernel: &Handle) -> impl Iterator<Item = (String, u64)> {
    Refusal::ALL.into_iter().map(|refusal| (refusal.name().into(), kernel.counts().refused(refusal)))
}

fn process() -> Process {
    let id = Some(std::process::id());
    let Ok(this) = procfs::process::Process::myself() else { return Process { id, ..Process::default() } };
    let stat = this.stat().ok();
    Process {
        id,
        // A process that changed its user may not list its own.
        files: this.fd_count().ok().map(|count| count as u64),
        resident: stat.as_ref().map(|stat| stat.rss * procfs::page_size()),
        cpu: stat.map(|stat| (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64),
    }
}

/// The beginning of the SHA-256 of a configuration as it is printed.
pub(crate) fn fingerprint(config: &Config) -> String {
    let digits: String =
        Sha256::digest(config.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..HASH_DIGITS].into()
}
