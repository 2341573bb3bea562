//! `TCP_INFO`: how far a connection is, and since when it is silent.

use std::{
    io,
    mem::{MaybeUninit, offset_of},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use rustix::net::{ipproto, sockopt};

/// `struct tcp_info` up to `tcpi_snd_wnd` (include/uapi/linux/tcp.h), which the libc crate does not carry whole.
///
/// No position in a stream is ever reckoned from `tcpi_bytes_sent`: it counts a segment again that a local queue refused
/// (`__tcp_transmit_skb`, net/ipv4/tcp_output.c, counts before it queues).
#[repr(C)]
struct Raw {
    state: u8,
    small: [u8; 7],
    words: [u32; 24],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: u32,
    delivered_ce: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
    /// From here on 0 before Linux 5.4.
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
}

const _: () = assert!(size_of::<Raw>() == 232);

/// What must be told: up to `tcpi_bytes_retrans`.
const NEEDED: usize = offset_of!(Raw, dsack_dups);

/// Index of `tcpi_last_data_sent` in [`Raw::words`]; `tcpi_last_data_recv` is two further. In milliseconds.
const LAST_DATA_SENT: usize = 9;

/// Indices in [`Raw::words`] of `tcpi_snd_mss`, `tcpi_pmtu` and `tcpi_advmss`.
const SEND_MSS: usize = 2;
const PATH_MTU: usize = 13;
const ADVERTISED_MSS: usize = 19;

/// Indices in [`Raw::small`] of `tcpi_options`, and of `tcpi_snd_wscale` and `tcpi_rcv_wscale`.
const OPTIONS: usize = 4;
const WINDOW_SCALES: usize = 5;

/// Bits of `tcpi_options` (include/uapi/linux/tcp.h).
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_WSCALE: u8 = 4;
const TCPI_OPT_ECN: u8 = 8;

/// What timestamps take of each segment, bytes (`TCPOLEN_TSTAMP_ALIGNED`, include/net/tcp.h).
const TIMESTAMP_LEN: u32 = 12;

/// What setu reads of `TCP_INFO`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpInfo {
    /// Whether the connection is gone (`TCP_CLOSE`).
    pub(crate) closed: bool,
    /// Whether the peer has sent its FIN.
    pub(crate) finished: bool,
    /// Bytes received in order, a FIN counted as one.
    pub(crate) received: u64,
    /// Bytes that the peer acknowledged; on the dialing side the SYN counts as one.
    pub(crate) acked: u64,
    /// Bytes beyond those for which the peer has offered room; 0 where the kernel does not tell.
    pub(crate) window: u32,
    /// The longest segment that the peer takes, options included: what it said, or what fits through the way to it.
    pub(crate) segment: u32,
    /// The least round trip that was measured.
    pub(crate) min_rtt: Duration,
    /// Time since data was last sent or received.
    pub(crate) silent: Duration,
}

/// Reads `TCP_INFO`. It takes the socket's lock (`tcp_get_info`, net/ipv4/tcp.c), so that what the network did to the
/// socket before the call has been done wholly.
///
/// # Errors
/// The socket's, and `Unsupported` on a kernel before 4.1, which does not tell the bytes acknowledged.
pub(crate) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let raw = read(socket)?;
    let silent = raw.words[LAST_DATA_SENT].min(raw.words[LAST_DATA_SENT + 2]);
    Ok(TcpInfo {
        closed: raw.state == TCP_CLOSE,
        finished: matches!(raw.state, TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING),
        received: raw.bytes_received,
        acked: raw.bytes_acked,
        window: raw.snd_wnd,
        segment: raw.words[SEND_MSS]
            + if raw.small[OPTIONS] & TCPI_OPT_TIMESTAMPS == 0 { 0 } else { TIMESTAMP_LEN },
        min_rtt: Duration::from_micros(u64::from(raw.min_rtt)),
        silent: Duration::from_millis(u64::from(silent)),
    })
}

/// What both ends of a connection agreed on, and how large its segments are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LegInfo {
    /// Whether it is established, and neither side has sent its FIN.
    pub(crate) established: bool,
    /// Whether the peer has sent data, or acknowledged some. One that was dialed may else be in SYN_RECV still, since the last
    /// acknowledgement of the handshake was lost: it then takes no segment that is not of the same connection to the last bit,
    /// its own TSval echoed (`tcp_check_req`, net/ipv4/tcp_minisocks.c).
    pub(crate) heard: bool,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
    pub(crate) window_scaling: bool,
    pub(crate) ecn: bool,
    /// Shift of the windows that the peer announces.
    pub(crate) send_window_scale: u8,
    /// Shift of the windows that this side announces.
    pub(crate) receive_window_scale: u8,
    /// The most bytes of the stream that a segment to the peer has: headers, and timestamps where in use, are not in it.
    pub(crate) send_mss: u32,
    /// The most that one from the peer has, as the peer was told; likewise.
    pub(crate) advertised_mss: u32,
    pub(crate) path_mtu: u32,
}

/// Reads what a TCP connection's ends agreed on.
///
/// # Errors
/// `InvalidInput` for what is no TCP, such as MPTCP; those of [`tcp_info`].
pub(crate) fn leg_info(socket: BorrowedFd<'_>) -> io::Result<LegInfo> {
    if sockopt::socket_protocol(socket)? != Some(ipproto::TCP) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw = read(socket)?;
    let option = |bit| raw.small[OPTIONS] & bit != 0;
    // Two bit fields, which begin at the low bits on little-endian machines.
    let (low, high) = (raw.small[WINDOW_SCALES] & 0xf, raw.small[WINDOW_SCALES] >> 4);
    let (send_window_scale, receive_window_scale) =
        if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
    Ok(LegInfo {
        established: raw.state == TCP_ESTABLISHED,
        // The SYN counts as one.
        heard: raw.bytes_received > 0 || raw.bytes_acked > 1,
        timestamps: option(TCPI_OPT_TIMESTAMPS),
        sack: option(TCPI_OPT_SACK),
        window_scaling: option(TCPI_OPT_WSCALE),
        ecn: option(TCPI_OPT_ECN),
        send_window_scale,
        receive_window_scale,
        send_mss: raw.words[SEND_MSS],
        advertised_mss: raw.words[ADVERTISED_MSS],
        path_mtu: raw.words[PATH_MTU],
    })
}

fn read(socket: BorrowedFd<'_>) -> io::Result<Raw> {
    let mut raw = MaybeUninit::<Raw>::zeroed();
    let mut len = size_of::<Raw>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `raw`, which is that long.
    super::result::check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    if (len as usize) < NEEDED {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: zeroed before the call, and any bit pattern is a valid `Raw`.
    Ok(unsafe { raw.assume_init() })
}

impl TcpInfo {
    /// Bytes that were written to the socket, sent or not: those acknowledged, and those that are not ([`super::unacknowledged`],
    /// asked for after this was read). What is acknowledged between the two makes it too low, never too high.
    pub(crate) fn written(&self, unacknowledged: u64) -> u64 {
        self.acked + unacknowledged
    }
}

/// States of include/net/tcp_states.h.
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use setu_tests::netns::Netns;

    use super::*;

    #[test]
    fn counts_bytes_and_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        let info = tcp_info(client.as_fd()).unwrap();
        // The SYN counts as one.
        assert_eq!(info.written(crate::sys::unacknowledged(client.as_fd()).unwrap()), 1001);
        let info = tcp_info(server.as_fd()).unwrap();
        assert_eq!(info.received, 1000);
        assert!(
            info.silent >= Duration::from_millis(50) && info.silent < Duration::from_secs(10),
            "{info:?}"
        );
        drop(client);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(tcp_info(server.as_fd()).unwrap().received, 1001, "a FIN counts as one byte");
    }

    #[test]
    fn both_ends_agree() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (here, there) = (leg_info(client.as_fd()).unwrap(), leg_info(server.as_fd()).unwrap());
        assert!(here.established && here.timestamps && here.sack && here.window_scaling, "{here:?}");
        assert!(!here.heard && !there.heard, "{here:?}");
        assert_eq!((here.timestamps, here.sack, here.ecn), (there.timestamps, there.sack, there.ecn));
        assert_eq!(here.send_window_scale, there.receive_window_scale);
        (&client).write_all(b"1").unwrap();
        (&server).read_exact(&mut [0]).unwrap();
        assert!(leg_info(client.as_fd()).unwrap().heard, "what it sent was acknowledged");
        assert!(leg_info(server.as_fd()).unwrap().heard);
        assert_eq!(here.path_mtu, 65_535, "loopback's");
        assert_eq!(here.advertised_mss, 65_535 - 40 - 12, "loopback's, less headers and timestamps");
        drop(client);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while leg_info(server.as_fd()).unwrap().established {
            assert!(std::time::Instant::now() < deadline, "the FIN never came");
            std::thread::sleep(Duration::from_millis(1));
        }
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(leg_info(udp.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    /// A queue that refuses segments makes TCP count their transmission again and again.
    #[test]
    fn what_is_written_is_no_count_of_transmissions() {
        if !setu_tests::machine::is_root() {
            println!("skipped: a queueing discipline needs root, and this is not");
            return;
        }
        let (near, far) = (Netns::alone(), Netns::alone());
        near.join("toward", "10.76.1.1/24", &far, "back", "10.76.1.2/24");
        let shape = "qdisc add dev toward root tbf rate 20mbit burst 20kb limit 30kb";
        assert!(near.command("tc").args(shape.split(' ')).status().unwrap().success());
        let listener = far.within(|| TcpListener::bind("10.76.1.2:0").unwrap());
        let address = listener.local_addr().unwrap();
        let mut client = near.within(|| TcpStream::connect(address).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut server, &mut std::io::sink()).unwrap());
        let written = |client: &TcpStream| {
            let info = tcp_info(client.as_fd()).unwrap();
            info.written(crate::sys::unacknowledged(client.as_fd()).unwrap())
        };
        // The SYN counts as one.
        let mut sent = 1;
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while std::time::Instant::now() < end {
            sent += client.write(&[7; 20_000]).unwrap_or(0) as u64;
            let written = written(&client);
            assert!(written <= sent, "{written} of {sent}");
        }
        let dropped = near.command("tc").args(["-s", "qdisc", "show", "dev", "toward"]).output().unwrap();
        let dropped = String::from_utf8(dropped.stdout).unwrap();
        assert!(!dropped.contains("dropped 0,"), "nothing was refused: {dropped}");
        client.set_nonblocking(false).unwrap();
        while crate::sys::unacknowledged(client.as_fd()).unwrap() > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(written(&client), sent);
        drop(client);
        assert_eq!(reader.join().unwrap() + 1, sent);
    }
}
