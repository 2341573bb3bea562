//! setu beside the reference: HAProxy with the reference's configuration, all eight ports for clients, through the same
//! scripts before the same upstreams. What the upstream and the client see must be the same.
//!
//! Two things differ on purpose. A reset stays a reset through setu, where HAProxy may make an ordinary end of it. And
//! setu's media ports take nothing but TLS for allowed names, which `probes` shows: here every client is an honest one.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
};

use rustls::version::{TLS12, TLS13};
use setu_tests::{
    Path, Setu, front_door, listener,
    peers::{Random, Upstream, connect, finish, reset},
    servers::Server,
    tls::{self, Certificate, Tls},
    upstream,
};

crate::on_both_paths! {
    upstreams_are_told_by_version_1
    upstreams_are_told_by_version_2
}

/// A port of the reference.
struct Port {
    name: &'static str,
    tls: bool,
    /// A PROXY header is required.
    told: bool,
    upstream: &'static str,
}

const fn port(name: &'static str, tls: bool, told: bool, upstream: &'static str) -> Port {
    Port { name, tls, told, upstream }
}

const PORTS: [Port; 8] = [
    port("p443", true, false, "chat"),
    port("p8443", true, true, "chat"),
    port("p5222", false, false, "chat"),
    port("p8222", false, true, "chat"),
    port("p80", false, false, "chat-http"),
    port("p8080", false, true, "chat-http"),
    port("p587", false, false, "media"),
    port("p7777", false, false, "media"),
];
const UPSTREAMS: [&str; 3] = ["chat", "chat-http", "media"];

/// A web client's opening, and a browser's.
const CHAT: &[u8] = b"WA\x06\x03\0\0\x24the first frame of a Noise handshake";
const MEDIA: &[u8] = include_bytes!("../../../fuzz/corpus/client_hello/chromium-post-quantum");

/// A header that a load balancer sends, and whom it names.
#[derive(Debug, Clone, Copy)]
enum Header {
    V1,
    V2,
}

const SOURCE: &str = "198.51.100.7:40001";
const DESTINATION: &str = "203.0.113.9:443";

impl Header {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::V1 => b"PROXY TCP4 198.51.100.7 203.0.113.9 40001 443\r\n",
            Self::V2 => b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\xcb\0\x71\x09\x9c\x41\x01\xbb",
        }
    }
}

/// What happens on a connection after its opening has come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    ClientFinishesFirst,
    UpstreamFinishesFirst,
    ClientFinishesAtOnce,
    MuchBothWays,
    ClientResets,
    UpstreamResets,
}

const SCRIPTS: [Script; 6] = [
    Script::ClientFinishesFirst,
    Script::UpstreamFinishesFirst,
    Script::ClientFinishesAtOnce,
    Script::MuchBothWays,
    Script::ClientResets,
    Script::UpstreamResets,
];

/// How a side sees the other go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// FIN, after a close_notify where there is TLS.
    Finished,
    /// FIN in the middle of TLS.
    Truncated,
    Reset,
    /// This side reset it.
    Own,
}

/// What both sides have seen.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// The header that the upstream got, with the addresses' roles.
    header: String,
    upstream: Vec<u8>,
    upstream_end: End,
    client: Vec<u8>,
    client_end: End,
}

/// A client of either kind.
enum Client {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Client {
    fn connect(port: &Port, to: SocketAddr, header: Option<Header>, modern: bool) -> (Self, SocketAddr) {
        let mut tcp = connect(to);
        let address = tcp.local_addr().unwrap();
        if let Some(header) = header {
            tcp.write_all(header.bytes()).unwrap();
        }
        if !port.tls {
            return (Self::Plain(tcp), address);
        }
        let config = tls::client(if modern { &TLS13 } else { &TLS12 });
        let name = if modern { "chat.example" } else { "192.0.2.1" };
        (Self::Tls(Box::new(Tls::connect(&config, name, tcp).unwrap())), address)
    }

    fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes),
            Self::Tls(tls) => tls.send(bytes),
        }
        .unwrap();
    }

    fn finish(&mut self) {
        match self {
            Self::Plain(tcp) => finish(tcp),
            Self::Tls(tls) => tls.finish().unwrap(),
        }
    }

    fn reset(self) {
        match self {
            Self::Plain(tcp) => reset(tcp),
            Self::Tls(tls) => reset(tls.into_tcp()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.receive(buffer),
        }
    }

    fn receive_all(&mut self) -> (Vec<u8>, End) {
        read_all(|buffer| self.receive(buffer))
    }
}

fn read_all(mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> (Vec<u8>, End) {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        match read(&mut buffer) {
            Ok(0) => return (all, End::Finished),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return (all, End::Truncated),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (all, End::Reset),
            Err(error) => panic!("after {} bytes: {error}", all.len()),
        }
    }
}

/// Reads until what has come ends with these bytes.
fn read_until(mut server: &TcpStream, words: &[u8]) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while !all.ends_with(words) {
        let count = server.read(&mut buffer).unwrap();
        assert!(count > 0, "an end after {} bytes", all.len());
        all.extend_from_slice(&buffer[..count]);
    }
    all
}

fn play(
    script: Script,
    port: &Port,
    header: Option<Header>,
    proxy: SocketAddr,
    servers: &Upstream,
    modern: bool,
) -> Seen {
    let (mut client, own) = Client::connect(port, proxy, header, modern);
    let opening = if port.upstream == "media" { MEDIA } else { CHAT };
    client.send(opening);
    if script == Script::ClientFinishesAtOnce {
        client.finish();
    }
    let mut server = servers.accept();
    let mut received = read_until(&server, opening);
    let ((rest, upstream_end), (answer, client_end)) = match script {
        Script::ClientFinishesFirst => {
            server.write_all(b"an answer").unwrap();
            let mut first = [0; 9];
            let mut got = 0;
            while got < 9 {
                got += client.receive(&mut first[got..]).unwrap();
            }
            client.send(b"a second message");
            client.finish();
            let inward = read_all(|buffer| server.read(buffer));
            server.write_all(b"the last words").unwrap();
            finish(&server);
            let (rest, end) = client.receive_all();
            (inward, ([&first[..], &rest].concat(), end))
        }
        Script::UpstreamFinishesFirst => {
            server.write_all(b"an answer").unwrap();
            finish(&server);
            let outward = client.receive_all();
            client.send(b"what was left to say");
            client.finish();
            (read_all(|buffer| server.read(buffer)), outward)
        }
        Script::ClientFinishesAtOnce => {
            let inward = read_all(|buffer| server.read(buffer));
            server.write_all(b"an answer").unwrap();
            finish(&server);
            (inward, client.receive_all())
        }
        Script::MuchBothWays => thread::scope(|scope| {
            let inward = scope.spawn(|| {
                server.write_all(&noise(1)).unwrap();
                finish(&server);
                read_all(|buffer| server.read(buffer))
            });
            client.send(&noise(2));
            client.finish();
            let outward = client.receive_all();
            (inward.join().unwrap(), outward)
        }),
        Script::ClientResets => {
            client.reset();
            (read_all(|buffer| server.read(buffer)), (Vec::new(), End::Own))
        }
        Script::UpstreamResets => {
            reset(server);
            ((Vec::new(), End::Own), client.receive_all())
        }
    };
    received.extend(rest);
    let (header, upstream) = take_header(&received, own, proxy);
    Seen { header, upstream: upstream.to_vec(), upstream_end, client: answer, client_end }
}

/// Less than sockets take while nobody reads, so that each side may write before it reads.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..60_000).map(|_| random.number() as u8).collect()
}

/// Splits off the header, in which addresses have become roles: their ports differ from run to run.
fn take_header(received: &[u8], client: SocketAddr, proxy: SocketAddr) -> (String, &[u8]) {
    let role = |address: SocketAddr| match address {
        address if address == client => "client".to_owned(),
        address if address == proxy => "proxy".into(),
        address if address == SOURCE.parse().unwrap() => "source".into(),
        address if address == DESTINATION.parse().unwrap() => "destination".into(),
        other => other.to_string(),
    };
    if received.starts_with(b"PROXY ") {
        let end = received.windows(2).position(|two| two == b"\r\n").unwrap();
        let line = str::from_utf8(&received[..end]).unwrap();
        let fields: Vec<_> = line.split(' ').collect();
        let [_, family, from, to, from_port, to_port] = fields[..] else { panic!("{line}") };
        let address = |ip: &str, port: &str| role(format!("{ip}:{port}").parse().unwrap());
        (format!("1 {family} {} {}", address(from, from_port), address(to, to_port)), &received[end + 2..])
    } else if received.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
        assert_eq!(received[12..16], [0x21, 0x11, 0, 12], "no plain header of TCP over IPv4");
        let address = |ip: usize, port: usize| {
            let ip: [u8; 4] = received[ip..ip + 4].try_into().unwrap();
            role((ip, u16::from_be_bytes([received[port], received[port + 1]])).into())
        };
        (format!("2 TCP4 {} {}", address(16, 24), address(20, 26)), &received[28..])
    } else {
        ("none".into(), received)
    }
}

/// The reference's configuration. Its checks of servers are left out, since they are no client's, and a second after a
/// half-close is too little for a test on a busy machine.
fn reference(
    binds: &[String; PORTS.len()],
    certificate: &Certificate,
    upstreams: &BTreeMap<&str, Upstream>,
    send_proxy: &str,
) -> String {
    let mut text = "global\n  tune.bufsize 4096\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout client-fin 20s\n  \
                    timeout server-fin 20s\n  timeout connect 5s\n  timeout client 200s\n  timeout server 200s\n"
        .to_owned();
    for (port, bind) in PORTS.iter().zip(binds) {
        let ssl = if port.tls { format!(" ssl crt {}", certificate.both().display()) } else { String::new() };
        let accept = if port.told { " accept-proxy" } else { "" };
        let Port { name, upstream, .. } = port;
        text += &format!("frontend {name}\n  bind {bind}{ssl}{accept}\n  default_backend {upstream}\n");
    }
    for (name, upstream) in upstreams {
        let option = if *name == "media" { "" } else { send_proxy };
        text += &format!("backend {name}\n  server {name} {} {option}\n", upstream.address());
    }
    text
}

fn setu(path: Path, state: &std::path::Path, upstreams: &BTreeMap<&str, Upstream>, version: &str) -> Setu {
    let mut more = String::new();
    for Port { name, tls, told, upstream } in PORTS {
        let mode = match (upstream, tls) {
            ("media", _) => "media",
            (_, true) => "chat-tls",
            (_, false) => "chat",
        };
        let keys = format!("mode = \"{mode}\"\nupstream = \"{upstream}\"\naccept_proxy_protocol = {told}");
        more += &listener(name, &keys);
    }
    for (name, at) in upstreams {
        more += &upstream(name, at.address(), if *name == "media" { "off" } else { version });
    }
    Setu::start(&front_door(path, state, &more))
}

fn compare(path: Path, version: &str, send_proxy: &str) {
    let upstreams: BTreeMap<_, _> = UPSTREAMS.iter().map(|name| (*name, Upstream::new())).collect();
    let certificate = Certificate::new(&["proxy.whatsapp.net"]);
    let state = tempfile::tempdir().unwrap();
    let mut setu = setu(path, state.path(), &upstreams, version);
    let haproxy = Server::haproxy(|binds| reference(&binds, &certificate, &upstreams, send_proxy));
    for (index, port) in PORTS.iter().enumerate() {
        let headers = if port.told { &[Some(Header::V1), Some(Header::V2)][..] } else { &[None] };
        let servers = &upstreams[port.upstream];
        for (header, script) in headers.iter().flat_map(|header| SCRIPTS.map(|script| (*header, script))) {
            let modern = index % 2 == 0 || !matches!(header, Some(Header::V2));
            let [ours, theirs] = [setu.address(port.name), haproxy.address(index)]
                .map(|proxy| play(script, port, header, proxy, servers, modern));
            let what = format!("{} {header:?} {script:?}", port.name);
            match script {
                Script::ClientResets => {
                    assert_eq!((ours.upstream_end, ours.client_end), (End::Reset, End::Own), "{what}");
                    assert_eq!((&ours.header, &ours.upstream), (&theirs.header, &theirs.upstream), "{what}");
                }
                Script::UpstreamResets => {
                    assert_eq!((ours.upstream_end, ours.client_end), (End::Own, End::Reset), "{what}");
                    assert_eq!((&ours.header, &ours.client), (&theirs.header, &theirs.client), "{what}");
                }
                _ => assert!(ours == theirs, "{what}: setu {ours:?}\nthe reference {theirs:?}"),
            }
            // That they agree says nothing if both are wrong.
            let roles = if port.told { "TCP4 source destination" } else { "TCP4 client proxy" };
            let number = version.trim_start_matches('v');
            let expected = if port.upstream == "media" { "none".into() } else { format!("{number} {roles}") };
            assert_eq!(ours.header, expected, "{what}");
        }
        // Without the header that it requires, nobody comes through.
        if port.told {
            for proxy in [setu.address(port.name), haproxy.address(index)] {
                let mut client = connect(proxy);
                client.write_all(CHAT).unwrap();
                let (answer, _) = read_all(|buffer| client.read(buffer));
                assert_eq!(answer, b"", "{}", port.name);
            }
        }
    }
    setu.wait_closed("proxy_malformed", 3);
    let (status, reasons) = setu.stop();
    assert!(status.success());
    let told = PORTS.iter().filter(|port| port.told).count() as u64;
    let ways = PORTS.len() as u64 + told;
    let expected = [
        ("client_closed", None),
        ("client_reset", Some(ways)),
        ("proxy_malformed", Some(told)),
        ("upstream_closed", None),
        ("upstream_reset", Some(ways)),
    ];
    for (reason, count) in &reasons {
        let known = expected.iter().find(|(name, _)| name == reason);
        assert!(
            known.is_some_and(|(_, expected)| expected.is_none_or(|expected| expected == *count)),
            "{reasons:?}"
        );
    }
    assert_eq!(reasons.values().sum::<u64>(), ways * SCRIPTS.len() as u64 + told, "{reasons:?}");
}

fn upstreams_are_told_by_version_1(path: Path) {
    compare(path, "v1", "send-proxy");
}

fn upstreams_are_told_by_version_2(path: Path) {
    compare(path, "v2", "send-proxy-v2");
}
