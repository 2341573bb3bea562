//! Filters on sockets, in classic BPF.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use super::result::check;

/// One instruction (`struct sock_filter`, include/uapi/linux/filter.h).
pub(crate) type Instruction = libc::sock_filter;

/// Instructions of a filter, at most (`BPF_MAXINSNS`, include/uapi/linux/bpf_common.h).
pub(crate) const MOST: usize = 4096;

/// Lets a filter decide on each packet that comes for the socket; a listening one is asked for every SYN (`tcp_filter`,
/// net/ipv4/tcp_ipv4.c), and its connections inherit the filter (`sk_clone_lock`, net/core/sock.c). It takes the place of
/// the one before.
///
/// # Errors
/// The kernel does not take the program; it is larger than `net.core.optmem_max` (`sk_attach_filter`, net/core/filter.c).
pub(crate) fn attach_filter(socket: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let Ok(len @ 1..) = u16::try_from(program.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads one `sock_fprog`, which is that long, and through it `len` instructions, which `program`
    // holds; it writes to neither.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Takes the filter off, if there is one.
///
/// # Errors
/// The socket's.
pub(crate) fn detach_filter(socket: &impl AsFd) -> io::Result<()> {
    let none = 0_i32;
    // SAFETY: the kernel reads the integer, which is as long as it is told.
    let detached = check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            ptr::from_ref(&none).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    });
    match detached {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}
