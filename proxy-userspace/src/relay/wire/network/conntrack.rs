//! Taking connections out of conntrack, which would keep those that went on the wire for days.

use std::{io, net::SocketAddr, path::Path};

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use rustix::{io::Errno, net::netlink};

use super::netlink::Netlink;

/// What conntrack is to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conntrack {
    /// The kernel has none in use.
    Absent,
    /// Its entries can be deleted.
    Deletes,
    /// It has entries, and they cannot be deleted: `nf_conntrack_netlink` is missing, or CAP_NET_ADMIN.
    Keeps,
}

/// Where it shows that the kernel has it.
const SHOWN: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The kernel's conntrack.
#[derive(Debug)]
pub(super) struct Tracker {
    netlink: Option<Netlink<NetfilterMessage>>,
    pub(super) conntrack: Conntrack,
}

impl Tracker {
    /// Opens it, where there is one.
    pub(super) fn open() -> Self {
        let mut tracker =
            Self { netlink: Netlink::open(Some(netlink::NETFILTER), 0).ok(), conntrack: Conntrack::Absent };
        if Path::new(SHOWN).exists() {
            // A connection from nowhere to nowhere there is none of.
            let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
            let deletes = tracker.forget(nowhere, nowhere).is_ok();
            tracker.conntrack = if deletes { Conntrack::Deletes } else { Conntrack::Keeps };
        }
        tracker
    }

    /// Deletes the entry of a connection of this host, which finds it whoever began it and whatever addresses were
    /// translated: the names as the socket has them are those of one of its two directions
    /// (`ctnetlink_del_conntrack`, net/netfilter/nf_conntrack_netlink.c).
    ///
    /// # Errors
    /// The kernel's; that there is no entry is none.
    pub(super) fn forget(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
        let netlink = self.netlink.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        let family = if local.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        let tuple = vec![
            Tuple::Ip(vec![IPTuple::SourceAddress(local.ip()), IPTuple::DestinationAddress(peer.ip())]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(Protocol::Tcp),
                ProtoTuple::SourcePort(local.port()),
                ProtoTuple::DestinationPort(peer.port()),
            ]),
        ];
        let delete = NetfilterMessage::new(
            NetfilterHeader::new(family, 0, 0),
            ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(tuple)]),
        );
        match netlink.ask(delete, 0) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            answered => answered.map(drop),
        }
    }
}
