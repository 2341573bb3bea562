//! The way of one connection: accept → inspect → route → dial → relay → [`CloseReason`].
//!
//! Each stage consumes the type of the one before, so that none can be left out or done twice. A stage that fails ends
//! the connection with its reason.

use std::{sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::{
    close_reason::{CloseReason, Path, Ticket},
    config::{Mode, UpstreamId},
    relay::{
        sockmap::{Handle, Legs, Returned, Why},
        userspace::{self, Ended, Flow},
    },
    upstream::Lease,
    worker::Worker,
};

/// Of `timeouts.vanished`, a leg is silent for one part in so many before it is asked for a sign of life, and is asked
/// again after one part in so many.
const KEEPALIVE_IDLE_PART: u32 = 2;
const KEEPALIVE_INTERVAL_PART: u32 = 8;
/// The kernel counts these times in seconds.
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);

/// A flow that left the kernel because a leg could not keep up goes back after it did for so long; doubled each time
/// that it leaves again, [`CALM_DOUBLINGS`] times at most.
const CALM: Duration = Duration::from_secs(1);
const CALM_DOUBLINGS: u32 = 6;

/// A client's connection, of which nothing is known but where it came in.
pub(crate) struct Accepted {
    client: TcpStream,
    listener: usize,
}

/// What the first bytes tell. Chat and media listeners have one upstream each: nothing needs to be read.
pub(crate) struct Inspected {
    client: TcpStream,
    listener: usize,
}

/// The upstream is chosen.
pub(crate) struct Routed {
    client: TcpStream,
    upstream: UpstreamId,
}

/// Both legs are connected.
pub(crate) struct Dialed {
    client: TcpStream,
    upstream: TcpStream,
    lease: Option<Lease>,
}

impl Accepted {
    /// Looks at the first bytes.
    async fn inspect(self) -> Result<Inspected, CloseReason> {
        Ok(Inspected { client: self.client, listener: self.listener })
    }
}

impl Inspected {
    /// Chooses the upstream.
    fn route(self, worker: &Worker) -> Routed {
        let upstream = match worker.shared.config.listeners[self.listener].mode {
            Mode::Chat { upstream, .. } | Mode::ChatTls { upstream, .. } | Mode::Media { upstream } => {
                upstream
            }
            Mode::Auto { chat, .. } => chat,
        };
        Routed { client: self.client, upstream }
    }
}

impl Routed {
    /// Connects to the upstream.
    async fn dial(self, worker: &Worker) -> Result<Dialed, CloseReason> {
        let dialed = worker.shared.upstreams.dial(self.upstream).await?;
        Ok(Dialed { client: self.client, upstream: dialed.stream, lease: dialed.lease })
    }
}

impl Dialed {
    /// Moves the bytes until the end, in the kernel if it can be.
    async fn relay(self, mut ticket: Ticket, worker: &Worker) {
        let Self { client, upstream, lease } = self;
        ticket.lease = lease;
        for leg in [&client, &upstream] {
            prepare(leg, worker.shared.config.timeouts.vanished);
        }
        match &worker.kernel {
            Some(kernel) => hand_over(client, upstream, 0, ticket, kernel, worker),
            None => {
                ticket.path = Path::Userspace;
                let flow = Flow { client, upstream, first: None, collected: Default::default(), calm: None };
                if let Ended::Closed(reason) = userspace::relay(flow, &worker.shared.config.timeouts).await {
                    ticket.close(reason);
                }
            }
        }
    }
}

/// Serves a client to the end.
pub(crate) async fn serve(client: TcpStream, listener: usize, worker: Arc<Worker>) {
    let ticket = worker.ticket(listener);
    let accepted = Accepted { client, listener };
    // The stages before the relay hold more than the relay does: boxed, their memory is free once they are over.
    let dialed = Box::pin(async { accepted.inspect().await?.route(&worker).dial(&worker).await }).await;
    match dialed {
        Ok(dialed) => dialed.relay(ticket, &worker).await,
        Err(reason) => ticket.close(reason),
    }
}

/// Gives a flow to the kernel. It ends there, or comes to [`carry_on`].
fn hand_over(
    client: TcpStream,
    upstream: TcpStream,
    strained: u32,
    ticket: Ticket,
    kernel: &Handle,
    worker: &Worker,
) {
    match (client.into_std(), upstream.into_std()) {
        (Ok(client), Ok(upstream)) => {
            let legs = Legs { client: client.into(), upstream: upstream.into(), strained };
            kernel.adopt(legs, ticket, worker.returns.clone());
        }
        (Err(_), _) | (_, Err(_)) => ticket.close(CloseReason::InternalError),
    }
}

/// Carries on a flow that left the kernel.
pub(crate) async fn carry_on(returned: Returned, worker: Arc<Worker>) {
    let Returned { legs: Legs { client, upstream, strained }, ticket, why, collected } = returned;
    let first = match why {
        Why::Finished(side) => Some(side),
        Why::Congested => None,
        Why::NotTaken(name) => {
            tracing::debug!(reason = name, "not handed over to the kernel");
            None
        }
    };
    let calm = (why == Why::Congested).then(|| CALM * (1 << strained.saturating_sub(1).min(CALM_DOUBLINGS)));
    let stream = |leg| TcpStream::from_std(std::net::TcpStream::from(leg));
    let (Ok(client), Ok(upstream)) = (stream(client), stream(upstream)) else {
        return ticket.close(CloseReason::OutOfResources);
    };
    let flow = Flow { client, upstream, first, collected, calm };
    match userspace::relay(flow, &worker.shared.config.timeouts).await {
        Ended::Closed(reason) => ticket.close(reason),
        Ended::Calm(client, upstream) => match &worker.kernel {
            Some(kernel) => hand_over(client, upstream, strained, ticket, kernel, &worker),
            // It came from the kernel.
            None => ticket.close(CloseReason::InternalError),
        },
    }
}

/// Sets what every leg needs. Errors mean that the connection is gone, which the relay finds out.
fn prepare(leg: &TcpStream, vanished: Duration) {
    let socket = SockRef::from(leg);
    let keepalive = TcpKeepalive::new()
        .with_time((vanished / KEEPALIVE_IDLE_PART).max(KEEPALIVE_MIN))
        .with_interval((vanished / KEEPALIVE_INTERVAL_PART).max(KEEPALIVE_MIN));
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    // For bytes on their way, and for the questions above (`tcp_keepalive_timer`, net/ipv4/tcp_timer.c).
    let _ = socket.set_tcp_user_timeout(Some(vanished));
}
