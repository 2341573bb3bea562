//! Starting, refusing to start, and what operators see then.

use std::{
    io::Write as _,
    net::TcpListener,
    process::{Command, Output},
};

use setu_tests::{Path, Setu, config, machine::is_root, nobody::Nobody};

fn run(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(Setu::binary()).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

fn with_file(text: &str, check: impl FnOnce(&str)) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    check(file.path().to_str().unwrap());
}

#[test]
fn usage_errors_exit_with_2() {
    let (output, text) = run(&["run", "--path", "tunnel"]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("sockmap"), "{text}");
}

#[test]
fn bad_configuration_exits_with_64_before_anything_is_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = format!(
        "[[listener]]\nname = \"a\"\nbind = [\"{address}\"]\nmode = \"chat\"\nupstream = \"chat\"\n[relay]\npaht = 1"
    );
    with_file(&text, |file| {
        let (output, text) = run(&["run", "--config", file]);
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(
            text.contains(&format!("{file}:7: relay.paht: there is no such key; write `path`")),
            "{text}"
        );
    });
    let (output, text) = run(&["run", "--config", "/nowhere/setu.toml"]);
    assert_eq!(output.status.code(), Some(64), "{text}");
}

#[test]
fn a_port_in_use_names_its_holder() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text =
        config(Path::Userspace, "127.0.0.1:1", "").replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    with_file(&text, |file| {
        let (output, text) = run(&["run", "--config", file]);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("port {port} of 127.0.0.1 is in use")), "{text}");
        assert!(text.contains(&format!("(pid {})", std::process::id())), "{text}");
    });
}

#[test]
fn the_holder_is_that_of_the_address_not_of_the_port() {
    let other_address = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other_address.local_addr().unwrap().port();
    let text =
        config(Path::Userspace, "127.0.0.1:1", "").replace("127.0.0.1:0", &format!("127.0.0.2:{port}"));
    let holder = Setu::start(&text);
    with_file(&text, |file| {
        let (output, text) = run(&["run", "--config", file]);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let expected = format!("port {port} of 127.0.0.2 is in use by setu (pid {})", holder.pid());
        assert!(text.contains(&expected), "{text}");
    });
}

/// Runs setu as nobody; `None` when this is not root, which is said.
fn unprivileged(arguments: &[&str]) -> Option<(Output, String)> {
    if !is_root() {
        println!("skipped: dropping privileges needs root");
        return None;
    }
    let output = Nobody::new().setu().args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Some((output, text))
}

#[test]
fn low_ports_without_the_right_name_three_ways_out() {
    let Some((output, text)) = unprivileged(&["run"]) else { return };
    assert_eq!(output.status.code(), Some(1), "{text}");
    for way in ["port 443, 80, 587", "setcap", "ip_unprivileged_port_start", "--port-offset"] {
        assert!(text.contains(way), "{way} is missing: {text}");
    }
}

#[test]
fn a_forced_path_that_is_not_available_fails() {
    let Some((output, text)) = unprivileged(&["run", "--path", "sockmap", "--port-offset", "20000"]) else {
        return;
    };
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("relay.path = \"sockmap\" is not available") && text.contains("CAP_BPF"), "{text}");
}
