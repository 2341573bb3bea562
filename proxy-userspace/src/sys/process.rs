//! Limits of the process and of the machine.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    thread,
    time::{Duration, Instant},
};

use proxy_common::wire::layout::TICK_SHIFT;
use rustix::{
    process::Pid,
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};
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

/// Which of the two processes this is after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forked {
    Child,
    /// The one that called, and the other's id.
    Parent(Pid),
}

/// How long a thread that was joined may count as one: who joins it is woken before it is taken off the list (`mm_release` and
/// `release_task` in `do_exit`, kernel/exit.c).
const LEAVING: Duration = Duration::from_secs(1);

/// Makes a second process of this one. A parent's death sends the child no signal, whatever was set before
/// (`copy_process`, kernel/fork.c, clears `pdeath_signal`).
///
/// # Errors
/// `InvalidInput` when there are other threads, whose locks would stay locked in the child; out of processes or memory.
pub(crate) fn fork() -> io::Result<Forked> {
    // Gives up nothing where there is one thread, and is refused where there are more (`check_unshare_flags`,
    // kernel/fork.c).
    let deadline = Instant::now() + LEAVING;
    // SAFETY: no memory is passed.
    while let Err(error) = check(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        if error.kind() != io::ErrorKind::InvalidInput || Instant::now() >= deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: there is no other thread, so that the child has all that the parent has.
    let child = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(child).map_or(Forked::Child, Forked::Parent))
}

/// Gives this thread, and those that it starts, a network of their own, without any device but loopback's.
///
/// # Errors
/// It may not (CAP_SYS_ADMIN), or the kernel has no such namespaces.
pub(crate) fn leave_network() -> io::Result<()> {
    // SAFETY: no memory is passed, and nothing but the network of this thread changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Of membarrier(2) (include/uapi/linux/membarrier.h, `MEMBARRIER_CMD_GLOBAL`).
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for a grace period of RCU: what ran in the kernel on any CPU when this was called, a program on a packet for
/// instance, has ended (`synchronize_rcu` in `membarrier`, kernel/sched/membarrier.c). It takes some 20 ms, and more on a
/// busy machine.
///
/// # Errors
/// `InvalidInput` where CPUs run without a tick (nohz_full).
pub(crate) fn membarrier() -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The tick in which the wire's program would note a packet now ([`TICK_SHIFT`]).
pub(crate) fn monotonic_coarse_tick() -> u32 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let nanoseconds = (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64);
    (nanoseconds >> TICK_SHIFT) as u32
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
const WIPED: usize = 4 * 1024;

/// Overwrites what calls before this one have left on the calling thread's stack.
#[inline(never)]
pub(crate) fn wipe_stack() {
    let mut below = [0_u64; WIPED];
    // Written for certain, where a plain array would be left out.
    below.zeroize();
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn only_a_process_of_one_thread_forks() {
        // This one has the harness's thread as well.
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // SAFETY: the child makes system calls alone, and ends by one.
        let child = check(unsafe { libc::fork() }).unwrap();
        if child == 0 {
            let code = match fork() {
                Ok(Forked::Child) => 7,
                Ok(Forked::Parent(grandchild)) => {
                    let mut status = 0;
                    // SAFETY: the kernel writes one integer to `status`.
                    unsafe { libc::waitpid(grandchild.as_raw_nonzero().get(), &raw mut status, 0) };
                    libc::WEXITSTATUS(status) + 1
                }
                Err(_) => 1,
            };
            // SAFETY: it ends the process, and runs nothing of it.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the kernel writes one integer to `status`.
        check(unsafe { libc::waitpid(child, &raw mut status, 0) }).unwrap();
        assert_eq!(libc::WEXITSTATUS(status), 8, "the grandchild ends with 7, the child with one more");
    }

    #[test]
    fn ticks_go_on() {
        let before = monotonic_coarse_tick();
        thread::sleep(Duration::from_millis(50));
        assert!(monotonic_coarse_tick().wrapping_sub(before) >= 30);
    }

    #[test]
    fn a_grace_period_ends() {
        if let Err(error) = membarrier() {
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            println!("skipped: CPUs run without a tick here");
        }
    }
}
