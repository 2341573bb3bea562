//! New certificates, clients that come back, and other implementations as clients.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::Arc,
};

use rustls::version::{TLS12, TLS13};

use super::super::testing::{Proxy, Tls, client, ping};
use crate::{
    account::CloseReason,
    config::testing::TIMEOUTS,
    front::tls::{Acceptor, testing::Files},
};

#[test]
fn a_new_certificate_leaves_connections_alone() {
    let files = Files::new();
    let acceptor = Arc::new(Acceptor::new(files.settings.clone()).unwrap());
    let proxy = Proxy::start_with_acceptor(acceptor.clone(), TIMEOUTS);
    let config = client(&TLS13);
    let shown = |client: &Tls| client.conn.peer_certificates().unwrap()[0].to_vec();
    let (mut old, mut old_upstream) = proxy.connect(&config);
    ping(&mut old, &mut old_upstream);
    let before = shown(&old);
    files.replace("", true);
    acceptor.look();
    ping(&mut old, &mut old_upstream);
    // Without a ticket, which would spare it the certificate.
    let (mut new, mut new_upstream) = proxy.connect(&client(&TLS13));
    ping(&mut new, &mut new_upstream);
    ping(&mut old, &mut old_upstream);
    assert_ne!(shown(&new), before);
    // Tickets of before are still good.
    let (mut resumed, mut upstream) = proxy.connect(&config);
    ping(&mut resumed, &mut upstream);
    assert_eq!(resumed.conn.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
}

#[test]
fn a_client_that_comes_back_resumes() {
    for version in [&TLS12, &TLS13] {
        let proxy = Proxy::start(TIMEOUTS);
        let config = client(version);
        for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let (mut client, mut upstream) = proxy.connect(&config);
            ping(&mut client, &mut upstream);
            assert_eq!(client.conn.handshake_kind(), Some(kind), "{version:?}");
        }
    }
}

/// `openssl s_client` to the proxy: what it is sent on its input goes through TLS.
fn openssl(address: std::net::SocketAddr, more: &[&str]) -> std::process::Child {
    Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-quiet"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn openssl_speaks_and_resumes() {
    let directory = tempfile::tempdir().unwrap();
    let session = directory.path().join("session");
    let session = session.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let proxy = Proxy::start_with(TIMEOUTS, |terminated| async move {
            // The test sees by the reason whether the session was resumed.
            if terminated.is_resumed() { Err(CloseReason::DestinationRefused) } else { Ok(terminated) }
        });
        let mut first = openssl(proxy.address, &[version, "-sess_out", session]);
        first.stdin.as_mut().unwrap().write_all(b"hello from openssl\n").unwrap();
        let mut upstream = proxy.accept();
        let mut buffer = [0; 19];
        upstream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"hello from openssl\n");
        upstream.write_all(b"hello to openssl\n").unwrap();
        drop(upstream);
        let output = first.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"hello to openssl\n", "{output:?}");
        assert!(matches!(proxy.reason(), CloseReason::UpstreamClosed));
        let second = openssl(proxy.address, &[version, "-sess_in", session]);
        assert_eq!(proxy.reason(), CloseReason::DestinationRefused, "{version} was not resumed");
        second.wait_with_output().unwrap();
    }
}
