//! What serves: the threads, and what they were told.

use std::{io, mem, net::SocketAddr, num::NonZero, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};
use tracing::{error, info, warn};

use crate::{
    account::{Counters, ListenerCounts},
    config::{Config, RunArgs},
    front::{
        limits::Limits,
        listener::Bound,
        tls::{Acceptor, CertificateError, TlsSettings},
    },
    operator::admin,
    relay::sockmap::Running,
    serve::{
        capacity::{Allowed, Machine},
        shared::Shared,
        worker::{self, Listening, Order},
    },
    upstream::Background,
};

use super::keeper::Kept;

/// How long a worker may take to follow an order before setu goes on without its answer.
const OBEY: Duration = Duration::from_secs(5);

/// A setu that serves.
pub(super) struct Server {
    pub(super) args: RunArgs,
    pub(super) machine: Machine,
    /// Of the current configuration.
    pub(super) shared: Arc<Shared>,
    pub(super) bound: Vec<Bound>,
    /// Where the admin endpoint is.
    pub(super) admin: Vec<SocketAddr>,
    /// Tells the admin endpoint of another `shared`.
    pub(super) current: watch::Sender<Arc<Shared>>,
    /// And of what becomes of reloads.
    pub(super) reloads: watch::Sender<admin::Reload>,
    /// And of what else there is to look at.
    pub(super) notes: watch::Sender<Vec<String>>,
    pub(super) workers: Vec<worker::Running>,
    pub(super) kernel: Option<Running>,
    /// The keeper of the wire.
    pub(super) kept: Option<Kept>,
    /// Dropped, it retires what works for the current configuration.
    pub(super) background: Option<oneshot::Sender<()>>,
    /// Told when that has panicked.
    pub(super) broken: Arc<Notify>,
}

impl Server {
    /// Makes the workers accept from these sockets and no others, under the current configuration. When it returns, what
    /// they accepted from before is closed.
    pub(super) async fn serve(&self, shares: Vec<Share>) {
        let mut done = Vec::new();
        let all: Arc<[_]> = self.workers.iter().map(|worker| worker.orders.downgrade()).collect();
        for (worker, sockets) in self.workers.iter().zip(shares) {
            let (tell, told) = oneshot::channel();
            let (shared, workers) = (self.shared.clone(), all.clone());
            // An error means that the worker has panicked.
            let _ = worker.orders.send(Order::Serve { shared, sockets, workers, done: tell });
            done.push(told);
        }
        for told in done {
            if !matches!(timeout(OBEY, told).await, Ok(Ok(()))) {
                error!("a worker does not answer");
            }
        }
    }

    /// Lets names be resolved and endpoints be checked for the current configuration, and retires those of before.
    pub(super) fn run_background(&mut self, background: Background) {
        let (retire, retired) = oneshot::channel();
        mem::drop(self.background.replace(retire));
        let running = tokio::spawn(background.run(async {
            // An error is what it waits for.
            let _ = retired.await;
        }));
        let broken = self.broken.clone();
        tokio::spawn(async move {
            if running.await.is_err() {
                broken.notify_one();
            }
        });
    }
}

/// Sockets of one worker.
pub(super) type Share = Vec<Listening>;

/// Deals the sockets out.
pub(super) fn share(bound: &[Bound], workers: usize) -> io::Result<Vec<Share>> {
    let of = |worker| {
        let mut share = Share::new();
        for (shift, bound) in bound.iter().enumerate() {
            let (listener, deals) = (bound.listener, bound.is_uneven(workers));
            let sockets = bound.share(worker, workers, shift)?;
            share.extend(sockets.into_iter().map(|socket| Listening { listener, socket, deals }));
        }
        Ok(share)
    };
    (0..workers).map(of).collect()
}

/// What is counted for each listener of a configuration.
pub(super) fn listener_counts(config: &Config, counters: &Counters) -> Vec<Arc<ListenerCounts>> {
    config.listeners.iter().map(|listener| counters.listener(&listener.name)).collect()
}

/// How many connections there may be beside the listening sockets, and by what.
pub(super) fn allowed(machine: &Machine, config: &Config, bound: &[Bound]) -> Allowed {
    machine.allows(config, bound.iter().map(|bound| bound.sockets.len()).sum())
}

/// Says how many connections there may be, and what keeps them from being as many as configured.
pub(super) fn log_limits(limits: &Limits, machine: &Machine, config: &Config, allowed: Allowed) {
    let (connections, files, memory_mib) = (limits.connections(), machine.files, machine.memory >> 20);
    info!(connections, files, memory_mib, "limits");
    for (need, enough) in allowed.lacks(config) {
        let wanted = config.limits.connections.map_or(0, NonZero::get);
        warn!(
            wanted,
            enough,
            by = need.name(),
            "limits.connections is more than this machine has room for; lower it, or {}",
            need.remedy()
        );
    }
}

/// Loads the certificate, where a listener needs one.
pub(super) fn start_tls(config: &Config) -> Result<Option<Arc<Acceptor>>, CertificateError> {
    if !config.ends_tls() {
        return Ok(None);
    }
    let acceptor = Acceptor::new(TlsSettings::from(&config.tls))?;
    info!(certificate = %acceptor.description().source, "TLS");
    Ok(Some(Arc::new(acceptor)))
}

/// Takes up new certificate files, for ever.
pub(super) fn watch_certificate(acceptor: Arc<Acceptor>) {
    tokio::spawn(async move { acceptor.watch().await });
}
