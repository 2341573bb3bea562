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

/// Writes `chain.pem`, `key.pem`, and both as `certificate.pem`: without a name, valid from the beginning of this year on.
fn valid_from(year: u16, folder: &std::path::Path) {
    let script =
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test -keyout key.pem \
                    -out request.pem
                  : >index; echo 01 >serial
                  printf '%s\n' '[ca]' 'default_ca = own' '[own]' 'database = index' 'serial = serial' \
                    'new_certs_dir = .' 'default_md = sha256' 'policy = names' 'x509_extensions = more' \
                    '[names]' 'commonName = supplied' '[more]' 'basicConstraints = CA:TRUE' >configuration
                  openssl ca -batch -notext -selfsign -config configuration -keyfile key.pem -in request.pem \
                    -startdate \"${1}0101000000Z\" -enddate 20990101000000Z -out chain.pem
                  cat key.pem chain.pem >certificate.pem";
    let folder = folder.to_str().unwrap();
    let made = servers::run("sh", &["-ec", &format!("cd {folder}; {script}"), "sh", &year.to_string()]);
    assert!(made.success, "{made:?}");
}

#[test]
fn a_certificate_of_a_time_to_come_is_made_anew_or_told_of() {
    let upstreams = Upstream::new();
    let start = |year: u16, keys: &str| {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("kept");
        valid_from(year, folder.path());
        fs::create_dir(&state).unwrap();
        fs::copy(folder.path().join("certificate.pem"), state.join("certificate.pem")).unwrap();
        let of = fs::read(state.join("certificate.pem")).unwrap();
        let more = [
            keys.replace("FOLDER", folder.path().to_str().unwrap()),
            listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"test\""),
            upstream("test", upstreams.address(), "off"),
        ];
        let setu = Setu::start(&front_door(Path::Userspace, &state, &more.concat()));
        let kept = fs::read(state.join("certificate.pem")).unwrap() == of;
        let binary = Setu::binary();
        let file = setu.configuration().to_str().unwrap();
        let check = servers::run(binary.to_str().unwrap(), &["check", "--config", file]).output;
        (kept, setu.count("WARN setu::front::tls::certificate"), setu, check)
    };
    let (kept, warnings, setu, _) = start(2090, "");
    assert!(!kept && warnings == 1, "{}", setu.log());
    let said =
        "made is not valid yet: the clock was ahead then, or is behind now; making another. Check the clock";
    assert_eq!(setu.count(said), 1, "{}", setu.log());
    let (kept, warnings, setu, _) = start(2020, "");
    assert!(kept && warnings == 0, "{}", setu.log());

    let files = "certificate = \"FOLDER/chain.pem\"\nkey = \"FOLDER/key.pem\"\n";
    let (kept, warnings, setu, check) = start(2090, files);
    assert!(kept && warnings == 1, "{}", setu.log());
    assert_eq!(
        setu.count("not valid yet, and clients that check refuse it; check the clock"),
        1,
        "{}",
        setu.log()
    );
    assert!(check.contains("valid from 2090-01-01T00:00:00Z on, and the clock says "), "{check}");
    let (_, warnings, setu, check) = start(2020, files);
    assert_eq!(warnings, 0, "{}", setu.log());
    assert!(check.contains("ok    the TLS certificate can be served"), "{check}");
}

/// `openssl x509 -req -signkey` without extensions makes one. It is the certificate that is wrong, not the key.
#[test]
fn a_certificate_of_version_1_is_called_so() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().to_str().unwrap();
    let make = |extensions: &str| {
        let script = format!(
            "cd {folder}; openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem \
               -subj /CN=one.test -out request.pem
             printf 'subjectAltName = DNS:one.test' >extensions
             openssl x509 -req -in request.pem -signkey key.pem -days 90 -out chain.pem {extensions}
             chmod 644 key.pem; openssl x509 -in chain.pem -noout -text | grep Version"
        );
        let made = servers::run("sh", &["-ec", &script]);
        assert!(made.success, "{made:?}");
        made.output.trim().to_owned()
    };
    let file = state.path().join("setu.toml");
    let more = [
        format!("certificate = \"{folder}/chain.pem\"\nkey = \"{folder}/key.pem\"\n"),
        listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"test\""),
        upstream("test", "127.0.0.1:1", "off"),
    ];
    let text = front_door(Path::Userspace, &state.path().join("kept"), &more.concat());
    fs::write(&file, &text).unwrap();
    let run = |what: &str| {
        let binary = Setu::binary();
        servers::run(binary.to_str().unwrap(), &[what, "--config", file.to_str().unwrap()])
    };
    assert_eq!(make(""), "Version: 1 (0x0)");
    let refused = run("run");
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.errors.contains("chain.pem: ") && refused.errors.contains("of version 1"), "{refused:?}");
    assert!(!refused.errors.contains("key cannot be used"), "{refused:?}");
    let check = run("check");
    assert!(check.code == Some(1) && check.output.contains("of version 1"), "{check:?}");
    // The same with an extension is of version 3, and served.
    assert_eq!(make("-extfile extensions"), "Version: 3 (0x2)");
    assert_eq!(Setu::start(&text).count("version 1"), 0);
}
