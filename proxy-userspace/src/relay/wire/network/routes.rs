//! By which way packets go.

use std::{io, net::IpAddr};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{
    links::{Links, Mac},
    netlink::Netlink,
};

/// How packets reach an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// Index of the device by which they go.
    pub(crate) device: u32,
    /// Its own Ethernet address.
    pub(crate) mac: Mac,
    /// The largest packet: the route's, or the device's.
    pub(crate) mtu: u32,
    /// To whom the device sends them: a router, or the address itself.
    pub(crate) next_hop: IpAddr,
}

/// Why there is no way that flows on the wire could take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoWay {
    /// The address is this host's, or a group's.
    Local,
    /// The device sends no Ethernet frames.
    NoEthernet,
    /// There is no route.
    NoRoute,
}

/// Asks the routing tables, by all their rules, for packets from one address of this host to another host's.
pub(super) fn way(
    route: &mut Netlink<RouteNetlinkMessage>,
    links: &Links,
    from: IpAddr,
    to: IpAddr,
) -> Result<Way, NoWay> {
    if matches!(to, IpAddr::V6(to) if to.is_unicast_link_local()) {
        // Without a scope, which no address of a connection here has, it would be any device's.
        return Err(NoWay::NoRoute);
    }
    let (family, bits) = family(to);
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question.header.source_prefix_length = bits;
    question.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(to)),
        RouteAttribute::Source(RouteAddress::from(from)),
    ];
    let answers = route.ask(RouteNetlinkMessage::GetRoute(question), 0).map_err(|_| NoWay::NoRoute)?;
    let Some(RouteNetlinkMessage::NewRoute(found)) = answers.into_iter().next() else {
        return Err(NoWay::NoRoute);
    };
    match found.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(NoWay::Local);
        }
        _ => return Err(NoWay::NoRoute),
    }
    let (mut device, mut mtu, mut next_hop) = (None, None, to);
    for attribute in found.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(index),
            RouteAttribute::Gateway(RouteAddress::Inet(router))
            | RouteAttribute::Via(RouteVia::Inet(router)) => {
                next_hop = router.into();
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(router))
            | RouteAttribute::Via(RouteVia::Inet6(router)) => {
                next_hop = router.into();
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            // Packets are wrapped on their way out, by MPLS for instance, which the wire would leave out.
            RouteAttribute::EncapType(_) => return Err(NoWay::NoEthernet),
            _ => {}
        }
    }
    let device = device.ok_or(NoWay::NoRoute)?;
    let link = links.get(&device).ok_or(NoWay::NoEthernet)?;
    Ok(Way { device, mac: link.mac, mtu: mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)), next_hop })
}

/// The Ethernet address of a neighbour; `None` when it is not known. Has the kernel ask for it then.
///
/// # Errors
/// The kernel's.
pub(super) fn neighbour(
    route: &mut Netlink<RouteNetlinkMessage>,
    device: u32,
    address: IpAddr,
) -> io::Result<Option<Mac>> {
    let mut question = NeighbourMessage::default();
    question.header.family = family(address).0;
    question.header.ifindex = device;
    question.attributes = vec![NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    })];
    // One that was never asked for is `ENOENT` (`neigh_get`, net/core/neighbour.c; Linux 5.0).
    let answers = route.ask(RouteNetlinkMessage::GetNeighbour(question.clone()), 0).unwrap_or_default();
    let known = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(NeighbourMessage { header, attributes, .. })
            if !matches!(
                header.state,
                NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
            ) =>
        {
            attributes.into_iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac).ok(),
                _ => None,
            })
        }
        _ => None,
    });
    if known.is_none() {
        // As if a packet were to go there (`neigh_add`, net/core/neighbour.c).
        question.header.flags = NeighbourFlags::Use;
        route.ask(RouteNetlinkMessage::NewNeighbour(question), NLM_F_CREATE)?;
    }
    Ok(known)
}

fn family(address: IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}
