//! Upstreams are dialed from ports that the system gives to nobody else, and in segments that both ends take.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
};

use setu_tests::{
    Path, Setu,
    network::{CLIENT, Network, PROXY, PROXY_V6, SERVERS, SERVERS_V6, TO_CLIENTS},
    peers::{Manner, Upstream, call, exchange, receive_some, send},
};
use socket2::{SockRef, Socket};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

fn is_root() -> bool {
    crate::may_use_kernel()
}

fn port(server: &TcpStream) -> u16 {
    server.peer_addr().unwrap().port()
}

/// What a connection's other end takes, with the bytes for timestamps.
fn segment(stream: &TcpStream) -> u32 {
    SockRef::from(stream).tcp_mss().unwrap() + 12
}

fn reserved(network: &Network) -> String {
    let output = network.proxy.command("cat").arg(format!("/proc/sys/{RESERVED}")).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn each_connection_has_a_port_of_the_wires_while_there_are_any() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    for (server, proxy) in [(SERVERS[0], PROXY), (SERVERS_V6[0], &*format!("[{PROXY_V6}]"))] {
        let upstream = network.upstream(server);
        let config = network
            .config(Path::Wire, &[upstream.address()], "[wire]\nports = \"20000-20002\"")
            .replace(PROXY, proxy);
        let setu = network.start_with_pins(&config, "debug", &[]);
        let flows: Vec<_> = (0..5).map(|_| network.flow(&setu, &upstream)).collect();
        let mut ports: Vec<_> = flows.iter().map(|(_, server)| port(server)).collect();
        ports[..3].sort_unstable();
        assert_eq!(ports[..3], [20_000, 20_001, 20_002]);
        assert!(ports[3..].iter().all(|port| *port >= 32_768), "ordinary ones follow: {ports:?}");
        for (client, server) in &flows {
            exchange(client, server, b"there");
            exchange(server, client, b"and back");
        }
    }
}

#[test]
fn what_is_not_for_the_wire_leaves_its_ports_alone() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let ports = "[wire]\nports = \"20000-20002\"";
    let setu = network.setu(Path::Userspace, &[upstream.address()], ports);
    let (_client, server) = network.flow(&setu, &upstream);
    assert!(port(&server) >= 32_768 && segment(&server) == 1460, "{} {}", port(&server), segment(&server));
    assert_eq!(reserved(&network), "");
    // A client on the proxy's own host is none whose packets could be rewritten.
    let setu = network.setu(Path::Wire, &[upstream.address()], ports);
    let _client = network.proxy.within(|| call(setu.address("chat")));
    let own = port(&upstream.answer());
    assert!(!(20_000..=20_002).contains(&own), "{own}");
}

#[test]
fn a_port_that_another_has_is_passed_over() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let _other = network.proxy.within(|| TcpListener::bind("0.0.0.0:20000").unwrap());
    let setu = network.setu(Path::Wire, &[upstream.address()], "[wire]\nports = \"20000-20001\"");
    let flows: Vec<_> = (0..4).map(|_| network.flow(&setu, &upstream)).collect();
    let ports: Vec<_> = flows.iter().map(|(_, server)| port(server)).collect();
    assert!(ports.iter().all(|port| *port == 20_001 || *port >= 32_768), "{ports:?}");
}

#[test]
fn segments_are_as_short_as_the_other_end_asks() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(Path::Wire, &[upstream.address()], "");
    let proxy = setu.address("chat");
    let (client, server) = network.flow(&setu, &upstream);
    assert_eq!((segment(&client), segment(&server)), (1400, 1400), "wire.mss");
    let narrow = network.clients.within(|| {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_tcp_mss(1000).unwrap();
        socket.connect(&proxy.into()).unwrap();
        TcpStream::from(socket)
    });
    (&narrow).write_all(b"\n").unwrap();
    assert_eq!(segment(&upstream.answer()), 1000, "the server is told what the client takes");

    let short = network.servers.within(|| short(&format!("{}:0", SERVERS[1]), 1100));
    let config = network.config(Path::Wire, &[short.address()], "");
    setu.reload(&config);
    // Each worker has sockets of its own, and learns of it by a client of its own.
    let learns = || {
        let client = network.client(&setu);
        let _server = short.answer();
        segment(&client) == 1100
    };
    assert!((0..50).any(|_| (0..8).all(|_| learns())), "not all workers learn of it");
}

/// A listener that takes no longer segments.
fn short(address: &str, segment: u32) -> Upstream {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_tcp_mss(segment).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    TcpListener::from(socket).into()
}

#[test]
fn ports_are_reserved_until_nobody_serves() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.proxy.set(RESERVED, "10010,40000");
    let upstream = network.upstream(SERVERS[0]);
    let state = tempfile::tempdir().unwrap();
    let more = format!("[tls]\nstate_dir = \"{}\"", state.path().display());
    let config = network.config(Path::Wire, &[upstream.address()], &more);
    let first = network.start_with_pins(&config, "debug", &[]);
    assert_eq!(reserved(&network), "10000-31999,40000");
    let second = network.start_with_pins(&config, "debug", &["--replace"]);
    assert!(first.ended().0.success());
    assert_eq!(reserved(&network), "10000-31999,40000", "the successor relies on it");
    // Who listens on the sockets of a setu on the wire, and has another path, asks for whole segments again.
    let config = config.replace("path = \"wire\"", "path = \"userspace\"");
    let third = network.start(&config, "debug", &["--replace"]);
    assert!(second.ended().0.success());
    assert_eq!(segment(&network.client(&third)), 1460);
    drop(third);

    network.proxy.set(RESERVED, "10010,40000");
    let setu = network.setu(Path::Wire, &[upstream.address()], "");
    assert_eq!(reserved(&network), "10000-31999,40000");
    assert!(setu.stop().0.success());
    assert_eq!(reserved(&network), "10010,40000");
}

/// As in a container.
#[test]
fn where_ports_cannot_be_reserved_setu_says_so_and_serves() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.proxy.set("net/ipv4/ip_local_port_range", "1024 65535");
    let upstream = network.upstream(SERVERS[0]);
    let config = network.config(Path::Wire, &[upstream.address()], "");
    let read_only = || {
        let mut command = network.proxy.command("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(
            "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$0\" \"$@\"",
        );
        command.arg(Setu::binary());
        command
    };
    let setu = Setu::start_by(read_only(), &config, &[]);
    assert_eq!(setu.count("wire.ports cannot be reserved for setu"), 1, "{}", setu.log());
    let (_client, server) = network.flow(&setu, &upstream);
    assert!((10_000..=31_999).contains(&port(&server)));

    let check = |mut command: std::process::Command| {
        let output = command.args(["check", "--config"]).arg(setu.configuration()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = check(read_only());
    let wanted = "setu may not write it: the system may give a port to others that a connection on the wire has, and \
                  theirs fails; sysctl net.ipv4.ip_local_reserved_ports=10000-31999";
    assert!(text.contains(wanted), "{text}");
    let text = check(network.proxy.command(&Setu::binary().display().to_string()));
    for wanted in [
        "source ports: 64512 (1024 to 65535, 22000 of them reserved, and 10000 to 31999 for the wire)",
        "ok    wire.ports: 22000 (10000 to 31999) for each server and local address, so many connections on the wire: 22000 \
         to upstream \"test\", and 65536 in all",
        "ok    net.ipv4.ip_local_reserved_ports gets wire.ports while setu runs",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

/// What the other tests of the wire stand on: packets that are longer do not pass the routers, and senders learn of it.
#[test]
fn routers_carry_no_long_packets() {
    if !is_root() {
        return;
    }
    let network = Network::routed([Some(1280), Some(1300)]);
    for (server, proxy) in [(SERVERS[0], PROXY), (SERVERS_V6[0], &*format!("[{PROXY_V6}]"))] {
        let upstream = network.upstream(server);
        let config = network.config(Path::Userspace, &[upstream.address()], "").replace(PROXY, proxy);
        let setu = network.start(&config, "debug", &[]);
        let (client, server) = network.flow(&setu, &upstream);
        assert_eq!((segment(&client) >= 1440, segment(&server) >= 1440), (true, true), "devices take 1500");
        for (from, to) in [(&server, &client), (&client, &server)] {
            std::thread::scope(|scope| {
                scope.spawn(|| send(from, 7, 300_000, Manner::FAST));
                receive_some(to, 7, 300_000);
            });
        }
        for (host, longest) in [(CLIENT, 1280), (SERVERS[0], 1300)] {
            let output = network.proxy.command("ip").args(["route", "get", host]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains(&format!("mtu {longest}")), "{text}");
        }
    }
}

#[test]
fn a_bridge_has_what_its_device_had() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    let bridge = network.bridge(TO_CLIENTS);
    let upstream = network.upstream(SERVERS[0]);
    let setu = network.setu(Path::Wire, &[upstream.address()], "");
    let (client, server) = network.flow(&setu, &upstream);
    exchange(&client, &server, b"over the bridge");
    assert_eq!(bridge, "bclients");
}
