//! Two hosts that are nothing but network namespaces: setu's, which is this thread's own, and one of both peers, so that every
//! packet between the two goes by setu's.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::{relay::wire::network::netlink::Netlink, sys};

/// The namespace that this thread is in.
const NETWORK: &str = "/proc/thread-self/ns/net";
/// Index of the first device: none that the kernel makes by itself in a namespace has one as high.
const FIRST_DEVICE: u32 = 1001;

/// The version of the internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Which peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

const PEERS: [Peer; 2] = [Peer::Client, Peer::Server];

impl Family {
    /// The address of setu's host, or the peer's, on the link to that peer; for documentation (RFC 5737, RFC 3849).
    fn address(self, peer: Peer, is_peers: bool) -> IpAddr {
        let (link, host) = (peer as u8 * 16, 1 + u8::from(is_peers));
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, link + host).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, link.into(), 0, 0, 0, host.into()).into(),
        }
    }

    /// Setu's address on the link to that peer.
    pub(super) fn setu(self, peer: Peer) -> IpAddr {
        self.address(peer, false)
    }

    /// That peer's.
    pub(super) fn peer(self, peer: Peer) -> IpAddr {
        self.address(peer, true)
    }

    /// How many bits of an address are the link's.
    fn prefix(self) -> u8 {
        match self {
            Self::V4 => 28,
            Self::V6 => 64,
        }
    }

    fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }

    /// A socket in this thread's host, bound there.
    pub(super) fn socket(self, local: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(self.domain(), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        Ok(socket)
    }

    /// Connections that are known to this thread's host, in whatever state, and listening sockets.
    pub(super) fn known(self) -> io::Result<usize> {
        let name = match self {
            Self::V4 => "tcp",
            Self::V6 => "tcp6",
        };
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{name}"))?;
        Ok(table.lines().skip(1).count())
    }
}

/// The host of both peers.
#[derive(Debug)]
pub(super) struct Peers {
    network: File,
}

impl Peers {
    /// Makes both hosts and the links between them. This thread is in setu's from then on.
    ///
    /// # Errors
    /// Namespaces, or such devices, are refused.
    pub(super) fn new() -> io::Result<Self> {
        sys::leave_network()?;
        let network = thread::spawn(|| {
            sys::leave_network()?;
            File::open(NETWORK)
        });
        let peers = Self { network: joined(network.join())? };
        let mut route = Netlink::open(None, 0)?;
        for peer in PEERS {
            let pair = peers.pair(peer);
            route.ask(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)?;
        }
        // Neither end opens before both are there (`veth_open`, drivers/net/veth.c).
        raise_devices()?;
        peers.within(raise_devices)?;
        Ok(peers)
    }

    /// Gives all devices addresses.
    ///
    /// # Errors
    /// The kernel, or this host by its settings, knows no such protocol.
    pub(super) fn address(&self, family: Family) -> io::Result<()> {
        give_addresses(family, false)?;
        self.within(|| give_addresses(family, true))
    }

    /// Does something in the peers' host.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let enter = || {
            move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        joined(thread::scope(|scope| scope.spawn(enter).join()))
    }

    /// A cable to a peer: one end here, the other there.
    fn pair(&self, peer: Peer) -> LinkMessage {
        let end = |name: &str| {
            let name = format!("{name}{}", peer as u8);
            let mut end = LinkMessage::default();
            end.header.index = device(peer);
            end.attributes.push(LinkAttribute::IfName(name));
            end
        };
        let mut there = end("peer");
        there.attributes.push(LinkAttribute::NetNsFd(self.network.as_raw_fd()));
        let mut here = end("setu");
        here.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there))),
        ]));
        here
    }
}

fn device(peer: Peer) -> u32 {
    FIRST_DEVICE + peer as u32
}

fn raise_devices() -> io::Result<()> {
    let mut route = Netlink::open(None, 0)?;
    for peer in PEERS {
        let mut raised = LinkMessage::default();
        raised.header.index = device(peer);
        raised.header.flags = LinkFlags::Up;
        raised.header.change_mask = LinkFlags::Up;
        route.ask(RouteNetlinkMessage::SetLink(raised), 0)?;
    }
    Ok(())
}

fn give_addresses(family: Family, is_peers: bool) -> io::Result<()> {
    let mut route = Netlink::open(None, 0)?;
    for peer in PEERS {
        let address = family.address(peer, is_peers);
        let mut message = AddressMessage::default();
        message.header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.prefix_len = family.prefix();
        message.header.index = device(peer);
        // Nobody else can have it.
        message.attributes = vec![
            AddressAttribute::Address(address),
            AddressAttribute::Local(address),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        route.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    Ok(())
}

fn joined<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}
