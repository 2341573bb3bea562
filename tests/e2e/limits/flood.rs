//! Floods pay, neighbours do not: who says nothing gives up his place to who comes, and no source has all of them.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, config, front_door, listener,
    machine::raise_file_limit,
    peers::{PATIENCE, Upstream, end_of},
    tls, upstream,
};
use socket2::{Domain, Socket, Type};

/// Places in inspection, of which a flood takes many times as many.
const PENDING: usize = 64;
const FLOOD: usize = 300;

/// An error is that of being turned away at once.
fn connect_from(ip: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
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
            let client = connect_from(Ipv4Addr::new(127, 90, *number, 1), setu.address("chat"));
            client.is_ok_and(|mut client| {
                client.write_all(b"WA").is_ok() && end_of(&client).is_ok_and(|count| count > 0)
            })
        })
        .count()
}

#[test]
fn one_source_leaves_places_to_others() {
    let mut setu = start();
    let flood: Vec<_> =
        (0..FLOOD).flat_map(|_| connect_from(Ipv4Addr::new(127, 91, 0, 1), setu.address("chat"))).collect();
    setu.wait_closed("limit_pending", FLOOD - PENDING);
    assert_eq!(answered(&setu, 50), 50);
    assert_eq!(setu.count("closed reason=crowded_out "), 0, "there were places");
    drop(flood);
}

#[test]
fn the_silent_of_many_sources_make_room() {
    let mut setu = start();
    let from = |number: usize| Ipv4Addr::new(127, 92, number as u8, 1 + (number >> 8) as u8);
    let flood: Vec<_> =
        (0..FLOOD).flat_map(|number| connect_from(from(number), setu.address("chat"))).collect();
    setu.wait_closed("crowded_out", FLOOD - PENDING);
    assert_eq!(answered(&setu, 50), 50);
    assert_eq!(setu.count("closed reason=limit_pending "), 0, "{}", setu.tail());
    drop(flood);
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
    let client = connect_from(Ipv4Addr::LOCALHOST, setu.address("tls")).unwrap();
    thread::sleep(HANDSHAKE * 2 / 3);
    let mut client = tls::Tls::connect(&tls::client(&rustls::version::TLS13), "test", client).unwrap();
    // Silent inside, to the end.
    let _ = client.receive(&mut [0; 64]);
    setu.wait_closed("inspect_timeout", 1);
    let elapsed = begun.elapsed();
    assert!(elapsed >= HANDSHAKE && elapsed < HANDSHAKE * 3 / 2, "{elapsed:?}");
}
