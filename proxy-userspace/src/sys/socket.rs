//! Calls on sockets and pipes that neither std nor socket2 offers.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use socket2::SockRef;

use super::result::{check, check_size};

/// Of `SO_BUF_LOCK` (include/uapi/linux/socket.h).
pub(super) const SOCK_RCVBUF_LOCK: i32 = 2;

/// Of `SO_MEMINFO` (`SK_MEMINFO_RMEM_ALLOC` and so on, include/uapi/linux/sock_diag.h): how many values there are, and where
/// these stand.
const MEMINFO: usize = 9;
const MEMINFO_RECEIVED: usize = 0;
const MEMINFO_SET_ASIDE: usize = 4;
const MEMINFO_TO_SEND: usize = 5;
const MEMINFO_DROPS: usize = 8;

/// Of include/uapi/linux/sockios.h, which the libc crate has not for every target.
const SIOCOUTQNSD: u32 = 0x894B;

/// The kernel's name of a socket, unique until the next boot.
///
/// # Errors
/// The socket's.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `value`, which is that long.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value)
}

/// Bounds what the socket holds for its reader to `bytes`, or to twice `net.core.rmem_max` where that is less, and offers
/// all of it as window (a fixed buffer keeps the window clamp that the socket was born with, which may be below one
/// segment).
///
/// # Errors
/// The socket's.
pub(crate) fn bound_receive_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // The kernel doubles the value (`sock_setsockopt`, net/core/sock.c).
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes / 2)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// Keeps the receive buffer from growing by itself, or lets it (`SO_BUF_LOCK`, Linux 5.14).
///
/// # Errors
/// The kernel does not know the option; the socket's.
pub(crate) fn lock_receive_buffer(socket: &impl AsFd, locked: bool) -> io::Result<()> {
    let locks = if locked { SOCK_RCVBUF_LOCK } else { 0 };
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BUF_LOCK, locks)
}

/// Sets how many bytes must have arrived before the socket is told of them. Takes the socket's lock.
///
/// # Errors
/// The socket's.
pub(crate) fn set_receive_low_water(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Lets the kernel choose the local port when connecting, when it knows the destination, and not when binding: ports
/// are then shared by connections to different destinations (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2, for IPv6 as well).
///
/// # Errors
/// The socket's.
pub(crate) fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: the kernel reads `len` bytes from `value`.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) })?;
    Ok(())
}

/// Bytes in the socket's own queue.
///
/// # Errors
/// The socket's.
pub(crate) fn queued(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one integer to `bytes`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Packets that came for the socket and that it did not take, for a filter's sake above all (`SO_MEMINFO`; `sk_drops_add` in
/// `tcp_v4_rcv`, net/ipv4/tcp_ipv4.c).
///
/// # Errors
/// The socket's.
pub(crate) fn dropped(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(meminfo(socket)?[MEMINFO_DROPS].into())
}

/// Memory that the kernel holds for what came in on the socket and what is to go out, bytes, with its overhead
/// (`SO_MEMINFO`: `sk_get_meminfo`, net/core/sock.c; Linux 4.12).
///
/// # Errors
/// The socket's.
pub(crate) fn held(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let values = meminfo(socket)?;
    Ok([MEMINFO_RECEIVED, MEMINFO_SET_ASIDE, MEMINFO_TO_SEND].map(|at| u64::from(values[at])).iter().sum())
}

fn meminfo(socket: BorrowedFd<'_>) -> io::Result<[u32; MEMINFO]> {
    let mut values = [0_u32; MEMINFO];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `values`, which is that long.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    Ok(values)
}

/// Bytes that were written to the socket and that its peer has not acknowledged, sent or not (`SIOCOUTQ`: `tcp_ioctl`,
/// net/ipv4/tcp.c).
///
/// # Errors
/// The socket's.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one integer to `bytes`. SIOCOUTQ has the number of TIOCOUTQ.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Bytes that were written to the socket and never sent (`SIOCOUTQNSD`: `tcp_ioctl`, net/ipv4/tcp.c).
///
/// # Errors
/// The socket's.
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one integer to `bytes`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCOUTQNSD as _, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Memory that the kernel holds for what came in on the socket, out of order or not, bytes (`SO_MEMINFO`).
///
/// # Errors
/// The socket's.
pub(crate) fn held_received(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(meminfo(socket)?[MEMINFO_RECEIVED])
}

/// Has the socket acknowledge at once what it owes an acknowledgement for (`tcp_sock_set_quickack`, net/ipv4/tcp.c).
///
/// # Errors
/// The socket's.
pub(crate) fn acknowledge_now(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1)
}

/// Bounds the window that the peer is offered; the kernel raises `bytes` to half of its least receive buffer
/// (`tcp_set_window_clamp`, net/ipv4/tcp.c).
///
/// # Errors
/// The socket's.
pub(crate) fn set_window_clamp(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// Reads what is there, without waiting. 0 means that the peer has finished.
///
/// # Errors
/// `WouldBlock` when nothing is there; the socket's.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
    check_size(unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    })
}

/// Throws away what is there, up to `limit` bytes, without waiting, and returns how much that was. The kernel copies nothing
/// (`MSG_TRUNC`, tcp(7)).
pub(crate) fn discard(socket: BorrowedFd<'_>, limit: usize) -> usize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: with MSG_TRUNC the kernel writes nothing for a TCP socket.
    check_size(unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), limit, flags) }).unwrap_or(0)
}

/// Looks at what is there without taking it. On a socket in a sockhash this first runs the verdict over what was
/// queued before insertion (`tcp_bpf_recvmsg_parser`, net/ipv4/tcp_bpf.c), and in any case returns after a run in
/// progress has ended, because both hold the socket's lock.
///
/// # Errors
/// `WouldBlock` when nothing is there; the socket's.
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
    check_size(unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// What the peer is offered at most, bytes (`TCP_WINDOW_CLAMP`).
///
/// # Errors
/// The socket's.
pub(crate) fn window_clamp(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `value`, which is that long.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value)
}

/// Whether the window that the peer is offered was closed as far as it can be: to half of the least receive buffer
/// (`tcp_set_window_clamp`, net/ipv4/tcp.c), which nobody else asks for.
pub(crate) fn is_clamped(socket: BorrowedFd<'_>) -> bool {
    const CLOSED: i32 = 4096;
    window_clamp(socket).is_ok_and(|clamp| clamp < CLOSED)
}

/// Both ends of a connection, this one first.
///
/// # Errors
/// It is not connected, or of another family.
pub(crate) fn ends(socket: BorrowedFd<'_>) -> io::Result<(SocketAddr, SocketAddr)> {
    let socket = SockRef::from(&socket);
    let of =
        |address: socket2::SockAddr| address.as_socket().ok_or(io::Error::from(io::ErrorKind::InvalidInput));
    Ok((of(socket.local_addr()?)?, of(socket.peer_addr()?)?))
}

/// A pipe through which bytes go from socket to socket without a copy to userspace.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// Makes a pipe of the kernel's default size, if that is `capacity` bytes or more. Beyond what a user may have of pipe
    /// memory without privileges, new pipes are small (`alloc_pipe_info`, fs/pipe.c).
    ///
    /// # Errors
    /// Out of descriptors or of pipe memory.
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: the kernel writes two descriptors into `ends`.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
        // SAFETY: both are open, and nobody else owns them.
        let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the descriptor is open, and no memory is passed.
        let size = check(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ) })?;
        if usize::try_from(size).is_ok_and(|size| size < capacity) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { read, write })
    }
}

/// Moves up to `len` bytes from a socket into a pipe. 0 means that the peer has finished.
///
/// # Errors
/// `WouldBlock` when nothing is there or the pipe is full; the socket's.
pub(crate) fn splice_in(socket: BorrowedFd<'_>, pipe: &Pipe, len: usize) -> io::Result<usize> {
    splice(socket, pipe.write.as_fd(), len)
}

/// Moves up to `len` bytes from a pipe into a socket.
///
/// # Errors
/// `WouldBlock` when the socket takes nothing; the socket's.
pub(crate) fn splice_out(pipe: &Pipe, socket: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    splice(pipe.read.as_fd(), socket, len)
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: both descriptors are open, and null offsets mean that neither is seekable.
    check_size(unsafe {
        libc::splice(from.as_raw_fd(), ptr::null_mut(), to.as_raw_fd(), ptr::null_mut(), len, flags)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn what_does_not_fit_the_window_is_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!((unsent(client.as_fd()).unwrap(), held_received(server.as_fd()).unwrap()), (0, 0));
        set_window_clamp(server.as_fd(), 1).unwrap();
        acknowledge_now(server.as_fd()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        // Until nothing goes: the peer reads nothing.
        while let Ok(len) = client.write(&[7; 16 * 1024]) {
            written += len as u64;
        }
        let (unsent, unacknowledged) =
            (unsent(client.as_fd()).unwrap(), unacknowledged(client.as_fd()).unwrap());
        assert!(
            unsent > 0 && unsent <= unacknowledged && unacknowledged <= written,
            "{unsent} {unacknowledged}"
        );
        assert!(u64::from(held_received(server.as_fd()).unwrap()) >= queued(server.as_fd()).unwrap());
    }
}
