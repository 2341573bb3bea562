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
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use super::{super::choice::Pace, Broken, restraint::Restraint};
use crate::{
    close_reason::Side,
    metrics::Meter,
    sys::{self, Pipe},
};

/// Bytes of a thread's scratch buffer.
const SCRATCH: usize = 32 * 1024;
/// So many full reads in a row make a direction bulk.
const BULK: u32 = 4;
/// Bytes asked of one splice: the size of a pipe.
const SPLICE: usize = 64 * 1024;
/// Splices before other connections get their turn.
const ROUNDS: u32 = 32;
/// Empty pipes that a thread keeps.
const POOLED: usize = 64;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
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
    /// The source has sent its FIN.
    ended: bool,
    /// Since [`Self::take_pace`].
    pace: Pace,
    restraint: Restraint,
}

#[derive(Debug)]
enum Mode {
    Copying { pending: Pending, full_reads: u32 },
    Splicing { pipe: Pipe, inside: usize },
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
    pub(super) fn new(collected: Vec<u8>, meter: Meter<'a>, restraint: Restraint) -> Self {
        let pending = Pending { bytes: collected, sent: 0 };
        Self {
            mode: Mode::Copying { pending, full_reads: 0 },
            meter,
            ended: false,
            pace: Pace::default(),
            restraint,
        }
    }

    /// Gives the direction up: another path has it from now on.
    pub(super) fn release(&mut self, source: &TcpStream, destination: &TcpStream) {
        self.restraint.lift(source, destination);
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
        loop {
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
                            self.restraint.taken(count, source.as_ref(), destination.as_ref());
                            Poll::Ready(())
                        }
                        Poll::Ready(Err(error)) => return Err(writing(error)),
                        Poll::Pending => Poll::Pending,
                    }
                }
                Mode::Copying { pending, full_reads } => {
                    let copied = BUFFER.with_borrow_mut(|buffer| {
                        let len = SCRATCH.min(self.restraint.read_limit());
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
                            let taken = count - pending.bytes.len();
                            self.meter.add(taken);
                            self.restraint.taken(taken, source.as_ref(), destination.as_ref());
                            *full_reads = if full { *full_reads + 1 } else { 0 };
                            self.pace.bytes += count as u64;
                            self.pace.pieces += 1;
                            self.pace.fell_behind |= !pending.bytes.is_empty();
                            if *full_reads >= BULK && pending.bytes.is_empty() {
                                // Without a pipe copying goes on.
                                *full_reads = 0;
                                if let Some(pipe) = take_pipe() {
                                    self.mode = Mode::Splicing { pipe, inside: 0 };
                                }
                            }
                            Poll::Ready(())
                        }
                        Poll::Ready(Err(Failed::Read(error))) => return Err(reading(error)),
                        Poll::Ready(Err(Failed::Write(error))) => return Err(writing(error)),
                        Poll::Pending => Poll::Pending,
                    }
                }
                Mode::Splicing { pipe, inside } => {
                    let (source, destination) = ((*source).as_ref(), (*destination).as_ref());
                    let taken = |count| {
                        self.pace.bytes += count as u64;
                        self.pace.pieces += 1;
                        self.meter.add(count);
                        self.restraint.taken(count, source, destination);
                    };
                    match splice(cx, source, destination, pipe, inside, &mut self.ended, taken) {
                        Ok(Spliced::Again) => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                        Ok(Spliced::Blocked) => {
                            self.pace.fell_behind = true;
                            Poll::Pending
                        }
                        Ok(Spliced::Dry) => {
                            if let Mode::Splicing { pipe, .. } = std::mem::take(&mut self.mode) {
                                put_pipe(pipe);
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

    /// Whether nothing that came waits to be sent.
    pub(super) fn is_empty(&self) -> bool {
        match &self.mode {
            Mode::Copying { pending, .. } => pending.rest().is_empty(),
            Mode::Splicing { inside, .. } => *inside == 0,
        }
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

enum Spliced {
    /// Others must have their turn.
    Again,
    /// One of the sockets is not ready; the waker knows.
    Blocked,
    /// Nothing to read, and the pipe is empty.
    Dry,
}

fn splice(
    cx: &mut Context<'_>,
    source: &TcpStream,
    destination: &TcpStream,
    pipe: &Pipe,
    inside: &mut usize,
    ended: &mut bool,
    mut taken: impl FnMut(usize),
) -> Result<Spliced, Failed> {
    for _ in 0..ROUNDS {
        if *inside == 0 {
            if *ended {
                return Ok(Spliced::Dry);
            }
            match source.try_io(Interest::READABLE, || sys::splice_in(source.as_fd(), pipe, SPLICE)) {
                Ok(0) => {
                    *ended = true;
                    return Ok(Spliced::Dry);
                }
                Ok(count) => *inside = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Spliced::Dry),
                Err(error) => return Err(Failed::Read(error)),
            }
        }
        match destination.try_io(Interest::WRITABLE, || sys::splice_out(pipe, destination.as_fd(), *inside)) {
            Ok(count) => {
                taken(count);
                *inside -= count.min(*inside);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return match destination.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(error)) => Err(Failed::Write(error)),
                    Poll::Pending => Ok(Spliced::Blocked),
                };
            }
            Err(error) => return Err(Failed::Write(error)),
        }
    }
    Ok(Spliced::Again)
}

fn take_pipe() -> Option<Pipe> {
    PIPES.with_borrow_mut(Vec::pop).or_else(|| Pipe::new().ok())
}

/// Keeps an empty pipe for the next.
fn put_pipe(pipe: Pipe) {
    PIPES.with_borrow_mut(|pipes| {
        if pipes.len() < POOLED {
            pipes.push(pipe);
        }
    });
}
