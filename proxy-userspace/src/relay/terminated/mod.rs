//! The relay of a client whose TLS ends here: records on its leg, plaintext on the upstream's.
//!
//! One task for both directions. An idle flow holds no buffer: what is read lies in the thread's scratch memory until it
//! is written, and only what the destination does not take is kept, and then nothing is read for it.
//!
//! ```text
//!  client                          upstream
//!  close_notify ─────────────────▶ FIN
//!  FIN without it (cut off?) ────▶ FIN, counted as `client_truncated`
//!  close_notify, FIN ◀──────────── FIN
//!  RST ──────────────────────────▶ RST
//!  RST ◀────────────────────────── RST
//!  not TLS: alert, FIN ◀─ setu ──▶ RST
//! ```

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use tokio::{
    io::AsyncWrite as _,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::sleep,
};

use super::{
    buffers::Buffers,
    holdings::Holding,
    legs::{self, Legs, close_in_order, reset_on_close},
    silence::Silence,
};
use crate::{
    account::{CloseReason, Counters, Meter, Side, Ticket},
    config::Timeouts,
    front::tls::{End, ForwardError, Received, Session, SessionError, Terminated, let_go},
};

/// Reads before other connections get their turn.
const ROUNDS: u32 = 8;

/// Relays until both sides have finished, one breaks, or nothing moves for too long. What the client has sent already
/// goes first.
pub(crate) async fn relay(
    terminated: Terminated,
    upstream: TcpStream,
    ticket: &mut Ticket,
    timeouts: &Timeouts,
    counters: &Counters,
) -> CloseReason {
    let Terminated { stream: client, mut session, first, end } = terminated;
    let mut legs = Legs::default();
    let [client, upstream] = legs.hold(client, upstream);
    let inward =
        Inward { pending: first, end, meter: counters.meter(Side::Client), moved: 0, buffers: Buffers::NEW };
    let outward =
        Outward { closing: false, meter: counters.meter(Side::Upstream), moved: 0, buffers: Buffers::NEW };
    let timer = pin!(sleep(timeouts.idle));
    let mut silence = Silence::new(timer, timeouts, None, true);
    match run(client, &mut session, inward, outward, upstream, ticket, &mut silence).await {
        Ok(Over::Finished(reason)) => {
            legs.close(silence.has_lasted());
            reason
        }
        // Dropped, both are reset: a side must not take that for the end of the other's stream.
        Ok(Over::Silent(reason)) => reason,
        Err(Broken::Client(error)) => CloseReason::broken(Side::Client, &error),
        Err(Broken::Upstream(error)) => CloseReason::broken(Side::Upstream, &error),
        Err(Broken::Tls(error)) => {
            tracing::debug!(%error, "a client broke its TLS");
            // The client is told in its own words.
            let_go(client).await;
            if let Some([client, upstream]) = legs.release() {
                close_in_order(client);
                reset_on_close(&upstream);
            }
            CloseReason::TlsBroken
        }
    }
}

enum Over {
    /// Both streams have ended.
    Finished(CloseReason),
    /// Nothing has moved for too long, or others need the memory.
    Silent(CloseReason),
}

enum Broken {
    Client(io::Error),
    Upstream(io::Error),
    Tls(rustls::Error),
}

impl From<SessionError> for Broken {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Socket(error) => Self::Client(error),
            SessionError::Protocol(error) => Self::Tls(error),
        }
    }
}

impl From<ForwardError> for Broken {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Upstream(error) => Self::Upstream(error),
            ForwardError::Client(error) => error.into(),
        }
    }
}

async fn run(
    client: &mut TcpStream,
    session: &mut Session,
    mut inward: Inward<'_>,
    mut outward: Outward<'_>,
    upstream: &mut TcpStream,
    ticket: &mut Ticket,
    silence: &mut Silence<'_>,
) -> Result<Over, Broken> {
    let (mut client_read, mut client_write) = client.split();
    let (mut upstream_read, mut upstream_write) = upstream.split();
    let mut finished = [false; 2];
    let mut reason = None;
    let mut account = Holding::default();
    poll_fn(|cx| {
        let mut any_moved = false;
        for side in [Side::Client, Side::Upstream] {
            if finished[side.index()] {
                continue;
            }
            let before = inward.moved + outward.moved;
            let flowed = match side {
                Side::Client => {
                    inward.poll(cx, session, &mut client_read, &mut client_write, &mut upstream_write)
                }
                Side::Upstream => outward.poll(cx, session, &mut upstream_read, &mut client_write),
            };
            ticket.moved(side, inward.moved + outward.moved - before);
            match flowed? {
                Flowed::Waits { moved } => any_moved |= moved,
                Flowed::Finished => {
                    finished[side.index()] = true;
                    let truncated = side == Side::Client && inward.end == Some(End::Truncated);
                    let end =
                        if truncated { CloseReason::ClientTruncated } else { CloseReason::finished(side) };
                    reason.get_or_insert(end);
                    silence.half_closed();
                }
            }
        }
        if finished == [true; 2] {
            return Poll::Ready(Ok(Over::Finished(reason.unwrap_or(CloseReason::InternalError))));
        }
        let legs = [client_read.as_ref(), upstream_read.as_ref()];
        let allowance = inward.buffers.allowance() + outward.buffers.allowance();
        if account.note(cx, inward.moved + outward.moved, allowance) {
            return Poll::Ready(Ok(Over::Silent(CloseReason::MemoryPressure)));
        }
        silence.look_often(account.is_open());
        if let Poll::Ready(reason) = silence.poll(cx, any_moved, legs) {
            return Poll::Ready(Ok(Over::Silent(reason)));
        }
        if silence.take_fired() {
            let own = inward.pending.capacity() as u64 + session.held();
            account.look(own + legs::held(legs), allowance);
            silence.look_often(account.is_open());
        }
        Poll::Pending
    })
    .await
}

/// What came of a poll.
enum Flowed {
    /// Nothing more to do until woken.
    Waits {
        /// Whether bytes were moved before that.
        moved: bool,
    },
    /// The source's end was forwarded, after all its bytes.
    Finished,
}

/// From the client to the upstream.
struct Inward<'a> {
    /// Plaintext that the upstream has not taken yet.
    pending: Vec<u8>,
    end: Option<End>,
    meter: Meter<'a>,
    /// Bytes that the upstream has taken in all.
    moved: u64,
    buffers: Buffers,
}

impl Inward<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        source: &mut ReadHalf<'_>,
        answers: &mut WriteHalf<'_>,
        destination: &mut WriteHalf<'_>,
    ) -> Result<Flowed, Broken> {
        let mut moved = false;
        for _ in 0..ROUNDS {
            if !self.pending.is_empty() {
                match Pin::new(&mut *destination).poll_write(cx, &self.pending) {
                    Poll::Ready(Ok(count)) => {
                        self.pending.drain(..count);
                        self.meter.add(count);
                        self.moved += count as u64;
                        self.buffers.taken(count, source.as_ref(), destination.as_ref());
                        moved = true;
                        if self.pending.is_empty() {
                            // An idle direction holds no buffer.
                            self.pending = Vec::new();
                        }
                        continue;
                    }
                    Poll::Ready(Err(error)) => return Err(Broken::Upstream(error)),
                    Poll::Pending => return Ok(Flowed::Waits { moved }),
                }
            }
            if self.end.is_some() {
                return match Pin::new(&mut *destination).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => Ok(Flowed::Finished),
                    Poll::Ready(Err(error)) => Err(Broken::Upstream(error)),
                    Poll::Pending => Ok(Flowed::Waits { moved }),
                };
            }
            let (pending, meter) = (&mut self.pending, &mut self.meter);
            let mut written = Ok(());
            let mut moved_now = 0;
            let received = session.poll_receive(cx, source, answers, |cx, plaintext| {
                let taken = match Pin::new(&mut *destination).poll_write(cx, plaintext) {
                    Poll::Ready(Ok(taken)) => taken,
                    Poll::Ready(Err(error)) => {
                        written = Err(error);
                        return;
                    }
                    Poll::Pending => 0,
                };
                meter.add(taken);
                moved_now += taken;
                pending.extend_from_slice(&plaintext[taken..]);
            });
            written.map_err(Broken::Upstream)?;
            self.moved += moved_now as u64;
            self.buffers.taken(moved_now, source.as_ref(), destination.as_ref());
            match received {
                Poll::Ready(Ok(Received::Some)) => moved = true,
                Poll::Ready(Ok(Received::Last(end))) => self.end = Some(end),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(Flowed::Waits { moved }),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Flowed::Waits { moved })
    }
}

/// From the upstream to the client. Its pending bytes are the session's.
struct Outward<'a> {
    /// The upstream has sent its FIN, and the client's `close_notify` is written or waits.
    closing: bool,
    /// Of plaintext that was made into records.
    meter: Meter<'a>,
    /// Bytes of it in all.
    moved: u64,
    buffers: Buffers,
}

impl Outward<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        source: &mut ReadHalf<'_>,
        destination: &mut WriteHalf<'_>,
    ) -> Result<Flowed, Broken> {
        let mut moved = false;
        for _ in 0..ROUNDS {
            if session.is_blocked() {
                match session.poll_flush(cx, destination) {
                    Poll::Ready(Ok(())) => moved = true,
                    Poll::Ready(Err(error)) => return Err(Broken::Client(error)),
                    Poll::Pending => return Ok(Flowed::Waits { moved }),
                }
            }
            if self.closing {
                return match Pin::new(&mut *destination).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => Ok(Flowed::Finished),
                    Poll::Ready(Err(error)) => Err(Broken::Client(error)),
                    Poll::Pending => Ok(Flowed::Waits { moved }),
                };
            }
            match session.poll_forward(cx, source, destination) {
                Poll::Ready(Ok(0)) => {
                    session.close(cx, destination)?;
                    self.closing = true;
                }
                Poll::Ready(Ok(count)) => {
                    self.meter.add(count);
                    self.moved += count as u64;
                    self.buffers.taken(count, source.as_ref(), destination.as_ref());
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(Flowed::Waits { moved }),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Flowed::Waits { moved })
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
