//! The network devices of this host.

use std::{collections::HashMap, io};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};

use super::netlink::Netlink;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// A device that sends Ethernet frames to many neighbours.
#[derive(Debug, Clone)]
pub(super) struct Ethernet {
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// What it receives goes to a bridge, a bond or the like before any program or route of its own matters.
    pub(super) enslaved: bool,
}

/// The Ethernet devices, by index.
pub(super) type Links = HashMap<u32, Ethernet>;

/// Reads them all.
///
/// # Errors
/// The kernel's.
pub(super) fn read(route: &mut Netlink<RouteNetlinkMessage>) -> io::Result<Links> {
    let answers = route.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
    Ok(answers.into_iter().filter_map(ethernet).collect())
}

fn ethernet(answer: RouteNetlinkMessage) -> Option<(u32, Ethernet)> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = answer else { return None };
    // Some send frames to nobody in particular: dummies, VRFs.
    let odd = LinkFlags::Loopback | LinkFlags::Pointopoint | LinkFlags::Noarp;
    if header.link_layer_type != LinkLayerType::Ether || header.flags.intersects(odd) {
        return None;
    }
    let (mut name, mut mac, mut mtu, mut enslaved, mut routed) = (None, None, None, false, false);
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(is) => name = Some(is),
            LinkAttribute::Address(is) => mac = Mac::try_from(is).ok(),
            LinkAttribute::Mtu(is) => mtu = Some(is),
            LinkAttribute::Controller(_) => enslaved = true,
            // A VRF has its own routes, and its devices are as all others.
            LinkAttribute::LinkInfo(infos) => {
                routed = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    let up = header.flags.contains(LinkFlags::Up);
    let enslaved = enslaved && !routed;
    Some((header.index, Ethernet { name: name?, mac: mac?, mtu: mtu?, up, enslaved }))
}
