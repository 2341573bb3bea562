//! Another configuration for a running setu: all of it, or nothing.
//!
//! Whatever can fail comes first and changes nothing; what changes cannot fail. Connections are not touched: each keeps
//! the [`Shared`] under which it was accepted.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context as _;
use tracing::{info, warn};

use super::{
    server::{Server, allowed, listener_counts, log_limits, share, start_tls, watch_certificate},
    service,
};
use crate::{
    config::{Config, ConfigError},
    front::{
        listener::{self, BindError, Bound},
        segments::Segments,
        tls::TlsSettings,
    },
    relay::holdings,
    serve::shared::Shared,
    sys::sandbox,
    upstream::Upstreams,
};

impl Server {
    /// Reads the configuration again and applies it.
    ///
    /// # Errors
    /// What is wrong. Then everything is as it was.
    pub(super) async fn reload(&mut self) -> anyhow::Result<()> {
        // A pipe was read once, and would be waited for.
        self.args.settle();
        let file = self.args.file().path();
        if let Some(file) = file.filter(|file| fs::metadata(file).is_ok_and(|is| !is.is_file())) {
            anyhow::bail!("{}: it is no file, and cannot be read again; restart setu", file.display());
        }
        let mut config = self.args.config().map_err(|error| unreadable(error, file))?;
        let take_restart: Vec<_> = config.takes_restart(&self.shared.config).collect();
        config.keep_until_restart(&self.shared.config);
        if let Some((whose, bind)) = config.wire_conflict()
            && config.wire.is_on()
        {
            anyhow::bail!(
                "{whose}: {bind} is one of the wire.ports that setu was started with; restart setu"
            );
        }
        let bound = listener::bind_all(&config, self.workers.len(), &self.bound)
            .map_err(|error| at_reload(error, &self.bound))?;
        if let Some(address) = service::torn(&self.bound, &bound) {
            anyhow::bail!(
                "{address} and [::]:{} share a socket that was passed to setu, and cannot change one without the other; \
                 restart setu",
                address.port()
            );
        }
        let shares = share(&bound, self.workers.len()).context("a listener cannot be shared")?;
        let acceptor = match &self.shared.acceptor {
            Some(acceptor) => {
                acceptor.reload(&TlsSettings::from(&config.tls))?;
                Some(acceptor.clone())
            }
            None => start_tls(&config)?,
        };

        for key in take_restart {
            warn!(key, "it has changed; that takes effect with the next start");
        }
        log_listeners(&self.bound, &bound, &config);
        listener::guard(&config, &bound, Some((&self.shared.config, &self.bound)));
        self.machine.look_again();
        let allowed = allowed(&self.machine, &config, &bound);
        self.shared.limits.change(&config.limits, allowed.room(&config));
        holdings::allow(self.machine.holdings());
        log_limits(&self.shared.limits, &self.machine, &config, allowed);
        if let Some(kernel) = &self.kernel {
            kernel.handle().change_idle(config.timeouts.idle);
        }
        let own = bound.iter().map(|bound| bound.address).chain(self.admin.iter().copied()).collect();
        let (upstreams, background) = Upstreams::new(&config, own, Some(&self.shared.upstreams));
        self.run_background(background);
        if self.shared.acceptor.is_none()
            && let Some(acceptor) = &acceptor
        {
            watch_certificate(acceptor.clone());
        }
        self.shared = Arc::new(Shared {
            listeners: listener_counts(&config, &self.shared.counters),
            segments: Segments::new(&config),
            config,
            upstreams,
            limits: self.shared.limits.clone(),
            acceptor,
            counters: self.shared.counters.clone(),
        });
        // An error means that the admin endpoint is off.
        let _ = self.current.send(self.shared.clone());
        self.serve(shares).await;
        self.bound = bound;
        Ok(())
    }
}

/// Why the file cannot be read: it may lie, or be a link to, where the sandbox does not reach.
fn unreadable(error: ConfigError, file: Option<&Path>) -> anyhow::Error {
    let is_barred = |file: &Path| fs::File::open(file).is_err_and(|error| sandbox::is_to_blame(file, &error));
    match error {
        ConfigError::Unreadable { place, error, .. } if file.is_some_and(is_barred) => {
            anyhow::anyhow!("{place}: cannot be read: {error}; {}", sandbox::REMEDY)
        }
        error => error.into(),
    }
}

/// What is in the way of a setu that runs already: it has no right to low ports any more, and may be in its own way.
fn at_reload(error: BindError, bound: &[Bound]) -> anyhow::Error {
    match error {
        BindError::Privileged { ports } => {
            anyhow::anyhow!(
                "no right to bind port {ports} any more: setu gives it up at its start; restart setu"
            )
        }
        BindError::InUse { address, .. }
            if bound.iter().any(|bound| listener::in_the_way(bound.address, address)) =>
        {
            anyhow::anyhow!(
                "port {} is this setu's own already, and cannot change between one address and all of them while it \
                 runs; restart setu",
                address.port()
            )
        }
        error => error.into(),
    }
}

fn log_listeners(before: &[Bound], after: &[Bound], config: &Config) {
    let has = |all: &[Bound], bound: &Bound| all.iter().any(|other| other.address == bound.address);
    for bound in after.iter().filter(|bound| !has(before, bound)) {
        let listener = &config.listeners[bound.listener].name;
        info!(%listener, address = %bound.address, "listening");
    }
    for bound in before.iter().filter(|bound| !has(after, bound)) {
        info!(address = %bound.address, "no longer listening");
    }
}
