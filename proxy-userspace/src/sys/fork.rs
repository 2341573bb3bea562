//! What a copy of a process does away with first.

use std::{
    fs, io,
    os::fd::{OwnedFd, RawFd},
};

/// Has the process ignore what would end it, but for SIGKILL.
pub(crate) fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes every descriptor but standard input and outputs and these, which a copy of a process has nothing to do with.
///
/// # Errors
/// /proc does not tell which there are.
pub(crate) fn close_all_but(kept: &[&OwnedFd]) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let kept: Vec<RawFd> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > libc::STDERR_FILENO && !kept.contains(fd)) {
        // SAFETY: what owns it in this copy of the process is never used, nor dropped: the copy ends by `exit`. The folder's own
        // descriptor is closed already, which is an error and nothing else.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
