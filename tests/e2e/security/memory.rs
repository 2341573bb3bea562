//! What setu's memory tells of clients that have left: nothing. Whoever seizes the machine, or reads its swap, finds
//! nobody who is not connected.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, front_door, listener,
    machine::is_root,
    peers::{PATIENCE, Upstream},
    tls, upstream,
};
use socket2::{Domain, Socket, Type};

crate::on_both_paths! {
    who_has_left_is_forgotten
}

/// Clients of each kind.
const COUNT: u8 = 200;
const CHAT: &[u8] = b"WA\x06\x03hello";

/// Bytes by which a client would be found.
struct Needle {
    whose: String,
    bytes: Vec<u8>,
}

fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 79, 10 + number / 100, 17 + number % 100)
}

fn proxied(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 10 + number / 100, 17 + number % 100)
}

/// Never seen: how many are found by chance.
fn stranger(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 83, 10 + number / 100, 17 + number % 100)
}

fn connect_from(ip: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Says hello, and hears it again.
fn chat(stream: &mut TcpStream, before: &[u8]) {
    stream.write_all(&[before, CHAT].concat()).unwrap();
    let mut echo = [0; CHAT.len()];
    // What the upstream is told first comes back, too.
    let mut heard = Vec::new();
    while !heard.ends_with(CHAT) {
        let count = stream.read(&mut echo).unwrap();
        assert_ne!(count, 0, "closed early, after {heard:?}");
        heard.extend_from_slice(&echo[..count]);
    }
}

/// What a connected socket's address looks like where a program keeps it, and as text.
fn needles(whose: &str, at: SocketAddr) -> Vec<Needle> {
    let IpAddr::V4(ip) = at.ip() else { unreachable!("all are IPv4") };
    let port = at.port().to_be_bytes();
    let family = (libc::AF_INET as u16).to_ne_bytes();
    let mapped = ip.to_ipv6_mapped().octets();
    [
        ("a sockaddr", [&family[..], &port, &ip.octets()].concat()),
        ("a mapped address", mapped[8..].to_vec()),
        ("address and port", [&ip.octets()[..], &port].concat()),
        ("address and port of this machine's order", [&ip.octets()[..], &at.port().to_ne_bytes()].concat()),
        ("text", ip.to_string().into_bytes()),
    ]
    .map(|(form, bytes)| Needle { whose: format!("{whose} {ip} as {form}"), bytes })
    .into()
}

/// All of a process's memory that it can write, block by block.
fn memory(pid: u32) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let file = File::open(format!("/proc/{pid}/mem")).unwrap();
    let block = |line: &str| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        if !rights.starts_with("rw") {
            return None;
        }
        let (from, to) = range.split_once('-')?;
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        file.read_exact_at(&mut bytes, from).ok()?;
        Some(bytes)
    };
    maps.lines().filter_map(block).collect()
}

/// The numbers of those needles that are in memory. One pass over it: needles are found by their first four bytes.
fn found(blocks: &[Vec<u8>], needles: &[Needle]) -> BTreeSet<usize> {
    let mut by_head: HashMap<[u8; 4], Vec<usize>> = HashMap::new();
    // Almost all of memory is left out by this.
    let mut heads = vec![false; 1 << 16];
    let head = |bytes: &[u8]| usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    for (number, needle) in needles.iter().enumerate() {
        heads[head(&needle.bytes)] = true;
        by_head.entry(needle.bytes[..4].try_into().unwrap()).or_default().push(number);
    }
    let mut found = BTreeSet::new();
    for block in blocks {
        for (at, window) in block.windows(4).enumerate() {
            if !heads[head(window)] {
                continue;
            }
            let Some(numbers) = by_head.get(window) else { continue };
            found.extend(numbers.iter().filter(|number| block[at..].starts_with(&needles[**number].bytes)));
        }
    }
    found
}

fn who_has_left_is_forgotten(path: Path) {
    if !is_root() {
        println!("skipped: only root can read another process's memory");
        return;
    }
    let server = Upstream::new();
    let address = server.address();
    server.echo();
    let state = tempfile::tempdir().unwrap();
    let setup = [
        listener("chat", "mode = \"chat\"\nupstream = \"told\""),
        listener("proxied", "mode = \"chat\"\nupstream = \"told-1\"\naccept_proxy_protocol = true"),
        listener("tls", "mode = \"chat-tls\"\nupstream = \"told\""),
        upstream("told", &address, "v2"),
        upstream("told-1", &address, "v1"),
    ]
    .concat();
    let setu = Setu::start(&front_door(path, state.path(), &setup));
    let mut needles_of_clients = Vec::new();
    for number in 0..COUNT {
        let mut one = connect_from(client(number), setu.address("chat"));
        chat(&mut one, b"");
        needles_of_clients.extend(needles("client", one.local_addr().unwrap()));
        let mut other = TcpStream::connect(setu.address("proxied")).unwrap();
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = 40_000 + u16::from(number);
        chat(&mut other, format!("PROXY TCP4 {} 192.0.2.1 {port} 443\r\n", proxied(number)).as_bytes());
        needles_of_clients.extend(needles("proxied", (proxied(number), port).into()));
        if number % 10 == 0 {
            let plain = connect_from(Ipv4Addr::new(127, 80, 10, 17 + number), setu.address("tls"));
            needles_of_clients.extend(needles("inside TLS", plain.local_addr().unwrap()));
            let mut inside = tls::Tls::connect(&tls::client(&rustls::version::TLS13), "test", plain).unwrap();
            inside.send(CHAT).unwrap();
            assert_ne!(inside.receive(&mut [0; 64]).unwrap(), 0);
        }
    }
    // All at once: tables grow, and move.
    let mut crowd: Vec<_> =
        (0..COUNT).map(|number| connect_from(client(number), setu.address("chat"))).collect();
    for one in &mut crowd {
        chat(one, b"");
        needles_of_clients.extend(needles("one of a crowd", one.local_addr().unwrap()));
    }
    drop(crowd);
    // The rate of a source is remembered for a while; what is looked for is gone at once, but for flows that end.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let blocks = memory(setu.pid());
        let left = found(&blocks, &needles_of_clients);
        if left.is_empty() {
            break;
        }
        let whose: Vec<_> = left.iter().map(|number| needles_of_clients[*number].whose.as_str()).collect();
        assert!(
            Instant::now() < deadline,
            "{} are in memory: {:?}",
            left.len(),
            &whose[..left.len().min(20)]
        );
        thread::sleep(Duration::from_secs(1));
    }
    // An address alone is four bytes, which are found by chance; a table of sources has them all.
    let alone = |address: fn(u8) -> Ipv4Addr| -> Vec<_> {
        let both = |number| {
            let octets = address(number).octets();
            let mut reversed = octets;
            reversed.reverse();
            [octets, reversed].map(|bytes| Needle { whose: String::new(), bytes: bytes.into() })
        };
        (0..COUNT).flat_map(both).collect()
    };
    let blocks = memory(setu.pid());
    let [clients, behind, chance] = [client, proxied, stranger].map(|of| found(&blocks, &alone(of)).len());
    println!(
        "{} MB of memory: {clients} clients, {behind} behind a proxy, {chance} by chance, of {COUNT}",
        { blocks.iter().map(Vec::len).sum::<usize>() / 1_000_000 }
    );
    assert!(
        clients.max(behind) <= chance + usize::from(COUNT) / 20,
        "{clients}, {behind}, {chance} by chance"
    );
    assert!(setu.stop().0.success());
}
