//! What setu is to do: a file, or the defaults, as validated types. Later code holds nothing that "must be there".

mod arguments;
mod defaults;
mod display;
mod endpoint;
mod error;
mod file;
mod keyword;
mod names;
mod network;
mod reference;
mod schema;
#[cfg(test)]
pub(crate) mod testing;
mod types;

use std::{fs, path::Path};

pub use arguments::{FileArgs, RunArgs};
pub use endpoint::{Endpoint, Host};
pub use error::{ConfigError, Place};
pub use names::{AllowList, Pattern, is_host_name};
pub use network::{Ranges, is_public};
pub use reference::{Entry, Section, reference};
pub use types::{
    CertificateFiles, ClientAddresses, Config, Dial, Limits, Listener, Mode, PathChoice, Route,
    SendProxyProtocol, Timeouts, Tls, Upstream, UpstreamId,
};

impl Config {
    /// Reads a file, or takes the defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = file else { return Ok(defaults::config()) };
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            place: Place { file: name.clone(), line: 0 },
            error: error.to_string(),
        })?;
        Self::parse(&name, &text)
    }

    /// Reads the text of a file that is called `name` in errors; paths in it are relative to that.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        file::parse(name, text)
    }

    /// Moves every port that setu listens on up, so that no privilege is needed. Port 0 stays.
    ///
    /// # Errors
    /// When a port would be above 65535.
    pub fn offset_ports(&mut self, offset: u16) -> Result<(), ConfigError> {
        let listeners = self.listeners.iter_mut().flat_map(|listener| &mut listener.bind);
        for address in listeners.chain(&mut self.admin) {
            if address.port() == 0 {
                continue;
            }
            let port = address.port().checked_add(offset).ok_or_else(|| ConfigError::Value {
                place: Place { file: "--port-offset".into(), line: 0 },
                key: address.to_string(),
                problem: format!("its port and {offset} are more than 65535 together"),
                remedy: "choose a smaller offset".into(),
            })?;
            address.set_port(port);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// Each invalid file begins with `# expect: ` and the error without the file's name.
    #[test]
    fn invalid_files_name_line_key_and_fix() {
        let mut count = 0;
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/invalid")).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let expected = text.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
            let error = Config::parse("f", &text).expect_err(&path.display().to_string()).to_string();
            assert_eq!(error, format!("f:{expected}"), "{}", path.display());
            count += 1;
        }
        assert!(count >= 50, "{count} files");
    }

    #[test]
    fn valid_files_print_and_read_back() {
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/valid")).unwrap() {
            let path = entry.unwrap().path();
            let config = Config::load(Some(&path)).unwrap();
            assert_eq!(Config::parse("again", &config.to_string()).unwrap(), config, "{}", path.display());
        }
        let defaults = Config::load(None).unwrap();
        assert_eq!(Config::parse("again", &defaults.to_string()).unwrap(), defaults);
    }

    #[test]
    fn an_upstream_of_the_defaults_keeps_what_a_file_does_not_say() {
        let text = "[upstream.chat]\nendpoints = [\"chat.example:1\"]\n[upstream.media]\nroute = \"sni\"\n\
                    [upstream.own]\nendpoints = [\"own.example:1\"]";
        let config = Config::parse("f", text).unwrap();
        let [chat, _, media, own] = config.upstreams.as_slice() else { panic!("{config}") };
        assert_eq!(chat.endpoints[0].to_string(), "chat.example:1");
        assert_eq!(chat.send_proxy_protocol, SendProxyProtocol::V1);
        assert_eq!(media.endpoints[0].to_string(), "whatsapp.net:443");
        assert_eq!((media.send_proxy_protocol, media.route), (SendProxyProtocol::Off, Route::Sni));
        assert_eq!((own.send_proxy_protocol, own.route), (SendProxyProtocol::Off, Route::Fixed));
    }

    #[test]
    fn files_are_found_beside_the_configuration() {
        let text = "[tls]\ncertificate = \"cert.pem\"\nkey = \"/keys/key.pem\"";
        let tls = Config::parse("/etc/setu/setu.toml", text).unwrap().tls;
        assert_eq!(tls.files.as_ref().unwrap().certificate, Path::new("/etc/setu/cert.pem"));
        assert_eq!(tls.files.unwrap().key, Path::new("/keys/key.pem"));
        assert_eq!(tls.state_dir, Path::new("/var/lib/setu"));
    }

    #[test]
    fn the_defaults_are_the_references_ports() {
        let config = Config::load(None).unwrap();
        let ports = |listener: &Listener| listener.bind.iter().map(SocketAddr::port).collect::<Vec<_>>();
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| {
                let (upstream, tls) = match listener.mode {
                    Mode::Chat { upstream, gate: false } | Mode::Media { upstream } => (upstream, false),
                    Mode::ChatTls { upstream, gate: false } => (upstream, true),
                    other => panic!("{other:?}"),
                };
                let upstream = config.upstream(upstream).endpoints[0].to_string();
                (
                    ports(listener)[..] == [ports(listener)[0]; 2],
                    ports(listener)[0],
                    tls,
                    listener.accept_proxy_protocol,
                    upstream,
                )
            })
            .collect();
        let chat = || "g.whatsapp.net:5222".to_owned();
        let http = || "g.whatsapp.net:80".to_owned();
        let media = || "whatsapp.net:443".to_owned();
        let expected = [
            (true, 443, true, false, chat()),
            (true, 8443, true, true, chat()),
            (true, 5222, false, false, chat()),
            (true, 8222, false, true, chat()),
            (true, 80, false, false, http()),
            (true, 8080, false, true, http()),
            (true, 587, false, false, media()),
            (true, 7777, false, false, media()),
        ];
        assert_eq!(listeners, expected);
    }

    proptest::proptest! {
        /// Whatever a file holds, an error is all that comes of it, on a line that exists.
        #[test]
        fn damaged_files_are_errors(at in 0usize..2000, len in 0usize..40, with in "[ -~\n]{0,8}") {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/valid/every-key.toml");
            let mut text = fs::read_to_string(file).unwrap();
            let start = at.min(text.len());
            text.replace_range(start..(start + len).min(text.len()), &with);
            if let Err(ConfigError::Value { place, key, remedy, .. }) = Config::parse("f", &text) {
                let lines = text.matches('\n').count() + 1;
                proptest::prop_assert!((1..=lines).contains(&place.line) && !remedy.is_empty(), "{place} {key}");
            }
        }
    }

    #[test]
    fn ports_move_and_stay_in_range() {
        let mut config = Config::load(None).unwrap();
        config.offset_ports(10_000).unwrap();
        assert_eq!(config.listeners[0].bind[0].port(), 10_443);
        assert_eq!(config.admin[0].port(), 18_199);
        assert!(config.offset_ports(60_000).unwrap_err().to_string().contains("smaller offset"));
    }
}
