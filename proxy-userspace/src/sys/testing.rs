//! Calls that nothing in setu makes, for tests that they are refused.

use std::{io, ptr};

use super::check_size;

/// A command of bpf(2) with attributes that are all zero.
///
/// # Errors
/// The kernel's.
pub(crate) fn bpf(command: libc::c_int) -> io::Result<()> {
    // The descriptor that map commands begin with: none.
    let mut attributes = [0_u8; 128];
    attributes[..4].fill(0xff);
    let (pointer, len) = (attributes.as_mut_ptr(), attributes.len());
    // SAFETY: the kernel reads `attributes`, which is as long as it is told.
    check_size(unsafe { libc::syscall(libc::SYS_bpf, command, pointer, len) } as isize)?;
    Ok(())
}

/// Maps a page that is writable and executable.
///
/// # Errors
/// The kernel's.
pub(crate) fn executable_memory() -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping touches no memory that is in use; it is left in place.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
