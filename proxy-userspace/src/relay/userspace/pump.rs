//! One direction of a flow in userspace.
//!
//! ```text
//!  Copying ── several full reads in a row ──▶ Splicing ── the pipe runs dry ──▶ Copying
//!     │ the destination takes no more            │
//!     ▼                                          ▼
//!  bytes wait in `pending`                    bytes wait in the pipe
//! ```
//! While bytes wait nothing is read: that is the backpressure. A flow that left the kernel begins with bytes that wait.

use std::{
    cell::RefCell,
    io,
    os::fd::AsFd as _,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use super::{
    super::{buffers::Buffers, choice::Pace},
    pipes::{self, CAPACITY, Pipe},
};
use crate::{
    account::{Meter, Side},
    sys,
};

/// Bytes of a thread's scratch buffer.
const SCRATCH: usize = 32 * 1024;
/// See [`Pump::relieve`].
const RELIEF_PART: usize = 8;
/// So many full reads in a row make a direction bulk.
const BULK: u32 = 4;
/// Bytes that a direction moves before other connections get their turn.
const TURN: usize = 128 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// A leg that failed.
pub(super) struct Broken {
    pub(super) side: Side,
    pub(super) error: io::Error,
}

/// What came of a poll.
pub(super) enum Flowed {
    /// Nothing more to do until woken.
    Waits {
        /// Whether bytes were moved before that.
        moved: bool,
    },
    /// The source's FIN was forwarded, after all its bytes.
    Finished,
}

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Pump<'a> {
    mode: Mode,
    /// Of what the destination took.
    meter: Meter<'a>,
    /// Bytes that it took in all.
    moved: u64,
    /// The source has sent its FIN.
    ended: bool,
    /// Since [`Self::take_pace`].
    pace: Pace,
    buffers: Buffers,
}

#[derive(Debug)]
enum Mode {
    Copying {
        pending: Pending,
        full_reads: u32,
    },
    /// `after` is what was read of the source meanwhile, see [`Pump::relieve`].
    Splicing {
        pipe: Pipe,
        inside: usize,
        after: Vec<u8>,
    },
}

impl Default for Mode {
    fn default() -> Self {
        Self::Copying { pending: Pending::default(), full_reads: 0 }
    }
}

/// Bytes that wait for the destination.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.rest().is_empty() {
            // An idle direction holds no buffer.
            *self = Self::default();
        }
    }
}

impl<'a> Pump<'a> {
    /// A direction whose destination is to get these bytes first.
    pub(super) fn new(collected: Vec<u8>, meter: Meter<'a>, buffers: Buffers) -> Self {
        let pending = Pending { bytes: collected, sent: 0 };
        Self {
            mode: Mode::Copying { pending, full_reads: 0 },
            meter,
            moved: 0,
            ended: false,
            pace: Pace::default(),
            buffers,
        }
    }

    /// See [`Buffers::stay_near`].
    pub(super) fn stay_near(&mut self) {
        self.buffers.stay_near();
    }

    /// Gives the direction up: another path has it from now on.
    pub(super) fn release(&mut self, source: &TcpStream, destination: &TcpStream) {
        self.buffers.release(source, destination);
    }

    /// What was moved since this was asked last.
    pub(super) fn take_pace(&mut self) -> Pace {
        std::mem::take(&mut self.pace)
    }

    /// Moves what can be moved. `from` names the source for errors.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: Side,
        source: &mut ReadHalf<'_>,
        destination: &mut WriteHalf<'_>,
    ) -> Result<Flowed, Broken> {
        let reading = |error| Broken { side: from, error };
        let writing = |error| Broken { side: from.other(), error };
        let mut moved = false;
        let mut turn = TURN;
        loop {
            if turn == 0 {
                next_turn(cx);
                return Ok(Flowed::Waits { moved });
            }
            if self.ended && self.is_empty() {
                return match Pin::new(destination).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => Ok(Flowed::Finished),
                    // The FIN cannot be sent because the connection is gone.
                    Poll::Ready(Err(error)) => Err(writing(error)),
                    Poll::Pending => Ok(Flowed::Waits { moved }),
                };
            }
            let progress = match &mut self.mode {
                Mode::Copying { pending, .. } if !pending.rest().is_empty() => {
                    match Pin::new(&mut *destination).poll_write(cx, pending.rest()) {
                        Poll::Ready(Ok(count)) => {
                            pending.advance(count);
                            self.meter.add(count);
                            self.moved += count as u64;
                            self.buffers.taken(count, source.as_ref(), destination.as_ref());
                            Poll::Ready(())
                        }
                        Poll::Ready(Err(error)) => return Err(writing(error)),
                        Poll::Pending => Poll::Pending,
                    }
                }
                Mode::Copying { pending, full_reads } => {
                    let copied = BUFFER.with_borrow_mut(|buffer| {
                        let len = SCRATCH.min(self.buffers.read_limit());
                        let buffer = &mut buffer[..len];
                        copy(cx, source, destination, buffer, &mut pending.bytes)
                            .map_ok(|count| (count, count == buffer.len()))
                    });
                    match copied {
                        Poll::Ready(Ok((0, _))) => {
                            self.ended = true;
                            Poll::Ready(())
                        }
                        Poll::Ready(Ok((count, full))) => {
                            turn = turn.saturating_sub(count);
                            let taken = count - pending.bytes.len();
                            self.meter.add(taken);
                            self.moved += taken as u64;
                            self.buffers.taken(taken, source.as_ref(), destination.as_ref());
                            *full_reads = if full { *full_reads + 1 } else { 0 };
                            self.pace.bytes += count as u64;
                            self.pace.pieces += 1;
                            self.pace.fell_behind |= !pending.bytes.is_empty();
                            if *full_reads >= BULK && pending.bytes.is_empty() {
                                // Without a pipe copying goes on.
                                *full_reads = 0;
                                if let Some(pipe) = pipes::take() {
                                    self.mode = Mode::Splicing { pipe, inside: 0, after: Vec::new() };
                                }
                            }
                            Poll::Ready(())
                        }
                        Poll::Ready(Err(Failed::Read(error))) => return Err(reading(error)),
                        Poll::Ready(Err(Failed::Write(error))) => return Err(writing(error)),
                        Poll::Pending => Poll::Pending,
                    }
                }
                Mode::Splicing { inside: 0, after, .. } if !after.is_empty() => {
                    let pending = Pending { bytes: std::mem::take(after), sent: 0 };
                    let copying = Mode::Copying { pending, full_reads: 0 };
                    if let Mode::Splicing { pipe, .. } = std::mem::replace(&mut self.mode, copying) {
                        pipe.put_back();
                    }
                    Poll::Ready(())
                }
                Mode::Splicing { pipe, inside, .. } => {
                    let (source, destination) = ((*source).as_ref(), (*destination).as_ref());
                    let taken = |count| {
                        self.pace.bytes += count as u64;
                        self.pace.pieces += 1;
                        turn = turn.saturating_sub(count);
                        self.meter.add(count);
                        self.moved += count as u64;
                        self.buffers.taken(count, source, destination);
                    };
                    match splice(cx, source, destination, pipe, inside, &mut self.ended, taken) {
                        Ok(Spliced::Some) => Poll::Ready(()),
                        Ok(Spliced::Blocked) => {
                            self.pace.fell_behind = true;
                            Poll::Pending
                        }
                        Ok(Spliced::Dry) => {
                            // Urgent data stops a splice (`tcp_read_sock`, net/ipv4/tcp.c), not what reads.
                            let pending = Pending { bytes: take_waiting(source), sent: 0 };
                            let copying = Mode::Copying { pending, full_reads: 0 };
                            if let Mode::Splicing { pipe, .. } = std::mem::replace(&mut self.mode, copying) {
                                pipe.put_back();
                            }
                            Poll::Ready(())
                        }
                        Err(Failed::Read(error)) => return Err(reading(error)),
                        Err(Failed::Write(error)) => return Err(writing(error)),
                    }
                }
            };
            if progress.is_pending() {
                return Ok(Flowed::Waits { moved });
            }
            moved = true;
        }
    }

    /// Bytes that the destination has taken in all.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes that the direction may come to hold.
    pub(super) fn allowance(&self) -> u64 {
        self.buffers.allowance()
    }

    /// Bytes that it holds besides what its sockets do.
    pub(super) fn held(&self) -> u64 {
        let held = match &self.mode {
            Mode::Copying { pending, .. } => pending.bytes.capacity(),
            Mode::Splicing { inside, after, .. } => *inside + after.capacity(),
        };
        held as u64
    }

    /// Whether nothing that came waits to be sent.
    pub(super) fn is_empty(&self) -> bool {
        match &self.mode {
            Mode::Copying { pending, .. } => pending.rest().is_empty(),
            Mode::Splicing { inside, after, .. } => *inside == 0 && after.is_empty(),
        }
    }

    /// Reads on although the destination takes nothing, each time an eighth of what the receive buffer may hold, and all of
    /// that at most: the kernel offers the source room again when a sixteenth is free (`__tcp_select_window`,
    /// net/ipv4/tcp_output.c), but the buffer may hold more than it may.
    ///
    /// For a flow of which neither direction moves. Where many small segments fill a receive buffer the kernel takes back
    /// room that it has offered (`tcp_select_window`, `ICSK_ACK_NOMEM`); the peer has sent beyond it and goes on from there,
    /// so that its acknowledgements are refused as out of the window (`tcp_acceptable_seq`, `tcp_sequence`), and with those
    /// what this side has sent is never acknowledged. A relay that waits for room on both sides waits for ever.
    pub(super) fn relieve(&mut self, source: &TcpStream) {
        let Ok(size) = SockRef::from(source).recv_buffer_size() else { return };
        let held = match &mut self.mode {
            Mode::Copying { pending, .. } => {
                pending.bytes.drain(..std::mem::take(&mut pending.sent));
                &mut pending.bytes
            }
            Mode::Splicing { after, .. } => after,
        };
        let most = (held.len() + size / RELIEF_PART).min(size).max(SCRATCH);
        BUFFER.with_borrow_mut(|buffer| {
            while held.len() < most {
                // An error, or an end, is met again when the flow goes on.
                let Ok(count @ 1..) = sys::receive(source.as_fd(), buffer) else { return };
                held.extend_from_slice(&buffer[..count]);
                self.pace.bytes += count as u64;
            }
        });
    }
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}

/// Reads once and writes what was read; what the destination does not take goes to `pending`.
fn copy(
    cx: &mut Context<'_>,
    source: &mut ReadHalf<'_>,
    destination: &mut WriteHalf<'_>,
    buffer: &mut [u8],
    pending: &mut Vec<u8>,
) -> Poll<Result<usize, Failed>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(source).poll_read(cx, &mut buffer)).map_err(Failed::Read)?;
    let bytes = buffer.filled();
    if bytes.is_empty() {
        return Poll::Ready(Ok(0));
    }
    let taken = match Pin::new(destination).poll_write(cx, bytes) {
        Poll::Ready(taken) => taken.map_err(Failed::Write)?,
        Poll::Pending => 0,
    };
    pending.extend_from_slice(&bytes[taken..]);
    Poll::Ready(Ok(bytes.len()))
}

/// Reads what is there, at most a scratch buffer full. The runtime may think that there is nothing.
fn take_waiting(source: &TcpStream) -> Vec<u8> {
    if !matches!(sys::queued(source.as_fd()), Ok(1..)) {
        return Vec::new();
    }
    // An error, or an end, is met again by the next read.
    BUFFER.with_borrow_mut(|buffer| match sys::receive(source.as_fd(), buffer) {
        Ok(count) => buffer[..count].to_vec(),
        Err(_) => Vec::new(),
    })
}

enum Spliced {
    /// Bytes were moved, and there may be more.
    Some,
    /// One of the sockets is not ready; the waker knows.
    Blocked,
    /// Nothing to read, and the pipe is empty.
    Dry,
}

/// Fills the pipe if it is empty, and empties it as far as the destination takes it.
fn splice(
    cx: &mut Context<'_>,
    source: &TcpStream,
    destination: &TcpStream,
    pipe: &Pipe,
    inside: &mut usize,
    ended: &mut bool,
    mut taken: impl FnMut(usize),
) -> Result<Spliced, Failed> {
    if *inside == 0 {
        if *ended {
            return Ok(Spliced::Dry);
        }
        match source.try_io(Interest::READABLE, || sys::splice_in(source.as_fd(), &pipe.ends, CAPACITY)) {
            Ok(0) => {
                *ended = true;
                return Ok(Spliced::Dry);
            }
            Ok(count) => *inside = count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Spliced::Dry),
            Err(error) => return Err(Failed::Read(error)),
        }
    }
    loop {
        match destination
            .try_io(Interest::WRITABLE, || sys::splice_out(&pipe.ends, destination.as_fd(), *inside))
        {
            Ok(count) => {
                taken(count);
                *inside -= count.min(*inside);
                return Ok(Spliced::Some);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match destination.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Err(Failed::Write(error)),
                    Poll::Pending => return Ok(Spliced::Blocked),
                }
            }
            Err(error) => return Err(Failed::Write(error)),
        }
    }
}

/// Lets everything else that is ready have its turn before this task, also what the network has made ready meanwhile: a
/// task that only wakes itself would have its next turn before the runtime looks.
fn next_turn(cx: &mut Context<'_>) {
    // It wakes the task after the runtime has looked.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::{super::tests::pair, *};
    use crate::account::Counters;

    /// One turn moves so much at most, by splice or, without pipes, by copying.
    #[tokio::test]
    async fn a_turn_ends_and_the_next_one_comes() {
        const SENT: usize = 3 * TURN / 2 + 2 * CAPACITY;
        for pipes in [0, 4] {
            pipes::allow(pipes);
            let [mut sender, mut source] = pair().await;
            let [mut destination, mut peer] = pair().await;
            for socket in [&source, &peer] {
                // All of it fits, so that nothing but the turn stops the direction.
                SockRef::from(socket).set_recv_buffer_size(2 * SENT).unwrap();
            }
            for socket in [&sender, &destination] {
                SockRef::from(socket).set_send_buffer_size(2 * SENT).unwrap();
            }
            sender.write_all(&[7; SENT]).await.unwrap();
            while sys::queued(source.as_fd()).unwrap() < SENT as u64 {
                tokio::task::yield_now().await;
            }
            let counters = Counters::default();
            let mut pump = Pump::new(Vec::new(), counters.meter(Side::Client), Buffers::Final);
            let written = |socket: &TcpStream| {
                let unacknowledged = sys::unacknowledged(socket.as_fd()).unwrap();
                sys::tcp_info(socket.as_fd()).unwrap().written(unacknowledged) as usize
            };
            let (mut source, mut destination) = (source.split().0, destination.split().1);
            let mut turns = Vec::new();
            poll_fn(|cx| {
                let before = written(destination.as_ref());
                let flowed = pump.poll(cx, Side::Client, &mut source, &mut destination);
                assert!(matches!(flowed, Ok(Flowed::Waits { .. })));
                turns.push(written(destination.as_ref()) - before);
                if written(destination.as_ref()) < SENT { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            assert!(turns.iter().all(|turn| *turn < TURN + CAPACITY), "{turns:?}");
            assert!(turns.len() > 1, "{turns:?}");
            let mut bytes = vec![0; SENT];
            peer.read_exact(&mut bytes).await.unwrap();
        }
    }
    /// Pipes and buffers may hold bytes when more is read: order stays.
    #[tokio::test]
    async fn what_relieves_a_source_is_sent_in_its_place() {
        const LEN: usize = 8 << 20;
        for first in [0, 1_000_000] {
            let ([mut sender, mut source], [mut destination, mut peer]) = (pair().await, pair().await);
            let sent: Vec<u8> = (0..LEN).map(|at| (at % 65_521 * 31 % 251) as u8).collect();
            let counters = Counters::default();
            let mut pump = Pump::new(sent[..first].to_vec(), counters.meter(Side::Client), Buffers::Final);
            let (mut source, mut destination) = (source.split().0, destination.split().1);
            let feed = async { sender.write_all(&sent[first..]).await.unwrap() };
            let relay = async {
                // Until nothing moves any more.
                while tokio::time::timeout(
                    Duration::from_millis(300),
                    poll_fn(|cx| match pump.poll(cx, Side::Client, &mut source, &mut destination) {
                        Ok(Flowed::Waits { moved: true }) => Poll::Ready(()),
                        Ok(Flowed::Waits { moved: false }) => Poll::Pending,
                        _ => panic!("it ended"),
                    }),
                )
                .await
                .is_ok()
                {}
                assert!(!pump.is_empty());
                let size = SockRef::from(source.as_ref()).recv_buffer_size().unwrap();
                pump.take_pace();
                for _ in 0..3 * RELIEF_PART {
                    pump.relieve(source.as_ref());
                }
                let relieved = pump.take_pace().bytes as usize;
                assert!((1..size.max(SCRATCH) + SCRATCH).contains(&relieved), "{relieved} of {size}");
                let mut got = vec![0; LEN];
                let pumping = poll_fn(|cx| {
                    assert!(pump.poll(cx, Side::Client, &mut source, &mut destination).is_ok());
                    Poll::<()>::Pending
                });
                tokio::select! {
                    () = pumping => {}
                    read = peer.read_exact(&mut got) => { read.unwrap(); }
                }
                assert!(got == sent);
            };
            tokio::join!(feed, relay);
        }
    }
}
