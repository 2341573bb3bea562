//! Floods pay, neighbours do not: who says nothing gives up his place to who comes, and no source has all of them.

use std::{
    io::{ErrorKind, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, admin, config, front_door, listener,
    machine::raise_file_limit,
    peers::{PATIENCE, Upstream, connect_from, end_of},
    tls, upstream,
};

/// Places in inspection, of which a flood takes many times as many.
const PENDING: usize = 64;
const FLOOD: usize = 300;

/// An address of loopback; each middle part is a network of its own.
fn ip(range: u8, network: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(127, range, network, host).into()
}

/// A setu with few places and no other limit, before an upstream that echoes.
fn start() -> Setu {
    raise_file_limit();
    let server = Upstream::new();
    let limits = format!("[limits]\npending = {PENDING}\nper_source = 0\nper_source_rate = 0\n");
    let setu = Setu::start(&config(Path::Userspace, &server.address(), &limits));
    server.echo();
    setu
}

/// Clients that speak at once, each from another network; returns how many are answered.
fn answered(setu: &Setu, clients: u8) -> usize {
    (0..clients)
        .filter(|number| {
            let client = connect_from(ip(90, *number, 1), setu.address("chat"));
            client.is_ok_and(|mut client| {
                client.write_all(b"WA").is_ok() && end_of(&client).is_ok_and(|count| count > 0)
            })
        })
        .count()
}

#[test]
fn one_source_leaves_places_to_others() {
    let mut setu = start();
    let flood: Vec<_> = (0..FLOOD).flat_map(|_| connect_from(ip(91, 0, 1), setu.address("chat"))).collect();
    setu.wait_closed("limit_pending", FLOOD - PENDING);
    assert_eq!(answered(&setu, 50), 50);
    assert_eq!(setu.count("closed reason=crowded_out "), 0, "there were places");
    drop(flood);
}

#[test]
fn the_silent_of_many_sources_make_room() {
    let mut setu = start();
    let from = |number: usize| ip(92, number as u8, 1 + (number >> 8) as u8);
    let flood: Vec<_> =
        (0..FLOOD).flat_map(|number| connect_from(from(number), setu.address("chat"))).collect();
    setu.wait_closed("crowded_out", FLOOD - PENDING);
    assert_eq!(answered(&setu, 50), 50);
    assert_eq!(setu.count("closed reason=limit_pending "), 0, "{}", setu.tail());
    drop(flood);
}

/// Whether it is there, and hears nothing.
fn is_in(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let is_in = end_of(client).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();
    is_in
}

#[test]
fn of_the_silent_the_oldest_goes_first() {
    let server = Upstream::new();
    // Nobody goes for another reason.
    let more = format!("[limits]\npending = {PENDING}\n[timeouts]\ninspect = \"5m\"\n");
    let config =
        config(Path::Userspace, &server.address(), &more).replace("bind = []", "bind = [\"127.0.0.1:0\"]");
    let mut setu = Setu::start(&config);
    server.echo();
    // Each is in before the next comes: two workers accept, in no order.
    let wait_for_pending = |setu: &Setu, count: usize| {
        let is_so = || {
            admin::get(setu.admin(), "/metrics")
                .body
                .contains(&format!("setu_connections_pending {count}.0\n"))
        };
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not {count} in inspection\n{}", setu.tail());
        }
    };
    let mut silent = Vec::new();
    for number in 1..=PENDING {
        silent.push(connect_from(ip(93, number as u8, 1), setu.address("chat")).unwrap());
        wait_for_pending(&setu, number);
    }
    assert_eq!(setu.count("closed reason="), 0, "there are places for all of them");
    for gone in 0..8 {
        assert_eq!(answered(&setu, 1), 1, "who speaks is served");
        setu.wait_closed("crowded_out", gone + 1);
        let stay: Vec<_> = silent.iter().map(is_in).collect();
        assert_eq!(stay.iter().position(|is_in| *is_in), Some(gone + 1), "the oldest goes");
        assert!(stay[gone + 1..].iter().all(|is_in| *is_in), "and no other");
        // The place of who spoke is free again.
        silent.push(connect_from(ip(94, gone as u8, 1), setu.address("chat")).unwrap());
        wait_for_pending(&setu, PENDING);
    }
}

/// A client that takes its time at each stage has the time of one.
#[test]
fn there_is_one_deadline_for_all_that_comes_before_the_relay() {
    const HANDSHAKE: Duration = Duration::from_secs(6);
    let server = Upstream::new();
    let state = tempfile::tempdir().unwrap();
    let setup = [
        listener("tls", "mode = \"chat-tls\"\nupstream = \"test\""),
        upstream("test", server.address(), "off"),
        "[timeouts]\nhandshake = \"6s\"\ninspect = \"6s\"\n".into(),
    ]
    .concat();
    let mut setu = Setu::start(&front_door(Path::Userspace, state.path(), &setup));
    let begun = Instant::now();
    let client = connect_from(Ipv4Addr::LOCALHOST.into(), setu.address("tls")).unwrap();
    thread::sleep(HANDSHAKE * 2 / 3);
    let mut client = tls::Tls::connect(&tls::client(&rustls::version::TLS13), "test", client).unwrap();
    // Silent inside, to the end.
    let _ = client.receive(&mut [0; 64]);
    setu.wait_closed("inspect_timeout", 1);
    let elapsed = begun.elapsed();
    assert!(elapsed >= HANDSHAKE && elapsed < HANDSHAKE * 3 / 2, "{elapsed:?}");
}
