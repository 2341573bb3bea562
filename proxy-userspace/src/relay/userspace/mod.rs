//! The userspace path: for flows that the kernel does not take, for machines without the privilege, and for the end
//! of every flow.
//!
//! It holds no buffer for an idle connection: a thread has one scratch buffer, and a direction keeps bytes only while
//! its destination cannot take them. A direction that turns out to be bulk goes through a pipe by splice(2).

mod pump;

use std::{future::poll_fn, io, os::fd::AsFd as _, pin::pin, task::Poll, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{
    close_reason::{CloseReason, Side},
    config::Timeouts,
    sys,
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
    let limit = |finished: [bool; 2]| {
        if finished == [false; 2] { timeouts.idle } else { timeouts.half_close }
    };
    let mut timer = pin!(sleep(limit(finished)));
    let mut timer_is_set = false;
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
                    timer.as_mut().reset(Instant::now() + limit(finished));
                    timer_is_set = false;
                }
            }
        }
        if finished == [true; 2] {
            return Poll::Ready(Ok(CloseReason::finished(first.unwrap_or(Side::Client))));
        }
        // Bytes woke this task, so the timer did not; it still has the waker.
        if any_moved && timer_is_set {
            return Poll::Pending;
        }
        timer_is_set = true;
        while timer.as_mut().poll(cx).is_ready() {
            // Segments do not touch the timer: when it fires, the kernel knows since when nothing has moved.
            let legs: [&TcpStream; 2] = [client_read.as_ref(), upstream_read.as_ref()];
            let silent =
                legs.iter().filter_map(|leg| sys::tcp_info(leg.as_fd()).ok()).map(|info| info.silent);
            let (limit, silent) = (limit(finished), silent.min().unwrap_or(Duration::MAX));
            if silent >= limit {
                let half = finished != [false; 2];
                return Poll::Ready(Ok(if half { CloseReason::HalfCloseTimeout } else { CloseReason::Idle }));
            }
            timer.as_mut().reset(Instant::now() + (limit - silent));
        }
        Poll::Pending
    })
    .await
}
