//! When setu dials: not before the client has spoken, unless the server speaks first; and what is left at a server by
//! clients that leave.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustls::version::TLS13;
use setu_tests::{
    Path, Setu, front_door, listener,
    network::{Network, PROXY, SERVERS, TO_SERVERS},
    peers::{Upstream, connect, end_of, exchange, finish, reset},
    tls::{Tls, client},
    upstream,
};
use socket2::SockRef;

crate::on_both_paths! {
    who_is_silent_costs_the_upstream_nothing
    the_first_byte_may_be_late
    a_server_may_speak_first
    who_resets_while_an_upstream_is_dialed_is_not_waited_for
    who_leaves_without_an_answer_leaves_no_port_behind
    who_finishes_waits_for_the_answer
}

const TOLD: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n";

/// A setu with a listener in the clear, one behind a load balancer, one inside TLS, and `more` for each.
fn start(path: Path, upstream_peer: &Upstream, more: &str, rest: &str) -> (Setu, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let all = [
        listener("chat", &format!("mode = \"chat\"\nupstream = \"test\"\n{more}")),
        listener(
            "told",
            &format!("mode = \"chat\"\nupstream = \"test\"\naccept_proxy_protocol = true\n{more}"),
        ),
        listener("tls", &format!("mode = \"chat-tls\"\nupstream = \"test\"\n{more}")),
        upstream("test", upstream_peer.address(), "v1"),
        rest.to_owned(),
    ];
    (Setu::start(&front_door(path, state.path(), &all.concat())), state)
}

/// The next connection, and the PROXY header that came with it.
fn header(upstream: &Upstream) -> (TcpStream, String) {
    let server = upstream.accept();
    let (mut header, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        (&server).read_exact(&mut byte).unwrap();
        header.push(byte[0]);
    }
    (server, String::from_utf8(header).unwrap())
}

/// Whether nobody has come to the upstream, and nobody comes for a moment.
fn is_left_alone(upstream: &Upstream) -> bool {
    upstream.comes_within(Duration::from_millis(300)).is_none()
}

fn who_is_silent_costs_the_upstream_nothing(path: Path) {
    const EACH: usize = 20;
    let upstream = Upstream::new();
    let timeouts = "[timeouts]\ninspect = \"1s\"\nhandshake = \"4s\"\n";
    let (mut setu, _state) = start(path, &upstream, "", timeouts);
    let descriptors = setu.descriptors_at_rest();
    // What is on its way or comes later than the deadline is no one's.
    let quiet: Vec<_> = (0..EACH).map(|_| connect(setu.address("chat"))).collect();
    let told: Vec<_> = (0..EACH)
        .map(|_| {
            let mut client = connect(setu.address("told"));
            client.write_all(TOLD).unwrap();
            client
        })
        .collect();
    let config = client(&TLS13);
    let inside: Vec<_> = (0..EACH)
        .map(|_| Tls::connect(&config, "proxy.example.org", connect(setu.address("tls"))).unwrap())
        .collect();
    assert!(is_left_alone(&upstream), "{}", setu.tail());
    for listener in ["chat", "told", "tls"] {
        setu.wait_count(&format!("closed reason=inspect_timeout path=none listener={listener}"), EACH);
    }
    for client in quiet.iter().chain(&told) {
        assert_eq!(end_of(client).unwrap(), 0);
    }
    drop((quiet, told, inside));
    // Those that do not wait, scanners and health checks.
    for listener in ["chat", "tls"] {
        drop(connect(setu.address(listener)));
        reset(connect(setu.address(listener)));
    }
    let mut local = connect(setu.address("told"));
    local.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    drop(local);
    setu.wait_closed("client_left", 3);
    assert!(is_left_alone(&upstream), "{}", setu.tail());
    let deadline = Instant::now() + Duration::from_secs(10);
    while setu.descriptors() > descriptors {
        assert!(Instant::now() < deadline, "{} descriptors, {descriptors} before", setu.descriptors());
        thread::sleep(Duration::from_millis(20));
    }
}

fn the_first_byte_may_be_late(path: Path) {
    let upstream = Upstream::new();
    let (setu, _state) = start(path, &upstream, "", "");
    for told in [false, true] {
        let mut client = connect(setu.address(if told { "told" } else { "chat" }));
        if told {
            client.write_all(TOLD).unwrap();
        }
        assert!(is_left_alone(&upstream));
        client.write_all(b"!").unwrap();
        let (mut server, header) = header(&upstream);
        assert_eq!(header.as_bytes() == TOLD, told, "{header}");
        server.read_exact(&mut [0]).unwrap();
        exchange(&server, &client, b"welcome");
        exchange(&client, &server, b"thank you");
    }
    let mut client =
        Tls::connect(&client(&TLS13), "proxy.example.org", connect(setu.address("tls"))).unwrap();
    assert!(is_left_alone(&upstream));
    client.send(b"!").unwrap();
    let (mut server, _) = header(&upstream);
    server.read_exact(&mut [0]).unwrap();
}

fn a_server_may_speak_first(path: Path) {
    let upstream = Upstream::new();
    let (setu, _state) = start(path, &upstream, "dial = \"accept\"", "[timeouts]\ninspect = \"1s\"\n");
    let client = connect(setu.address("chat"));
    let (server, _) = header(&upstream);
    thread::sleep(Duration::from_millis(1_500));
    exchange(&server, &client, b"welcome");
    exchange(&client, &server, b"thank you");
    // Who has nothing to say at all is still greeted.
    let client = connect(setu.address("chat"));
    finish(&client);
    let (server, _) = header(&upstream);
    assert_eq!(end_of(&server).unwrap(), 0);
    exchange(&server, &client, b"welcome");
    let mut inside =
        Tls::connect(&self::client(&TLS13), "proxy.example.org", connect(setu.address("tls"))).unwrap();
    let (mut server, _) = header(&upstream);
    server.write_all(b"welcome").unwrap();
    assert_eq!(inside.receive(&mut [0; 16]).unwrap(), 7);
}

fn who_resets_while_an_upstream_is_dialed_is_not_waited_for(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], "[timeouts]\nconnect = \"1h\"\n");
    let before = network.connections();
    network.lose(TO_SERVERS, "");
    let clients: Vec<_> = (0..5).map(|_| network.client(&setu)).collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while network.connections() < before + 2 * clients.len() {
        assert!(Instant::now() < deadline, "nobody is dialed");
        thread::sleep(Duration::from_millis(10));
    }
    clients.into_iter().for_each(reset);
    setu.wait_closed("client_reset", 5);
    while network.connections() > before {
        assert!(Instant::now() < deadline, "{} connections", network.connections());
        thread::sleep(Duration::from_millis(10));
    }
}

fn who_leaves_without_an_answer_leaves_no_port_behind(path: Path) {
    const CLIENTS: usize = 20;
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], "[timeouts]\nhalf_close = \"1s\"\n");
    let flows: Vec<_> = (0..CLIENTS).map(|_| network.flow(&setu, &upstream)).collect();
    let mut servers = Vec::new();
    for (number, (client, server)) in flows.into_iter().enumerate() {
        // The others close, which may be half of a close only: when nothing comes of it they are gone as well.
        if number % 2 == 0 {
            reset(client)
        } else {
            drop(client)
        }
        servers.push(server);
    }
    setu.wait_closed("client_reset", CLIENTS / 2);
    setu.wait_closed("half_close_timeout", CLIENTS / 2);
    for (number, server) in servers.iter().enumerate() {
        match end_of(server) {
            Ok(count) => assert_eq!((number % 2, count), (1, 0)),
            Err(error) => assert_eq!((number % 2, error.kind()), (0, ErrorKind::ConnectionReset)),
        }
    }
    let toward = format!("dst {}", SERVERS[0]);
    let output = network.proxy.command("ss").args(["-Htan", &toward]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "of {PROXY}");
}

fn who_finishes_waits_for_the_answer(path: Path) {
    let upstream = Upstream::new();
    let (mut setu, _state) = start(path, &upstream, "", "");
    // The end comes with the first byte, in one segment, before anything is dialed.
    let mut client = connect(setu.address("chat"));
    SockRef::from(&client).set_tcp_cork(true).unwrap();
    client.write_all(b"\n").unwrap();
    finish(&client);
    let (mut server, _) = header(&upstream);
    let mut came = Vec::new();
    server.read_to_end(&mut came).unwrap();
    assert_eq!(came, b"\n");
    thread::sleep(Duration::from_millis(500));
    server.write_all(b"an answer").unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"an answer");
    setu.wait_closed("client_closed", 1);
}
