//! The link to a server's ports, on a host as WhatsApp takes it.

use super::{
    error::{Field, ShareError},
    host, qr,
};
use crate::config::{Config, Listener, Mode};

/// What a phone must know, and the same as a link and as a code to scan.
#[derive(Debug, Clone)]
pub struct Link {
    pub(super) host: String,
    pub(super) chat: u16,
    pub(super) tls: bool,
    pub(super) media: u16,
    url: String,
    code: qr::Code,
}

/// Ports that phones reach, where these are not the configuration's: a load balancer or a NAT stands before setu.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ports {
    /// For chat; else the configuration's.
    pub chat: Option<u16>,
    /// For media; else the configuration's.
    pub media: Option<u16>,
    /// Whether chat is inside TLS; else as the configuration has it, and as the app does on a port that it does not have.
    pub chat_tls: Option<bool>,
}

/// The link to these ports, and else to those that the configuration opens, on a host that phones know by this name or IPv4
/// address.
///
/// # Errors
/// When WhatsApp would not take the host, or no port is known for phones.
pub fn link(config: &Config, host: &str, ports: &Ports) -> Result<Link, ShareError> {
    let host = host::checked(host)?;
    let (chat, tls) = match ports.chat {
        Some(port) => (port, ports.chat_tls.or_else(|| tls_at(config, port)).unwrap_or(true)),
        None => {
            let what = match ports.chat_tls {
                None => "chat",
                Some(true) => "chat inside TLS",
                Some(false) => "chat without TLS",
            };
            first(config, |mode| chat_tls(mode, ports.chat_tls))
                .ok_or(ShareError::NoListener { what, field: Field::ChatPort })?
        }
    };
    let media = match ports.media {
        Some(port) => port,
        None => {
            let (port, ()) = first(config, |mode| takes_media(mode).then_some(()))
                .ok_or(ShareError::NoListener { what: "media", field: Field::MediaPort })?;
            port
        }
    };
    let url = format!("https://wa.me/proxy?host={host}&chatPort={chat}&mediaPort={media}&chatTLS={tls}");
    let code = qr::Code::new(&url)?;
    Ok(Link { host, chat, tls, media, url, code })
}

impl Link {
    /// The link itself.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What an operator should look at before others get the link.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        host::doubt(&self.host).into_iter().collect()
    }

    /// The same link in a query of setu's own pages.
    #[must_use]
    pub(crate) fn query(&self) -> String {
        let Self { host, chat, tls, media, .. } = self;
        format!("host={host}&chat_port={chat}&media_port={media}&chat_tls={tls}")
    }

    /// The code, as a document that a page can embed, with the words that are read aloud in its place.
    #[must_use]
    pub(crate) fn svg(&self, label: &str) -> String {
        self.code.svg(label)
    }

    /// The code in half-block characters. With `colours` it is black on white on any terminal; without, it is meant
    /// for what shows dark text on a light ground.
    #[must_use]
    pub fn terminal(&self, colours: bool) -> String {
        self.code.terminal(colours)
    }

    pub(super) fn code(&self) -> &qr::Code {
        &self.code
    }
}

/// The port that phones should use of the listeners that `wanted` has an answer for, and that answer.
fn first<T: Ord + Copy>(config: &Config, wanted: impl Fn(Mode) -> Option<T>) -> Option<(u16, T)> {
    // Phones speak no PROXY protocol.
    let listeners = config.listeners.iter().filter(|listener| !listener.accept_proxy_protocol);
    let ports = listeners.flat_map(|listener| {
        let answer = wanted(listener.mode);
        let ports = listener.bind.iter().filter(|address| address.port() != 0);
        ports.filter_map(move |address| answer.map(|answer| (address, answer)))
    });
    // The first of equals is taken, so that the order of the file decides.
    let best = ports.min_by_key(|(address, answer)| (address.ip().is_loopback(), std::cmp::Reverse(*answer)));
    best.map(|(address, answer)| (address.port(), answer))
}

/// Whether chat is taken in this mode, and if so, inside TLS; only as `wanted`, if that is said.
fn chat_tls(mode: Mode, wanted: Option<bool>) -> Option<bool> {
    let tls = match mode {
        Mode::Chat { .. } => false,
        Mode::ChatTls { .. } => true,
        Mode::Auto { .. } => wanted.unwrap_or(true),
        Mode::Media { .. } => return None,
    };
    wanted.is_none_or(|wanted| wanted == tls).then_some(tls)
}

/// Whether the configuration has chat inside TLS on a port, if it has chat there, for phones or for who stands before setu.
fn tls_at(config: &Config, port: u16) -> Option<bool> {
    let there = |listener: &&Listener| listener.bind.iter().any(|address| address.port() == port);
    config.listeners.iter().filter(there).find_map(|listener| chat_tls(listener.mode, None))
}

fn takes_media(mode: Mode) -> bool {
    matches!(mode, Mode::Media { .. } | Mode::Auto { .. })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Each listener: where it binds, and its other keys.
    fn config(listeners: &[(&str, &str)]) -> Config {
        let mut text = String::new();
        for (number, (bind, keys)) in listeners.iter().enumerate() {
            text += &format!("[[listener]]\nname = \"l{number}\"\nbind = [\"{bind}\"]\n{keys}\n");
        }
        Config::parse("f", &text).unwrap()
    }

    const CHAT: &str = "mode = \"chat\"\nupstream = \"chat\"";
    const CHAT_TLS: &str = "mode = \"chat-tls\"\nupstream = \"chat\"";
    const BEHIND: &str = "mode = \"chat-tls\"\nupstream = \"chat\"\naccept_proxy_protocol = true";
    const MEDIA: &str = "mode = \"media\"\nupstream = \"media\"";

    #[test]
    fn the_defaults_have_the_ports_that_the_app_expects() {
        assert_eq!(
            link(&Config::load(None).unwrap(), "example.org", &Ports::default()).unwrap().url(),
            "https://wa.me/proxy?host=example.org&chatPort=443&mediaPort=587&chatTLS=true"
        );
    }

    #[test]
    fn chat_in_the_clear_says_so() {
        let config = config(&[("127.0.0.1:1", CHAT), ("0.0.0.0:15222", CHAT), ("[::]:1587", MEDIA)]);
        assert_eq!(
            link(&config, "Proxy.Example.ORG.", &Ports::default()).unwrap().url(),
            "https://wa.me/proxy?host=proxy.example.org&chatPort=15222&mediaPort=1587&chatTLS=false"
        );
    }

    #[test]
    fn tls_is_preferred_and_what_only_a_load_balancer_can_use_is_left_out() {
        let all = [
            ("0.0.0.0:5222", CHAT),
            ("0.0.0.0:8443", BEHIND),
            ("0.0.0.0:2443", CHAT_TLS),
            ("0.0.0.0:3443", CHAT_TLS),
            ("0.0.0.0:587", MEDIA),
        ];
        let url = link(&config(&all), "example.org", &Ports::default()).unwrap().url;
        assert!(url.ends_with("&chatPort=2443&mediaPort=587&chatTLS=true"), "{url}");
        let error = link(&config(&all[1..2]), "example.org", &Ports::default()).unwrap_err();
        assert!(matches!(error, ShareError::NoListener { field: Field::ChatPort, .. }), "{error}");
    }

    #[test]
    fn one_port_takes_both() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/examples/one-port.toml");
        let url = link(&Config::load(Some(Path::new(file))).unwrap(), "example.org", &Ports::default())
            .unwrap()
            .url;
        assert!(url.ends_with("&chatPort=443&mediaPort=443&chatTLS=true"), "{url}");
        let plain = Ports { chat_tls: Some(false), ..Ports::default() };
        let url = link(&Config::load(Some(Path::new(file))).unwrap(), "example.org", &plain).unwrap().url;
        assert!(url.ends_with("&chatPort=443&mediaPort=443&chatTLS=false"), "{url}");
    }

    #[test]
    fn a_configuration_without_media_has_no_link() {
        let error = link(&config(&[("0.0.0.0:5222", CHAT)]), "example.org", &Ports::default()).unwrap_err();
        assert!(error.to_string().starts_with("no listener takes media from phones"), "{error}");
    }

    #[test]
    fn what_stands_before_setu_has_ports_of_its_own() {
        let config = config(&[("0.0.0.0:8443", BEHIND), ("0.0.0.0:5222", CHAT)]);
        let url = |ports| {
            link(&config, "10.0.0.1", &ports).map(|link| link.url.split_once('&').unwrap().1.to_owned())
        };
        let (chat, media) = (Some(2443), Some(2587));
        let both = Ports { chat, media, chat_tls: None };
        // Not a listener is for phones that the link could be for: nothing of the configuration is needed.
        assert_eq!(url(both).unwrap(), "chatPort=2443&mediaPort=2587&chatTLS=true");
        assert_eq!(
            url(Ports { chat_tls: Some(false), ..both }).unwrap(),
            "chatPort=2443&mediaPort=2587&chatTLS=false"
        );
        // The configuration tells of ports that it has.
        assert_eq!(
            url(Ports { chat: Some(5222), ..both }).unwrap(),
            "chatPort=5222&mediaPort=2587&chatTLS=false"
        );
        assert_eq!(
            url(Ports { chat: Some(8443), ..both }).unwrap(),
            "chatPort=8443&mediaPort=2587&chatTLS=true"
        );
        // Only the other is missing.
        assert_eq!(url(Ports { chat: None, ..both }).unwrap(), "chatPort=5222&mediaPort=2587&chatTLS=false");
        let error = url(Ports { media: None, ..both }).unwrap_err().to_string();
        assert!(
            error.starts_with("no listener takes media from phones") && error.contains("--media-port"),
            "{error}"
        );
        let error = url(Ports { chat: None, chat_tls: Some(true), ..both }).unwrap_err().to_string();
        assert!(error.starts_with("no listener takes chat inside TLS from phones"), "{error}");
    }

    #[test]
    fn chat_without_tls_is_found_where_it_is_wanted() {
        let plain = Ports { chat_tls: Some(false), ..Ports::default() };
        let url = link(&Config::load(None).unwrap(), "example.org", &plain).unwrap().url;
        assert!(url.ends_with("&chatPort=5222&mediaPort=587&chatTLS=false"), "{url}");
    }
}
