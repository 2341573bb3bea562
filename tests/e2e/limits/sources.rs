//! Who is one source: a carrier's address is that of thousands of phones, and a site has more networks than anybody could
//! count, but not as many shares.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, config,
    machine::raise_file_limit,
    network::{Network, PROXY_V6, SERVERS},
    peers::{Upstream, connect_from, end_of},
};

/// A client that is served and stays. `None`: it is turned away.
fn served(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let mut client = connect_from(from, to).ok()?;
    // Whoever is turned away may find out by either.
    client.write_all(b"WA").ok()?;
    end_of(&client).is_ok_and(|count| count > 0).then_some(client)
}

/// Answers all who come, and keeps them, in one thread.
fn answer(upstream: Upstream, clients: usize) -> thread::JoinHandle<Vec<TcpStream>> {
    thread::spawn(move || {
        let answer = |_| {
            let mut client = upstream.accept();
            let mut said = [0; 2];
            client.read_exact(&mut said).unwrap();
            client.write_all(&said).unwrap();
            client
        };
        (0..clients).map(answer).collect()
    })
}

/// A setu for clients of IPv6, with these limits.
fn site(limits: &str) -> Option<(Network, Setu)> {
    if !crate::may_use_kernel() {
        return None;
    }
    let network = Network::new();
    network.populate();
    let upstream = network.upstream(SERVERS[0]);
    let address = upstream.address();
    network.servers.within(|| upstream.echo());
    let door = format!(
        "[[listener]]\nname = \"v6\"\nbind = [\"[{PROXY_V6}]:0\"]\nmode = \"chat\"\nupstream = \"test\"\n"
    );
    let setu = network.setu(Path::Userspace, &[address], &format!("{door}[limits]\n{limits}"));
    Some((network, setu))
}

/// A host of a site (/48), in one of its 65,536 networks.
fn host(site: u16, network: u16, host: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, host).into()
}

#[test]
fn the_networks_of_a_site_share_its_places() {
    const EACH: usize = 4;
    let Some((network, mut setu)) = site(&format!("per_source = {EACH}\nper_source_rate = 0\n")) else {
        return;
    };
    let to = setu.address("v6");
    network.clients.within(|| {
        let all = |hosts: &mut dyn Iterator<Item = IpAddr>| {
            hosts.filter_map(|host| served(host, to)).collect::<Vec<_>>()
        };
        let network = all(&mut (1..=20).map(|number| host(1, 0x100, number)));
        assert_eq!(network.len(), EACH, "the addresses of a /64");
        let home = all(&mut (0..40).map(|number| host(1, 0x101 + number, 1)));
        assert_eq!(network.len() + home.len(), 4 * EACH, "the /64 of a /56");
        let site = all(&mut (0..100).map(|number| host(1, 0x200 + 0x80 * number, 1)));
        assert_eq!(network.len() + home.len() + site.len(), 16 * EACH, "the /56 of a /48");
        let others = all(&mut (2..22).map(|number| host(number, 0x100, 1)));
        assert_eq!(others.len(), 20, "other sites");
        // A place that is given up is there for another of the site.
        drop(home);
        setu.wait_closed("client_closed", 3 * EACH);
        assert!(served(host(1, 0xffff, 1), to).is_some());
    });
    setu.wait_closed("limit_per_source", 16 + 28 + 52);
    assert_eq!(setu.count("closed reason=limit_per_source "), 16 + 28 + 52);
}

#[test]
fn a_site_comes_no_faster_than_sixteen_clients() {
    /// Each second, after ten times as many.
    const RATE: usize = 2;
    /// Many more, so that the limit is met on a slow machine, too.
    const MOST: u16 = 4_000;
    let Some((network, setu)) = site(&format!("per_source = 0\nper_source_rate = {RATE}\n")) else { return };
    let to = setu.address("v6");
    network.clients.within(|| {
        let begun = Instant::now();
        // From home to home (/56) first, then from network to network.
        let is_in = |number: &u16| served(host(1, number.rotate_left(8), 1), to).is_some();
        let came = (0..MOST).take_while(is_in).count();
        // As many as the time allowed, however long it was; a second more for what is cut off.
        let earned = RATE * (begun.elapsed().as_secs() as usize + 1);
        assert!(
            (16 * 10 * RATE..=16 * (10 * RATE + earned)).contains(&came),
            "{came} in {:?}",
            begun.elapsed()
        );
        assert!(came < usize::from(MOST), "none was turned away");
        assert!(served(host(2, 1, 1), to).is_some(), "another site");
    });
}

/// By default one address is as good as thousands of phones: all come back at once, and stay.
#[test]
fn a_carriers_address_is_that_of_thousands() {
    /// `limits.per_source`, and the rate that goes with it.
    const CLIENTS: usize = 4_096;
    const RATE: u32 = 200;
    const BURST: usize = 10 * RATE as usize;
    raise_file_limit();
    let carrier = Ipv4Addr::new(127, 95, 0, 1).into();
    let upstream = Upstream::new();
    let mut setu = Setu::start(&config(Path::Userspace, &upstream.address(), ""));
    let server = answer(upstream, CLIENTS);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let Some(client) = served(carrier, setu.address("chat")) else {
            panic!("client {number} of one address was turned away\n{}", setu.tail());
        };
        clients.push(client);
        if number >= BURST {
            thread::sleep(Duration::from_secs(1) / RATE);
        }
    }
    let server = server.join().unwrap();
    // All of them are in at once; the next is one too many, and none but that.
    assert!(served(carrier, setu.address("chat")).is_none());
    setu.wait_closed("limit_per_source", 1);
    assert_eq!(setu.count("closed reason="), 1);
    drop((clients, server));
}

#[test]
fn who_is_exempt_has_no_limit() {
    let upstream = Upstream::new();
    let limits = "[limits]\nper_source = 2\nper_source_rate = 1\nexempt = [\"127.96.7.0/24\"]\n";
    let setu = Setu::start(&config(Path::Userspace, &upstream.address(), limits));
    upstream.echo();
    let come = |ip: [u8; 4]| -> Vec<_> {
        (0..40).filter_map(|_| served(Ipv4Addr::from(ip).into(), setu.address("chat"))).collect()
    };
    let (exempt, neighbour) = (come([127, 96, 7, 1]), come([127, 96, 8, 1]));
    assert_eq!((exempt.len(), neighbour.len()), (40, 2));
    // Each is one source, and both are in at once.
    assert_eq!(come([127, 96, 7, 1]).len(), 40, "{}", setu.tail());
}
