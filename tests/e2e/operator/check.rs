//! `setu check`: what this machine can do for setu, and what is missing.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, process::Command};

use setu_tests::{Path, Setu, config, machine::is_root, netns::Netns, nobody::Nobody};
use tempfile::NamedTempFile;

#[test]
fn check_tells_the_path_and_the_self_test() {
    let mut file = NamedTempFile::new().unwrap();
    let setup = config(Path::Auto, "127.0.0.1:1", "");
    file.write_all(setup.as_bytes()).unwrap();
    let output = Command::new(Setu::binary()).args(["check", "--config"]).arg(file.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("ok    the wire is not wanted: wire.auto = false"), "{text}");
    if crate::may_use_kernel() {
        for line in ["path: sockmap", "types (BTF)", "eBPF is compiled (JIT)", "CAP_BPF, for loading"] {
            assert!(text.contains(line), "{line} is missing: {text}");
        }
        assert_eq!(text.matches("ok    self-test: ").count(), 5, "{text}");
    }
}

/// The self-test's own connections must not be waited for without end, neither here nor at a start.
#[test]
fn a_firewall_on_loopback_is_told_of() {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::new();
    namespace
        .nft("add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }");
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"[wire]\nauto = false\n").unwrap();
    let mut check = namespace.command(&Setu::binary().display().to_string());
    let output = check.args(["check", "--config"]).arg(file.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("loopback takes no connection: a firewall of this machine is in the way"),
        "{text}"
    );
    assert!(text.contains("path: userspace, because"), "{text}");
}

#[test]
fn check_tells_what_each_missing_privilege_costs() {
    if !is_root() {
        println!("skipped: dropping privileges needs root");
        return;
    }
    let output = Nobody::new().setu().args(["check", "--port-offset", "20000"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    for name in ["CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"] {
        let line = text.lines().find(|line| line.starts_with(&format!("note  {name} is missing, for ")));
        assert!(line.is_some_and(|line| line.contains(": without it ")), "{name}: {text}");
    }
    assert!(text.contains("path: userspace, because"), "{text}");
}

#[test]
fn source_ports_are_reckoned_and_respected() {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::new();
    let setup = config(Path::Userspace, "203.0.113.1:443", "").replace("127.0.0.1:0", "127.0.0.1:4000");
    let check = || {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(setup.as_bytes()).unwrap();
        let mut command = namespace.command(&Setu::binary().display().to_string());
        let output = command.args(["check", "--config"]).arg(file.path()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(
        check().contains("ok    source ports: 28232 (32768 to 60999, 0 of them reserved)"),
        "{}",
        check()
    );
    namespace.set("net/ipv4/ip_local_port_range", "50000 50099");
    namespace.set("net/ipv4/ip_local_reserved_ports", "443,50010-50019");
    namespace.set("net/ipv4/tcp_tw_reuse", "1");
    let text = check();
    for part in [
        "note  source ports: 90 (50000 to 50099, 10 of them reserved)",
        "90 to upstream \"test\". These are the limit, 90 in all, where files and memory allow ",
        "net.ipv4.tcp_tw_reuse = 1: ",
    ] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    let setu = Setu::start_in(&setup, Some(&namespace));
    assert_eq!(setu.count("limits connections=90 "), 1, "{}", setu.log());
}

/// As `setu check && systemctl reload setu` needs it.
#[test]
fn check_of_what_is_served_is_fine_and_of_anothers_ports_is_not() {
    let mut file = NamedTempFile::new().unwrap();
    let upstream = setu_tests::peers::Upstream::new();
    let setup = config(Path::Userspace, &upstream.address(), "");
    let running = Setu::start(&setup);
    let port = running.address("chat").port().to_string();
    let check = |file: &std::path::Path| {
        let output = Command::new(Setu::binary()).args(["check", "--config"]).arg(file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    file.write_all(setup.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")).as_bytes()).unwrap();
    let (fine, text) = check(file.path());
    assert!(!fine && text.contains(&format!("port {port} of 127.0.0.1 is in use by setu")), "{text}");
    // The file of the one that runs, which may say something else by now.
    std::fs::copy(file.path(), running.configuration()).unwrap();
    let (fine, text) = check(running.configuration());
    assert!(fine && text.contains("which runs with this configuration"), "{text}");
}

/// What a setu that runs does not take, since it has given up its rights, a check that runs as root would not notice.
#[test]
fn check_tells_what_takes_a_restart() {
    if !is_root() {
        println!("skipped: without root there is no right to give up, and none to look");
        return;
    }
    let network = Netns::alone();
    let (near, beyond) = (tempdir_for_all("/tmp"), tempdir_for_all("/var/tmp"));
    let certificate = setu_tests::tls::Certificate::new(&["one.test"]);
    for folder in [near.path(), beyond.path()] {
        std::fs::copy(certificate.chain(), folder.join("tls.crt")).unwrap();
        std::fs::copy(certificate.key(), folder.join("tls.key")).unwrap();
        for name in ["tls.crt", "tls.key"] {
            readable(&folder.join(name), 0o644);
        }
    }
    let text = |binds: &str, folder: &std::path::Path| {
        let more = format!(
            "[tls]\ncertificate = {:?}\nkey = {:?}\n",
            folder.join("tls.crt"),
            folder.join("tls.key")
        );
        config(Path::Userspace, "127.0.0.1:1", &more)
            .replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:8199\"]")
            .replace("\"127.0.0.1:0\"", binds)
            .replace("\"chat\"\n", "\"chat-tls\"\n")
    };
    let two = "\"127.0.0.1:5222\", \"127.0.0.1:443\"";
    let setu = Setu::start_in(&text(two, near.path()), Some(&network));
    let file = setu.configuration().to_owned();
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = network.command(&Setu::binary().display().to_string());
        let output = command.args(["check", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let restart = |said: &str| -> Vec<String> {
        let lines = said.lines().filter(|line| line.starts_with("note ") && !line.contains("memory"));
        lines
            .filter(|line| line.contains("restart") || line.contains("a reload will fail"))
            .map(str::to_owned)
            .collect()
    };
    let same = check(&text(two, near.path()));
    assert_eq!(restart(&same), [""; 0], "{same}");
    assert_eq!(same.matches("is served by setu (pid ").count(), 3, "{same}");

    let alone = check(&text("\"127.0.0.1:81\"", near.path()));
    assert_eq!(restart(&alone).len(), 1, "also without any port of before: {alone}");
    let low = check(&text(&format!("{two}, \"127.0.0.1:81\", \"[::1]:8081\""), near.path()));
    assert!(
        matches!(&restart(&low)[..], [only] if only.contains("port 81 of 127.0.0.1: setu (pid ") && only.contains("restart setu")),
        "{low}"
    );
    let wildcard = check(&text("\"0.0.0.0:5222\", \"127.0.0.1:443\"", near.path()));
    assert!(
        matches!(&restart(&wildcard)[..], [only] if only.contains("port 5222 is that of setu (pid ")
            && only.contains("but not of 0.0.0.0: a change between one address and all of them takes a restart")),
        "{wildcard}"
    );
    assert!(!wildcard.contains("port 5222 of 0.0.0.0 is served"), "{wildcard}");

    let elsewhere = check(&text(two, beyond.path()));
    let notes = restart(&elsewhere);
    assert_eq!(notes.len(), 2, "{elsewhere}");
    for (note, name) in notes.iter().zip(["tls.crt", "tls.key"]) {
        assert!(note.contains(name) && note.contains("lies outside of what setu (pid "), "{note}");
    }
    readable(&near.path().join("tls.key"), 0o600);
    let refused = check(&text(two, near.path()));
    let is_of_key = |note: &str| {
        note.contains("tls.key: setu's user ") && note.contains(" cannot read it: a reload will fail")
    };
    assert!(matches!(&restart(&refused)[..], [only] if is_of_key(only)), "{refused}");
    readable(near.path(), 0o700);
    assert_eq!(restart(&check(&text(two, near.path()))).len(), 2, "a folder keeps users out as well");
    readable(near.path(), 0o755);

    // The next start makes other rules, and binds what it likes.
    drop(setu);
    let next = NamedTempFile::new().unwrap();
    readable(next.path(), 0o644);
    std::fs::write(next.path(), text(&format!("{two}, \"127.0.0.1:81\""), beyond.path())).unwrap();
    let mut command = network.command(&Setu::binary().display().to_string());
    let output = command.args(["check", "--config"]).arg(next.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && restart(&said).is_empty(), "{said}");
}

fn readable(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn tempdir_for_all(folder: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(folder).unwrap();
    readable(folder.path(), 0o755);
    folder
}

#[test]
fn check_reads_the_certificate_as_run_does() {
    let certificate = setu_tests::tls::Certificate::new(&["one.test"]);
    let other = setu_tests::tls::Certificate::new(&["two.test"]);
    let check = |chain: &std::path::Path, key: &std::path::Path| {
        let mut file = NamedTempFile::new().unwrap();
        let more = format!("[tls]\ncertificate = {chain:?}\nkey = {key:?}\n");
        let setup = config(Path::Userspace, "127.0.0.1:1", &more).replace("\"chat\"\n", "\"chat-tls\"\n");
        file.write_all(setup.as_bytes()).unwrap();
        let output =
            Command::new(Setu::binary()).args(["check", "--config"]).arg(file.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (fine, text) = check(&certificate.chain(), &certificate.key());
    assert!(fine && text.contains("the TLS certificate can be served"), "{text}");
    let (fine, text) = check(&certificate.chain(), &other.key());
    assert!(!fine && text.contains("the key does not belong to"), "{text}");
    let (fine, text) = check(std::path::Path::new("/nowhere/chain.pem"), &other.key());
    assert!(!fine && text.contains("/nowhere/chain.pem: cannot be read"), "{text}");
}

/// Clients would be told that the server does not answer.
#[test]
fn a_source_that_this_machine_does_not_have_is_told() {
    let told = "source 203.0.113.7 of upstream \"test\" is no address of this machine";
    for (source, is_told) in [("203.0.113.7", true), ("127.0.0.2", false)] {
        let setup = config(Path::Userspace, "127.0.0.1:1", "");
        let setup =
            setup.replace("[upstream.test]\n", &format!("[upstream.test]\nsources = [\"{source}\"]\n"));
        assert!(setup.contains(source), "{setup}");
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(setup.as_bytes()).unwrap();
        let output =
            Command::new(Setu::binary()).args(["check", "--config"]).arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.contains(&format!("note  {told}")), is_told, "{text}");
        assert!(output.status.success(), "{text}");
        let setu = Setu::start(&setup);
        assert_eq!(setu.count(told), usize::from(is_told), "{}", setu.log());
    }
}

/// The line that says which path setu has is the last word: it is not fine where a start would fail.
#[test]
fn the_wire_is_promised_only_where_it_can_be_had() {
    if !crate::may_use_kernel() {
        return;
    }
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(config(Path::Wire, "127.0.0.1:1", "").as_bytes()).unwrap();
    for (namespace, hindrance) in [(Netns::alone(), Some("it has no device")), (Netns::new(), None)] {
        let mut check = namespace.command(&Setu::binary().display().to_string());
        let output = check.args(["check", "--config"]).arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), hindrance.is_none(), "{text}");
        assert_eq!(text.matches("ok    self-test: IPv").count(), 8, "it is tried in any case: {text}");
        assert_eq!(text.contains("ok    path: wire, "), hindrance.is_none(), "{text}");
        let refusal = hindrance.map(|reason| {
            format!("no    path: relay.path = \"wire\" is not available: {reason}; set it to \"auto\"")
        });
        assert!(refusal.is_none_or(|refusal| text.contains(&refusal)), "{text}");
    }
}
