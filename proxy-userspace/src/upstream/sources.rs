//! Sources that cannot be dialed from: each dial would fail, and look as if the server were to blame.

use std::{
    io,
    net::{IpAddr, UdpSocket},
};

use crate::config::{Host, Upstream};

/// What is wrong with the sources of an upstream, a sentence for each. Interfaces come and go: it is so now.
pub(crate) fn useless_sources(upstream: &Upstream) -> Vec<String> {
    upstream.sources.iter().filter_map(|source| useless(upstream, *source)).collect()
}

fn useless(upstream: &Upstream, source: IpAddr) -> Option<String> {
    let fits = |host: &Host| match host {
        Host::Ip(ip) => ip.is_ipv4() == source.is_ipv4(),
        Host::Name(_) => true,
    };
    let name = &upstream.name;
    if !upstream.endpoints.iter().any(|endpoint| fits(&endpoint.host)) {
        return Some(format!(
            "source {source} of upstream \"{name}\" is not used: no endpoint has an address of its family"
        ));
    }
    // A datagram socket takes none of the ports that connections need.
    let error = UdpSocket::bind((source, 0)).err()?;
    (error.kind() == io::ErrorKind::AddrNotAvailable).then(|| {
        format!(
            "source {source} of upstream \"{name}\" is no address of this machine: nothing can be dialed from it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn sources_of_no_use_are_told() {
        let of = |endpoints: &str, sources: &str| {
            let text = format!("[upstream.chat]\nendpoints = [{endpoints}]\nsources = [{sources}]\n");
            let config = Config::parse("test", &text).unwrap();
            let upstream = config.upstreams.iter().find(|upstream| upstream.name == "chat").unwrap();
            let told = useless_sources(upstream);
            told.iter().map(|why| why.split(": ").next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("\"157.240.1.1:443\"", ""), [""; 0]);
        assert_eq!(of("\"a.example:443\"", "\"127.0.0.1\", \"127.0.0.2\""), [""; 0]);
        assert_eq!(
            of("\"157.240.1.1:443\"", "\"127.0.0.1\", \"203.0.113.7\", \"2001:db8::7\""),
            [
                "source 203.0.113.7 of upstream \"chat\" is no address of this machine",
                "source 2001:db8::7 of upstream \"chat\" is not used",
            ]
        );
        assert_eq!(
            of("\"a.example:443\"", "\"2001:db8::7\""),
            ["source 2001:db8::7 of upstream \"chat\" is no address of this machine"]
        );
    }
}
