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
            let user = user(&config).unwrap();
            give_state(&config, user.as_ref());
            restrict(&config, None, user.as_ref()).unwrap();
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
fn a_folder_of_others_is_not_given_away() {
    if !is_root() {
        println!("skipped: only root gives files away");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("another"), "").unwrap();
    let mut config = Config::load(None).unwrap();
    config.tls.state_dir = folder.path().into();
    config.user = Some("54321".into());
    let error = user(&config).unwrap_err().to_string();
    let path = folder.path().display();
    assert_eq!(
        error,
        format!(
            "tls.state_dir: {path} has \"another\" in it, which is not setu's, and all of it would be setu's user's; name a \
             folder for setu alone, such as {path}/setu"
        )
    );
    assert_eq!(state_dir::owner(folder.path()), Some(0));
}
