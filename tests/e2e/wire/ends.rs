//! What the ends of a flow do once they talk to each other, and what others do in their names.

use std::{
    net::{SocketAddr, SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    admin::eventually,
    network::{CLIENT, Network, SERVERS},
    peers::{Manner, Upstream, end_of, exchange, finish, receive_some, reset, send},
    repair,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::flows::{CALM, PATIENCE, await_count, config, counts, spliced, talk};

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Who has no room answers all the same.
#[test]
fn who_does_not_read_is_waited_for() {
    const LEN: usize = 8 << 20;
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let more = format!("{CALM}vanished = \"2s\"\nhalf_close = \"2s\"\n");
    let mut setu = network.start_with_pins(&config(&network, &upstream, &more), "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 2);
    thread::scope(|scope| {
        for (number, (client, server)) in flows.iter().enumerate() {
            let (from, to) = if number == 0 { (client, server) } else { (server, client) };
            scope.spawn(move || send(from, 5, LEN, Manner::FAST));
            scope.spawn(move || {
                thread::sleep(Duration::from_secs(6));
                receive_some(to, 5, LEN);
            });
        }
    });
    talk(&flows);
}

/// setu's sockets answer for what they sent until it has arrived.
#[test]
fn own_bytes_that_are_lost_arrive_when_the_flow_is_on_the_wire() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
    // On its way, as setu would know of what its own host drops. What setu sends itself has passed no router.
    network.clients.nft(
        "add table ip faults; add chain ip faults arriving { type filter hook prerouting priority -300; }; \
         add rule ip faults arriving ip ttl 64 ip length > 100 drop",
    );
    // What opens the flow is short. The rest follows at once: where there is a pause, setu has nothing of its own under way.
    let (client, server) = network.flow(&setu, &upstream);
    send(&server, 3, 1000, Manner::FAST);
    await_count(&network, &mut setu, "setu_wire_handed_over_total", 1);
    let own = [network.connections()];
    // What is behind the gap arrives, and waits for it.
    thread::scope(|scope| {
        let rest = scope.spawn(|| send(&server, 4, 100_000, Manner::FAST));
        exchange(&client, &server, b"the other way goes on");
        network.clients.nft("delete table ip faults");
        receive_some(&client, 3, 1000);
        receive_some(&client, 4, 100_000);
        rest.join().unwrap();
    });
    assert_eq!(own, [2], "setu's sockets are there as long as they are needed");
    eventually("they are gone", || network.connections(), |sockets| *sockets == 0);
    exchange(&server, &client, b"and on");
}

/// A phone that comes again from the port it had is a new client.
#[test]
fn a_port_that_is_used_again_is_a_new_flows() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
    let proxy = setu.address("chat");
    let from: SocketAddr = format!("{CLIENT}:45000").parse().unwrap();
    for round in 1..=4 {
        let client = network.clients.within(|| connect_from(from, proxy));
        send(&client, 1, 1, Manner::FAST);
        let server = answer(&upstream);
        await_count(&network, &mut setu, "setu_wire_handed_over_total", round);
        exchange(&client, &server, b"there");
        exchange(&server, &client, b"and back");
        eventually("no socket is left", || network.connections(), |sockets| *sockets == 0);
        if round % 2 == 0 {
            reset(client);
            assert!(end_of(&server).is_err());
        } else {
            // Who finishes second has no TIME_WAIT.
            finish(&server);
            assert_eq!(end_of(&client).unwrap(), 0);
            drop(client);
            assert_eq!(end_of(&server).unwrap(), 0);
        }
    }
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// The next connection, whose first byte is read.
fn answer(upstream: &Upstream) -> TcpStream {
    let server = upstream.accept();
    receive_some(&server, 1, 1);
    server
}

/// A segment without options, as anybody may send it who knows where the flow is.
struct Forged {
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: usize,
    has_right_checksum: bool,
}

impl Forged {
    fn send(&self, raw: &Socket, from: SocketAddrV4, to: SocketAddrV4) {
        let mut bytes = Vec::new();
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([0x50, self.flags, 1, 0, 0, 0, 0, 0]);
        bytes.extend(vec![0x5a; self.payload]);
        let mut sum: u32 = 6 + bytes.len() as u32;
        let addresses = [from.ip().octets(), to.ip().octets()].concat();
        for pair in addresses.chunks(2).chain(bytes.chunks(2)) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !(sum as u16) ^ u16::from(!self.has_right_checksum);
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        raw.send_to(&bytes, &SockAddr::from(SocketAddrV4::new(*to.ip(), 0))).unwrap();
    }
}

/// From the clients' host.
fn forger(network: &Network) -> Socket {
    network.clients.within(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        raw.bind(&SockAddr::from(SocketAddrV4::new(CLIENT.parse().unwrap(), 0))).unwrap();
        raw
    })
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("{address} is not of IPv4"),
    }
}

/// Not even who knows the numbers, but is not where a packet has to be that both believe.
#[test]
fn who_forges_segments_ends_no_flow() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let more = format!("{CALM}vanished = \"2s\"\nhalf_close = \"2s\"\n");
    let mut setu = network.start_with_pins(&config(&network, &upstream, &more), "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 7);
    talk(&flows);
    let raw = forger(&network);
    for (number, (client, _)) in flows.iter().enumerate() {
        let [sequence, acknowledgement] = repair::numbers(client);
        let at = |ahead: u32, flags, payload, has_right_checksum| {
            let sequence = sequence.wrapping_add(ahead);
            let forged = Forged { flags, sequence, acknowledgement, payload, has_right_checksum };
            forged.send(&raw, v4(client.local_addr().unwrap()), v4(client.peer_addr().unwrap()));
        };
        // Farther than there is room, and not too far for what may have been lost.
        const FAR: u32 = 3 << 20;
        match number {
            0 => at(FAR, FIN | ACK, 0, true),
            1 => at(0, FIN | ACK, 0, false),
            2 => at(0, ACK, 1000, false),
            // Within what seems to have been sent, and not what is expected.
            3 => {
                at(FAR, ACK, 1000, true);
                at(3000, RST, 0, true);
            }
            4 => {
                at(FAR, ACK, 1000, false);
                at(FAR + 5000, FIN | ACK, 0, true);
            }
            5 => at(1000, FIN | ACK, 0, false),
            // Believed by who does not look at checksums.
            _ => at(0, RST, 0, false),
        }
    }
    // Longer than a flow is kept after a reset.
    thread::sleep(Duration::from_secs(15));
    for (number, (client, server)) in flows.iter().enumerate() {
        println!("flow {number}");
        exchange(client, server, b"there");
        exchange(server, client, b"and back");
    }
    await_count(&network, &mut setu, "setu_wire_flows", 7);
}

/// Else its place, its port and its share of the limits would be taken for as long as it likes.
#[test]
fn who_speaks_without_end_keeps_no_flow_whose_other_end_is_gone() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let more = format!("{CALM}half_close = \"2s\"\n");
    let mut setu = network.start_with_pins(&config(&network, &upstream, &more), "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 4);
    talk(&flows);
    let raw = forger(&network);
    let (clients, servers): (Vec<_>, Vec<_>) = flows.into_iter().unzip();
    let addresses =
        |client: &TcpStream| [client.local_addr(), client.peer_addr()].map(|end| v4(end.unwrap()));
    let forged: Vec<_> = clients.iter().map(|client| (addresses(client), repair::numbers(client))).collect();
    // Two by a FIN, two by a reset.
    let servers: Vec<_> = servers
        .into_iter()
        .enumerate()
        .filter_map(|(number, server)| {
            if number < 2 {
                finish(&server);
                return Some(server);
            }
            reset(server);
            None
        })
        .collect();
    let (admin, deadline) = (setu.admin(), Instant::now() + PATIENCE);
    while counts(&network, admin)["setu_wire_flows"] > 0 {
        assert!(Instant::now() < deadline, "{} flows are left", counts(&network, admin)["setu_wire_flows"]);
        for (number, ([from, to], [sequence, acknowledgement])) in forged.iter().enumerate() {
            // What could be its own, and what could not.
            let sequence = if number % 2 == 0 { *sequence } else { sequence.wrapping_add(1 << 30) };
            let forged = Forged {
                flags: ACK,
                sequence,
                acknowledgement: *acknowledgement,
                payload: 0,
                has_right_checksum: number % 2 == 0,
            };
            forged.send(&raw, *from, *to);
        }
        thread::sleep(Duration::from_millis(300));
    }
    drop(servers);
    drop(clients);
}
