//! Limits of the process and of the machine.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::{Zeroize as _, Zeroizing};

use super::result::check;

/// Raises the limit of open files to what is allowed, and returns it.
///
/// # Errors
/// The kernel's.
pub(crate) fn raise_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: the kernel reads one `rlimit`.
        if check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) }).is_ok() {
            limit = raised;
        }
    }
    Ok(limit.rlim_cur)
}

/// Whether a time service keeps the clock right; `None` when the kernel does not tell.
pub(crate) fn clock_is_kept() -> Option<bool> {
    let mut clock = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: zeroed, it asks for no change (adjtimex(2), `modes`), and the kernel writes one `timex`.
    let state = unsafe { libc::adjtimex(clock.as_mut_ptr()) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

/// Takes hold of a descriptor that this process was started with and that nothing else in it knows of.
///
/// # Errors
/// It is not open.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: it is open, and the caller says that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes that nobody can guess.
pub(crate) fn random<const LEN: usize>() -> Zeroizing<[u8; LEN]> {
    let mut bytes = Zeroizing::new([0; LEN]);
    let mut filled = 0;
    while filled < LEN {
        // It waits for the machine's first randomness at boot; a signal may interrupt that, and nothing else can be.
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}

/// Gives memory back to the system that was freed inside the heap; by itself the C library does so at its end alone.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no memory is passed.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The machine's memory, bytes.
pub(super) fn total_memory() -> u64 {
    // SAFETY: no memory is passed.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0) * u64::try_from(size).unwrap_or(0)
}

/// Stack that is overwritten below the caller, words of 8 bytes: more than any call that meets an address uses.
const WIPED: usize = 2 * 1024;

/// Overwrites what calls before this one have left on the calling thread's stack.
#[inline(never)]
pub(crate) fn wipe_stack() {
    let mut below = [0_u64; WIPED];
    // Written for certain, where a plain array would be left out.
    below.zeroize();
}
