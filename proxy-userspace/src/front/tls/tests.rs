//! Certificates and their replacement.

use std::{os::unix::fs::PermissionsExt as _, process::Command};

use super::*;
use crate::config::Host;
use testing::Files;

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
fn one_that_was_made_by_a_clock_ahead_is_made_anew() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let state = tempfile::tempdir().unwrap();
    let settings = settings(state.path(), &[]);
    let file = state.path().join("certificate.pem");
    let make = |made: SystemTime| {
        fs::write(&file, self_signed::make(&[], made).unwrap()).unwrap();
        show(&settings).unwrap()
    };
    let now = SystemTime::now();
    let ahead = make(now + YEAR);
    assert!(ahead.untimely(now).unwrap().contains("check the clock"));
    let acceptor = Acceptor::new(settings.clone()).unwrap();
    let mended = acceptor.description();
    assert!(mended.fingerprint != ahead.fingerprint && mended.untimely(now).is_none());
    assert_eq!(show(&settings).unwrap(), mended, "it is kept");

    // And by one that serves, when the clock is put right: what it has is early then.
    acceptor.loaded.lock().unwrap().description = ahead;
    acceptor.look();
    assert!(acceptor.description().untimely(now).is_none());

    // Beside it: one of yesterday stays.
    let before = make(now - Duration::from_secs(86_400));
    assert_eq!(Acceptor::new(settings.clone()).unwrap().description(), before);
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
    for part in ["prime256v1", "DNS:proxy.example.org", "CA:TRUE", "CN = proxy.example.org"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let printed = description.to_string();
    let ours = printed.split("SHA-256: ").nth(1).unwrap().lines().next().unwrap();
    assert!(text.contains(ours), "{ours}: {text}");
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
fn what_is_there_instead_is_named() {
    let files = Files::new();
    let both = fs::read_to_string(files.directory.path().join("cert.pem")).unwrap();
    let (key, certificate) = both.split_at(both.find("-----BEGIN CERTIFICATE").unwrap());
    for (file, text, named) in [
        (
            "key.pem",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
            "ssh-keygen",
        ),
        (
            "cert.pem",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "a request",
        ),
        (
            "cert.pem",
            "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n",
            "openssl x509",
        ),
        ("key.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "a public key"),
        ("cert.pem", key, "swapped"),
        ("key.pem", certificate, "swapped"),
        ("cert.pem", "", "It is empty"),
    ] {
        files.write("cert.pem", certificate);
        files.write("key.pem", key);
        files.write(file, text);
        let error = Acceptor::new(files.settings.clone()).unwrap_err().to_string();
        let named = named.replace("a request", "a certificate request");
        assert!(error.contains(file) && error.contains(&named), "{named}: {error}");
    }
    fs::write(files.directory.path().join("cert.pem"), [0x30, 0x82, 1, 2]).unwrap();
    assert!(Acceptor::new(files.settings.clone()).unwrap_err().to_string().contains("It is binary"));
}

/// Nobody may write into a pipe, and what never ends is no certificate.
#[test]
fn what_is_no_file_is_not_waited_for() {
    let files = Files::new();
    let path = files.directory.path().join("cert.pem");
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let error = Acceptor::new(files.settings.clone()).unwrap_err().to_string();
    assert!(error.contains("cert.pem: cannot be read: it is no file"), "{error}");
    for other in [std::path::Path::new("/dev/zero"), files.directory.path()] {
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(other, &path).unwrap();
        let error = Acceptor::new(files.settings.clone()).unwrap_err().to_string();
        assert!(error.contains("it is no file"), "{error}");
    }
}

#[test]
fn a_locked_key_is_called_so_and_a_byte_order_mark_does_not_matter() {
    let files = Files::new();
    for file in ["cert.pem", "key.pem"] {
        let text = fs::read_to_string(files.directory.path().join(file)).unwrap();
        files.write(file, &format!("\u{feff}{text}"));
    }
    Acceptor::new(files.settings.clone()).unwrap();
    for locked in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n",
    ] {
        files.write("key.pem", locked);
        let text = Acceptor::new(files.settings.clone()).unwrap_err().to_string();
        assert!(text.contains("key.pem: the key is encrypted") && text.contains("openssl pkey"), "{text}");
    }
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
