//! Who a client is: an address that [`ClientAddr`] alone carries, and that cannot be printed, so that no log line, error
//! or metric can hold one.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zeroize::Zeroizing;

use crate::{config::ClientAddresses, sys};

/// A client's address. It has no `Display`, its `Debug` does not show it, there is one copy of it, and that is overwritten
/// when nobody needs it any more. In a box, so that whatever is moved, as futures are, leaves no copy behind.
pub struct ClientAddr(Box<Zeroizing<[u8; LEN]>>);

/// An IPv6 address, or an IPv4 one mapped into it, and the port.
const LEN: usize = 18;

impl ClientAddr {
    /// As the kernel or a PROXY header gives it. An IPv4 address mapped into IPv6 is an IPv4 address.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = Box::new(Zeroizing::new([0; LEN]));
        bytes[..16].copy_from_slice(&ip.octets());
        bytes[16..].copy_from_slice(&address.port().to_be_bytes());
        Self(bytes)
    }

    /// The address itself. Legal uses, all of them: to write a PROXY header to an upstream that the operator chose to
    /// tell, to decide whether a sender of PROXY headers is trusted, and to count connections of a source. Those
    /// who call for this call [`crate::account::forget_copies`] once it is done.
    #[must_use]
    pub fn expose(&self) -> SocketAddr {
        let mut ip = [0; 16];
        ip.copy_from_slice(&self.0[..16]);
        let port = u16::from_be_bytes([self.0[16], self.0[17]]);
        SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port)
    }

    /// What logs may tell of it.
    #[must_use]
    pub fn shown(&self, allowed: ClientAddresses) -> ShownClient {
        ShownClient(match allowed {
            ClientAddresses::Never => None,
            ClientAddresses::Truncated => Some(network(self.expose().ip()).to_string().into()),
            ClientAddresses::Full => Some(self.expose().to_string().into()),
        })
    }
}

/// Overwrites what calls that the caller has made have left on this thread's stack: the kernel's answers, and copies of
/// addresses on their way. What is in the caller's own frame stays.
pub fn forget_copies() {
    sys::wipe_stack();
}

/// The network of a client: about a provider's town in IPv4, a site in IPv6.
fn network(ip: IpAddr) -> IpNet {
    match ip {
        IpAddr::V4(ip) => Ipv4Net::new_assert(ip, 24).trunc().into(),
        IpAddr::V6(ip) => Ipv6Net::new_assert(ip, 48).trunc().into(),
    }
}

/// What `privacy.client_addresses` lets logs tell of a client. By default that is nothing, and then nothing is in here:
/// a connection carries no address that it may not tell.
#[derive(Debug, Clone, Default)]
pub struct ShownClient(Option<Box<str>>);

impl ShownClient {
    /// The text for a line of the log, if there is to be one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Debug for ClientAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientAddr(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_address_is_never_printed() {
        let address = ClientAddr::new("[::ffff:198.51.100.7]:4000".parse().unwrap());
        assert_eq!(
            format!("{address:?} {:#?}", Some(&address)),
            "ClientAddr(..) Some(\n    ClientAddr(..),\n)"
        );
        assert_eq!(address.expose(), "198.51.100.7:4000".parse().unwrap());
    }

    #[test]
    fn logs_are_told_what_the_operator_allows() {
        let shown = |address: &str, allowed| ClientAddr::new(address.parse().unwrap()).shown(allowed);
        let (v4, v6) = ("[::ffff:198.51.100.7]:4000", "[2001:db8:1:2::3]:5");
        for (address, truncated, full) in
            [(v4, "198.51.100.0/24", "198.51.100.7:4000"), (v6, "2001:db8:1::/48", v6)]
        {
            assert_eq!(shown(address, ClientAddresses::Truncated).text(), Some(truncated));
            assert_eq!(shown(address, ClientAddresses::Full).text(), Some(full));
            let never = shown(address, ClientAddresses::Never);
            assert_eq!((never.text(), format!("{never:?}").as_str()), (None, "ShownClient(None)"));
        }
    }
}
