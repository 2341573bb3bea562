//! The configuration as a whole: files, defaults, errors.

use std::{fs, net::SocketAddr, path::Path};

use super::{arguments::offset_ports, *};

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
    offset_ports(&mut config, 10_000).unwrap();
    assert_eq!(config.listeners[0].bind[0].port(), 10_443);
    assert_eq!(config.admin[0].port(), 18_199);
    assert_eq!(config.wire_conflict().unwrap().1.port(), 10_443);
    assert!(offset_ports(&mut config, 60_000).unwrap_err().to_string().contains("smaller offset"));
}
