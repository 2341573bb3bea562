//! Sockets that the service manager passes, of which not all are as setu makes its own.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::Path as File,
    process::Command,
};

use setu_tests::{
    Path, Setu, config,
    machine::{is_root, quiet_port},
    peers::{Upstream, exchange},
};
use socket2::{Domain, Socket, Type};

crate::on_both_paths! {
    a_socket_of_both_families_serves_both_addresses
}

/// A socket on all addresses of IPv6, and of IPv4 unless `only_v6`, as `ListenStream=PORT` makes it; and its port.
fn wildcard(only_v6: bool) -> (TcpListener, u16) {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(only_v6).unwrap();
    let port = quiet_port();
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.listen(128).unwrap();
    (socket.into(), port)
}

/// A command that takes setu's arguments and starts it with the socket, as systemd does for setu.socket.
fn activated(socket: &TcpListener) -> Command {
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=setu.socket LISTEN_PID=$$; exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(Setu::binary()).stdin(OwnedFd::from(socket.try_clone().unwrap()));
    command
}

fn addresses(port: u16) -> [String; 2] {
    [format!("0.0.0.0:{port}"), format!("[::]:{port}")]
}

fn text(path: Path, upstream: &Upstream, bind: &[String], more: &str) -> String {
    config(path, &upstream.address(), more).replace("[\"127.0.0.1:0\"]", &format!("{bind:?}"))
}

fn serves(upstream: &Upstream, port: u16, families: &str) {
    for ip in families.split(' ') {
        let (client, server) = upstream.connect(format!("{ip}:{port}").parse().unwrap());
        exchange(&client, &server, b"there");
        exchange(&server, &client, b"and back");
    }
}

const BOTH: &str = "127.0.0.1 [::1]";

fn a_socket_of_both_families_serves_both_addresses(path: Path) {
    let upstream = Upstream::new();
    let state = tempfile::tempdir().unwrap();
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let more = format!("[tls]\nstate_dir = {:?}\n", state.path().join("kept"));
    for only_v6 in [false, true] {
        let (socket, port) = wildcard(only_v6);
        let bind = addresses(port);
        let both = text(path, &upstream, &bind, &more);
        let mut setu = Setu::start_by(activated(&socket), &both, &[]);
        serves(&upstream, port, BOTH);
        setu.reload(&both);
        serves(&upstream, port, BOTH);
        assert_eq!(setu.count(" WARN ") + setu.count("not reloaded"), 0, "{}", setu.log());

        // One address alone can go only where each has its own socket.
        setu.reload(&text(path, &upstream, &bind[1..], &more));
        assert_eq!(
            setu.count("share a socket that was passed to setu"),
            usize::from(!only_v6),
            "{}",
            setu.tail()
        );
        serves(&upstream, port, if only_v6 { "[::1]" } else { BOTH });
        setu.reload(&both);
        serves(&upstream, port, BOTH);
        let successor = Setu::start_by(Command::new(Setu::binary()), &both, &["--replace"]);
        assert!(setu.ended().0.success());
        serves(&upstream, port, BOTH);
        assert!(successor.stop().0.success());
    }
}

#[test]
fn a_socket_of_more_families_than_are_bound_is_told_by_its_unit() {
    let upstream = Upstream::new();
    for (which, family, ip) in [(0, "IPv6", "127.0.0.1"), (1, "IPv4", "[::1]")] {
        for only_v6 in [false, true] {
            let (socket, port) = wildcard(only_v6);
            let bind = &addresses(port)[which..=which];
            let setu = Setu::start_by(activated(&socket), &text(Path::Userspace, &upstream, bind, ""), &[]);
            serves(&upstream, port, ip);
            let told = setu.lines(|line| line.contains(&format!("takes {family} as well")));
            assert_eq!(told.len(), usize::from(!only_v6), "{}", setu.log());
            assert!(
                told.iter().all(|line| line.contains("in setu.socket set BindIPv6Only=ipv6-only")),
                "{told:?}"
            );
        }
    }

    // Of two listeners it cannot be.
    let (socket, port) = wildcard(false);
    let [v4, v6] = addresses(port);
    let other =
        format!("[[listener]]\nname = \"other\"\nbind = [\"{v6}\"]\nmode = \"chat\"\nupstream = \"test\"\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    fs::write(&file, text(Path::Userspace, &upstream, &[v4], &other)).unwrap();
    let output = activated(&socket).args(["run", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("of the listener \"chat\"") && said.contains("in setu.socket set BindIPv6Only="),
        "{said}"
    );
}

/// The first process of a small machine is called systemd here, and holds the port.
#[test]
fn check_takes_what_systemd_holds_for_what_it_may_be() {
    if !is_root() {
        println!("skipped: processes of its own take root");
        return;
    }
    let upstream = Upstream::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("setu.toml");
    fs::write(&file, text(Path::Userspace, &upstream, &[address.to_string()], "")).unwrap();
    let check = |first: &str, before: &str| in_a_machine(&socket, folder.path(), first, before);
    let (code, said) = check("systemd", "");
    let held =
        format!("note  port {} of 127.0.0.1 is held by systemd (pid 1), for a socket unit", address.port());
    assert!(code == Some(0) && said.contains(&held), "{code:?} {said}");
    // It has passed it on, to the setu of this configuration.
    let running =
        "exec 3<&0; LISTEN_FDS=1 sh -c 'LISTEN_PID=$$ exec \"$0\" run --config \"$1\"' $0 $1 2>log &
                   for try in $(seq 150); do grep -q 'ready path' log && break; sleep 0.1; done; exec 3<&-;";
    let (code, said) = check("systemd", running);
    let passed = format!("ok    port {} of 127.0.0.1 is passed by systemd to setu", address.port());
    assert!(code == Some(0) && said.contains(&passed), "{code:?} {said}");
    // Another's is in the way.
    let (code, said) = check("inetd", "");
    assert!(code == Some(1) && said.contains("is in use by inetd (pid 1); stop that"), "{code:?} {said}");
}

/// What `setu check` says where the first process has this name, and the socket; `before` runs first, in it.
fn in_a_machine(socket: &TcpListener, folder: &File, first: &str, before: &str) -> (Option<i32>, String) {
    let shell = folder.join(first);
    fs::copy("/bin/sh", &shell).unwrap();
    let script =
        format!("{before} \"$0\" check --config \"$1\" </dev/null; code=$?; kill $! 2>/dev/null; exit $code");
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(shell)
        .args(["-c", &script])
        .arg(Setu::binary())
        .arg(folder.join("setu.toml"))
        .current_dir(folder)
        .stdin(OwnedFd::from(socket.try_clone().unwrap()))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}
