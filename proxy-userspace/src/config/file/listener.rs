//! Listeners: which keys go together, and that what they name exists.

use std::{net::SocketAddr, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{
    super::{Config, Dial, Listener, Mode, UpstreamId, error::ConfigError, schema},
    source::{Source, Text, Texts},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: Text,
    bind: Texts,
    mode: Text,
    accept_proxy_protocol: Option<bool>,
    gate: Option<Spanned<bool>>,
    upstream: Option<Text>,
    chat: Option<Text>,
    media: Option<Text>,
    fallback: Option<Text>,
    dial: Option<Text>,
}

impl Raw {
    /// Validates it, after all upstreams and the listeners before it.
    pub(super) fn validate(&self, source: &Source<'_>, config: &Config) -> Result<Listener, ConfigError> {
        let name = source.read("listener.name", &self.name, schema::NAME, super::source::name)?;
        if config.listeners.iter().any(|other| other.name == name) {
            let problem = format!("\"{name}\" is the name of another listener");
            return source.wrong(&self.name.span(), "listener.name", problem, "give each its own name");
        }
        let taken = config.listeners.iter().flat_map(|other| &other.bind).chain(&config.admin);
        let taken: Vec<SocketAddr> = taken.copied().collect();
        let bind = source.bind("listener.bind", &self.bind, &taken)?;
        if bind.is_empty() {
            let remedy = "name at least one IP:port";
            return source.wrong(&self.bind.span(), "listener.bind", "there is none", remedy);
        }
        let mode = self.mode(source, config)?;
        let accept_proxy_protocol = self.accept_proxy_protocol.unwrap_or(false);
        let dial = self.dial(source, mode)?;
        Ok(Listener { name, bind, mode, accept_proxy_protocol, dial })
    }

    fn dial(&self, source: &Source<'_>, mode: Mode) -> Result<Dial, ConfigError> {
        let Some(raw) = &self.dial else { return Ok(Dial::FirstByte) };
        let dial = source.keyword("listener.dial", raw, schema::DIAL)?;
        let blind = matches!(mode, Mode::Chat { gate: false, .. } | Mode::ChatTls { gate: false, .. });
        if dial == Dial::Accept && !blind {
            let problem = "this listener must see what a client says before it knows where that leads";
            let remedy = "remove it, or have mode \"chat\" or \"chat-tls\" with gate = false";
            return source.wrong(&raw.span(), "listener.dial", problem, remedy);
        }
        Ok(dial)
    }

    fn mode(&self, source: &Source<'_>, config: &Config) -> Result<Mode, ConfigError> {
        let gate = self.gate.as_ref().map(|gate| *gate.get_ref());
        let upstream = || self.upstream(source, config, "upstream", &self.upstream);
        let mode = match self.mode.get_ref().as_str() {
            "chat" => Mode::Chat { upstream: upstream()?, gate: gate.unwrap_or(false) },
            "chat-tls" => Mode::ChatTls { upstream: upstream()?, gate: gate.unwrap_or(false) },
            "media" => Mode::Media { upstream: upstream()? },
            "auto" => Mode::Auto {
                chat: self.upstream(source, config, "chat", &self.chat)?,
                media: self.upstream(source, config, "media", &self.media)?,
                fallback: self.fallback(source)?,
                gate: gate.unwrap_or(true),
            },
            _ => return source.read("listener.mode", &self.mode, schema::MODE, |_| Err("is no mode")),
        };
        self.check_keys(source, mode)?;
        Ok(mode)
    }

    /// Refuses keys that the mode has no use for.
    fn check_keys(&self, source: &Source<'_>, mode: Mode) -> Result<(), ConfigError> {
        let auto = matches!(mode, Mode::Auto { .. });
        let only_auto = [("chat", &self.chat), ("media", &self.media), ("fallback", &self.fallback)];
        let foreign = match auto {
            true => [("upstream", &self.upstream)].into_iter().find(|(_, key)| key.is_some()),
            false => only_auto.into_iter().find(|(_, key)| key.is_some()),
        };
        if let Some((key, Some(value))) = foreign {
            let problem = format!("mode \"{}\" has no such key", self.mode.get_ref());
            let remedy = match (auto, key) {
                (true, _) => "write chat = \"NAME\" and media = \"NAME\"",
                (false, "fallback") => "remove it, or set mode = \"auto\"",
                (false, _) => "write upstream = \"NAME\", or set mode = \"auto\"",
            };
            return source.wrong(&value.span(), &format!("listener.{key}"), problem, remedy);
        }
        if let (Mode::Media { .. }, Some(gate)) = (mode, &self.gate) {
            let problem = "media listeners have no gate: what is no TLS is closed in any case";
            return source.wrong(&gate.span(), "listener.gate", problem, "remove it");
        }
        if let (Mode::Auto { fallback: Some(_), gate: false, .. }, Some(gate)) = (mode, &self.gate) {
            let problem = "without the gate everything is chat, and the fallback is never reached";
            return source.wrong(&gate.span(), "listener.gate", problem, "remove it, or remove fallback");
        }
        Ok(())
    }

    fn upstream(
        &self,
        source: &Source<'_>,
        config: &Config,
        key: &str,
        wanted: &Option<Text>,
    ) -> Result<UpstreamId, ConfigError> {
        let key = format!("listener.{key}");
        let known = || {
            let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
            format!("name one of: {}, or add [upstream.NAME]", names.join(", "))
        };
        let Some(wanted) = wanted else {
            let problem = format!("listener \"{}\" has none", self.name.get_ref());
            return source.wrong(&self.mode.span(), &key, problem, &known());
        };
        let found = config.upstreams.iter().position(|upstream| upstream.name == *wanted.get_ref());
        match found {
            Some(index) => Ok(UpstreamId(index)),
            None => {
                let problem = format!("there is no upstream \"{}\"", wanted.get_ref());
                source.wrong(&wanted.span(), &key, problem, &known())
            }
        }
    }

    fn fallback(&self, source: &Source<'_>) -> Result<Option<SocketAddr>, ConfigError> {
        let parse = |text: &str| match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Err("has no port between 1 and 65535"),
            Ok(address) => Ok(address),
            Err(_) => Err("is no address with a port"),
        };
        let read = |raw| source.read("listener.fallback", raw, schema::FALLBACK, parse);
        self.fallback.as_ref().map(read).transpose()
    }

    /// Where the fallback stands in the file.
    pub(super) fn fallback_span(&self) -> Range<usize> {
        self.fallback.as_ref().map_or(0..0, Spanned::span)
    }
}
