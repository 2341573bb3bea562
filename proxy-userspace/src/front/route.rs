//! Decides where a connection may go. No input or output happens here.

use std::net::SocketAddr;

use crate::{
    account::CloseReason,
    config::{Config, Mode, Route, UpstreamId},
    front::{
        inspect::client_hello::ServerName,
        opening::{Name, Wish},
    },
};

/// Where a connection goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To one of an upstream's endpoints.
    Upstream(UpstreamId),
    /// To the server that the client named, on behalf of an upstream.
    Name(UpstreamId, ServerName),
    /// To the operator's web server.
    Fallback(SocketAddr),
}

/// Chooses where a client's wish leads.
///
/// # Errors
/// The reason for which it leads nowhere.
pub(crate) fn route(mode: Mode, wish: Wish, config: &Config) -> Result<Destination, CloseReason> {
    match (mode, wish) {
        (
            Mode::Chat { upstream, .. } | Mode::ChatTls { upstream, .. } | Mode::Auto { chat: upstream, .. },
            Wish::Chat | Wish::Ungated,
        ) => Ok(Destination::Upstream(upstream)),
        (Mode::Media { upstream } | Mode::Auto { media: upstream, .. }, Wish::Media(name)) => {
            media(upstream, name, config)
        }
        (Mode::Auto { fallback: Some(address), .. }, Wish::Other) => Ok(Destination::Fallback(address)),
        _ => Err(CloseReason::NotChat),
    }
}

fn media(upstream: UpstreamId, name: Name, config: &Config) -> Result<Destination, CloseReason> {
    match name {
        // Some clients name no server; whatever they want, the media servers answer for themselves.
        Name::Absent => Ok(Destination::Upstream(upstream)),
        Name::Address => Err(CloseReason::NameRefused),
        Name::Known(name) if !config.allowed_names.allows(name.as_str()) => Err(CloseReason::NameRefused),
        Name::Known(name) => match config.upstream(upstream).route {
            Route::Fixed => Ok(Destination::Upstream(upstream)),
            Route::Sni => Ok(Destination::Name(upstream, name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::inspect::client_hello::{self, ClientHello};

    fn name(name: &str) -> ServerName {
        // The parser is the only one who makes names: a hello for it, in one record.
        let extension = [
            &[0, 0, 0, name.len() as u8 + 5, 0, name.len() as u8 + 3, 0, 0, name.len() as u8][..],
            name.as_bytes(),
        ]
        .concat();
        let body =
            [&[3, 3][..], &[0; 32], &[0, 0, 2, 0x13, 1, 1, 0, 0, extension.len() as u8], &extension].concat();
        let message = [&[1, 0, 0, body.len() as u8][..], &body].concat();
        let record = [&[0x16, 3, 1, 0, message.len() as u8][..], &message].concat();
        match client_hello::parse(&record) {
            ClientHello::Found(name) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_mode_leads_where_it_should() {
        let config = Config::load(None).unwrap();
        let (chat, media) = (UpstreamId(0), UpstreamId(2));
        let web_server = "127.0.0.1:8080".parse().unwrap();
        let auto = Mode::Auto { chat, media, fallback: Some(web_server), gate: true };
        let bare = Mode::Auto { chat, media, fallback: None, gate: true };
        let allowed = || Wish::Media(Name::Known(name("mmg.whatsapp.net")));
        let other = || Wish::Media(Name::Known(name("example.org")));
        let rows = [
            (Mode::Chat { upstream: chat, gate: false }, Wish::Chat, Ok(Destination::Upstream(chat))),
            (Mode::Chat { upstream: chat, gate: false }, Wish::Ungated, Ok(Destination::Upstream(chat))),
            (Mode::Chat { upstream: chat, gate: true }, Wish::Other, Err(CloseReason::NotChat)),
            (Mode::ChatTls { upstream: chat, gate: true }, Wish::Other, Err(CloseReason::NotChat)),
            (Mode::Media { upstream: media }, allowed(), Ok(Destination::Upstream(media))),
            (Mode::Media { upstream: media }, other(), Err(CloseReason::NameRefused)),
            (Mode::Media { upstream: media }, Wish::Media(Name::Address), Err(CloseReason::NameRefused)),
            (Mode::Media { upstream: media }, Wish::Media(Name::Absent), Ok(Destination::Upstream(media))),
            (auto, Wish::Chat, Ok(Destination::Upstream(chat))),
            (auto, allowed(), Ok(Destination::Upstream(media))),
            (auto, Wish::Other, Ok(Destination::Fallback(web_server))),
            (bare, Wish::Other, Err(CloseReason::NotChat)),
        ];
        for (mode, wish, expected) in rows {
            let text = format!("{mode:?} {wish:?}");
            assert_eq!(route(mode, wish, &config), expected, "{text}");
        }
    }

    #[test]
    fn by_sni_only_allowed_names_are_dialed() {
        let config = Config::parse("f", "[upstream.media]\nroute = \"sni\"").unwrap();
        let media = UpstreamId(2);
        let mode = Mode::Media { upstream: media };
        let wish = |text| Wish::Media(Name::Known(name(text)));
        let allowed = route(mode, wish("mmg.whatsapp.net"), &config);
        assert_eq!(allowed, Ok(Destination::Name(media, name("mmg.whatsapp.net"))));
        for refused in ["whatsapp.net.example.org", "notwhatsapp.net", "localhost"] {
            assert_eq!(route(mode, wish(refused), &config), Err(CloseReason::NameRefused), "{refused}");
        }
        assert_eq!(route(mode, Wish::Media(Name::Absent), &config), Ok(Destination::Upstream(media)));
    }
}
