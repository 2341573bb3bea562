//! The userspace path: for flows that the kernel does not take, for machines without the privilege, and for the end
//! of every flow.
//!
//! It holds no buffer for an idle connection: a thread has one scratch buffer, and a direction keeps bytes only while
//! its destination cannot take them. A direction that turns out to be bulk goes through a pipe by splice(2).

mod ascent;
mod pipes;
mod pump;

use std::{
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::{
    buffers::Buffers,
    choice::{HandOver, Pace},
    holdings::Holding,
    legs::{self, Legs, is_read},
    silence::Silence,
    wire::{Offer, Taken, WireRefusal},
};
use crate::{
    account::{CloseReason, Counters, Side, Ticket},
    config::Timeouts,
};
pub(crate) use ascent::Lift;
use ascent::{Ascent, Step};
pub(crate) use pipes::allow as allow_pipes;
use pump::{Broken, Flowed, Pump};

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
    /// When to give the flow up to the kernel.
    pub(crate) hand_over: HandOver,
}

/// How relaying ended.
pub(crate) enum Ended {
    /// The connection is over.
    Closed(CloseReason),
    /// The flow may go to the kernel: client and upstream, with nothing of their streams in userspace, nor in their
    /// receive queues.
    Quiet([TcpStream; 2]),
    /// The flow is on the wire. Both connections are closed here.
    Wired(Offer),
}

/// Relays until both sides have finished, one breaks, nothing moves for too long, or the flow may go to the kernel,
/// or is on the wire, where there is a lift to it.
pub(crate) async fn relay(
    flow: Flow,
    ticket: &mut Ticket,
    timeouts: &Timeouts,
    counters: &Counters,
    lift: Option<Lift<'_>>,
) -> Ended {
    let Flow { client, upstream, first, collected, is_new, mut hand_over } = flow;
    // Dropped last: what is offered is taken back before its connections are closed.
    let mut legs = Legs::default();
    let [from_client, from_upstream] = collected;
    let buffers = || if is_new { Buffers::NEW } else { Buffers::RETURNED };
    let mut streams = Streams {
        out: Pump::new(from_client, counters.meter(Side::Client), buffers()),
        back: Pump::new(from_upstream, counters.meter(Side::Upstream), buffers()),
        first,
        finished: [false; 2],
        account: Holding::default(),
        is_known: is_new,
    };
    let timer = pin!(sleep(timeouts.idle));
    let mut silence = Silence::new(timer, timeouts, hand_over.period(), is_new);
    let mut ascent = Ascent::new(lift);
    let mut both = legs.hold(client, upstream);
    loop {
        match run(both, &mut streams, ticket, hand_over, &mut silence, &mut ascent).await {
            Ok(Over::Refused(refusal)) => {
                hand_over = lift.map_or(HandOver::Never, |lift| HandOver::after_wire(refusal, lift.without));
                silence.look_each(hand_over.period());
            }
            Ok(Over::Takeable) => match ascent.offer() {
                Some((offer, ahead)) => match offer.take(ahead).await {
                    Taken::Armed => match ascent.arrived() {
                        Some(offer) => return Ended::Wired(offer),
                        None => return Ended::Closed(CloseReason::InternalError),
                    },
                    // What comes of it is asked of the offer.
                    Taken::Busy | Taken::Refused(_) => ascent.busy(),
                    Taken::Lost => return Ended::Closed(CloseReason::InternalError),
                },
                None => return Ended::Closed(CloseReason::InternalError),
            },
            Ok(Over::Finished(reason)) => {
                drop(ascent);
                legs.close(silence.has_lasted());
                return Ended::Closed(reason);
            }
            // Dropped, both are reset: at least one stream has not ended.
            Ok(Over::Silent(reason)) => return Ended::Closed(reason),
            // Held until here.
            Ok(Over::Quiet) => {
                return legs.release().map_or(Ended::Closed(CloseReason::InternalError), Ended::Quiet);
            }
            Ok(Over::Deaf) => match legs.release().map(legs::register_anew) {
                Some(Ok([client, upstream])) => both = legs.hold(client, upstream),
                _ => return Ended::Closed(CloseReason::OutOfResources),
            },
            Err(Broken { side, error }) => return Ended::Closed(CloseReason::broken(side, &error)),
        }
    }
}

/// Both directions, and who has finished.
struct Streams<'a> {
    out: Pump<'a>,
    back: Pump<'a>,
    first: Option<Side>,
    finished: [bool; 2],
    account: Holding,
    /// Whether the flow holds nothing but what it is accounted for.
    is_known: bool,
}

enum Over {
    /// Both streams have ended.
    Finished(CloseReason),
    /// Nothing has moved for too long, or others need the memory.
    Silent(CloseReason),
    Quiet,
    /// The flow can be put on the wire in this moment.
    Takeable,
    /// The wire does not take it.
    Refused(WireRefusal),
    /// Bytes wait of which the runtime was not told.
    Deaf,
}

async fn run(
    [client, upstream]: &mut [TcpStream; 2],
    Streams { out, back, first, finished, account, is_known }: &mut Streams<'_>,
    ticket: &mut Ticket,
    hand_over: HandOver,
    silence: &mut Silence<'_>,
    ascent: &mut Ascent<'_>,
) -> Result<Over, Broken> {
    let (mut client_read, mut client_write) = client.split();
    let (mut upstream_read, mut upstream_write) = upstream.split();
    let mut watched_since = Instant::now();
    let mut has_moved = false;
    let mut is_due = hand_over.is_due(Pace::default(), Duration::ZERO);
    poll_fn(|cx| {
        let mut any_moved = false;
        for side in [Side::Client, Side::Upstream] {
            // What is held is forwarded by the ascent.
            if finished[side.index()] || ascent.is_holding() {
                continue;
            }
            let before = out.moved() + back.moved();
            let flowed = match side {
                Side::Client => out.poll(cx, side, &mut client_read, &mut upstream_write),
                Side::Upstream => back.poll(cx, side, &mut upstream_read, &mut client_write),
            };
            ticket.moved(side, out.moved() + back.moved() - before);
            match flowed? {
                Flowed::Waits { moved } => any_moved |= moved,
                Flowed::Finished => {
                    first.get_or_insert(side);
                    finished[side.index()] = true;
                    silence.half_closed();
                }
            }
        }
        let whole = out.is_empty() && back.is_empty();
        silence.both_wait(!out.is_empty() && !back.is_empty());
        has_moved |= any_moved;
        if *finished == [true; 2] {
            let reason = CloseReason::finished(first.unwrap_or(Side::Client));
            return Poll::Ready(Ok(Over::Finished(reason)));
        }
        let legs = [client_read.as_ref(), upstream_read.as_ref()];
        let (moved, allowance) = (out.moved() + back.moved(), out.allowance() + back.allowance());
        let held = || out.held() + back.held() + legs::held(legs);
        if !std::mem::replace(is_known, true) {
            // What another path left.
            account.open(cx, moved, held());
        }
        if account.note(cx, moved, allowance) {
            return Poll::Ready(Ok(Over::Silent(CloseReason::MemoryPressure)));
        }
        silence.look_often(account.is_open());
        if let Poll::Ready(reason) = silence.poll(cx, any_moved, legs) {
            return Poll::Ready(Ok(Over::Silent(reason)));
        }
        let fired = silence.take_fired();
        if fired {
            account.look(held(), allowance);
            silence.look_often(account.is_open());
        }
        if fired && !std::mem::take(&mut has_moved) && !out.is_empty() && !back.is_empty() {
            tracing::debug!("neither side of a flow takes anything");
            out.relieve(legs[0]);
            back.relieve(legs[1]);
        }
        if let Some(period) = hand_over.period()
            && fired
        {
            let now = Instant::now();
            let time = now - watched_since;
            if time >= period {
                watched_since = now;
                let pace = out.take_pace().and(back.take_pace());
                is_due = hand_over.is_due(pace, time);
                // A read that found nothing, although there was something, has used up the event that tells of it.
                if pace.bytes == 0 && whole && !legs.iter().all(|leg| is_read(leg)) {
                    return Poll::Ready(Ok(Over::Deaf));
                }
            }
        }
        if !ascent.is_over() {
            // What is on its way when the tap is closed must fit into what is held.
            out.stay_near();
            back.stay_near();
            let legs = [client_read.as_ref(), upstream_read.as_ref()];
            if *finished != [false; 2] {
                ascent.give_up(legs);
            } else if silence.has_lasted() {
                match ascent.step(cx, whole, legs, ticket) {
                    Step::Stay => {}
                    Step::Take => return Poll::Ready(Ok(Over::Takeable)),
                    Step::Refused(refusal) => return Poll::Ready(Ok(Over::Refused(refusal))),
                }
            }
        }
        // Not what a read found last: it may have found nothing for other reasons, such as its share of this turn.
        if is_due && *finished == [false; 2] && whole && legs.iter().all(|leg| is_read(leg)) {
            silence.watch_now(legs);
            out.release(legs[0], legs[1]);
            back.release(legs[1], legs[0]);
            return Poll::Ready(Ok(Over::Quiet));
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use socket2::SockRef;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        config::{PathChoice, testing::TIMEOUTS},
        sys,
    };

    /// The two ends of a connection.
    pub(super) async fn pair() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        [peer, listener.accept().await.unwrap().0]
    }

    #[tokio::test]
    async fn a_quiet_flow_leaves_with_buffers_that_grow() {
        let [mut phone, client] = pair().await;
        let [mut server, upstream] = pair().await;
        let unsent = |socket: &TcpStream| SockRef::from(socket).tcp_notsent_lowat().unwrap();
        let before = unsent(&upstream);
        let collected = Default::default();
        let hand_over = HandOver::of_new(PathChoice::Auto, false);
        let flow = Flow { client, upstream, first: None, collected, is_new: true, hand_over };
        let counters = Arc::<Counters>::default();
        let peers = async {
            // More than is moved before buffers are held, less than lets them go.
            let mut bytes = vec![7; 64 * 1024];
            phone.write_all(&bytes).await.unwrap();
            server.read_exact(&mut bytes).await.unwrap();
        };
        let mut ticket = Ticket::new(counters.clone(), counters.listener("test"));
        let (ended, ()) = tokio::join!(relay(flow, &mut ticket, &TIMEOUTS, &counters, None), peers);
        let Ended::Quiet([client, upstream]) = ended else { panic!("it did not leave") };
        assert_eq!(unsent(&upstream), before);
        assert!(!sys::testing::is_receive_buffer_locked(&client));
        for leg in [&client, &upstream] {
            assert!(SockRef::from(leg).keepalive().unwrap());
        }
    }
}
