//! Sockets below TCP: whole frames, ICMP. Each is opened with privileges, and used without any but CAP_NET_ADMIN.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use super::result::{check, check_size};

/// Of include/uapi/linux/icmp.h: a mask of the types that are not wanted.
const ICMP_FILTER: i32 = 1;
const ICMP_DEST_UNREACH: u32 = 3;

/// Of include/uapi/linux/icmpv6.h: a mask of 256 bits, likewise.
const ICMPV6_FILTER: i32 = 1;
const ICMPV6_PKT_TOOBIG: u32 = 2;

/// Opens a socket by which whole frames are sent, and which receives none: it has no protocol (packet(7)).
///
/// # Errors
/// No CAP_NET_RAW.
pub(crate) fn open_packet() -> io::Result<OwnedFd> {
    open(libc::AF_PACKET, libc::SOCK_RAW, 0)
}

/// Sends a frame, which begins with its Ethernet header, by a device.
///
/// # Errors
/// `WouldBlock`; the device is gone, down, or its queue is full.
pub(crate) fn send_frame(socket: BorrowedFd<'_>, device: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(device).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The frame says what is in it, and so must the address (`packet_snd`, net/packet/af_packet.c): else offloads and
    // filters would not know.
    if let Some([high, low]) = frame.get(12..14) {
        address.sll_protocol = u16::from_ne_bytes([*high, *low]);
    }
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `frame` and `address`, which are as long as it is told.
    check_size(unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            len,
        )
    })?;
    Ok(())
}

/// Opens a socket that gets what says that an IPv4 packet of this host did not reach its destination, with its IPv4 header.
///
/// # Errors
/// No CAP_NET_RAW.
pub(crate) fn open_icmp() -> io::Result<OwnedFd> {
    let socket = open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    set_filter(&socket, libc::SOL_RAW, ICMP_FILTER, &[!(1 << ICMP_DEST_UNREACH)])?;
    Ok(socket)
}

/// Opens a socket that gets what says that an IPv6 packet of this host is too big, from the ICMPv6 header on.
///
/// # Errors
/// No CAP_NET_RAW; no IPv6.
pub(crate) fn open_icmpv6() -> io::Result<OwnedFd> {
    let socket = open(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)?;
    let mut unwanted = [u32::MAX; 8];
    unwanted[0] = !(1 << ICMPV6_PKT_TOOBIG);
    set_filter(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &unwanted)?;
    Ok(socket)
}

fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let socket =
        check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) })?;
    // SAFETY: it is open, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn set_filter(socket: &OwnedFd, level: i32, name: i32, unwanted: &[u32]) -> io::Result<()> {
    let len = size_of_val(unwanted) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `unwanted`, which is that long.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, unwanted.as_ptr().cast(), len) })?;
    Ok(())
}
