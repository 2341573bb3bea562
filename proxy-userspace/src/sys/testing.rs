//! Calls that nothing in setu makes: tests look at sockets by them, or that they are refused.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use super::{
    result::{check, check_size},
    socket::SOCK_RCVBUF_LOCK,
};

/// Whether the receive buffer does not grow by itself.
pub(crate) fn is_receive_buffer_locked(socket: &impl AsFd) -> bool {
    let mut locks = 0_i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let value = (&raw mut locks).cast();
    // SAFETY: the kernel writes at most `len` bytes into `locks`, which is that long.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, value, &raw mut len) }).unwrap();
    locks & SOCK_RCVBUF_LOCK != 0
}

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
