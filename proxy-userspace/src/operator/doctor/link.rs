//! What a phone knows of a server: the four parameters of a share link, which a host alone has defaults for.

use std::str::FromStr;

use super::way::Trial;
use crate::config::Host;

/// The ports of a link that names none.
const CHAT: u16 = 443;
const MEDIA: u16 = 587;

/// A server as phones reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it is.
    pub host: Host,
    /// Where it takes chat.
    pub chat: u16,
    /// Where it takes media.
    pub media: u16,
    /// Whether chat is inside TLS.
    pub tls: bool,
    /// Whether `media` is what phones are told, or nobody has said where media comes in.
    pub is_media_known: bool,
}

impl Link {
    pub(super) fn chat_trial(&self) -> Trial {
        if self.tls { Trial::ChatTls } else { Trial::Chat }
    }

    pub(super) fn has_default_ports(&self) -> bool {
        (self.chat, self.media) == (CHAT, MEDIA)
    }
}

impl FromStr for Link {
    type Err = String;

    /// Reads a name, an address, or a link such as `https://wa.me/proxy?host=…`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (mut host, mut chat, mut media, mut tls) = (None, CHAT, MEDIA, true);
        let is_link = text.contains('?');
        if let Some((page, parameters)) = text.split_once('?') {
            let page = page.strip_prefix("https://").unwrap_or(page);
            if page != "wa.me/proxy" {
                return Err("a link to a proxy begins with https://wa.me/proxy?host=".into());
            }
            for parameter in parameters.split('&') {
                let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                match key {
                    "host" => host = Some(self::host(value)?),
                    "chatPort" => chat = port(key, value)?,
                    "mediaPort" => media = port(key, value)?,
                    // As the app reads it.
                    "chatTLS" => tls = matches!(value, "true" | "1"),
                    // The app passes over what it does not know.
                    _ => {}
                }
            }
        } else {
            host = Some(self::host(text)?);
        }
        let host = host.ok_or("the link has no host")?;
        Ok(Self { host, chat, media, tls, is_media_known: is_link })
    }
}

fn host(text: &str) -> Result<Host, String> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    inner.parse().map_err(|problem| {
        format!(
            "\"{text}\" {problem}: give the server's name or address alone, or the whole link; ports go into \
                 --chat-port and --media-port"
        )
    })
}

fn port(key: &str, value: &str) -> Result<u16, String> {
    let port = value.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("{key} is \"{value}\", not a port between 1 and 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_ports_of_a_link_that_names_none() {
        let name = |text: &str| Host::Name(text.into());
        let plain =
            Link { host: name("proxy.example"), chat: 443, media: 587, tls: true, is_media_known: true };
        let parsed = |text: &str| text.parse::<Link>();
        assert_eq!(parsed("proxy.example"), Ok(Link { is_media_known: false, ..plain.clone() }));
        assert_eq!(parsed(" https://wa.me/proxy?host=proxy.example "), Ok(plain.clone()));
        assert_eq!(parsed("wa.me/proxy?host=proxy.example&chatTLS=1&x=y"), Ok(plain.clone()));
        assert_eq!(
            parsed("https://wa.me/proxy?host=proxy.example&chatPort=5222&mediaPort=443&chatTLS=false"),
            Ok(Link { chat: 5222, media: 443, tls: false, ..plain.clone() })
        );
        for (text, ip) in [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::1"), ("[::1]", "::1")] {
            assert_eq!(parsed(text).unwrap().host, Host::Ip(ip.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_no_server_is_refused_with_what_to_do() {
        for (text, problem) in [
            ("", "give the server's name"),
            ("proxy.example:443", "--chat-port"),
            ("https://proxy.example/", "the whole link"),
            ("https://example.org/proxy?host=a.example", "begins with https://wa.me/proxy?host="),
            ("https://wa.me/proxy?chatPort=443", "has no host"),
            ("https://wa.me/proxy?host=a.example&chatPort=0", "chatPort is \"0\""),
            ("https://wa.me/proxy?host=a.example&mediaPort=99999", "mediaPort is \"99999\""),
        ] {
            let error = text.parse::<Link>().unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
