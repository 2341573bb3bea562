//! The certificate at the door: made, kept, shown, and renewed while setu runs.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, front_door, listener,
    peers::{PATIENCE, Upstream},
    servers::{self, Ended},
    tls::Certificate,
    upstream,
};

/// The certificate that a server shows, by SHA-256.
fn fingerprint(at: SocketAddr) -> String {
    let shown =
        format!("openssl s_client -connect {at} </dev/null 2>&1 | openssl x509 -noout -fingerprint -sha256");
    let ended = servers::run("sh", &["-c", &shown]);
    ended.output.trim().rsplit('=').next().unwrap().to_owned()
}

#[test]
fn the_certificate_at_the_door_is_shown_and_renewed() {
    let (state, upstreams) = (tempfile::tempdir().unwrap(), Upstream::new());
    let more = [
        "names = [\"proxy.example.org\", \"192.0.2.1\"]\n".to_owned(),
        listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"test\""),
        upstream("test", upstreams.address(), "off"),
    ];
    let kept = state.path().join("kept");
    let text = front_door(Path::Userspace, &kept, &more.concat());
    let file = state.path().join("setu.toml");
    fs::write(&file, &text).unwrap();
    let cert = |what: &str| {
        let binary = Setu::binary();
        servers::run(binary.to_str().unwrap(), &["cert", what, "--config", file.to_str().unwrap()])
    };
    let printed = |ended: &Ended| {
        assert!(ended.success, "{ended:?}");
        let field = |name| ended.output.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        assert_eq!(field("names: "), "proxy.example.org, 192.0.2.1");
        field("SHA-256: ")
    };
    let none = cert("show");
    assert_eq!(none.code, Some(64), "{none:?}");
    assert!(none.errors.contains("certificate.pem: cannot be read"), "{none:?}");
    let first = printed(&cert("new"));
    assert_eq!(printed(&cert("show")), first);
    let mode = fs::metadata(kept.join("certificate.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // What is shown is served, and a new one is taken up by a setu that runs.
    let setu = Setu::start(&text);
    assert_eq!(fingerprint(setu.address("chat-tls")), first);
    let second = printed(&cert("new"));
    assert_ne!(first, second);
    let deadline = Instant::now() + PATIENCE;
    while fingerprint(setu.address("chat-tls")) != second {
        assert!(Instant::now() < deadline, "the new certificate is not taken up\n{}", setu.tail());
        thread::sleep(Duration::from_millis(300));
    }

    let operators = Certificate::new(&["proxy.example.org"]);
    let files = format!(
        "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        operators.chain().display(),
        operators.key().display()
    );
    fs::write(&file, text.replace("[tls]\n", &files)).unwrap();
    let shown = cert("show");
    assert!(shown.success && shown.output.contains("names: proxy.example.org\n"), "{shown:?}");
    let refused = cert("new");
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.errors.contains("remove tls.certificate and tls.key"), "{refused:?}");
}
