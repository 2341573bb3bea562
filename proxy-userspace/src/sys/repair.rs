//! `TCP_REPAIR`: reading where a connection stands, and leaving it without a word.
//!
//! Each of these calls needs CAP_NET_ADMIN in the socket's user namespace (`tcp_can_repair_sock`, net/ipv4/tcp.c). A socket
//! that is under repair refuses to be read and written, and closes silently; so none stays there by an error.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::{result::check, socket::set_option};

/// Values of `TCP_REPAIR` (include/uapi/linux/tcp.h).
const TCP_REPAIR_ON: i32 = 1;
const TCP_REPAIR_OFF: i32 = 0;
const TCP_REPAIR_OFF_NO_WP: i32 = -1;

/// Values of `TCP_REPAIR_QUEUE` (include/uapi/linux/tcp.h).
const TCP_RECV_QUEUE: i32 = 1;
const TCP_SEND_QUEUE: i32 = 2;

/// Where a connection stands, seen from its socket here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The sequence number that the peer's next byte has.
    pub(crate) received: u32,
    /// The sequence number that the next byte written to the socket will have.
    pub(crate) written: u32,
    /// What the socket's TSval would be now; without meaning where timestamps are not in use.
    pub(crate) timestamp: u32,
}

/// Reads a connection's numbers, and sends nothing. Sets `SO_REUSEADDR`.
///
/// # Errors
/// No CAP_NET_ADMIN; the connection is not established; the socket's.
pub(crate) fn numbers(socket: BorrowedFd<'_>) -> io::Result<Numbers> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    let read = || {
        Ok(Numbers {
            received: sequence(socket, TCP_RECV_QUEUE)?,
            written: sequence(socket, TCP_SEND_QUEUE)?,
            timestamp: option(socket, libc::TCP_TIMESTAMP)?,
        })
    };
    let numbers = read();
    leave(socket, TCP_REPAIR_OFF_NO_WP)?;
    numbers
}

/// Sends the peer a window probe, which it answers with an acknowledgement that has its window and its TSval
/// (`tcp_send_window_probe`, net/ipv4/tcp_output.c). Sets `SO_REUSEADDR`.
///
/// # Errors
/// No CAP_NET_ADMIN; the socket's.
pub(crate) fn probe_window(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    leave(socket, TCP_REPAIR_OFF)
}

/// Closes a socket so that its peer hears nothing, whatever is queued, and no timer is left (`__tcp_close`,
/// net/ipv4/tcp.c). Where others have the same socket, the last one to close it does so silently.
///
/// # Errors
/// No CAP_NET_ADMIN; the socket's. It is closed then as any other.
pub(crate) fn close_silently(socket: OwnedFd) -> io::Result<()> {
    set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_ON)
}

/// Leaving repair clears `SO_REUSEADDR` (`do_tcp_setsockopt`, net/ipv4/tcp.c), without which the socket would bar its port
/// from others that are bound to it: a listener's, for instance.
fn leave(socket: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, how)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

fn sequence(socket: BorrowedFd<'_>, queue: i32) -> io::Result<u32> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue)?;
    option(socket, libc::TCP_QUEUE_SEQ)
}

fn option(socket: BorrowedFd<'_>, name: i32) -> io::Result<u32> {
    let mut value = 0_u32;
    let mut len = size_of::<u32>() as libc::socklen_t;
    let (fd, pointer) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: the kernel writes at most `len` bytes into `value`, which is that long.
    check(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, name, pointer, &raw mut len) })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use rustix::net::sockopt::socket_reuseaddr;

    use super::*;

    fn pair() -> (TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        (client, server, listener)
    }

    fn skipped() -> bool {
        let skipped = !setu_tests::machine::is_root();
        if skipped {
            println!("skipped: TCP_REPAIR needs root, and this is not");
        }
        skipped
    }

    #[test]
    fn numbers_are_those_of_both_ends_and_leave_the_connection_as_it_is() {
        if skipped() {
            return;
        }
        let (mut client, mut server, _) = pair();
        let before = numbers(client.as_fd()).unwrap();
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        let (here, there) = (numbers(client.as_fd()).unwrap(), numbers(server.as_fd()).unwrap());
        assert_eq!(here.written.wrapping_sub(before.written), 1000);
        assert_eq!((here.written, here.received), (there.received, there.written));
        for socket in [&client, &server] {
            assert!(socket_reuseaddr(socket).unwrap(), "leaving repair clears it");
        }
        probe_window(server.as_fd()).unwrap();
        assert!(socket_reuseaddr(&server).unwrap(), "leaving repair clears it");
        server.write_all(b"still here").unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(numbers(client.as_fd()).unwrap().received.wrapping_sub(here.received), 10);
    }

    #[test]
    fn a_silent_close_tells_the_peer_nothing() {
        if skipped() {
            return;
        }
        let (mut client, server, _listener) = pair();
        client.write_all(b"never read: any other close would reset").unwrap();
        close_silently(server.into()).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "neither an end nor a reset");
        // The stack has no such connection any more, and says so.
        client.write_all(b"anybody there?").unwrap();
        client.set_read_timeout(None).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
