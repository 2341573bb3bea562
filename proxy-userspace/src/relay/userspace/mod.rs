//! The userspace path: for flows that the kernel does not take, for machines without the privilege, and for the end
//! of every flow.
//!
//! It holds no buffer for an idle connection: a thread has one scratch buffer, and a direction keeps bytes only while
//! its destination cannot take them. A direction that turns out to be bulk goes through a pipe by splice(2).

mod buffers;
mod pipes;
mod pump;

use std::{future::poll_fn, io, pin::pin, task::Poll, time::Duration};

use socket2::SockRef;
use tokio::{net::TcpStream, time::sleep};

use super::silence::Silence;
use crate::{
    close_reason::{CloseReason, Side},
    config::Timeouts,
    metrics::Counters,
};
use buffers::Buffers;
pub(crate) use pipes::allow as allow_pipes;
use pump::{Flowed, Pump};

/// A flow whose bytes go through userspace from now on.
pub(crate) struct Flow {
    pub(crate) client: TcpStream,
    pub(crate) upstream: TcpStream,
    /// The side whose FIN is known to have come already.
    pub(crate) first: Option<Side>,
    /// Bytes to be sent before all others, by the side that they came from.
    pub(crate) collected: [Vec<u8>; 2],
    /// No path has had it before: the kernel does not watch for peers that vanish, and readers have yet to show that
    /// they read.
    pub(crate) is_new: bool,
    /// Give the flow up when both sides have kept up for so long.
    pub(crate) calm: Option<Duration>,
}

/// How relaying ended.
pub(crate) enum Ended {
    /// The connection is over.
    Closed(CloseReason),
    /// Both sides keep up with each other: client and upstream, with nothing of their streams in userspace.
    Calm(TcpStream, TcpStream),
}

/// Relays until both sides have finished, one breaks, nothing moves for too long, or the flow is calm.
pub(crate) async fn relay(flow: Flow, timeouts: &Timeouts, counters: &Counters) -> Ended {
    let Flow { mut client, mut upstream, first, collected, is_new, calm } = flow;
    let [from_client, from_upstream] = collected;
    let buffers = if is_new { Buffers::NEW } else { Buffers::RETURNED };
    let out = Pump::new(from_client, counters.meter(Side::Client), buffers);
    let back = Pump::new(from_upstream, counters.meter(Side::Upstream), buffers);
    let timer = pin!(sleep(timeouts.idle));
    let silence = Silence::new(timer, timeouts, calm, is_new);
    match run(&mut client, &mut upstream, [out, back], first, calm.is_some(), silence).await {
        Ok(Some(reason)) => Ended::Closed(reason),
        Ok(None) => Ended::Calm(client, upstream),
        Err(Broken { side, error }) => {
            let other = if side == Side::Client { &upstream } else { &client };
            // A close with lingering time 0 sends RST: the other side must not take the end for a FIN.
            let _ = SockRef::from(other).set_linger(Some(Duration::ZERO));
            Ended::Closed(CloseReason::broken(side, &error))
        }
    }
}

struct Broken {
    side: Side,
    error: io::Error,
}

/// Returns no reason when the flow is calm.
async fn run(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    [mut out, mut back]: [Pump<'_>; 2],
    mut first: Option<Side>,
    may_leave: bool,
    mut silence: Silence<'_>,
) -> Result<Option<CloseReason>, Broken> {
    let (mut client_read, mut client_write) = client.split();
    let (mut upstream_read, mut upstream_write) = upstream.split();
    let mut finished = [false; 2];
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
            return Poll::Ready(Ok(Some(CloseReason::finished(first.unwrap_or(Side::Client)))));
        }
        let over = silence.poll(cx, any_moved, [client_read.as_ref(), upstream_read.as_ref()]);
        let look = may_leave && finished == [false; 2] && silence.take_fired();
        // Both must be asked.
        if over.is_pending() && look && !(out.take_strained() | back.take_strained()) {
            out.release(client_read.as_ref(), upstream_read.as_ref());
            back.release(upstream_read.as_ref(), client_read.as_ref());
            return Poll::Ready(Ok(None));
        }
        over.map(|reason| Ok(Some(reason)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{relay::LASTING, sys, tls::testing::TIMEOUTS};

    /// The two ends of a connection.
    pub(super) async fn pair() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        [peer, listener.accept().await.unwrap().0]
    }

    #[tokio::test]
    async fn a_calm_flow_leaves_with_buffers_that_grow() {
        let [mut phone, client] = pair().await;
        let [mut server, upstream] = pair().await;
        let unsent = |socket: &TcpStream| SockRef::from(socket).tcp_notsent_lowat().unwrap();
        let before = unsent(&upstream);
        let collected = Default::default();
        let flow = Flow { client, upstream, first: None, collected, is_new: true, calm: Some(LASTING) };
        let counters = Counters::default();
        let peers = async {
            // More than is moved before buffers are held, less than lets them go.
            let mut bytes = vec![7; 64 * 1024];
            phone.write_all(&bytes).await.unwrap();
            server.read_exact(&mut bytes).await.unwrap();
        };
        let (ended, ()) = tokio::join!(relay(flow, &TIMEOUTS, &counters), peers);
        let Ended::Calm(client, upstream) = ended else { panic!("it did not leave") };
        assert_eq!(unsent(&upstream), before);
        assert!(!sys::testing::is_receive_buffer_locked(&client));
        for leg in [&client, &upstream] {
            assert!(SockRef::from(leg).keepalive().unwrap());
        }
    }
}
