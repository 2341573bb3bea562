//! The link to a server's ports, on a host as WhatsApp takes it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use thiserror::Error;

use super::qr;
use crate::config::{Config, Mode};

/// The longest name of a host (RFC 1035, section 2.3.4).
const LONGEST_HOST: usize = 253;

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

/// Why there is no link.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The machine cannot know by which name or address phones reach it.
    #[error("under which name or address do phones reach this server? Name it with --host, or in tls.names")]
    NoHost,
    /// WhatsApp takes no IPv6 address here.
    #[error(
        "{0} is an IPv6 address, which WhatsApp's link does not take; name a host that has an AAAA record instead"
    )]
    Ipv6(Ipv6Addr),
    /// An address that leads nowhere.
    #[error("no phone can reach {0}; name the server's public address, or its host name")]
    Unreachable(Ipv4Addr),
    /// Neither a name nor an address.
    #[error("\"{host}\" is no host name: {problem}")]
    Host {
        /// As it was given.
        host: String,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// The configuration has nothing to connect to.
    #[error(
        "no listener takes {0} from phones; add one to the configuration (a listener that expects PROXY protocol \
         does not count: phones do not speak it)"
    )]
    NoListener(&'static str),
    /// The code cannot be made.
    #[error("the link does not fit into a QR code: {0}")]
    Code(#[from] qrcode::types::QrError),
    /// The text of a card is broken.
    #[error("share/cards/{file}: {error}")]
    Card {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        error: Box<toml::de::Error>,
    },
    /// A file cannot be written.
    #[error("{} cannot be written: {error}; name a writable directory with --out", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
}

/// The link to the ports that this configuration opens, on a host that phones know by this name or IPv4 address.
///
/// # Errors
/// When WhatsApp would not take the host, or no listener is there for phones.
pub fn link(config: &Config, host: &str) -> Result<Link, ShareError> {
    let host = self::host(host)?;
    let (chat, tls) = first(config, "chat", chat_tls)?;
    let (media, ()) = first(config, "media", |mode| takes_media(mode).then_some(()))?;
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

    /// The code as an SVG document, which is also what a page embeds.
    #[must_use]
    pub fn svg(&self) -> String {
        self.code.svg()
    }

    /// The code in half-block characters. With `colours` it is black on white on any terminal; without, it is meant
    /// for what shows dark text on a light ground.
    #[must_use]
    pub fn terminal(&self, colours: bool) -> String {
        self.code.terminal(colours)
    }
}

/// The port that phones should use of the listeners that `wanted` has an answer for, and that answer.
fn first<T: Ord + Copy>(
    config: &Config,
    what: &'static str,
    wanted: impl Fn(Mode) -> Option<T>,
) -> Result<(u16, T), ShareError> {
    // Phones speak no PROXY protocol.
    let listeners = config.listeners.iter().filter(|listener| !listener.accept_proxy_protocol);
    let ports = listeners.flat_map(|listener| {
        let answer = wanted(listener.mode);
        let ports = listener.bind.iter().filter(|address| address.port() != 0);
        ports.filter_map(move |address| answer.map(|answer| (address, answer)))
    });
    // The first of equals is taken, so that the order of the file decides.
    let best = ports.min_by_key(|(address, answer)| (address.ip().is_loopback(), std::cmp::Reverse(*answer)));
    best.map(|(address, answer)| (address.port(), answer)).ok_or(ShareError::NoListener(what))
}

/// Whether chat is taken in this mode, and if so, inside TLS.
fn chat_tls(mode: Mode) -> Option<bool> {
    match mode {
        Mode::Chat { .. } => Some(false),
        Mode::ChatTls { .. } | Mode::Auto { .. } => Some(true),
        Mode::Media { .. } => None,
    }
}

fn takes_media(mode: Mode) -> bool {
    matches!(mode, Mode::Media { .. } | Mode::Auto { .. })
}

/// The host as WhatsApp takes it: an IPv4 address or a name, in lower case. What passes needs no percent-encoding.
///
/// # Errors
/// When WhatsApp would not take it.
pub fn host(given: &str) -> Result<String, ShareError> {
    let host = given.trim();
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match inner.parse() {
        Ok(IpAddr::V6(ip)) => return Err(ShareError::Ipv6(ip)),
        Ok(IpAddr::V4(ip))
            if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() =>
        {
            return Err(ShareError::Unreachable(ip));
        }
        Ok(IpAddr::V4(ip)) => return Ok(ip.to_string()),
        Err(_) => {}
    }
    let wrong = |problem| Err(ShareError::Host { host: given.into(), problem });
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name.is_empty() {
        return wrong("it is empty");
    }
    if !name.is_ascii() {
        return wrong("write it in its ASCII form, which begins with xn--");
    }
    if name.contains("://") || name.contains('/') {
        return wrong("write only the name, without https:// and path");
    }
    if name.contains(':') {
        return wrong("write only the name; the ports come from the configuration");
    }
    if name.len() > LONGEST_HOST {
        return wrong("it is longer than 253 characters");
    }
    for label in name.split('.') {
        if !(1..64).contains(&label.len()) {
            return wrong("each part between dots has 1 to 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return wrong("no part begins or ends with a hyphen");
        }
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return wrong("only letters, digits, hyphens and dots may be in it");
        }
    }
    // A name whose last part is a number is an address with a slip (RFC 3696, section 2).
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return wrong("it looks like an IPv4 address, but is none");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

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
            link(&Config::load(None).unwrap(), "example.org").unwrap().url(),
            "https://wa.me/proxy?host=example.org&chatPort=443&mediaPort=587&chatTLS=true"
        );
    }

    #[test]
    fn chat_in_the_clear_says_so() {
        let config = config(&[("127.0.0.1:1", CHAT), ("0.0.0.0:15222", CHAT), ("[::]:1587", MEDIA)]);
        assert_eq!(
            link(&config, "Proxy.Example.ORG.").unwrap().url(),
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
        let url = link(&config(&all), "example.org").unwrap().url;
        assert!(url.ends_with("&chatPort=2443&mediaPort=587&chatTLS=true"), "{url}");
        let error = link(&config(&all[1..2]), "example.org").unwrap_err();
        assert!(matches!(error, ShareError::NoListener("chat")), "{error}");
    }

    #[test]
    fn one_port_takes_both() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/examples/one-port.toml");
        let url = link(&Config::load(Some(Path::new(file))).unwrap(), "example.org").unwrap().url;
        assert!(url.ends_with("&chatPort=443&mediaPort=443&chatTLS=true"), "{url}");
    }

    #[test]
    fn a_configuration_without_media_has_no_link() {
        let error = link(&config(&[("0.0.0.0:5222", CHAT)]), "example.org").unwrap_err();
        assert!(error.to_string().starts_with("no listener takes media from phones"), "{error}");
    }

    #[test]
    fn hosts_that_whatsapp_takes() {
        let long = format!("{}.example", "a".repeat(63));
        for (given, host) in [
            ("157.240.1.1", "157.240.1.1"),
            ("192.168.1.5", "192.168.1.5"),
            ("EXAMPLE.org", "example.org"),
            ("a-b.c0.example.", "a-b.c0.example"),
            ("xn--ls8h.la", "xn--ls8h.la"),
            (&long, &long),
        ] {
            assert_eq!(self::host(given).unwrap(), host);
        }
    }

    #[test]
    fn hosts_that_are_refused_with_the_reason() {
        for ip in ["2001:db8::1", "[2001:db8::1]", "::1", "::ffff:1.2.3.4"] {
            assert!(matches!(self::host(ip), Err(ShareError::Ipv6(_))), "{ip}");
        }
        for ip in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(matches!(self::host(ip), Err(ShareError::Unreachable(_))), "{ip}");
        }
        let long = "a.".repeat(127) + "b";
        for (host, problem) in [
            ("", "empty"),
            (".", "empty"),
            ("a..b", "1 to 63"),
            (&format!("{}.b", "a".repeat(64)), "1 to 63"),
            (&long, "longer than 253"),
            ("-a.example", "hyphen"),
            ("a-.example", "hyphen"),
            ("a_b.example", "only letters"),
            ("a b.example", "only letters"),
            ("a&chatPort=1", "only letters"),
            ("https://example.org", "without https://"),
            ("example.org:443", "ports come from"),
            ("пример.рф", "xn--"),
            ("1.2.3.256", "IPv4"),
            ("1.2.3", "IPv4"),
        ] {
            let error = self::host(host).unwrap_err().to_string();
            assert!(error.contains(problem), "{host}: {error}");
        }
    }

    #[test]
    fn everything_is_written_and_what_cannot_be_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let link = link(&Config::load(None).unwrap(), "example.org").unwrap();
        let out = directory.path().join("new/out");
        let names: Vec<_> = link.write(&out).unwrap().iter().map(|path| path.display().to_string()).collect();
        let wanted = ["proxy.svg", "card-en.html", "card-fa.html", "card-ar.html", "card-ru.html"];
        for name in wanted.into_iter().chain(["card-bn.html", "card-zh.html"]) {
            assert!(names.iter().any(|path| path.ends_with(name)), "{name} in {names:?}");
            assert!(fs::metadata(out.join(name)).unwrap().len() > 500, "{name}");
        }
        let error = link.write(&out.join("proxy.svg")).unwrap_err().to_string();
        assert!(error.contains("proxy.svg cannot be written"), "{error}");
    }
}
