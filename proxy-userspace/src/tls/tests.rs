//! Certificates and their replacement, and other implementations as clients.

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use rustls::version::{TLS12, TLS13};

use super::*;
use crate::close_reason::CloseReason;
use testing::{Proxy, TIMEOUTS, client, ping};

fn settings(state: &Path, names: &[Host]) -> TlsSettings {
    TlsSettings { certificate: None, names: names.into(), state_dir: state.into() }
}

fn name(name: &str) -> Host {
    Host::Name(name.into())
}

#[test]
fn a_made_certificate_stays_until_its_names_change() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("state");
    let names = [
        name("Proxy.example.org"),
        Host::Ip([192, 0, 2, 7].into()),
        Host::Ip("2001:db8::7".parse().unwrap()),
    ];
    let first = Acceptor::new(settings(&state, &names)).unwrap().description();
    assert_eq!(first.names, ["Proxy.example.org", "192.0.2.7", "2001:db8::7"]);
    assert_eq!(first.subject, "CN=Proxy.example.org");
    let valid = first.not_after.duration_since(first.not_before).unwrap();
    assert_eq!(valid.as_secs(), 365 * 86_400);
    assert!(first.not_before <= SystemTime::now() && !first.is_due());
    let file = state.join("certificate.pem");
    assert_eq!(first.source, Source::Own(file.clone()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "nothing temporary is left");

    let again = Acceptor::new(settings(&state, &names)).unwrap().description();
    assert_eq!(again, first);
    assert_eq!(show(&settings(&state, &names)).unwrap(), first);

    let renamed = Acceptor::new(settings(&state, &[name("other.example.org")])).unwrap().description();
    assert_eq!(renamed.names, ["other.example.org"]);
    let nameless = Acceptor::new(settings(&state, &[])).unwrap().description();
    assert!(nameless.names.is_empty());
    assert_ne!(nameless.subject, renamed.subject);
    let text = nameless.to_string();
    assert!(text.contains("made by setu") && text.contains("SHA-256: "), "{text}");

    // Eleven months and a half ago.
    let old = self_signed::make(&[], SystemTime::now() - Duration::from_secs(345 * 86_400)).unwrap();
    fs::write(&file, &old).unwrap();
    assert!(show(&settings(&state, &[])).unwrap().is_due());
    let acceptor = Acceptor::new(settings(&state, &[])).unwrap();
    assert!(!acceptor.description().is_due());
    assert_eq!(show(&settings(&state, &[])).unwrap(), acceptor.description());

    fs::write(&file, "rubbish").unwrap();
    let repaired = Acceptor::new(settings(&state, &[])).unwrap().description();
    assert_ne!(repaired.fingerprint, nameless.fingerprint);
    let renewed = renew(&settings(&state, &[])).unwrap();
    assert_ne!(renewed.fingerprint, repaired.fingerprint);
    assert!(!String::from_utf8_lossy(&fs::read(&file).unwrap()).contains("setu"));
}

#[test]
fn without_a_place_the_certificate_is_kept_in_memory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // A directory cannot be below a file, not even for root.
    let settings = settings(&file.path().join("state"), &[]);
    let acceptor = Acceptor::new(settings.clone()).unwrap();
    let before = acceptor.description();
    assert_eq!(before.source, Source::Memory);
    acceptor.reload(&settings).unwrap();
    assert_eq!(acceptor.description(), before);
    assert!(matches!(renew(&settings), Err(CertificateError::Unwritable { .. })));
}

#[test]
fn openssl_reads_a_made_certificate() {
    let state = tempfile::tempdir().unwrap();
    let description = renew(&settings(state.path(), &[name("proxy.example.org")])).unwrap();
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-fingerprint", "-sha256", "-in"])
        .arg(state.path().join("certificate.pem"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["prime256v1", "DNS:proxy.example.org", "CA:FALSE", "CN = proxy.example.org"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let printed = description.to_string();
    let ours = printed.split("SHA-256: ").nth(1).unwrap().lines().next().unwrap();
    assert!(text.contains(ours), "{ours}: {text}");
}

/// The operator's files, and a second pair to change to.
struct Files {
    directory: tempfile::TempDir,
    settings: TlsSettings,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let certificate = Some((path("cert.pem"), path("key.pem")));
        let settings = TlsSettings { certificate, names: Vec::new(), state_dir: path("state") };
        let files = Self { settings, directory };
        files.replace("cert.pem", true);
        files
    }

    /// Replaces both files, or only the named one.
    fn replace(&self, name: &str, both: bool) {
        let pem = self_signed::make(&[], SystemTime::now()).unwrap();
        for file in ["cert.pem", "key.pem"] {
            if both || file == name {
                fs::write(self.directory.path().join(file), &pem).unwrap();
            }
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }
}

#[test]
fn errors_name_the_file_and_the_fix() {
    let files = Files::new();
    let error = || Acceptor::new(files.settings.clone()).unwrap_err().to_string();
    files.replace("key.pem", false);
    let text = error();
    assert!(text.contains("key.pem: the key does not belong to the first certificate in "), "{text}");
    files.write("key.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let text = error();
    assert!(
        text.contains("key.pem: no private key in it") && text.contains("-----BEGIN PRIVATE KEY"),
        "{text}"
    );
    files.write("cert.pem", "");
    assert!(error().contains("cert.pem: no certificate in it"));
    files.write("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(error().contains("cert.pem: not an X.509 certificate"));
    fs::remove_file(files.directory.path().join("cert.pem")).unwrap();
    let text = error();
    assert!(
        text.contains("cert.pem: cannot be read: No such file") && text.contains("correct the path"),
        "{text}"
    );
    assert!(matches!(renew(&files.settings), Err(CertificateError::Operators(_))));
}

#[test]
fn a_change_of_the_files_is_taken_up_and_a_broken_one_is_not() {
    let files = Files::new();
    let acceptor = Acceptor::new(files.settings.clone()).unwrap();
    let fingerprint = || acceptor.description().fingerprint;
    let (first, config) = (fingerprint(), acceptor.config());
    acceptor.look();
    assert!(Arc::ptr_eq(&config, &acceptor.config()), "nothing has changed");

    // As `cp` does it: the certificate is new, the key not yet.
    files.replace("cert.pem", false);
    acceptor.look();
    assert_eq!(fingerprint(), first);
    assert!(acceptor.reload(&files.settings).is_err());
    assert!(Arc::ptr_eq(&config, &acceptor.config()));
    fs::copy(files.directory.path().join("cert.pem"), files.directory.path().join("key.pem")).unwrap();
    acceptor.look();
    let second = fingerprint();
    assert_ne!(second, first);
    files.write("cert.pem", "rubbish");
    acceptor.look();
    assert_eq!(fingerprint(), second);
}

#[test]
fn a_new_certificate_leaves_connections_alone() {
    let files = Files::new();
    let acceptor = Arc::new(Acceptor::new(files.settings.clone()).unwrap());
    let proxy = Proxy::start_with_acceptor(acceptor.clone(), TIMEOUTS);
    let config = client(&TLS13);
    let shown = |client: &testing::Tls| client.conn.peer_certificates().unwrap()[0].to_vec();
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
