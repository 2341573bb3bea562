//! Frames of a device, as they are on the wire.
#![expect(
    unsafe_code,
    reason = "no crate in use makes packet sockets, waits for two of them, or sets offloads"
)]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    time::Duration,
};

/// Frames that wait to be read, bytes; beyond that the kernel drops.
const BUFFER: libc::c_int = 16 << 20;
/// Commands of `SIOCETHTOOL` that switch one offload (include/uapi/linux/ethtool.h); `libc` has none of them: checksums,
/// then segments that are cut (TSO, GSO) or merged (GRO) beyond the wire's size.
const OFFLOADS: [u32; 4] = [0x17, 0x1f, 0x24, 0x2c];
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// All that comes to a device (packet(7)), and a way to send from it.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it in the namespace of the calling thread. It never blocks.
    ///
    /// # Errors
    /// Without the privilege, or the device.
    pub fn open(device: &str) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // With protocol 0 nothing comes before it is bound: no frame of another device.
        // SAFETY: no memory is passed.
        let descriptor = result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) } as isize)?;
        // SAFETY: it is open, and nobody else's.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) });
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: index(device)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads one `sockaddr_ll`.
        result(unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), len) } as isize)?;
        Ok(socket)
    }

    /// The next frame; longer ones are cut.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        result(unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads the frame.
        result(unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) }).map(drop)
    }

    /// Waits until one of two has a frame, or for so long, less than a second.
    pub fn wait(sockets: &[Self; 2], time: Duration) {
        let mut polled = sockets.each_ref().map(|socket| libc::pollfd {
            fd: socket.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let time = libc::timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
        // SAFETY: the kernel reads and writes two `pollfd`s, and reads one `timespec`.
        unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const time, ptr::null()) };
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads one `c_int`.
        let set =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, (&raw const value).cast(), len) };
        result(set as isize).map(drop)
    }
}

/// Makes a device of this thread's namespace send what a wire carries: whole checksums, and no packet that is longer than
/// its MTU.
///
/// # Errors
/// When the device cannot.
pub fn without_offloads(device: &str) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    for command in OFFLOADS {
        // `struct ethtool_value`: the command, and off.
        let mut value = [command, 0_u32];
        // SAFETY: all of it may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.as_bytes().iter().take(libc::IFNAMSIZ - 1)) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the kernel reads one `ifreq` and the `ethtool_value` that it points to, which both outlive the call.
        result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } as isize)?;
    }
    Ok(())
}

fn index(device: &str) -> io::Result<libc::c_int> {
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name ends with a zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index as libc::c_int),
    }
}

fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
