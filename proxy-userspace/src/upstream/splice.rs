//! What a connection to an upstream must be like, so that the client's packets can become its packets: the wire.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use super::ports::Ports;
use crate::sys;

/// A client that takes less than what every host takes (RFC 9293, section 3.7.1) goes without: its upstream would pay.
const SEGMENT_MIN: u32 = 536;

/// What a client's connection asks for.
#[derive(Debug, Clone)]
pub(super) struct Splice {
    pub(super) ports: Arc<Ports>,
    /// The longest segment that the client takes, options included.
    pub(super) segment: u32,
    /// Of which family its packets are.
    pub(super) is_ipv6: bool,
}

impl Splice {
    /// `None`: the connection is none whose packets could go to another one.
    pub(super) fn to(client: &TcpStream, ports: &Arc<Ports>) -> Option<Self> {
        let (peer, own) =
            (client.peer_addr().ok()?.ip().to_canonical(), client.local_addr().ok()?.ip().to_canonical());
        let segment = sys::tcp_info(client.as_fd()).ok()?.segment;
        // A client on this host has its address, or one of loopback.
        let is_local = peer.is_loopback() || peer == own;
        (!is_local && segment >= SEGMENT_MIN).then(|| Self {
            ports: ports.clone(),
            segment,
            is_ipv6: peer.is_ipv6(),
        })
    }

    /// What the upstream takes, where that is less than the client does: then the client's own segments may be too long.
    pub(super) fn shorter(&self, upstream: &TcpStream) -> Option<u32> {
        let taken = sys::tcp_info(upstream.as_fd()).ok()?.segment;
        (taken < self.segment).then_some(taken)
    }

    /// Whether a connection to this address may be what is asked for.
    pub(super) fn fits(&self, address: SocketAddr) -> bool {
        address.is_ipv6() == self.is_ipv6 && !address.ip().is_loopback()
    }

    /// A socket with a port of the wire's; `None` as source is the one that the kernel chooses.
    pub(super) fn socket(
        &self,
        address: SocketAddr,
        source: Option<IpAddr>,
        port: u16,
    ) -> io::Result<Socket> {
        let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        // The port is shared by connections to different servers.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(source.unwrap_or(any), port).into())?;
        // So that the server sends nothing that the client does not take. Only before it connects: the answer to the SYN
        // may be faster than what comes after.
        socket.set_tcp_mss(self.segment)?;
        Ok(socket)
    }
}
