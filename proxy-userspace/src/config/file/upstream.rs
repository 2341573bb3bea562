//! Upstreams: servers, and how they are reached.

use std::{net::IpAddr, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{
    super::{Endpoint, Host, Route, SendProxyProtocol, Upstream, error::ConfigError, schema},
    source::{Source, Text, Texts},
};
use crate::config::is_public;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    endpoints: Option<Texts>,
    send_proxy_protocol: Option<Text>,
    route: Option<Text>,
    sources: Option<Texts>,
}

impl Raw {
    /// Validates it. Where it says nothing, the default upstream of the same name speaks.
    pub(super) fn validate(
        &self,
        source: &Source<'_>,
        name: &Text,
        default: Option<&Upstream>,
        private: bool,
    ) -> Result<Upstream, ConfigError> {
        let key = |key: &str| format!("upstream.{}.{key}", name.get_ref());
        source.read("upstream", name, schema::NAME, super::source::name)?;
        let mut upstream = match default {
            Some(default) => default.clone(),
            None => Upstream {
                name: name.get_ref().clone(),
                endpoints: Vec::new(),
                send_proxy_protocol: SendProxyProtocol::Off,
                route: Route::Fixed,
                sources: Vec::new(),
            },
        };
        if let Some(raw) = &self.endpoints {
            upstream.endpoints = endpoints(source, &key("endpoints"), raw, private)?;
        }
        if upstream.endpoints.is_empty() {
            let span = self.endpoints.as_ref().map_or_else(|| name.span(), Spanned::span);
            let remedy = "name at least one host:port";
            return source.wrong(&span, &key("endpoints"), "there is none", remedy);
        }
        if let Some(raw) = &self.send_proxy_protocol {
            upstream.send_proxy_protocol = source.keyword(&key("send_proxy_protocol"), raw, schema::SEND)?;
        }
        if let Some(raw) = &self.route {
            upstream.route = source.keyword(&key("route"), raw, schema::ROUTE)?;
            if upstream.route == Route::Sni && upstream.send_proxy_protocol != SendProxyProtocol::Off {
                let problem = "servers that clients choose must not be told who the clients are";
                return source.wrong(
                    &raw.span(),
                    &key("route"),
                    problem,
                    "write send_proxy_protocol = \"off\", or route = \"fixed\"",
                );
            }
        }
        if let Some(raw) = &self.sources {
            let parse = |text: &str| match text.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() => Err("is every address"),
                Ok(ip) => Ok(ip),
                Err(_) => Err("is no address"),
            };
            upstream.sources = source.list(&key("sources"), raw, schema::SOURCE, parse)?;
        }
        Ok(upstream)
    }

    /// Where the route stands in the file.
    pub(super) fn route_span(&self) -> Range<usize> {
        self.route.as_ref().map_or(0..0, Spanned::span)
    }

    /// The endpoints as written.
    pub(super) fn endpoint_texts(&self) -> &[Text] {
        self.endpoints.as_ref().map_or(&[], |endpoints| endpoints.get_ref())
    }
}

fn endpoints(
    source: &Source<'_>,
    key: &str,
    raw: &Texts,
    private: bool,
) -> Result<Vec<Endpoint>, ConfigError> {
    let mut endpoints = Vec::new();
    for text in raw.get_ref() {
        let endpoint: Endpoint = source.read(key, text, schema::ENDPOINT, str::parse)?;
        if let Host::Ip(ip) = endpoint.host
            && !private
            && !is_public(ip)
        {
            let problem = format!("{ip} is no public address");
            let remedy = "name a public one, or set security.allow_private_upstreams = true";
            return source.wrong(&text.span(), key, problem, remedy);
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}
