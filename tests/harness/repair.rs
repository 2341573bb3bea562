//! A client that sends a segment whose head has arrived before, as retransmissions do when acknowledgements are lost.
//!
//! With `TCP_REPAIR` a connection is taken over by a second socket whose next sequence number lies back.
#![expect(unsafe_code, reason = "no crate in use wraps TCP_REPAIR")]

use std::{net::TcpStream, os::fd::AsRawFd as _};

use socket2::{Domain, Socket, Type};

/// Values of `TCP_REPAIR_QUEUE` (include/uapi/linux/tcp.h).
const RECEIVE_QUEUE: u32 = 1;
const SEND_QUEUE: u32 = 2;
const TCP_REPAIR_WINDOW: i32 = 29;
/// Ends the repair without a window probe, which would tell the peer.
const REPAIR_OFF_NO_PROBE: i32 = -1;

/// Replaces a connection by one that will send the last `back` bytes of its stream once more. All that it sent must
/// have been acknowledged. Needs CAP_NET_ADMIN.
#[must_use]
pub fn step_back(stream: TcpStream, back: u32) -> TcpStream {
    let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let old = Socket::from(stream);
    set(&old, libc::TCP_REPAIR, &1_i32);
    let sequence = |queue: u32| -> u32 {
        set(&old, libc::TCP_REPAIR_QUEUE, &queue);
        get(&old, libc::TCP_QUEUE_SEQ)
    };
    let (send, receive) = (sequence(SEND_QUEUE), sequence(RECEIVE_QUEUE));
    let timestamp: u32 = get(&old, libc::TCP_TIMESTAMP);
    let window: [u32; 5] = get(&old, TCP_REPAIR_WINDOW);
    let info: [u8; 8] = get(&old, libc::TCP_INFO);
    // Closed under repair, nothing is sent.
    drop(old);

    let new = Socket::new(Domain::for_address(local), Type::STREAM, None).unwrap();
    new.set_reuse_address(true).unwrap();
    set(&new, libc::TCP_REPAIR, &1_i32);
    for (queue, sequence) in [(SEND_QUEUE, send.wrapping_sub(back)), (RECEIVE_QUEUE, receive)] {
        set(&new, libc::TCP_REPAIR_QUEUE, &queue);
        set(&new, libc::TCP_QUEUE_SEQ, &sequence);
    }
    new.bind(&local.into()).unwrap();
    new.connect(&peer.into()).unwrap();
    // Maximum segment size, window scales, timestamps, selective acknowledgements: as they were negotiated.
    let (options, scales) = (info[5], u32::from(info[6]));
    set(&new, libc::TCP_REPAIR_OPTIONS, &[2_u32, 65_495, 3, scales & 15 | (scales >> 4) << 16]);
    for (bit, option) in [(1, 8_u32), (2, 4)] {
        if options & bit != 0 {
            set(&new, libc::TCP_REPAIR_OPTIONS, &[option, 0]);
        }
    }
    set(&new, TCP_REPAIR_WINDOW, &window);
    set(&new, libc::TCP_TIMESTAMP, &timestamp);
    set(&new, libc::TCP_REPAIR, &REPAIR_OFF_NO_PROBE);
    new.into()
}

/// The next sequence numbers of a connection at rest: of what it sends, and of what it receives. Needs CAP_NET_ADMIN.
#[must_use]
pub fn numbers(stream: &TcpStream) -> [u32; 2] {
    let socket = Socket::from(stream.try_clone().unwrap());
    set(&socket, libc::TCP_REPAIR, &1_i32);
    let numbers = [SEND_QUEUE, RECEIVE_QUEUE].map(|queue| {
        set(&socket, libc::TCP_REPAIR_QUEUE, &queue);
        get(&socket, libc::TCP_QUEUE_SEQ)
    });
    set(&socket, libc::TCP_REPAIR, &REPAIR_OFF_NO_PROBE);
    numbers
}

fn set<T>(socket: &Socket, name: i32, value: &T) {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads `len` bytes from `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, name, value, len) };
    assert_eq!(result, 0, "option {name}: {}", std::io::Error::last_os_error());
}

fn get<T: Default>(socket: &Socket, name: i32) -> T {
    let (mut value, mut len) = (T::default(), size_of::<T>() as libc::socklen_t);
    let at = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes to `value`, an integer or an array of them.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, name, at, &raw mut len) };
    assert_eq!(result, 0, "option {name}: {}", std::io::Error::last_os_error());
    value
}
