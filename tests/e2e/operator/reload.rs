//! `setu reload`, and what is shown of a reload: whoever automates it learns how it ended.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path as File,
    process::Command,
};

use setu_tests::{
    Path, Setu,
    admin::get,
    config,
    peers::{PATIENCE, Upstream, exchange},
};

const ADMIN: &str = "[admin]\nbind = []";

/// The exit code, and what was said.
fn reload(file: &File, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(Setu::binary());
    let output = command.args(["reload", "--config"]).arg(file).args(more).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn metric(at: SocketAddr, name: &str) -> f64 {
    let text = get(at, "/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse().unwrap()
}

fn eventually(is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "it does not come");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn successful(at: SocketAddr) -> f64 {
    metric(at, "setu_config_last_reload_successful")
}

/// What the terminal and the page say.
fn shown(at: SocketAddr) -> [String; 2] {
    let terminal =
        Command::new(Setu::binary()).args(["status", "--once", "--admin", &at.to_string()]).output().unwrap();
    [String::from_utf8_lossy(&terminal.stdout).into_owned(), get(at, "/").body]
}

#[test]
fn a_reload_tells_how_it_ended() {
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "")
        .replace(ADMIN, &format!("[admin]\nbind = [\"{}\"]", free_address()));
    let setu = Setu::start(&text);
    let (admin, file) = (setu.admin(), setu.configuration());
    let taken = || metric(admin, "setu_config_last_reload_success_timestamp_seconds");
    let begun = taken();
    assert!(successful(admin) == 1.0 && begun > 1.7e9, "{begun}: the start counts");
    for text in shown(admin) {
        assert!(!text.contains("was refused"), "{text}");
    }

    // What is wrong in itself is told at once, and where alerts look.
    let pid = setu.pid().to_string();
    for (reloads, more) in [&["--pid", &pid][..], &[]].into_iter().enumerate() {
        fs::write(file, text.replace("bind", "bnid")).unwrap();
        let (code, said) = reload(file, more);
        assert!(code == Some(64) && said.contains("there is no such key"), "{said}");
        eventually(|| successful(admin) == 0.0);
        // Its log is written a little later.
        eventually(|| setu.count("not reloaded") > reloads && setu.count("serving: reloaded") == reloads);
        for text in shown(admin) {
            assert!(text.contains("was refused") && text.contains("there is no such key"), "{text}");
        }
        fs::write(file, &text).unwrap();
        assert_eq!(reload(file, more).0, Some(0));
        assert_eq!(successful(admin), 1.0);
    }
    // Who runs with another file would take that.
    let other = tempfile::NamedTempFile::new().unwrap();
    fs::write(other.path(), "nonsense").unwrap();
    let before = metric(admin, "setu_config_last_reload_success_timestamp_seconds");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(reload(other.path(), &["--pid", &pid]).0, Some(64));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!((successful(admin), taken()), (1.0, before));
    let begun = before;

    // What only the one that serves finds out is told by both.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    fs::write(file, text.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1)).unwrap();
    let (code, said) = reload(file, &[]);
    assert_eq!(code, Some(1), "{said}");
    let why = format!("port {port} of 127.0.0.1 is in use");
    assert!(said.contains("not reloaded, nothing has changed") && said.contains(&why), "{said}");
    assert_eq!((successful(admin), taken()), (0.0, begun));
    for text in shown(admin) {
        assert!(text.contains("was refused, and the configuration of before serves") && text.contains(&why));
    }
    assert_eq!(get(admin, "/readyz").status, 200, "clients are served");
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"as before");

    // And the next one makes it good.
    drop(other);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let (code, said) = reload(file, &["--pid", &setu.pid().to_string()]);
    assert!(code == Some(0) && said.starts_with("reloaded, the configuration is "), "{code:?} {said}");
    assert!(successful(admin) == 1.0 && taken() > begun);
    for text in shown(admin) {
        assert!(!text.contains("was refused"), "{text}");
    }

    // A signal alone is shown as well.
    let mut setu = setu;
    setu.reload("nonsense");
    assert_eq!(successful(admin), 0.0);
}

/// As in the packaged unit, where the process that serves cannot be looked at: it has the same user, and allows nobody.
#[test]
fn without_an_admin_endpoint_the_configuration_is_checked_and_the_process_told() {
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "");
    let mut setu = Setu::start(&text);
    let pid = setu.pid().to_string();
    let file = setu.configuration().to_owned();
    let (code, said) = reload(&file, &[]);
    assert!(code == Some(0) && said.contains("its log says whether"), "{code:?} {said}");
    setu.wait_count("reloaded", 1);
    let (code, said) = reload(&file, &["--pid", &pid]);
    assert!(code == Some(0) && said.contains("its log says whether"), "{code:?} {said}");
    setu.wait_count("reloaded", 2);
    fs::write(&file, "nonsense").unwrap();
    let (code, said) = reload(&file, &["--pid", &pid]);
    assert_eq!(code, Some(64), "{said}");
    setu.wait_count("not reloaded", 1);
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), &text).unwrap();
    let (code, said) = reload(elsewhere.path(), &[]);
    assert!(code == Some(1) && said.contains("name the process by --pid"), "{code:?} {said}");
}

/// It answers where it was started to, and that is where the outcome is.
#[test]
fn a_reload_that_changes_the_admin_endpoint_is_told_as_well() {
    let upstream = Upstream::new();
    let text = |admin: SocketAddr, chat: SocketAddr| {
        config(Path::Userspace, &upstream.address(), "")
            .replace(ADMIN, &format!("[admin]\nbind = [\"{admin}\"]"))
            .replacen("127.0.0.1:0", &chat.to_string(), 1)
    };
    let chat = free_address();
    let setu = Setu::start(&text(free_address(), chat));
    let (file, pid) = (setu.configuration(), setu.pid().to_string());
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    for more in [&["--pid", &pid][..], &[]] {
        fs::write(file, text(free_address(), other.local_addr().unwrap())).unwrap();
        let (code, said) = reload(file, more);
        assert!(code == Some(1) && said.contains("not reloaded, nothing has changed"), "{code:?} {said}");
        fs::write(file, text(free_address(), chat)).unwrap();
        let (code, said) = reload(file, more);
        assert!(code == Some(0) && said.starts_with("reloaded, "), "{code:?} {said}");
    }
}

/// Whoever has the port while setu is down may name any process; SIGHUP would end it.
#[test]
fn who_is_no_setu_is_not_told() {
    let upstream = Upstream::new();
    let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = |admin: SocketAddr| {
        config(Path::Userspace, &upstream.address(), "")
            .replace(ADMIN, &format!("[admin]\nbind = [\"{admin}\"]"))
    };
    let setu = Setu::start(&text(free_address()));
    let status = get(setu.admin(), "/status.json").body;
    let own = format!("\"id\":{}", setu.pid());
    assert!(status.contains(&own), "{status}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text(impostor.local_addr().unwrap())).unwrap();
    let mut victim = Command::new("sleep").arg("600").spawn().unwrap();
    let body = status.replace(&own, &format!("\"id\":{}", victim.id()));
    let answer =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for mut client in impostor.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(answer.as_bytes());
        }
    });
    let id = victim.id().to_string();
    for more in [&[][..], &["--pid", &id]] {
        let (code, said) = reload(file.path(), more);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!("process {id} is sleep, and no setu that runs: it was not told")),
            "{said}"
        );
        assert!(victim.try_wait().unwrap().is_none(), "it was told");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
}

/// The unit has this command, not a signal.
#[test]
fn the_units_reload_is_one_that_fails() {
    let unit = include_str!("../../../dist/systemd/setu.service");
    let line = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let file = line("ExecStart=").rsplit_once("--config ").unwrap().1;
    assert_eq!(line("ExecReload="), format!("/usr/bin/setu reload --pid $MAINPID --config {file}"));
}
