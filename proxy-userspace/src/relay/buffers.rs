//! How much the sockets of a direction may hold.
//!
//! The kernel lets buffers grow with what moves through them, whether or not anybody reads at the end: a reader that
//! stalls would cost megabytes. Bytes on their way to the destination's peer cost nothing for long, because its kernel
//! has offered room for them. What stays is what setu wrote and the kernel has not sent, which is bounded for good, and
//! what the source's receive buffer takes:
//!
//! ```text
//!  Initial ── 16 KiB have moved ──▶ Locked ── the reader reads ──▶ Growing ── its cap is reached ──▶ Final
//!     as the kernel made it         at that size     │ a near source: its cap is set at once           ▲
//!                                                    └────────────────────────────────────────────────┘
//! ```
//! A near source's reader that is very fast for long gets buffers as the kernel would tune them, for which there is a
//! bounded number of places: such a stream costs more processor time through small ones.
//!
//! That a reader reads shows in the window that its kernel offers: without reading it ends where its first buffer does.

use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::holdings;
use crate::sys::{self, TcpInfo};

/// Bytes that have moved when a direction is limited, and bytes to read at once until then. The receive buffer grows
/// when more is read than the sender's first window (`tcp_rcv_space_adjust`, net/ipv4/tcp_input.c).
const FIRST: usize = 16 * 1024;
/// Bytes that may wait in the destination's send buffer, besides those on their way and one segment of up to 64 KiB, before
/// its peer has read.
const UNSENT_FIRST: u32 = 128 * 1024;
/// The same afterwards.
const UNSENT: u32 = 256 * 1024;
/// Bytes to move before a locked buffer's reader is looked at again: a small part of what a sender's windows grow by.
const LOOK: usize = 16 * 1024;
/// Bytes to move before the size of a growing buffer is looked at again.
const LOOK_GROWING: usize = 64 * 1024;
/// A source is near below this round trip.
const NEAR: Duration = Duration::from_millis(1);
/// How far into its stream the peer of a destination has offered room, in bytes, when it must have read. Linux has a first
/// buffer of 128 KiB, of which it offers less (`tcp_select_initial_window`, net/ipv4/tcp_output.c).
const READS: u64 = 128 * 1024;
/// The same when the source is far: a sender must not be held up for a round trip to know better. In packets of 1,500
/// bytes Linux offers at most 90 KiB of its first buffer.
const READS_FAR: u64 = 96 * 1024;
/// So much of that must have been acknowledged.
const ACKNOWLEDGED: u64 = 32 * 1024;
/// The receive buffer that is enough for a near source, bytes.
const CAP: usize = 384 * 1024;
/// What a direction may come to hold before anybody looks, bytes: what its sockets and a pipe take, with the kernel's
/// overhead. As it begins...
const HOLDS_FIRST: u64 = 64 * 1024;
/// ... with a locked buffer of the size that the kernel gives one ...
const HOLDS_LOCKED: u64 = 384 * 1024;
/// ... with larger ones ...
const HOLDS: u64 = 1 << 20;
/// ... and as the kernel would tune them for a near source.
const HOLDS_FAST: u64 = 8 << 20;
/// A stream is fast that moves [`FAST`] bytes in [`FAST_TIME`] at most: 4 Gbit/s.
///
/// So long that a stream is it not only while others have not begun.
const FAST: usize = 128 << 20;
const FAST_TIME: Duration = Duration::from_millis(268);
/// And only while there are no more streams than these: what several share, each may lose at any time.
const ALONE: usize = 2;
/// So many streams may have large buffers because they are fast, or were.
const PLACES: usize = 4;
/// A source that is far has this more for each second of its round trip: what two streams of 1 Gbit/s have on their way,
/// for the kernel counts a buffer's memory, of which up to a half is overhead.
const CAP_RATE: u64 = 2 * 125_000_000;

/// The buffers of one direction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Buffers {
    /// As the kernel made them, or another path left them.
    Initial { moved: usize, is_new: bool },
    /// The source's receive buffer does not grow. The destination's peer had acknowledged `base` bytes before.
    Locked { unseen: usize, base: u64 },
    /// It grows, and is locked when it has reached the cap.
    Growing { cap: usize, unseen: usize },
    /// It has the size that it keeps, unless so much moves in so short a time that it is fast.
    Near { moved: usize, since: Instant, stream: Stream },
    /// It has the size that it keeps.
    Final,
    /// As the kernel makes it.
    Fast(Place),
}

/// A stream of a near source. They are counted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stream(());

static STREAMS: AtomicUsize = AtomicUsize::new(0);

impl Stream {
    fn begin() -> Self {
        STREAMS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of [`PLACES`] for fast streams. Dropping it makes room for another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place(());

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Place {
    fn take() -> Option<Self> {
        let more = |taken| (taken < PLACES).then_some(taken + 1);
        TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Buffers {
    /// Of a direction in which nothing has moved.
    pub(super) const NEW: Self = Self::Initial { moved: 0, is_new: true };
    /// Of one that another path has had: its reader may have stalled meanwhile.
    pub(super) const RETURNED: Self = Self::Initial { moved: 0, is_new: false };

    /// Bytes to read at once.
    pub(super) fn read_limit(&self) -> usize {
        if matches!(self, Self::Initial { .. }) { FIRST } else { usize::MAX }
    }

    /// Bytes that the direction may hold at most before it is looked at, as far as that can be said.
    pub(super) fn allowance(&self) -> u64 {
        match self {
            Self::Initial { .. } => HOLDS_FIRST,
            Self::Locked { .. } => HOLDS_LOCKED,
            Self::Growing { .. } | Self::Near { .. } | Self::Final => HOLDS,
            Self::Fast(_) => HOLDS_FAST,
        }
    }

    /// The destination has taken so many bytes more.
    pub(super) fn taken(&mut self, bytes: usize, source: &TcpStream, destination: &TcpStream) {
        match self {
            Self::Initial { moved, is_new } => {
                *moved += bytes;
                if *moved >= FIRST {
                    // A buffer that cannot be locked has begun to grow.
                    let base = if *is_new { Some(0) } else { acknowledged(destination) };
                    *self = if let Some(base) = base
                        && sys::lock_receive_buffer(source, true).is_ok()
                    {
                        bound_unsent(destination, UNSENT_FIRST);
                        Self::Locked { unseen: 0, base }
                    } else {
                        Self::widened(source, destination)
                    };
                }
            }
            Self::Locked { unseen, base } => {
                *unseen += bytes;
                if *unseen >= LOOK {
                    *unseen = 0;
                    if holdings::may_widen() && reads(source, destination, *base) {
                        *self = Self::widened(source, destination);
                    }
                }
            }
            Self::Growing { cap, unseen } => {
                *unseen += bytes;
                if *unseen >= LOOK_GROWING {
                    *unseen = 0;
                    if SockRef::from(source).recv_buffer_size().is_ok_and(|size| size >= *cap) {
                        // Where the kernel cannot, it grows on.
                        let _ = sys::lock_receive_buffer(source, true);
                        *self = Self::Final;
                    }
                }
            }
            Self::Near { moved, since, .. } => {
                *moved += bytes;
                if *moved >= FAST {
                    let now = Instant::now();
                    if is_fast(now - *since, STREAMS.load(Ordering::Relaxed))
                        && holdings::may_widen()
                        && let Some(place) = Place::take()
                    {
                        bound_unsent(destination, 0);
                        let _ = grow(source);
                        *self = Self::Fast(place);
                    } else {
                        (*moved, *since) = (0, now);
                    }
                }
            }
            Self::Final | Self::Fast(_) => {}
        }
    }

    /// Has a stream that is fast wait for the larger buffers that it would get, until this is asked no more.
    pub(super) fn stay_near(&mut self) {
        if let Self::Near { moved, .. } = self {
            *moved = 0;
        }
    }

    /// Leaves the buffers to the kernel again: another path has the direction from now on. The kernel path needs that:
    /// what a socket does not take it offers again a jiffy later, not when there is room (`sk_psock_backlog`,
    /// net/core/skmsg.c).
    pub(super) fn release(&mut self, source: &TcpStream, destination: &TcpStream) {
        if !matches!(self, Self::Initial { .. }) {
            let _ = sys::lock_receive_buffer(source, false);
            // 0 stands for the system's setting.
            bound_unsent(destination, 0);
        }
        *self = Self::RETURNED;
    }

    /// The reader reads: gives the receive buffer its size, or lets it grow to that.
    fn widened(source: &TcpStream, destination: &TcpStream) -> Self {
        bound_unsent(destination, UNSENT);
        match sys::tcp_info(source.as_fd()) {
            Ok(info) if info.min_rtt < NEAR => {
                // Never a smaller one than the kernel path left: what is on its way, within the window that was offered,
                // would be dropped, up to the sender's timeout.
                if SockRef::from(source).recv_buffer_size().is_ok_and(|size| size < CAP) {
                    let _ = resize(source, CAP);
                }
                Self::Near { moved: 0, since: Instant::now(), stream: Stream::begin() }
            }
            Ok(info) => {
                let _ = grow(source);
                Self::Growing { cap: cap(info.min_rtt), unseen: 0 }
            }
            // The connection is gone.
            Err(_) => Self::Final,
        }
    }
}

/// Whether a stream that took so long for [`FAST`] bytes, one of so many, is fast.
fn is_fast(time: Duration, streams: usize) -> bool {
    time <= FAST_TIME && streams <= ALONE
}

/// Bounds what waits to be sent (`tcp_stream_memory_free`, net/ipv4/tcp.c). Without it the flow works as well.
fn bound_unsent(destination: &TcpStream, bytes: u32) {
    let _ = SockRef::from(destination).set_tcp_notsent_lowat(bytes);
}

/// What the destination's peer has acknowledged.
fn acknowledged(destination: &TcpStream) -> Option<u64> {
    sys::tcp_info(destination.as_fd()).ok().map(|info| info.acked)
}

/// Whether the destination's peer has read since it had acknowledged `base` bytes.
fn reads(source: &TcpStream, destination: &TcpStream, base: u64) -> bool {
    let (Ok(source), Ok(destination)) = (sys::tcp_info(source.as_fd()), sys::tcp_info(destination.as_fd()))
    else {
        return false;
    };
    has_read(destination, base, source.min_rtt)
}

fn has_read(destination: TcpInfo, base: u64, min_rtt: Duration) -> bool {
    let needed = if min_rtt < NEAR { READS } else { READS_FAR };
    let acked = destination.acked.saturating_sub(base);
    acked >= ACKNOWLEDGED && acked + u64::from(destination.window) > needed
}

/// The size at which a receive buffer is large enough for its source.
fn cap(min_rtt: Duration) -> usize {
    let far = CAP_RATE.saturating_mul(u64::try_from(min_rtt.as_micros()).unwrap_or(u64::MAX)) / 1_000_000;
    CAP.saturating_add(usize::try_from(far).unwrap_or(usize::MAX))
}

/// Gives a receive buffer a size, with the window that it offers, and locks it.
fn resize(socket: &TcpStream, size: usize) -> io::Result<()> {
    sys::bound_receive_buffer(socket.as_fd(), i32::try_from(size).unwrap_or(i32::MAX))
}

/// Doubles a receive buffer that is small, and lets it grow: while it was locked the kernel went on to measure, and it
/// would grow only when more is read at once than ever before, which the old window may not let come.
fn grow(socket: &TcpStream) -> io::Result<()> {
    let size = SockRef::from(socket).recv_buffer_size()?;
    resize(socket, size.saturating_mul(2).min(CAP).max(size))?;
    sys::lock_receive_buffer(socket, false)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::pair, *};

    fn unsent(socket: &TcpStream) -> u32 {
        SockRef::from(socket).tcp_notsent_lowat().unwrap()
    }

    fn size(socket: &TcpStream) -> usize {
        SockRef::from(socket).recv_buffer_size().unwrap()
    }

    /// Moves bytes of a socket to its peer, as a direction does to its destination's.
    async fn move_to_peer(destination: &TcpStream, peer: &TcpStream, bytes: usize) {
        for start in (0..bytes).step_by(1024) {
            let mut piece = vec![7; 1024.min(bytes - start)];
            destination.writable().await.unwrap();
            assert_eq!(destination.try_write(&piece).unwrap(), piece.len());
            let mut got = 0;
            while got < piece.len() {
                peer.readable().await.unwrap();
                got += peer.try_read(&mut piece[got..]).unwrap_or(0);
            }
        }
    }

    #[tokio::test]
    async fn a_receive_buffer_is_locked_until_the_reader_reads() {
        let ([source, _sender], [destination, peer]) = (pair().await, pair().await);
        let before = (size(&source), unsent(&destination));
        let mut buffers = Buffers::NEW;
        buffers.taken(FIRST - 1, &source, &destination);
        assert_eq!((unsent(&destination), buffers.read_limit()), (before.1, FIRST));
        buffers.taken(1, &source, &destination);
        assert_eq!(buffers.read_limit(), usize::MAX);
        assert_eq!(buffers, Buffers::Locked { unseen: 0, base: 0 });
        assert_eq!((size(&source), unsent(&destination)), (before.0, UNSENT_FIRST));
        assert!(sys::testing::is_receive_buffer_locked(&source));
        // However much the send buffer takes.
        buffers.taken(1 << 20, &source, &destination);
        assert_eq!(buffers, Buffers::Locked { unseen: 0, base: 0 });
        move_to_peer(&destination, &peer, 160 * 1024).await;
        buffers.taken(LOOK - 1, &source, &destination);
        assert_eq!(buffers, Buffers::Locked { unseen: LOOK - 1, base: 0 });
        buffers.taken(1, &source, &destination);
        assert!(matches!(buffers, Buffers::Near { .. }), "{buffers:?}");
        assert_eq!(unsent(&destination), UNSENT);
        // The source is near.
        assert_eq!(size(&source), CAP);
        assert!(sys::testing::is_receive_buffer_locked(&source));
    }

    #[tokio::test]
    async fn a_buffer_that_another_path_left_is_not_made_smaller() {
        let ([source, _sender], [destination, peer]) = (pair().await, pair().await);
        resize(&source, CAP * 4).unwrap();
        let before = size(&source);
        let mut buffers = Buffers::RETURNED;
        buffers.taken(FIRST, &source, &destination);
        move_to_peer(&destination, &peer, 160 * 1024).await;
        buffers.taken(LOOK, &source, &destination);
        assert!(matches!(buffers, Buffers::Near { .. }), "{buffers:?}");
        assert_eq!(size(&source), before);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_not_taken_for_one() {
        let [destination, _peer] = pair().await;
        destination.writable().await.unwrap();
        let mut info = sys::tcp_info(destination.as_fd()).unwrap();
        // Until its window is closed.
        for _ in 0..1000 {
            let _ = destination.try_write(&[7; 64 * 1024]);
            tokio::time::sleep(Duration::from_millis(1)).await;
            info = sys::tcp_info(destination.as_fd()).unwrap();
            if info.window == 0 {
                break;
            }
        }
        assert!(info.acked > ACKNOWLEDGED && info.window == 0, "{info:?}");
        assert!(!has_read(info, 0, Duration::ZERO), "{info:?}");
    }

    #[test]
    fn a_far_source_waits_for_less() {
        let info = |acked, window| TcpInfo {
            closed: false,
            finished: false,
            received: 0,
            acked,
            window,
            segment: 1460,
            min_rtt: Duration::ZERO,
            silent: Duration::ZERO,
        };
        let far = Duration::from_millis(200);
        // The sender's first two windows of 10 segments, and what Linux offers then.
        assert!(has_read(info(43_800, 65_536), 0, far));
        assert!(!has_read(info(43_800, 65_536), 0, Duration::ZERO));
        assert!(!has_read(info(14_600, 1 << 20), 0, far), "room is not yet reading");
        // All of its first buffer, and nothing read.
        assert!(!has_read(info(90_801, 0), 0, far));
        assert!(has_read(info(131_073, 0), 0, Duration::ZERO));
        assert!(!has_read(info(1_050_000, 0), 1_000_000, far), "it has read, but not since");
    }

    #[tokio::test]
    async fn a_growing_buffer_is_locked_at_its_cap() {
        let ([source, _sender], [destination, _peer]) = (pair().await, pair().await);
        let mut buffers = Buffers::Growing { cap: size(&source) + 1, unseen: 0 };
        buffers.taken(LOOK_GROWING, &source, &destination);
        assert!(matches!(buffers, Buffers::Growing { .. }));
        grow(&source).unwrap();
        buffers.taken(LOOK_GROWING, &source, &destination);
        assert_eq!(buffers, Buffers::Final);
        assert!(sys::testing::is_receive_buffer_locked(&source));
    }

    #[tokio::test]
    async fn a_stream_that_is_not_fast_keeps_its_buffers() {
        let ([source, _sender], [destination, _peer]) = (pair().await, pair().await);
        resize(&source, CAP).unwrap();
        let since = Instant::now() - FAST_TIME * 2;
        let mut slow = Buffers::Near { moved: FAST - 1, since, stream: Stream::begin() };
        slow.taken(1, &source, &destination);
        assert!(matches!(slow, Buffers::Near { moved: 0, .. }));
        assert!(sys::testing::is_receive_buffer_locked(&source));
    }

    #[test]
    fn few_streams_are_fast() {
        assert!(is_fast(FAST_TIME, ALONE));
        assert!(!is_fast(FAST_TIME * 2, 1) && !is_fast(FAST_TIME, ALONE + 1));
        let mut places: Vec<_> = (0..PLACES * 2).map_while(|_| Place::take()).collect();
        assert_eq!(places.len(), PLACES);
        places.pop();
        assert!(Place::take().is_some());
    }

    #[test]
    fn the_cap_follows_the_round_trip() {
        assert_eq!(cap(Duration::ZERO), CAP);
        assert_eq!(cap(Duration::from_millis(20)), CAP + 5_000_000);
    }

    #[tokio::test]
    async fn another_path_gets_the_buffers_as_they_were() {
        let ([source, _sender], [destination, _peer]) = (pair().await, pair().await);
        let before = unsent(&destination);
        let mut buffers = Buffers::NEW;
        buffers.taken(FIRST, &source, &destination);
        assert_eq!(unsent(&destination), UNSENT_FIRST);
        buffers.release(&source, &destination);
        assert_eq!(unsent(&destination), before);
        assert!(!sys::testing::is_receive_buffer_locked(&source));
        // The reader of one that comes back may have stalled.
        buffers.taken(FIRST, &source, &destination);
        assert!(matches!(buffers, Buffers::Locked { base: 1.., .. }), "{buffers:?}");
        assert_eq!(unsent(&destination), UNSENT_FIRST);
    }
}
