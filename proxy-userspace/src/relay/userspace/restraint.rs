//! Small buffers for a reader that has not read much yet.
//!
//! The kernel lets a socket's buffers grow with what moves through it, and the first of a stream moves as fast as the
//! destination's send buffer takes it, whether or not anybody reads at its end: a reader that never reads would cost
//! megabytes. So the buffers of a direction grow only after its destination took more than the buffers on the way hold.

use std::{io, os::fd::AsFd as _};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::sys;

/// Bytes that the destination has taken when a direction is held, and bytes to read at once until then. The receive
/// buffer grows when more is read than the sender's first window (`tcp_rcv_space_adjust`, net/ipv4/tcp_input.c).
const FIRST: usize = 16 * 1024;
/// Bytes that may wait in the destination's send buffer, besides those on their way, while it is held.
const UNSENT: u32 = 128 * 1024;
/// Bytes that the destination must take: more than a receive buffer of the kernel's default size holds (128 KiB, and
/// the segment that fills it, up to 64 KiB when merged), [`UNSENT`], and one write beyond it (64 KiB).
const PROOF: usize = 448 * 1024;

/// The buffers of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restraint {
    /// As the kernel made them: the destination has taken so many bytes.
    Untouched { taken: usize },
    /// They do not grow until the destination has taken so many bytes; the receive buffer is locked if the kernel can.
    Held { left: usize, locked: bool },
    /// They grow.
    Lifted,
}

impl Restraint {
    /// Of a direction in which nothing has moved.
    pub(super) const NEW: Self = Self::Untouched { taken: 0 };

    /// Bytes to read at once.
    pub(super) fn read_limit(self) -> usize {
        if matches!(self, Self::Untouched { .. }) { FIRST } else { usize::MAX }
    }

    /// The destination has taken so many bytes more.
    pub(super) fn taken(&mut self, bytes: usize, source: &TcpStream, destination: &TcpStream) {
        match self {
            Self::Untouched { taken } => {
                *taken += bytes;
                if *taken >= FIRST {
                    let locked = sys::lock_receive_buffer(source, true).is_ok();
                    *self = Self::Held { left: PROOF, locked };
                    // Without it the flow works as well.
                    let _ = SockRef::from(destination).set_tcp_notsent_lowat(UNSENT);
                }
            }
            Self::Held { left, .. } => {
                *left = left.saturating_sub(bytes);
                if *left == 0 {
                    self.lift(source, destination);
                }
            }
            Self::Lifted => {}
        }
    }

    /// Lets the buffers grow from now on. The kernel path needs that: what a socket does not take it offers again a
    /// jiffy later, not when there is room (`sk_psock_backlog`, net/core/skmsg.c).
    pub(super) fn lift(&mut self, source: &TcpStream, destination: &TcpStream) {
        if let Self::Held { locked, .. } = *self {
            // A size that is set where there is no lock to take off stays for ever.
            if locked {
                let _ = grow(source);
            }
            // 0 stands for the system's setting.
            let _ = SockRef::from(destination).set_tcp_notsent_lowat(0);
        }
        *self = Self::Lifted;
    }
}

/// Doubles the receive buffer, with the window that it offers, and lets it grow: while it was locked the kernel went on
/// to measure, and it would grow only when more is read at once than ever before, which the old window may not let come.
fn grow(socket: &TcpStream) -> io::Result<()> {
    let size = SockRef::from(socket).recv_buffer_size()?;
    sys::bound_receive_buffer(socket.as_fd(), i32::try_from(size.saturating_mul(2)).unwrap_or(i32::MAX))?;
    sys::lock_receive_buffer(socket, false)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::pair, *};

    fn unsent(socket: &TcpStream) -> u32 {
        SockRef::from(socket).tcp_notsent_lowat().unwrap()
    }

    #[tokio::test]
    async fn buffers_are_held_until_enough_was_taken() {
        let [source, destination] = pair().await;
        let mut restraint = Restraint::NEW;
        let size = || SockRef::from(&source).recv_buffer_size().unwrap();
        let before = (size(), unsent(&destination));
        restraint.taken(FIRST - 1, &source, &destination);
        assert_eq!((unsent(&destination), restraint.read_limit()), (before.1, FIRST));
        restraint.taken(1, &source, &destination);
        assert_eq!((size(), unsent(&destination)), (before.0, UNSENT));
        assert!(sys::testing::is_receive_buffer_locked(&source));
        restraint.taken(PROOF - 1, &source, &destination);
        assert_eq!(unsent(&destination), UNSENT);
        restraint.taken(1, &source, &destination);
        assert_eq!((restraint, unsent(&destination)), (Restraint::Lifted, before.1));
        assert!(size() > before.0, "{} after {}", size(), before.0);
        assert!(!sys::testing::is_receive_buffer_locked(&source));
        // Once is enough.
        restraint.taken(FIRST, &source, &destination);
        assert_eq!(unsent(&destination), before.1);
    }

    #[tokio::test]
    async fn a_flow_that_is_given_up_is_not_held() {
        let [source, destination] = pair().await;
        let before = unsent(&destination);
        let mut restraint = Restraint::NEW;
        restraint.taken(FIRST, &source, &destination);
        assert_eq!(unsent(&destination), UNSENT);
        restraint.lift(&source, &destination);
        assert_eq!((restraint, unsent(&destination)), (Restraint::Lifted, before));
        assert!(!sys::testing::is_receive_buffer_locked(&source));
    }

    #[tokio::test]
    async fn a_buffer_that_could_not_be_locked_is_left_alone() {
        let [source, destination] = pair().await;
        let size = || SockRef::from(&source).recv_buffer_size().unwrap();
        let before = size();
        Restraint::Held { left: 1, locked: false }.taken(1, &source, &destination);
        assert_eq!(size(), before);
        assert!(!sys::testing::is_receive_buffer_locked(&source));
    }
}
