//! In network namespaces, between real sockets.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use setu_tests::netns::Netns;

use super::*;
use crate::sys::{leg_info, numbers};

const LONG: Duration = Duration::from_secs(30);

fn skipped() -> bool {
    let skipped = !setu_tests::machine::is_root();
    if skipped {
        println!("skipped: network namespaces need root, and this is not");
    }
    skipped
}

/// Two hosts, with addresses of both families: this one's end in .1, the other's in .2.
fn hosts() -> (Netns, Netns) {
    let (near, far) = (Netns::alone(), Netns::alone());
    near.join("toward", "10.78.1.1/24", &far, "back", "10.78.1.2/24");
    for (host, device, address) in [(&near, "toward", "fd00:78::1/64"), (&far, "back", "fd00:78::2/64")] {
        host.ip(&format!("address add {address} dev {device} nodad"));
    }
    (near, far)
}

/// Waits for what must happen; between two looks what is to be sent is sent.
fn eventually<T>(network: &mut Network, what: &str, mut look: impl FnMut(&mut Network) -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        network.send(Instant::now());
        if let Some(seen) = look(network) {
            return seen;
        }
        assert!(Instant::now() < deadline, "it never came to that: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A connection of the far host to the near one: its ends there and here.
fn connect(near: &Netns, far: &Netns, address: &str) -> (TcpStream, TcpStream) {
    let listener = near.within(|| TcpListener::bind(address).unwrap());
    let client = far.within(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    (client, listener.accept().unwrap().0)
}

#[test]
fn ways_are_those_of_the_routing_tables() {
    if skipped() {
        return;
    }
    let (near, _far) = hosts();
    near.ip("route add 192.0.2.0/24 via 10.78.1.2 mtu 1400");
    near.ip("-6 route add 2001:db8:2::/64 via fd00:78::2");
    near.ip("route add 198.51.100.0/24 via inet6 fd00:78::2 dev toward");
    near.ip("route add unreachable 203.0.113.0/24");
    near.ip("tuntap add dev tunnel mode tun");
    near.ip("address add 10.79.1.1/24 dev tunnel");
    near.ip("link set tunnel up");
    // A dummy or a VRF says so of itself, where the kernel has them.
    near.ip("link add nobody type veth peer name beyond");
    near.ip("address add 10.80.1.1/24 dev nobody");
    for device in ["beyond", "nobody"] {
        near.ip(&format!("link set {device} arp off up"));
    }
    near.ip("link add bridge type bridge");
    near.ip("link add port type veth peer name other");
    for device in ["bridge", "other", "port"] {
        near.ip(&format!("link set {device} up"));
    }
    near.ip("link set port master bridge");
    let mut network = near.within(|| Network::open().unwrap());
    let mut way = |from: &str, to: &str| network.way(from.parse().unwrap(), to.parse().unwrap());
    let is = |way: Way| (way.next_hop.to_string(), way.mtu);
    let direct = way("10.78.1.1", "10.78.1.2").unwrap();
    assert_eq!(is(direct), ("10.78.1.2".into(), 1500));
    assert_ne!(direct.mac, [0; 6]);
    assert_eq!(is(way("fd00:78::1", "fd00:78::2").unwrap()), ("fd00:78::2".into(), 1500));
    assert_eq!(
        way("::ffff:10.78.1.1", "::ffff:10.78.1.2"),
        Ok(direct),
        "as a socket of both families has it"
    );
    assert_eq!(is(way("10.78.1.1", "192.0.2.9").unwrap()), ("10.78.1.2".into(), 1400));
    assert_eq!(is(way("fd00:78::1", "2001:db8:2::9").unwrap()), ("fd00:78::2".into(), 1500));
    assert_eq!(is(way("10.78.1.1", "198.51.100.9").unwrap()), ("fd00:78::2".into(), 1500));
    for (from, to, no) in [
        ("10.78.1.1", "10.78.1.1", NoWay::Local),
        ("127.0.0.1", "127.0.0.1", NoWay::Local),
        ("::1", "::1", NoWay::Local),
        ("fd00:78::1", "fd00:78::1", NoWay::Local),
        ("10.78.1.1", "10.78.1.255", NoWay::Local),
        ("10.79.1.1", "10.79.1.2", NoWay::NoEthernet),
        ("10.80.1.1", "10.80.1.2", NoWay::NoEthernet),
        ("10.78.1.1", "203.0.113.1", NoWay::NoRoute),
        ("10.78.1.1", "8.8.8.8", NoWay::NoRoute),
        ("fd00:78::1", "fe80::1", NoWay::NoRoute),
        ("fd00:78::1", "10.78.1.2", NoWay::NoRoute),
    ] {
        assert_eq!(way(from, to), Err(no), "from {from} to {to}");
    }

    let names =
        |network: &Network| network.devices().into_iter().map(|device| device.name).collect::<Vec<_>>();
    let mut all = names(&network);
    all.sort();
    assert_eq!(all, ["bridge", "other", "toward"], "neither a tunnel, nor loopback, nor a port of a bridge");
    network.drain().unwrap();
    assert_eq!(network.drain().unwrap(), Changes::default(), "nothing changes by itself");
    near.ip("route del 192.0.2.0/24");
    let changes = eventually(&mut network, "a route is gone", |network| {
        Some(network.drain().unwrap()).filter(|changes| changes.routes)
    });
    assert!(!changes.links);
    near.ip("link set toward mtu 1300");
    eventually(&mut network, "a device's MTU", |network| network.drain().unwrap().links.then_some(()));
    assert_eq!(network.way("10.78.1.1".parse().unwrap(), "10.78.1.2".parse().unwrap()).unwrap().mtu, 1300);
}

#[test]
fn a_reset_is_believed_by_the_end_that_expects_its_number() {
    if skipped() {
        return;
    }
    let (near, far) = hosts();
    // As on a host whose firewall drops what conntrack does not know: the packet socket passes it by.
    near.nft(
        "table inet filter { chain output { type filter hook output priority 0; ct state invalid drop; }; }",
    );
    let mut network = near.within(|| Network::open().unwrap());
    for address in ["10.78.1.1:0", "[fd00:78::1]:0"] {
        let (mut client, server) = connect(&near, &far, address);
        let (from, to) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        client.set_nonblocking(true).unwrap();
        let right = numbers(server.as_fd()).unwrap().written;
        network.forget(from, to).unwrap();
        // The next hop's address has to be asked for.
        near.ip("neighbour flush dev toward");
        assert!(
            network.reset(&Reset { from, to, sequence: right.wrapping_sub(100_000_000) }, Instant::now())
        );
        eventually(&mut network, "it was sent", |network| network.next_send().is_none().then_some(()));
        thread::sleep(Duration::from_millis(50));
        assert_eq!(
            client.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "a number far off: {address}"
        );
        assert!(network.reset(&Reset { from, to, sequence: right }, Instant::now()));
        let error = eventually(&mut network, "the client is reset", |_| {
            client
                .read(&mut [0])
                .map_err(|error| error.kind())
                .err()
                .filter(|kind| *kind != ErrorKind::WouldBlock)
        });
        assert_eq!(error, ErrorKind::ConnectionReset, "{address}");
    }
}

#[test]
fn what_waits_is_bounded_in_number_time_and_rate() {
    if skipped() {
        return;
    }
    let (near, _far) = hosts();
    let mut network = near.within(|| Network::open().unwrap());
    // There is nobody of that address.
    let nobody =
        Reset { from: "10.78.1.1:1".parse().unwrap(), to: "10.78.1.9:1".parse().unwrap(), sequence: 1 };
    let start = Instant::now();
    let taken = (0..10_000).take_while(|_| network.reset(&nobody, start)).count();
    assert_eq!(taken, 4096);
    network.send(start);
    let soon = network.next_send().unwrap();
    assert!(
        soon > start && soon <= start + Duration::from_millis(1),
        "a burst went, and the rest waits its turn"
    );
    // As time goes on by what it is told.
    let mut now = start;
    while let Some(next) = network.next_send() {
        now = now.max(next);
        network.send(now);
        assert!(now < start + LONG, "they are tried for ever");
    }
    assert!(now >= start + Duration::from_secs(3), "they were given up before their time");
}

#[test]
fn what_is_too_big_is_heard_and_told() {
    if skipped() {
        return;
    }
    let (near, far) = hosts();
    let mut network = near.within(|| Network::open().unwrap());
    let mut theirs = far.within(|| Network::open().unwrap());
    for (flow, address) in (0..).zip(["10.78.1.1:0", "[fd00:78::1]:0"]) {
        let (mut client, mut server) = connect(&near, &far, address);
        assert_eq!(leg_info(client.as_fd()).unwrap().path_mtu, 1500);
        let too_big = TooBig {
            source: server.peer_addr().unwrap(),
            destination: server.local_addr().unwrap(),
            sequence: numbers(client.as_fd()).unwrap().written,
            mtu: 1280,
        };
        network.send_too_big(flow, &too_big, Instant::now());
        // What the host hears of a packet of its own its raw socket gets as well.
        let heard = eventually(&mut network, "it is heard", |_| theirs.too_big().pop());
        assert_eq!(heard, too_big);
        eventually(&mut network, "the end takes it to heart", |_| {
            (leg_info(client.as_fd()).unwrap().path_mtu == 1280).then_some(())
        });
        client.write_all(&[7; 10_000]).unwrap();
        server.read_exact(&mut [0; 10_000]).unwrap();
    }
}

/// Else one client could have resets wait behind what it makes others hear.
#[test]
fn of_what_is_too_big_little_is_told() {
    if skipped() {
        return;
    }
    let (near, _far) = hosts();
    let mut network = near.within(|| Network::open().unwrap());
    let [source, destination] = ["10.78.1.1:5222", "10.78.1.2:40000"].map(|end| end.parse().unwrap());
    let too_big = TooBig { source, destination, sequence: 1, mtu: 1280 };
    let begun = Instant::now();
    for flow in [vec![7; 1000], (0..10_000).collect()].concat() {
        network.send_too_big(flow, &too_big, begun);
    }
    assert_eq!(network.waiting(), HINTS);
    network.send_too_big(7, &too_big, begun + Duration::from_secs(1));
    assert_eq!(network.waiting(), HINTS + 1);
}

#[test]
fn connections_leave_conntrack() {
    if skipped() {
        return;
    }
    let (near, far) = hosts();
    near.nft(
        "table inet filter { chain input { type filter hook input priority 0; ct state invalid drop; }; }",
    );
    let mut network = near.within(|| Network::open().unwrap());
    if network.conntrack() == Conntrack::Absent {
        println!("skipped: this kernel has no conntrack");
        return;
    }
    assert_eq!(network.conntrack(), Conntrack::Deletes);
    let tracked = |port: u16| {
        let table = near.command("cat").arg("/proc/net/nf_conntrack").output().unwrap();
        assert!(table.status.success());
        let table = String::from_utf8(table.stdout).unwrap();
        table.lines().filter(|line| line.contains(&format!("port={port} "))).count()
    };
    for address in ["10.78.1.1:0", "[fd00:78::1]:0"] {
        // One connection that the peer began, one that this host did.
        let (_client, server) = connect(&near, &far, address);
        let (_theirs, own) = connect(&far, &near, &address.replace("1.1:", "1.2:").replace("::1]", "::2]"));
        for socket in [own, server] {
            // Of each connection the port that is its own.
            let (local, peer) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
            assert_eq!(tracked(local.port()), 1, "{address}");
            network.forget(local, peer).unwrap();
            assert_eq!(tracked(local.port()), 0, "{address}");
            network.forget(local, peer).unwrap();
        }
    }
}

/// The keeper keeps nothing else.
#[test]
fn one_capability_is_enough_once_all_is_open() {
    if skipped() {
        return;
    }
    let (near, far) = hosts();
    let mut network = near.within(|| Network::open().unwrap());
    let (mut client, server) = connect(&near, &far, "10.78.1.1:0");
    client.set_nonblocking(true).unwrap();
    near.ip("neighbour flush dev toward");
    // Capabilities are a thread's.
    thread::scope(|scope| {
        scope.spawn(|| {
            let one = CapabilitySet::NET_ADMIN;
            let sets = CapabilitySets { effective: one, permitted: one, inheritable: CapabilitySet::empty() };
            set_capabilities(None, sets).unwrap();
            assert!(sys::open_packet().is_err(), "the others are gone");
            let (from, to) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            network.way(from.ip(), to.ip()).unwrap();
            network.drain().unwrap();
            if network.conntrack() == Conntrack::Deletes {
                network.forget(from, to).unwrap();
            }
            assert_eq!(network.too_big(), []);
            let sequence = numbers(server.as_fd()).unwrap().written;
            assert!(network.reset(&Reset { from, to, sequence }, Instant::now()));
            eventually(&mut network, "the client is reset", |_| {
                client
                    .read(&mut [0])
                    .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
                    .then_some(())
            });
        });
    });
}
