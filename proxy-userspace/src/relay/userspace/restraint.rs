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
    /// They do not grow until the destination has taken so many bytes.
    Held { left: usize },
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
                    *self = Self::Held { left: PROOF };
                    // Without the one or the other the flow works as well.
                    let _ = sys::lock_receive_buffer(source, true);
                    let _ = SockRef::from(destination).set_tcp_notsent_lowat(UNSENT);
                }
            }
            Self::Held { left } => {
                *left = left.saturating_sub(bytes);
                if *left == 0 {
                    self.lift(source, destination);
                }
            }
            Self::Lifted => {}
        }
    }

    /// Lets the buffers grow from now on. The kernel path needs that: it writes beyond `UNSENT` once a jiffy only.
    pub(super) fn lift(&mut self, source: &TcpStream, destination: &TcpStream) {
        if matches!(self, Self::Held { .. }) {
            let _ = grow(source);
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
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        [client, listener.accept().await.unwrap().0]
    }

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
        restraint.taken(PROOF - 1, &source, &destination);
        assert_eq!(unsent(&destination), UNSENT);
        restraint.taken(1, &source, &destination);
        assert_eq!((restraint, unsent(&destination)), (Restraint::Lifted, before.1));
        assert!(size() > before.0, "{} after {}", size(), before.0);
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
    }
}
