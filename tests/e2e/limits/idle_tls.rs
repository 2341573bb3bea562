//! What an idle client inside TLS costs, setu's and HAProxy's figure.

use std::{fs, net::SocketAddr};

use setu_tests::{
    Path, Setu, front_door, listener,
    machine::raise_file_limit,
    peers::{Upstream, connect},
    servers::Server,
    tls::{Certificate, Tls, client},
    upstream,
};

const CONNECTIONS: usize = 4_000;
/// Connections before the first look: buffers and threads that come with them are not theirs.
const BEFORE: usize = 100;

/// Opens connections of which each has moved a message both ways, and returns by how much the process grew, KiB for each.
fn growth(pid: u32, proxy: SocketAddr, upstream: &Upstream) -> f64 {
    let config = client(&rustls::version::TLS13);
    let mut open = Vec::new();
    let mut before = 0;
    for number in 0..BEFORE + CONNECTIONS {
        if number == BEFORE {
            before = resident(pid);
        }
        let mut chat = Tls::connect(&config, "proxy.example.org", connect(proxy)).unwrap();
        chat.send(b"WA\x06\x03 hello").unwrap();
        let server = upstream.accept();
        let mut buffer = [0; 64];
        assert_eq!(std::io::Read::read(&mut &server, &mut buffer).unwrap(), 10);
        std::io::Write::write_all(&mut &server, b"answer").unwrap();
        assert_eq!(chat.receive(&mut buffer).unwrap(), 6);
        open.push((chat, server));
    }
    let grown = resident(pid).saturating_sub(before) as f64 / CONNECTIONS as f64;
    drop(open);
    grown
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn four_thousand_idle_clients_inside_tls_cost_little() {
    raise_file_limit();
    let upstream_peer = Upstream::new();
    let state = tempfile::tempdir().unwrap();
    let more = [
        listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"chat\""),
        upstream("chat", upstream_peer.address(), "off"),
    ];
    let setu = Setu::start(&front_door(Path::Userspace, state.path(), &more.concat()));
    let ours = growth(setu.pid(), setu.address("chat-tls"), &upstream_peer);
    drop(setu);

    let certificate = Certificate::new(&["proxy.example.org"]);
    let server = upstream_peer.address();
    let haproxy = Server::haproxy(|[bind]: [String; 1]| {
        format!(
            "global\n  tune.bufsize 4096\n  maxconn 9000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client \
             200s\n  timeout server 200s\nlisten tls\n  bind {bind} ssl crt {}\n  server chat {server}\n",
            certificate.both().display()
        )
    });
    let theirs = growth(haproxy.pid(), haproxy.address(0), &upstream_peer);
    println!(
        "an idle client inside TLS: {ours:.1} KiB resident; HAProxy's, as the reference: {theirs:.1} KiB"
    );
    assert!(ours <= 20.0, "{ours:.1} KiB");
}
