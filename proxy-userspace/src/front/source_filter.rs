//! A filter for listening sockets that lets in some ranges of addresses: to all others the port looks as if a firewall
//! dropped what comes for it, for no SYN of theirs is answered.

use ipnet::IpNet;

use crate::{
    config::Ranges,
    sys::{FILTER_MOST, Instruction},
};

/// Where an address of the sender begins in a header (RFC 791, section 3.1; RFC 8200, section 3).
const SOURCE_V4: u32 = 12;
const SOURCE_V6: u32 = 8;
/// What the program returns: the bytes of the packet that are let through.
const LET_IN: u32 = u32::MAX;
const DROP: u32 = 0;

/// A filter for these ranges, as short as it can be. A packet of IPv4 is judged as such on sockets for both versions,
/// too. `None`: they are more than a filter may hold, which is some 1,000 ranges of IPv4, or 300 of IPv6.
pub(crate) fn only(ranges: &Ranges) -> Option<Vec<Instruction>> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for range in ranges.iter() {
        match range {
            IpNet::V4(range) => {
                let (ip, mask) = (range.network().to_bits(), range.netmask().to_bits());
                let words = [(SOURCE_V4, ip, mask)];
                v4.extend(within(&words));
            }
            IpNet::V6(range) => {
                let (ip, mask) = (range.network().to_bits(), range.netmask().to_bits());
                let word = |number: u32| {
                    let shift = 96 - 32 * number;
                    (SOURCE_V6 + 4 * number, (ip >> shift) as u32, (mask >> shift) as u32)
                };
                v6.extend(within(&[0, 1, 2, 3].map(word)));
            }
        }
    }
    v4.push(give(DROP));
    v6.push(give(DROP));
    let past = u32::try_from(v4.len()).ok()?;
    let version = [
        load(libc::BPF_B, 0),
        Instruction { code: (libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K) as u16, jt: 0, jf: 0, k: 4 },
        // Offsets of conditional jumps are short.
        jump_if(4, 1, 0),
        Instruction { code: (libc::BPF_JMP | libc::BPF_JA) as u16, jt: 0, jf: 0, k: past },
    ];
    let program = [&version[..], &v4, &v6].concat();
    (program.len() <= FILTER_MOST).then_some(program)
}

/// Lets in whose words at these offsets are these, as far as the masks go; else goes on behind.
fn within(words: &[(u32, u32, u32)]) -> Vec<Instruction> {
    let mut program = vec![give(LET_IN)];
    for (at, word, mask) in words.iter().rev().filter(|(_, _, mask)| *mask != 0) {
        // At most four words of three instructions.
        let mut check = vec![load(libc::BPF_W, *at)];
        if *mask != u32::MAX {
            let code = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
            check.push(Instruction { code, jt: 0, jf: 0, k: *mask });
        }
        check.push(jump_if(*word, 0, program.len() as u8));
        program.splice(0..0, check);
    }
    program
}

/// Loads from the packet's network header.
fn load(size: u32, at: u32) -> Instruction {
    let code = (libc::BPF_LD | size | libc::BPF_ABS) as u16;
    Instruction { code, jt: 0, jf: 0, k: (libc::SKF_NET_OFF as u32).wrapping_add(at) }
}

fn jump_if(equal: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt, jf, k: equal }
}

fn give(bytes: u32) -> Instruction {
    Instruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: bytes }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;
    use crate::sys::{attach_filter, detach_filter};

    fn ranges(texts: &[&str]) -> Ranges {
        Ranges::new(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn connect(from: &str, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SockAddr::from(SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0)))?;
        // A SYN that is dropped comes again after a second.
        socket.connect_timeout(&to.into(), Duration::from_millis(500))?;
        Ok(socket.into())
    }

    fn gets_in(from: &str, to: SocketAddr) -> bool {
        match connect(from, to) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{from}: it must look like a firewall");
                false
            }
        }
    }

    /// On a socket for both versions, with the kernel as the judge.
    #[test]
    fn only_those_of_the_ranges_get_in() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(16).unwrap();
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().unwrap().port();
        let (v4, v6) =
            (SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)));
        let rows: [(&[&str], [bool; 4]); 9] = [
            (&[], [false; 4]),
            (&["127.9.8.0/23"], [true, true, false, false]),
            (&["127.9.9.9/32"], [true, false, false, false]),
            (&["10.0.0.0/8", "127.9.9.8/31", "127.200.0.0/16"], [true, false, true, false]),
            (&["0.0.0.0/0"], [true, true, true, false]),
            (&["::/0"], [false, false, false, true]),
            (&["::1/128"], [false, false, false, true]),
            (&["2001:db8::/33", "::/127"], [false, false, false, true]),
            (&["::2/127", "1::/16", "0:0:0:1::/64"], [false; 4]),
        ];
        for (texts, expected) in rows {
            attach_filter(&listener, &only(&ranges(texts)).unwrap()).unwrap();
            let got = [
                gets_in("127.9.9.9", v4),
                gets_in("127.9.8.7", v4),
                gets_in("127.200.0.1", v4),
                gets_in("::1", v6),
            ];
            assert_eq!(got, expected, "{texts:?}");
        }
        detach_filter(&listener).unwrap();
        detach_filter(&listener).unwrap();
        assert!(gets_in("127.9.9.9", v4) && gets_in("::1", v6));
    }

    #[test]
    fn very_many_ranges_are_too_many() {
        let many =
            |count: u32| Ranges::new((0..count).map(|ip| IpAddr::from(ip.to_be_bytes()).into()).collect());
        assert!(only(&many(1_000)).is_some());
        assert!(only(&many(2_000)).is_none());
        // What a mask leaves out is not compared.
        let networks = |count: u128| {
            let network = |number: u128| IpNet::new(Ipv6Addr::from_bits(number << 64).into(), 64).unwrap();
            Ranges::new((1..=count).map(network).collect())
        };
        assert!(only(&networks(700)).is_some());
        assert!(only(&networks(900)).is_none());
    }
}
