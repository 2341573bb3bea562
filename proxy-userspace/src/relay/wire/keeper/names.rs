//! Names of connections, as packets carry them and as sockets have them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::wire::layout::{IPV4, IPV6, Names};

use crate::sys::Constants;

/// An address in the words of the map.
pub(super) fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => {
            let octets = address.octets();
            let word =
                |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
            [word(0), word(4), word(8), word(12)]
        }
    }
}

fn address(words: [u32; 4], is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        return Ipv4Addr::from(words[0].to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (place, word) in octets.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).into()
}

/// The names that packets from `peer` to `local` carry.
pub(super) fn of_packets(peer: SocketAddr, local: SocketAddr) -> Names {
    Names {
        source: words(peer.ip()),
        destination: words(local.ip()),
        source_port: peer.port().to_be(),
        destination_port: local.port().to_be(),
        family: if peer.is_ipv4() { IPV4 } else { IPV6 },
    }
}

/// Setu's end and the peer's of the leg that these lead to.
pub(super) fn of_leg(towards: &Constants, is_ipv4: bool) -> (SocketAddr, SocketAddr) {
    let of = |words, port| SocketAddr::new(address(words, is_ipv4), u16::from_be(port));
    (of(towards.source, towards.source_port), of(towards.destination, towards.destination_port))
}

/// An address as packets have it: sockets for both families name IPv4 addresses as IPv6 ones.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (peer, local) in
            [("192.0.2.7:50000", "198.51.100.1:443"), ("[2001:db8::7]:1", "[fe80::1:2:3]:65535")]
        {
            let (peer, local): (SocketAddr, SocketAddr) = (peer.parse().unwrap(), local.parse().unwrap());
            let names = of_packets(peer, local);
            // Packets that go to the peer have these the other way round.
            let towards = Constants {
                source: names.destination,
                destination: names.source,
                source_port: names.destination_port,
                destination_port: names.source_port,
                ..Constants::default()
            };
            assert_eq!(of_leg(&towards, peer.is_ipv4()), (local, peer));
        }
        assert_eq!(plain("[::ffff:192.0.2.7]:5".parse().unwrap()), "192.0.2.7:5".parse().unwrap());
    }
}
