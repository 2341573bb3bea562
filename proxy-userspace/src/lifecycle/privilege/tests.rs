//! Forbidden things, tried from inside. Each test restricts a thread of its own, and with it only that.

use std::{
    fs::File,
    io,
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
};

use rustix::process::geteuid;
use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::sys;

/// Runs `check` in a thread that has dropped everything, with a state directory.
fn restricted<T: Send>(check: impl FnOnce(&Path) -> T + Send) -> T {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("state");
    let mut config = Config::load(None).unwrap();
    config.tls.state_dir = state_dir.clone();
    // So that nobody can get to its own directory.
    Command::new("chmod").arg("755").arg(folder.path()).status().unwrap();
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            restrict(&config, None).unwrap();
            check(&state_dir)
        });
        inside.join().unwrap()
    })
}

fn status(key: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

fn is_root() -> bool {
    geteuid().is_root()
}

#[test]
fn the_kernel_says_so() {
    let lines = restricted(|_| ["CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp"].map(status));
    assert_eq!(
        lines,
        ["0000000000000000", "0000000000000000", "0000000000000000", "0000000000000000", "1", "2"]
    );
    if is_root() {
        let [bound, user, groups] = restricted(|_| ["CapBnd", "Uid", "Groups"].map(status));
        assert_eq!((bound.as_str(), groups.as_str()), ("0000000000000000", ""));
        assert!(!user.split('\t').any(|id| id == "0"), "{user}");
    }
}

#[test]
fn forbidden_things_fail() {
    let own = std::env::current_exe().unwrap();
    let refused: Vec<(&str, io::Error)> = restricted(move |_| {
        let mut refused = Vec::new();
        let mut expect = |what, result: io::Result<()>| match result {
            Ok(()) => panic!("{what} is allowed"),
            Err(error) => refused.push((what, error)),
        };
        expect("another program", Command::new("/bin/true").spawn().map(drop));
        expect("a packet socket", Socket::new(Domain::PACKET, Type::RAW, None).map(drop));
        expect("a raw socket", Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).map(drop));
        expect("loading a program", sys::testing::bpf(5));
        expect("making a map", sys::testing::bpf(0));
        expect("/etc/shadow", File::open("/etc/shadow").map(drop));
        expect("other programs' files", File::open(own).map(drop));
        expect("a file elsewhere", File::create("/var/tmp/setu-must-not").map(drop));
        expect("a device", File::open("/dev/zero").map(drop));
        expect("executable memory", sys::testing::executable_memory());
        refused
    });
    assert_eq!(refused.len(), 10);
    for (what, error) in refused {
        let known = [libc::ENOSYS, libc::EACCES, libc::EPERM];
        assert!(error.raw_os_error().is_some_and(|code| known.contains(&code)), "{what}: {error}");
    }
}

#[test]
fn what_setu_does_still_works() {
    restricted(|state_dir| {
        fs::write(state_dir.join("new"), "text").unwrap();
        fs::rename(state_dir.join("new"), state_dir.join("certificate.pem")).unwrap();
        assert_eq!(fs::read_to_string(state_dir.join("certificate.pem")).unwrap(), "text");
        assert!(fs::read_to_string("/etc/hosts").unwrap().contains("localhost"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || TcpStream::connect(address).unwrap()).join().unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
        assert!(if_addrs::get_if_addrs().unwrap().iter().any(if_addrs::Interface::is_loopback));
        // A command on a map that is not there: the descriptor is what is wrong.
        assert_eq!(sys::testing::bpf(1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn files_that_root_wrote_are_given_away() {
    if !is_root() {
        println!("skipped: only root can give files away");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    let state_dir = folder.path().join("state");
    fs::create_dir(&state_dir).unwrap();
    fs::write(&outside, "root's").unwrap();
    fs::write(state_dir.join("certificate.pem"), "setu's").unwrap();
    fs::hard_link(&outside, state_dir.join("hard")).unwrap();
    std::os::unix::fs::symlink(&outside, state_dir.join("soft")).unwrap();
    let user = User::wanted(Some("65534")).unwrap().unwrap();
    user.own(&state_dir);
    let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert_eq!(
        [owner(&state_dir), owner(&state_dir.join("certificate.pem")), owner(&outside)],
        [65_534, 65_534, 0]
    );
}

#[test]
fn an_unknown_user_is_told() {
    let error = User::wanted(Some("no-such-user")).unwrap_err().to_string();
    assert!(error.contains("useradd --system no-such-user"), "{error}");
}
