//! Servers as an operator names them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use super::is_host_name;

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name or address.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

/// A server's name or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name.
    Name(String),
}

impl FromStr for Endpoint {
    type Err = &'static str;

    /// Reads `host:port`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or("has no port between 1 and 65535")?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Host::Ip(IpAddr::V6(inner.parse().map_err(|_| "has no IPv6 address in its brackets")?))
        } else if let Ok(ip) = host.parse::<Ipv4Addr>() {
            Host::Ip(ip.into())
        } else if is_host_name(host) {
            Host::Name(host.into())
        } else {
            return Err("has neither a name nor an address before its port");
        };
        Ok(Self { host, port })
    }
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(ip) => Ok(Self::Ip(ip)),
            Err(_) if is_host_name(text) => Ok(Self::Name(text.into())),
            Err(_) => Err("is neither a name nor an address"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(formatter),
            Host::Name(name) => write!(formatter, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(formatter),
            Self::Name(name) => formatter.write_str(name),
        }
    }
}
