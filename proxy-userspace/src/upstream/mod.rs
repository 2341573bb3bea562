//! Connects to WhatsApp. Nothing else in setu dials.

use std::{io, net::SocketAddr};

use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::{
    addr::is_public,
    close_reason::CloseReason,
    config::{Config, Endpoint, Host, UpstreamId},
};

/// Connects to the first address of the upstream that answers, within `timeouts.connect` for all of them together.
///
/// # Errors
/// The reason for which the client's connection ends: that of the last address tried.
pub(crate) async fn dial(config: &Config, upstream: UpstreamId) -> Result<TcpStream, CloseReason> {
    let attempt = async {
        let mut reason = CloseReason::ResolveFailed;
        for endpoint in &config.upstream(upstream).endpoints {
            let addresses = match resolve(endpoint).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    tracing::debug!(%endpoint, %error, "name not resolved");
                    continue;
                }
            };
            for address in addresses {
                if !config.allow_private_upstreams && !is_public(address.ip()) {
                    tracing::debug!(%endpoint, %address, "private address refused");
                    reason = CloseReason::DestinationRefused;
                    continue;
                }
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => {
                        tracing::debug!(%endpoint, %address, %error, "not connected");
                        reason = CloseReason::connect(&error);
                    }
                }
            }
        }
        Err(reason)
    };
    timeout(config.timeouts.connect, attempt).await.unwrap_or(Err(CloseReason::ConnectTimeout))
}

/// The addresses of an endpoint, in the order in which the system wants them tried.
async fn resolve(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    match &endpoint.host {
        Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, endpoint.port)]),
        Host::Name(name) => Ok(lookup_host((name.as_str(), endpoint.port)).await?.collect()),
    }
}
