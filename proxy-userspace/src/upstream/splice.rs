//! What a connection to an upstream must be like, so that the client's packets can become its packets: the wire.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Instant,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::ports::{PortLease, Ports};
use crate::{account::lacks_a_source, sys};

/// Connections that are tried from a port of the wire's before one from any will do: a port may be in use by another
/// program, or by a connection of before that the kernel knows of.
const TRIES: usize = 4;
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
        let peer = client.peer_addr().ok()?.ip().to_canonical();
        let segment = sys::tcp_info(client.as_fd()).ok()?.segment;
        (!peer.is_loopback() && segment >= SEGMENT_MIN).then(|| Self {
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

    /// Connects from a port of the wire's; `None` as source is the one that the kernel chooses. `None` as answer: there is
    /// none, or the addresses are of another family than the client's.
    pub(super) async fn connect(
        &self,
        address: SocketAddr,
        source: Option<IpAddr>,
    ) -> Option<io::Result<(TcpStream, PortLease)>> {
        if address.is_ipv6() != self.is_ipv6 || address.ip().is_loopback() {
            return None;
        }
        for _ in 0..TRIES {
            let lease = self.ports.lease(source, address, Instant::now())?;
            let socket = self.socket(address, source, lease.port());
            match socket {
                Ok(socket) => match socket.connect(address).await {
                    Ok(stream) => return Some(Ok((stream, lease))),
                    // The kernel has a connection of this name.
                    Err(error) if lacks_a_source(&error) => {}
                    Err(error) => return Some(Err(error)),
                },
                // Another program has the port.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) if lacks_a_source(&error) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    fn socket(&self, address: SocketAddr, source: Option<IpAddr>, port: u16) -> io::Result<TcpSocket> {
        let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        // The port is shared by connections to different servers.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(source.unwrap_or(any), port).into())?;
        // So that the server sends nothing that the client does not take. Only before it connects: the answer to the SYN
        // may be faster than what comes after.
        SockRef::from(&socket).set_tcp_mss(self.segment)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}
