//! Which addresses may be dialed. Names resolve to whatever their owner, or a liar on the way, wants: to this
//! machine's network, or to setu itself, which would then forward to itself until nothing is left.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{PoisonError, RwLock},
};

use tracing::warn;

use crate::config::is_public;

/// What is refused.
#[derive(Debug)]
pub(crate) struct Destinations {
    allow_private: bool,
    /// Where setu listens; an unspecified IP means all of this machine's.
    own: Vec<SocketAddr>,
    /// This machine's addresses, as they were when [`Self::refresh`] looked.
    local: RwLock<Vec<IpAddr>>,
}

impl Destinations {
    /// Refuses `own` always, and what is not public unless it is allowed.
    pub(crate) fn new(allow_private: bool, own: Vec<SocketAddr>) -> Self {
        let destinations = Self { allow_private, own, local: RwLock::default() };
        destinations.refresh();
        destinations
    }

    /// Looks up this machine's addresses again: they come and go while setu runs.
    pub(crate) fn refresh(&self) {
        match if_addrs::get_if_addrs() {
            Ok(interfaces) => {
                let local = interfaces.iter().map(if_addrs::Interface::ip).collect();
                *self.local.write().unwrap_or_else(PoisonError::into_inner) = local;
            }
            Err(error) => warn!(%error, "this machine's addresses cannot be listed"),
        }
    }

    /// Whether a name may resolve to this.
    pub(crate) fn allow_ip(&self, ip: IpAddr) -> bool {
        self.allow_private || is_public(ip)
    }

    /// Whether this may be dialed.
    pub(crate) fn allow(&self, address: SocketAddr) -> bool {
        self.allow_ip(address.ip()) && !self.is_own(address)
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.own.iter().filter(|own| own.port() == address.port()).any(|own| {
            let own = own.ip().to_canonical();
            // Linux takes the unspecified address as a destination for loopback (ip_route_output_key_hash_rcu,
            // net/ipv4/route.c).
            own == ip || ip.is_unspecified() || own.is_unspecified() && self.is_local(ip)
        })
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local.read().unwrap_or_else(PoisonError::into_inner).contains(&ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(destinations: &Destinations, address: &str) -> bool {
        destinations.allow(address.parse().unwrap())
    }

    #[test]
    fn own_listeners_are_refused_whatever_is_allowed() {
        let own = vec!["0.0.0.0:5222".parse().unwrap(), "192.0.2.1:443".parse().unwrap()];
        let destinations = Destinations::new(true, own);
        for refused in
            ["127.0.0.1:5222", "127.9.9.9:5222", "[::1]:5222", "[::ffff:127.0.0.1]:5222", "0.0.0.0:5222"]
        {
            assert!(!allows(&destinations, refused), "{refused}");
        }
        assert!(!allows(&destinations, "192.0.2.1:443") && !allows(&destinations, "[::ffff:192.0.2.1]:443"));
        for allowed in ["127.0.0.1:5223", "192.0.2.2:443", "157.240.1.1:5222"] {
            assert!(allows(&destinations, allowed), "{allowed}");
        }
        for interface in if_addrs::get_if_addrs().unwrap() {
            assert!(!destinations.allow((interface.ip(), 5222).into()), "{}", interface.ip());
        }
    }

    #[test]
    fn private_addresses_are_refused_unless_allowed() {
        let strict = Destinations::new(false, Vec::new());
        assert!(!allows(&strict, "10.0.0.1:443") && !allows(&strict, "[::ffff:10.0.0.1]:443"));
        assert!(allows(&strict, "157.240.1.1:443"));
        assert!(allows(&Destinations::new(true, Vec::new()), "10.0.0.1:443"));
    }
}
