//! Packets that no socket sends or receives for setu: resets, and what says that a packet was too big.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv4HeaderSlice,
    Ipv6FlowLabel, Ipv6Header, Ipv6HeaderSlice, PacketBuilder, PacketBuilderStep, TcpHeader,
    icmpv4::DestUnreachableHeader,
};

/// Of what is sent: as Linux has it.
const HOPS: u8 = 64;

/// The least that is believed: what IPv6 carries everywhere (RFC 8200, section 5), and IPv4 nearly everywhere. Who hears of it
/// keeps to it for all connections with this host, not for the one alone.
const LEAST: u32 = 1280;

/// A reset in the name of one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reset {
    /// In whose name: an address and port of this host.
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The number that `to` expects next; it believes no other (RFC 5961).
    pub(crate) sequence: u32,
}

/// What asks one end of a connection whether it is still there: it has this already, and says so (RFC 9293, section 3.10.7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    /// In whose name: an address and port of this host.
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The number that `to` expects next.
    pub(crate) sequence: u32,
    /// What `to` has sent.
    pub(crate) acknowledgement: u32,
}

/// What a router says: a packet was too big.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooBig {
    /// Names of the packet, as its sender sent it.
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) sequence: u32,
    /// The largest packet that would have passed.
    pub(crate) mtu: u32,
}

/// A packet of IPv4 or IPv6, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) bytes: Vec<u8>,
}

impl Reset {
    /// `None`: both addresses are not of one family.
    pub(super) fn packet(&self) -> Option<Packet> {
        segment(self.from, self.to, |ip| ip.tcp(self.from.port(), self.to.port(), self.sequence, 0).rst())
    }
}

impl Question {
    /// As [`Reset::packet`].
    pub(super) fn packet(&self) -> Option<Packet> {
        let before = self.sequence.wrapping_sub(1);
        segment(self.from, self.to, |ip| {
            ip.tcp(self.from.port(), self.to.port(), before, u16::MAX).ack(self.acknowledgement)
        })
    }
}

/// A segment without bytes. `None`: both addresses are not of one family.
fn segment(
    from: SocketAddr,
    to: SocketAddr,
    tcp: impl FnOnce(PacketBuilderStep<IpHeaders>) -> PacketBuilderStep<TcpHeader>,
) -> Option<Packet> {
    let (from, to) = (from.ip().to_canonical(), to.ip().to_canonical());
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => return None,
    };
    let mut bytes = Vec::new();
    tcp(ip).write(&mut bytes, &[]).ok()?;
    Some(Packet { from, to, bytes })
}

impl TooBig {
    /// Reads what a raw socket for ICMP got: it begins with its IPv4 header.
    pub(super) fn from_icmp(packet: &[u8]) -> Option<Self> {
        let (_, message) = Ipv4Header::from_slice(packet).ok()?;
        let (header, quoted) = Icmpv4Header::from_slice(message).ok()?;
        let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }) =
            header.icmp_type
        else {
            return None;
        };
        // Raw sockets get it before the kernel has looked (`ip_protocol_deliver_rcu`, net/ipv4/ip_input.c).
        if header.icmp_type.calc_checksum(quoted) != header.checksum {
            return None;
        }
        let ip = Ipv4HeaderSlice::from_slice(quoted).ok()?;
        let tcp = quoted.get(ip.slice().len()..)?;
        if ip.protocol() != IpNumber::TCP || ip.fragments_offset().value() != 0 {
            return None;
        }
        let names = (ip.source_addr().into(), ip.destination_addr().into());
        Self::quoting(names, tcp, next_hop_mtu.into())
    }

    /// Reads what a raw socket for ICMPv6 got: it begins with its ICMPv6 header, and its checksum is right
    /// (`rawv6_rcv`, net/ipv6/raw.c).
    pub(super) fn from_icmpv6(message: &[u8]) -> Option<Self> {
        let (header, quoted) = Icmpv6Header::from_slice(message).ok()?;
        let Icmpv6Type::PacketTooBig { mtu } = header.icmp_type else { return None };
        let ip = Ipv6HeaderSlice::from_slice(quoted).ok()?;
        let tcp = quoted.get(ip.slice().len()..)?;
        if ip.next_header() != IpNumber::TCP {
            return None;
        }
        let names = (ip.source_addr().into(), ip.destination_addr().into());
        Self::quoting(names, tcp, mtu)
    }

    /// Of TCP 8 bytes are quoted at least: ports and sequence number.
    fn quoting((source, destination): (IpAddr, IpAddr), tcp: &[u8], mtu: u32) -> Option<Self> {
        let [s0, s1, d0, d1, n0, n1, n2, n3] = *tcp.first_chunk()?;
        (mtu >= LEAST).then_some(Self {
            source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
            destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
            sequence: u32::from_be_bytes([n0, n1, n2, n3]),
            mtu,
        })
    }

    /// The same, said by the destination to the source. `None`: both addresses are not of one family.
    pub(super) fn packet(&self) -> Option<Packet> {
        let (from, to) = (self.destination.ip().to_canonical(), self.source.ip().to_canonical());
        // The packet that is quoted was too big by a little.
        let too_long = u16::try_from(self.mtu.saturating_add(1)).unwrap_or(u16::MAX);
        let (mut quoted, mut bytes) = (Vec::new(), Vec::new());
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip = Ipv4Header::new(0, HOPS, IpNumber::TCP, to.octets(), from.octets()).ok()?;
                ip.total_len = too_long;
                ip.header_checksum = ip.calc_header_checksum();
                ip.write_raw(&mut quoted).ok()?;
                self.quote(&mut quoted);
                let next_hop_mtu = u16::try_from(self.mtu).unwrap_or(u16::MAX);
                let says = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                let icmp = PacketBuilder::ipv4(from.octets(), to.octets(), HOPS);
                icmp.icmpv4(Icmpv4Type::DestinationUnreachable(says)).write(&mut bytes, &quoted).ok()?;
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: too_long.saturating_sub(40),
                    next_header: IpNumber::TCP,
                    hop_limit: HOPS,
                    source: to.octets(),
                    destination: from.octets(),
                };
                ip.write(&mut quoted).ok()?;
                self.quote(&mut quoted);
                let icmp = PacketBuilder::ipv6(from.octets(), to.octets(), HOPS);
                icmp.icmpv6(Icmpv6Type::PacketTooBig { mtu: self.mtu }).write(&mut bytes, &quoted).ok()?;
            }
            _ => return None,
        }
        Some(Packet { from, to, bytes })
    }

    fn quote(&self, quoted: &mut Vec<u8>) {
        quoted.extend(self.source.port().to_be_bytes());
        quoted.extend(self.destination.port().to_be_bytes());
        quoted.extend(self.sequence.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both() -> [TooBig; 2] {
        let too_big = |source: &str, destination: &str| TooBig {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            sequence: 0xfedc_ba98,
            mtu: 1280,
        };
        [too_big("10.1.2.3:4567", "10.9.8.7:443"), too_big("[2001:db8::1]:4567", "[2001:db8::2]:443")]
    }

    /// What a raw socket would get of it.
    fn read(bytes: &[u8], ipv4: bool) -> Option<TooBig> {
        if ipv4 { TooBig::from_icmp(bytes) } else { TooBig::from_icmpv6(bytes) }
    }

    fn received(packet: &Packet) -> (&[u8], bool) {
        let ipv4 = packet.to.is_ipv4();
        (if ipv4 { &packet.bytes } else { &packet.bytes[40..] }, ipv4)
    }

    #[test]
    fn what_is_sent_is_what_is_read_and_nothing_that_is_cut_short() {
        for too_big in both() {
            let packet = too_big.packet().unwrap();
            assert_eq!((packet.from, packet.to), (too_big.destination.ip(), too_big.source.ip()));
            let (bytes, ipv4) = received(&packet);
            assert_eq!(read(bytes, ipv4), Some(too_big));
            for len in 0..bytes.len() {
                assert_eq!(read(&bytes[..len], ipv4), None, "{len} bytes");
            }
        }
    }

    #[test]
    fn what_no_network_says_is_not_believed() {
        for too_big in both() {
            let packet = TooBig { mtu: 67, ..too_big }.packet().unwrap();
            let (bytes, ipv4) = received(&packet);
            assert_eq!(read(bytes, ipv4), None);
        }
        let mut packet = both()[0].packet().unwrap();
        *packet.bytes.last_mut().unwrap() ^= 1;
        assert_eq!(TooBig::from_icmp(&packet.bytes), None, "its checksum is wrong");
    }

    #[test]
    fn mixed_families_are_no_packet() {
        let [four, six] = both();
        let mixed = TooBig { source: four.source, ..six };
        assert!(mixed.packet().is_none());
        assert!(Reset { from: six.source, to: four.source, sequence: 1 }.packet().is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parsers(bytes: Vec<u8>, at in 0_usize..80, change: u8) {
            let _ = (TooBig::from_icmp(&bytes), TooBig::from_icmpv6(&bytes));
            for too_big in both() {
                let packet = too_big.packet().unwrap();
                let (good, ipv4) = received(&packet);
                let mut changed = good.to_vec();
                let at = at % changed.len();
                changed[at] ^= change;
                let _ = read(&changed, ipv4);
            }
        }
    }
}
