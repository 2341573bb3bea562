//! What workers share, and what each has for its connections: apart from the threads that run them.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;

use crate::{
    account::{ClientAddr, Counters, ListenerCounts, Ticket},
    config::Config,
    front::{limits::Limits, segments::Segments, tls::Acceptor},
    relay::{
        Means,
        sockmap::{Handle, Returned},
        wire::{FlowNames, Wire},
    },
    upstream::Upstreams,
};

/// What all workers share under one configuration. A reload makes another; a connection keeps the one under which it was
/// accepted.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) limits: Arc<Limits>,
    /// Present when a listener ends TLS.
    pub(crate) acceptor: Option<Arc<Acceptor>>,
    pub(crate) counters: Arc<Counters>,
    /// What is counted for the listeners, by index.
    pub(crate) listeners: Vec<Arc<ListenerCounts>>,
    /// What clients of the listeners are told of segments.
    pub(crate) segments: Segments,
}

impl Shared {
    /// The account of a flow that a predecessor left on the wire: with its places among those that are limited, and the port
    /// that the kernel knows nothing of.
    pub(crate) fn adopt(&self, listener: u16, names: FlowNames) -> Ticket {
        let FlowNames { client, local, upstream } = names;
        let now = Instant::now();
        let permit = self.limits.adopt(&ClientAddr::new(client), now);
        let ports = self.upstreams.ports();
        let port = ports.and_then(|ports| ports.restore(local.ip(), local.port(), upstream, now));
        // Another configuration may have fewer listeners, and has one at least.
        let listener = self.listeners.get(usize::from(listener)).unwrap_or(&self.listeners[0]);
        let mut ticket = Ticket::adopted(self.counters.clone(), listener.clone());
        ticket.hold((permit, port));
        ticket
    }
}

/// One thread's part.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    /// The kernel path, where there is one.
    pub(crate) kernel: Option<Handle>,
    /// The wire, where there is one.
    pub(crate) wire: Option<Wire>,
    /// Where flows come back from the kernel.
    pub(crate) returns: mpsc::UnboundedSender<Returned>,
}

impl Worker {
    /// An account for a connection that this listener accepted.
    pub(crate) fn ticket(&self, listener: usize) -> Ticket {
        Ticket::new(self.shared.counters.clone(), self.shared.listeners[listener].clone())
    }

    /// What moving bytes needs.
    pub(crate) fn means(&self) -> Means<'_> {
        let Shared { config, counters, .. } = &*self.shared;
        Means {
            choice: config.path,
            kernel: self.kernel.as_ref(),
            wire: self.wire.as_ref(),
            returns: &self.returns,
            timeouts: &config.timeouts,
            counters,
        }
    }
}
