//! An epoll of our own: tokio's readiness always asks for EPOLLIN, which would wake the controller for each segment
//! of a flow in the kernel.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use super::result::check;

/// What to be told of a descriptor, besides errors and hang-ups, which always come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Nothing but the peer's FIN.
    HangUp,
    /// Something to read.
    Read,
}

impl Interest {
    fn bits(self) -> u32 {
        let bits = match self {
            Self::HangUp => libc::EPOLLRDHUP | libc::EPOLLET,
            Self::Read => libc::EPOLLIN | libc::EPOLLET,
        };
        bits as u32
    }
}

/// What happened to a descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// The token given when it was added.
    pub(crate) token: u64,
    /// The connection is broken or closed in both directions.
    pub(crate) broken: bool,
    /// The peer has sent its FIN.
    pub(crate) finished: bool,
}

/// One slot of a wait.
pub(crate) type Event = libc::epoll_event;

/// An edge-triggered epoll.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed; the result is a new descriptor that nobody else owns.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// # Errors
    /// The kernel's: out of watches, say.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// # Errors
    /// The descriptor was not added.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, Interest::HangUp)
    }

    /// Waits until something happens or the time has passed, and returns how many slots of `events` were filled.
    ///
    /// # Errors
    /// The kernel's; a signal counts as nothing happened.
    pub(crate) fn wait<'a>(
        &self,
        events: &'a mut [Event],
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Ready> + use<'a>> {
        // Rounded up: a wait that ends too early would spin until the time has come.
        let timeout =
            timeout.map_or(-1, |time| i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        // SAFETY: the kernel writes at most `events.len()` slots.
        let count = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, timeout)
        };
        let count = match check(count) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(events[..count].iter().map(|event| {
            let bits = event.events as i32;
            Ready {
                token: event.u64,
                broken: bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0,
                finished: bits & libc::EPOLLRDHUP != 0,
            }
        }))
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = Event { events: interest.bits(), u64: token };
        // SAFETY: the kernel reads one event.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })?;
        Ok(())
    }
}

/// Wakes an epoll from another thread.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed; the result is a new descriptor that nobody else owns.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Makes the descriptor readable. Never blocks: a full counter is readable already.
    pub(crate) fn wake(&self) {
        let one = 1_u64;
        // SAFETY: the kernel reads 8 bytes from `one`.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
