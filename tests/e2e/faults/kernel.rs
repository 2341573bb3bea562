//! What the kernel path does when its maps are full and when what it reports is lost.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    level::Level,
    machine::raise_file_limit,
    maps,
    network::{Network, SERVERS},
    peers::{Manner, PATIENCE, Upstream, exchange, finish, receive, send},
};

/// The hosts, an upstream, and a setu that uses the kernel; nothing where that cannot be.
fn start(more: &str) -> Option<(Network, Upstream, Setu)> {
    if !crate::may_use_kernel() {
        return None;
    }
    raise_file_limit();
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let setu = network.setu(Path::Sockmap, &[upstream.address()], more);
    Some((network, upstream, setu))
}

/// Carries a few bytes, then many, and ends.
fn carry(network: &Network, setu: &Setu, upstream: &Upstream) {
    let (client, server) = network.flow(setu, upstream);
    exchange(&client, &server, b"a message");
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&server, 1, 3_000_000, Manner::FAST);
            finish(&server);
        });
        assert_eq!(receive(&client, 1, Manner::FAST), 3_000_000);
    });
    finish(&client);
    assert_eq!(receive(&server, 2, Manner::FAST), 0);
}

#[test]
fn a_full_map_sends_flows_through_userspace() {
    let Some((network, upstream, mut setu)) = start("") else { return };
    let before = Level::of(&setu, &network);
    let (inside, inside_server) = network.flow(&setu, &upstream);
    exchange(&inside, &inside_server, b"before the map is full");
    let map = maps::named(setu.pid(), "SOURCES").unwrap();
    // Cookies that no socket has yet, and the last directions.
    let last = maps::capacity(map) as u32 - 1;
    let foreign: Vec<u64> = (0..maps::capacity(map) as u64).map(|number| u64::MAX - number).collect();
    let filled = maps::fill(map, &foreign, last);
    assert_eq!(maps::entries(map), maps::capacity(map));
    for round in 1..=5 {
        carry(&network, &setu, &upstream);
        setu.wait_count("not handed over to the kernel reason=\"map_full\"", round);
        setu.wait_count("closed reason=upstream_closed path=userspace", round);
    }
    exchange(&inside, &inside_server, b"flows in the kernel go on");
    maps::remove(map, &foreign[..filled]);
    let (again, again_server) = network.flow(&setu, &upstream);
    exchange(&again, &again_server, b"there is room again");
    assert_eq!(maps::entries(map), 4, "{}", setu.tail());
    drop((inside, inside_server, again, again_server));
    before.wait(&setu, &network);
}

/// What the ring buffer holds: 64 KiB of entries with a header and a direction.
const RING: usize = 64 * 1024 / 16;

#[test]
fn a_full_ring_buffer_is_made_up_for_by_the_sweep() {
    /// More than a client takes that does not read.
    const BYTES: usize = 24_000;
    // With so small a budget a direction is congested by its second segment.
    let Some((network, upstream, mut setu)) =
        start("[limits]\nkernel_bytes = \"64KiB\"\nper_source = 0\nper_source_rate = 0\n")
    else {
        return;
    };
    network.clients.set("net/ipv4/tcp_rmem", "4096 8192 8192");
    let before = Level::of(&setu, &network);
    let flows: Vec<_> = (0..RING + 400).map(|_| network.flow(&setu, &upstream)).collect();
    for (client, server) in &flows {
        exchange(client, server, b"a message");
        client.set_nonblocking(true).unwrap();
    }
    // Nobody takes what the program reports.
    setu.signal("STOP");
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 253) as u8).collect();
    for (_, server) in &flows {
        for segment in bytes.chunks(1_200) {
            (&*server).write_all(segment).unwrap();
        }
    }
    thread::sleep(Duration::from_millis(500));
    let mut received = vec![0; flows.len()];
    read_on(&flows, &bytes, &mut received);
    let congested = received.iter().filter(|count| **count < BYTES).count();
    println!("ring buffer of {RING}: {congested} directions congested while nobody looked");
    assert!(congested > RING, "{congested} congested");
    setu.signal("CONT");
    let deadline = Instant::now() + PATIENCE;
    while received.iter().any(|count| *count < BYTES) {
        read_on(&flows, &bytes, &mut received);
        let missing = received.iter().filter(|count| **count < BYTES).count();
        assert!(Instant::now() < deadline, "{missing} flows are stuck\n{}", setu.tail());
        thread::sleep(Duration::from_millis(20));
    }
    let count = flows.len();
    drop(flows);
    // Whichever end's FIN came first.
    setu.wait_count("_closed path=", count);
    before.wait(&setu, &network);
}

/// Reads what is there at each client and compares it.
fn read_on(flows: &[(TcpStream, TcpStream)], bytes: &[u8], received: &mut [usize]) {
    let mut buffer = vec![0; bytes.len()];
    for ((client, _), received) in flows.iter().zip(received) {
        loop {
            match (&*client).read(&mut buffer) {
                Ok(0) => panic!("an end after {received} bytes"),
                Ok(count) => {
                    assert!(bytes[*received..*received + count] == buffer[..count], "wrong bytes");
                    *received += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {received} bytes: {error}"),
            }
        }
    }
}
