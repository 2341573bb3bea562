//! Moves a flow's bytes: picks a path, and records why.
//!
//! Which flow goes where is in [`choice`], and nowhere else. A flow that changes its path comes by here: from userspace
//! when it may go to the kernel, and from the kernel with what is to be sent before all else.

mod buffers;
pub mod check;
mod choice;
pub(crate) mod holdings;
mod legs;
mod reason;
mod refusal;
mod silence;
pub mod sockmap;
pub mod terminated;
pub(crate) mod userspace;
mod vanished;
pub(crate) mod wire;

use tokio::{net::TcpStream, sync::mpsc::UnboundedSender};

use crate::{
    account::{CloseReason, Counters, Path, Ticket},
    config::{PathChoice, Timeouts},
};
use choice::HandOver;
pub use reason::Refusal;
use reason::Why;
use sockmap::{Handle, Returned};
use userspace::{Ended, Flow, Lift};
use wire::Wire;

/// What moving bytes needs besides the flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'a> {
    pub(crate) choice: PathChoice,
    /// The kernel path, where there is one.
    pub(crate) kernel: Option<&'a Handle>,
    /// The wire, where there is one.
    pub(crate) wire: Option<&'a Wire>,
    /// Where flows come back from the kernel.
    pub(crate) returns: &'a UnboundedSender<Returned>,
    pub(crate) timeouts: &'a Timeouts,
    pub(crate) counters: &'a Counters,
}

/// Moves the bytes of a new flow to its end, or until the kernel has it.
/// `listener`: index of the listener that it came by.
pub(crate) async fn relay(
    client: TcpStream,
    upstream: TcpStream,
    listener: usize,
    ticket: Ticket,
    means: Means<'_>,
) {
    let without =
        means.kernel.map_or(HandOver::Never, |kernel| HandOver::of_new(means.choice, kernel.recalls()));
    let lift = means.wire.map(|wire| Lift {
        wire,
        listener: listener as u16,
        limits: means.timeouts.into(),
        without,
    });
    let hand_over = if lift.is_some() { HandOver::Never } else { without };
    let flow = Flow { client, upstream, first: None, collected: Default::default(), is_new: true, hand_over };
    in_userspace(flow, 0, ticket, lift, means).await;
}

/// Carries on a flow that came back from the kernel.
pub(crate) async fn carry_on(returned: Returned, means: Means<'_>) {
    let Returned { legs: sockmap::Legs { client, upstream, left }, ticket, why, collected } = returned;
    let first = match why {
        Why::Finished(side) => Some(side),
        Why::Congested | Why::Streams | Why::Recalled => None,
        Why::NotTaken(refusal) => {
            tracing::debug!(reason = refusal.name(), "not handed over to the kernel");
            None
        }
    };
    let Ok([client, upstream]) = legs::register([client, upstream]) else {
        return ticket.close(CloseReason::OutOfResources);
    };
    let hand_over = HandOver::of_returned(means.choice, why, left);
    let flow = Flow { client, upstream, first, collected, is_new: false, hand_over };
    in_userspace(flow, left, ticket, None, means).await;
}

/// Relays a flow in userspace, to its end or until the kernel has it.
async fn in_userspace(
    mut flow: Flow,
    left: u32,
    mut ticket: Ticket,
    mut lift: Option<Lift<'_>>,
    means: Means<'_>,
) {
    if means.kernel.is_none() {
        flow.hand_over = HandOver::Never;
    }
    loop {
        // What ends in userspace after it was handed over was in the kernel as long as there was something to move.
        if flow.first.is_none() {
            ticket.set_path(Path::Userspace);
        }
        let [client, upstream] =
            match userspace::relay(flow, &mut ticket, means.timeouts, means.counters, lift.take()).await {
                Ended::Closed(reason) => return ticket.close(reason),
                Ended::Quiet(legs) => legs,
                Ended::Wired(offer) => return offer.settle(ticket),
            };
        let legs = match (client.into_std(), upstream.into_std()) {
            (Ok(client), Ok(upstream)) => {
                sockmap::Legs { client: client.into(), upstream: upstream.into(), left }
            }
            (Err(_), _) | (_, Err(_)) => return ticket.close(CloseReason::InternalError),
        };
        // Without a kernel path no flow is given up.
        let Some(kernel) = means.kernel else { return ticket.close(CloseReason::InternalError) };
        let Err((legs, kept)) = kernel.adopt(legs, ticket, means.returns.clone()) else { return };
        ticket = kept;
        let Ok([client, upstream]) = legs::register([legs.client, legs.upstream]) else {
            return ticket.close(CloseReason::OutOfResources);
        };
        let hand_over = HandOver::Never;
        flow =
            Flow { client, upstream, first: None, collected: Default::default(), is_new: false, hand_over };
    }
}

#[cfg(test)]
mod tests;
