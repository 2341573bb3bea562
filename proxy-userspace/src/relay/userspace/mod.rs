//! The userspace path: for flows that the kernel does not take, for machines without the privilege, and for the end
//! of every flow.
//!
//! It holds no buffer for an idle connection: a thread has one scratch buffer, and a direction keeps bytes only while
//! its destination cannot take them. A direction that turns out to be bulk goes through a pipe by splice(2).

mod pump;

use std::{future::poll_fn, io, pin::pin, task::Poll, time::Duration};

use socket2::SockRef;
use tokio::{net::TcpStream, time::sleep};

use super::silence::Silence;
use crate::{
    close_reason::{CloseReason, Side},
    config::Timeouts,
};
use pump::{Flowed, Pump};

/// Relays until both sides have finished, one breaks, or nothing moves for too long. `first` is the side whose FIN is
/// known to have come already.
pub(crate) async fn relay(
    mut client: TcpStream,
    mut upstream: TcpStream,
    first: Option<Side>,
    timeouts: &Timeouts,
) -> CloseReason {
    let reason = run(&mut client, &mut upstream, first, timeouts).await;
    if let Err(Broken { side, error }) = reason {
        let other = if side == Side::Client { &upstream } else { &client };
        // A close with lingering time 0 sends RST: the other side must not take the end for a FIN.
        let _ = SockRef::from(other).set_linger(Some(Duration::ZERO));
        return CloseReason::broken(side, &error);
    }
    reason.unwrap_or(CloseReason::InternalError)
}

struct Broken {
    side: Side,
    error: io::Error,
}

async fn run(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    mut first: Option<Side>,
    timeouts: &Timeouts,
) -> Result<CloseReason, Broken> {
    let (mut client_read, mut client_write) = client.split();
    let (mut upstream_read, mut upstream_write) = upstream.split();
    let (mut out, mut back) = (Pump::default(), Pump::default());
    let mut finished = [false; 2];
    let timer = pin!(sleep(timeouts.idle));
    let mut silence = Silence::new(timer, timeouts);
    poll_fn(|cx| {
        let mut any_moved = false;
        for side in [Side::Client, Side::Upstream] {
            if finished[side.index()] {
                continue;
            }
            let flowed = match side {
                Side::Client => out.poll(cx, side, &mut client_read, &mut upstream_write)?,
                Side::Upstream => back.poll(cx, side, &mut upstream_read, &mut client_write)?,
            };
            match flowed {
                Flowed::Waits { moved } => any_moved |= moved,
                Flowed::Finished => {
                    first.get_or_insert(side);
                    finished[side.index()] = true;
                    silence.half_closed();
                }
            }
        }
        if finished == [true; 2] {
            return Poll::Ready(Ok(CloseReason::finished(first.unwrap_or(Side::Client))));
        }
        silence.poll(cx, any_moved, [client_read.as_ref(), upstream_read.as_ref()]).map(Ok)
    })
    .await
}
