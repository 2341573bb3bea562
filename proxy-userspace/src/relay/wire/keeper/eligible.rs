//! Which flows can go on the wire: a pure function over what is known of both legs.

use std::net::SocketAddr;

use crate::{
    relay::wire::{message::WireRefusal, network::Way},
    sys::LegInfo,
};

/// Rounding a window to units larger than this could stall a side.
const LARGEST_UNIT_SHIFT: u8 = 10;
/// Bytes of the headers of a segment without options.
const HEADERS: [u32; 2] = [40, 60];

/// A leg, as its socket and the routing table have it.
#[derive(Debug, Clone)]
pub(super) struct Leg {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) info: LegInfo,
    pub(super) way: Way,
}

/// Whether one leg is of IPv4, and the other of IPv6.
pub(super) fn are_mixed([client, upstream]: &[Leg; 2]) -> bool {
    client.local.is_ipv4() != upstream.local.is_ipv4()
}

/// Whether the flow of these legs, client's and upstream's, can go on the wire. `upstream_takes`: the largest segment that the
/// upstream said it takes, where that is known.
pub(super) fn check([client, upstream]: &[Leg; 2], upstream_takes: Option<u16>) -> Result<(), WireRefusal> {
    let legs = [client, upstream];
    let (one, other) = (&client.info, &upstream.info);
    if one.timestamps != other.timestamps || one.sack != other.sack {
        return Err(WireRefusal::Options);
    }
    // X may send as much as setu's socket on its leg announced, and Y must take that.
    let takes = |leg: &Leg, noted: Option<u16>| {
        let headers = HEADERS[usize::from(leg.local.is_ipv6())];
        let noted = noted.map(u32::from).filter(|noted| *noted >= leg.info.send_mss);
        noted.map_or(leg.info.send_mss, |noted| noted.min(leg.info.path_mtu.saturating_sub(headers)))
    };
    if takes(upstream, upstream_takes) < one.advertised_mss || takes(client, None) < other.advertised_mss {
        return Err(WireRefusal::SegmentSize);
    }
    // What comes in by one device leaves by the other.
    if legs[0].way.mtu != legs[1].way.mtu && !mtu_fits(legs) {
        return Err(WireRefusal::Mtu);
    }
    let scales = |leg: &LegInfo| (leg.send_window_scale, leg.receive_window_scale);
    let ((in_client, out_client), (in_upstream, out_upstream)) = (scales(one), scales(other));
    let rounds = |shift_in: u8, shift_out: u8| shift_out > LARGEST_UNIT_SHIFT && shift_out > shift_in;
    if rounds(in_client, out_upstream) || rounds(in_upstream, out_client) {
        return Err(WireRefusal::WindowScale);
    }
    Ok(())
}

/// Whether the largest packet that a side may send passes the other's device.
fn mtu_fits([client, upstream]: [&Leg; 2]) -> bool {
    let largest = |leg: &Leg| leg.info.advertised_mss + HEADERS[usize::from(leg.local.is_ipv6())];
    largest(client) <= upstream.way.mtu && largest(upstream) <= client.way.mtu
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(peer: &str) -> Leg {
        let peer: SocketAddr = peer.parse().unwrap();
        let info = LegInfo {
            established: true,
            heard: true,
            timestamps: true,
            sack: true,
            window_scaling: true,
            ecn: false,
            send_window_scale: 7,
            receive_window_scale: 7,
            send_mss: 1388,
            advertised_mss: 1388,
            path_mtu: 1500,
        };
        let way = Way { device: 2, mac: Default::default(), mtu: 1500, next_hop: peer.ip() };
        Leg { local: peer, peer, info, way }
    }

    /// What becomes of legs that fit, but for this.
    fn but(change: impl FnOnce(&mut [Leg; 2])) -> Result<(), WireRefusal> {
        let mut legs = [leg("192.0.2.7:50000"), leg("198.51.100.1:443")];
        change(&mut legs);
        check(&legs, None)
    }

    #[test]
    fn legs_that_fit_are_taken_and_others_told_why_not() {
        assert_eq!(but(|_| {}), Ok(()));
        let six = leg("[2001:db8::7]:50000");
        assert_eq!(check(&[six.clone(), six.clone()], None), Ok(()));
        assert!(are_mixed(&[six, leg("198.51.100.1:443")]));
        for side in 0..2 {
            assert_eq!(but(|legs| legs[side].info.timestamps = false), Err(WireRefusal::Options));
            assert_eq!(but(|legs| legs[side].info.sack = false), Err(WireRefusal::Options));
            // One may send what the other does not take.
            assert_eq!(but(|legs| legs[side].info.advertised_mss = 1389), Err(WireRefusal::SegmentSize));
            assert_eq!(but(|legs| legs[side].info.send_mss = 1387), Err(WireRefusal::SegmentSize));
            assert_eq!(but(|legs| legs[side].way.mtu = 1427), Err(WireRefusal::Mtu));
            assert_eq!(but(|legs| legs[side].way.mtu = 1428), Ok(()), "as large as the largest packet");
            assert_eq!(but(|legs| legs[side].info.receive_window_scale = 11), Err(WireRefusal::WindowScale));
            assert_eq!(but(|legs| legs[side].info.receive_window_scale = 10), Ok(()));
            assert_eq!(but(|legs| legs[side].info.ecn = true), Ok(()), "its bits are cleared");
        }
    }

    #[test]
    fn what_an_upstream_said_counts_more_than_what_its_socket_was_held_to() {
        let mut legs = [leg("192.0.2.7:50000"), leg("198.51.100.1:443")];
        legs[1].info.send_mss = 1000;
        assert_eq!(check(&legs, None), Err(WireRefusal::SegmentSize));
        assert_eq!(check(&legs, Some(1400)), Ok(()));
        assert_eq!(check(&legs, Some(900)), Err(WireRefusal::SegmentSize), "of another connection");
        legs[1].info.path_mtu = 1400;
        assert_eq!(check(&legs, Some(1400)), Err(WireRefusal::SegmentSize), "the way is narrower");
    }
}
