//! What a running setu could still do. What is refused from inside is in the unit tests of `privilege`.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _};

use setu_tests::{
    Path, Setu, config,
    machine::is_root,
    nobody::Nobody,
    peers::{Manner, Upstream, exchange, finish, receive, send},
};

crate::on_both_paths! {
    no_thread_keeps_a_privilege
}

/// The values of a line of /proc/PID/task/*/status, without repetition.
fn of_all_threads(setu: &Setu, key: &str) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", setu.pid())).unwrap();
    let texts = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    texts
        .map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn only<const N: usize>(values: [&str; N]) -> BTreeSet<String> {
    values.map(String::from).into()
}

const NONE: &str = "0000000000000000";

fn is_restricted(setu: &Setu) {
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(of_all_threads(setu, key), only([NONE]), "{key}");
    }
    assert_eq!(of_all_threads(setu, "NoNewPrivs"), only(["1"]));
    assert_eq!(of_all_threads(setu, "Seccomp"), only(["2"]));
    assert_eq!(setu.count("privileges dropped user="), 1, "{}", setu.tail());
    assert_eq!(setu.count("landlock=true seccomp=true"), 1, "{}", setu.tail());
}

fn no_thread_keeps_a_privilege(path: Path) {
    let upstream = Upstream::new();
    let setu = Setu::start(&config(path, &upstream.address(), ""));
    is_restricted(&setu);
    if is_root() {
        assert_eq!(of_all_threads(&setu, "CapBnd"), only([NONE]));
        assert_eq!(of_all_threads(&setu, "Groups"), only([""]));
        let users = of_all_threads(&setu, "Uid");
        assert!(users.len() == 1 && !users.iter().any(|ids| ids.split(' ').any(|id| id == "0")), "{users:?}");
    }
    // It still works, for bulk that leaves the kernel and comes back as well.
    let (client, server) = upstream.connect(setu.address("chat"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(&server, 1, 20_000_000, Manner::FAST);
            finish(&server);
        });
        assert_eq!(receive(&client, 1, Manner::UNEVEN), 20_000_000);
    });
    is_restricted(&setu);
}

#[test]
fn a_user_can_be_named() {
    if !is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "")
        .replace("[security]", "[security]\nuser = \"54321\"");
    let setu = Setu::start(&text);
    assert_eq!(of_all_threads(&setu, "Uid"), only(["54321 54321 54321 54321"]));
    assert_eq!(of_all_threads(&setu, "Gid"), only(["54321 54321 54321 54321"]));
}

#[test]
fn the_state_directory_goes_with_the_user() {
    if !is_root() {
        println!("skipped: only root becomes another user");
        return;
    }
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let more = format!("[tls]\nstate_dir = \"{}\"\n", state.display());
    let text = config(Path::Userspace, &upstream.address(), &more)
        .replace("mode = \"chat\"", "mode = \"chat-tls\"")
        .replace("[security]", "[security]\nuser = \"54321\"");
    // Twice: what the first wrote as its user, the second keeps.
    let mut certificates = BTreeSet::new();
    for _ in 0..2 {
        drop(Setu::start(&text));
        let file = state.join("certificate.pem");
        let owners = [&state, &file].map(|path| fs::metadata(path).unwrap().uid());
        assert_eq!(owners, [54321; 2]);
        certificates.insert(fs::read(file).unwrap());
    }
    assert_eq!(certificates.len(), 1);
}

#[test]
fn without_any_privilege_it_serves_in_userspace() {
    if !is_root() {
        println!("skipped: every other test runs without privileges already");
        return;
    }
    let nobody = Nobody::new();
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "").replace("\"userspace\"", "\"auto\"");
    let setu = Setu::start_by(nobody.setu(), &text, &[]);
    assert_eq!(setu.count("ready path=userspace"), 1, "{}", setu.tail());
    is_restricted(&setu);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"there");
    exchange(&server, &client, b"and back");
}
