//! Upstreams with several endpoints, names, and sources: what fails there must not reach a client that could be served.

use std::{
    fs::{self, Permissions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    NOT_PLACED, ONE_SOURCE, Path, Setu, admin, config,
    dns::{Answer, DnsServer},
    netns::Netns,
    network::{Network, SERVERS},
    peers::{PATIENCE, Silent, Upstream, call, connect, end_of, exchange},
};
use tempfile::NamedTempFile;

crate::on_both_paths! {
    two_of_three_are_killed_during_ten_thousand_connections
    one_of_three_flaps
    one_of_three_is_silent
    the_last_falls_while_the_others_are_left_alone
    all_are_down_and_one_comes_back
    an_upstream_moves_while_flows_run
    resolvers_fail_and_lie
    stopping_waits_for_no_resolver
    out_of_ephemeral_ports
}

/// A configuration before several endpoints.
fn several(path: Path, endpoints: &[String], more: &str) -> String {
    config(path, &endpoints.join("\", \""), more)
}

fn free_address() -> String {
    Upstream::new().address()
}

/// Connects, has a message echoed, and closes.
fn attempt(setu: SocketAddr) -> io::Result<()> {
    let mut client = TcpStream::connect(setu)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"sixteen bytes...")?;
    let mut echo = [0; 16];
    client.read_exact(&mut echo)?;
    assert_eq!(&echo, b"sixteen bytes...");
    Ok(())
}

/// An echo server in a process of its own, so that it can be killed: [`role`] of this binary.
struct Killable(Child);

impl Killable {
    fn start(address: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "faults::upstreams::role", "--ignored", "--nocapture"]);
        let server = Self(command.env("SETU_TEST_ADDRESS", address).spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the echo server does not start");
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Kills it; until this returns, connections that it had may break.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not a test: what [`Killable`] runs.
#[test]
#[ignore = "a role that other tests start as a child process"]
fn role() {
    let Ok(address) = std::env::var("SETU_TEST_ADDRESS") else { return };
    Upstream::on(&address).echo();
    thread::sleep(Duration::from_secs(300));
}

fn two_of_three_are_killed_during_ten_thousand_connections(path: Path) {
    const ATTEMPTS: usize = 10_000;
    const CLIENTS: usize = 16;
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let mut servers: Vec<_> = addresses.iter().map(|address| Killable::start(address)).collect();
    let setu = Setu::start(&several(path, &addresses, ONE_SOURCE));
    let proxy = setu.address("chat");
    let done = AtomicUsize::new(0);
    let failures: Mutex<Vec<(Instant, Instant)>> = Mutex::default();
    let mut kills: Vec<(Instant, Instant)> = Vec::new();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while done.fetch_add(1, Ordering::Relaxed) < ATTEMPTS {
                    let begun = Instant::now();
                    if attempt(proxy).is_err() {
                        failures.lock().unwrap().push((begun, Instant::now()));
                    }
                }
            });
        }
        for (server, after) in servers.iter_mut().zip([ATTEMPTS / 3, ATTEMPTS * 2 / 3]) {
            while done.load(Ordering::Relaxed) < after {
                thread::sleep(Duration::from_millis(1));
            }
            let begun = Instant::now();
            server.kill();
            kills.push((begun, Instant::now()));
        }
    });
    let failures = failures.into_inner().unwrap();
    // Only a connection that the killed server had accepted may break, and nobody else could have carried that on.
    let unexplained = failures
        .iter()
        .filter(|(begun, ended)| !kills.iter().any(|(from, until)| begun <= until && ended >= from));
    assert_eq!(unexplained.count(), 0, "{failures:?} {kills:?}\n{}", setu.tail());
    assert!(failures.len() <= 2 * CLIENTS, "{} failures", failures.len());
    let (status, reasons) = setu.stop();
    assert!(status.success());
    for reason in NOT_PLACED {
        assert_eq!(reasons.get(reason), None, "{reasons:?}");
    }
    println!(
        "{}: {ATTEMPTS} attempts, two of three endpoints killed: {} failed, all established with the killed one at \
         that moment; setu found an endpoint for every one ({reasons:?})",
        path.name(),
        failures.len()
    );
}

fn one_of_three_flaps(path: Path) {
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let _steady: Vec<_> = addresses[1..].iter().map(|address| Killable::start(address)).collect();
    let setu = Setu::start(&several(path, &addresses, ""));
    let descriptors = setu.descriptors_at_rest();
    let proxy = setu.address("chat");
    let (mut failed, mut flaps) = (0, Vec::new());
    for _ in 0..4 {
        let mut flapping = Killable::start(&addresses[0]);
        flaps.push((0..150).filter(|_| attempt(proxy).is_err()).count());
        // Nobody is connected: what fails from now on is not the kill's fault.
        flapping.kill();
        failed += (0..150).filter(|_| attempt(proxy).is_err()).count();
    }
    assert_eq!((failed, flaps.iter().sum::<usize>()), (0, 0), "{}", setu.tail());
    let deadline = Instant::now() + PATIENCE;
    while setu.descriptors() > descriptors {
        assert!(Instant::now() < deadline, "{} descriptors, {descriptors} before", setu.descriptors());
        thread::sleep(Duration::from_millis(20));
    }
    let (_, reasons) = setu.stop();
    for reason in NOT_PLACED {
        assert_eq!(reasons.get(reason), None, "{reasons:?}");
    }
}

fn one_of_three_is_silent(path: Path) {
    let silent = Silent::new("127.0.0.1:0");
    let living = [free_address(), free_address()];
    let _servers: Vec<_> = living.iter().map(|address| Killable::start(address)).collect();
    let all = [&[silent.address().to_string()][..], &living].concat();
    let mut setu = Setu::start(&several(path, &all, ""));
    let proxy = setu.address("chat");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| attempt(proxy).unwrap()));
        }
    });
    setu.wait_count("endpoint is down", 1);
    let (_, reasons) = setu.stop();
    for reason in NOT_PLACED {
        assert_eq!(reasons.get(reason), None, "{reasons:?}");
    }
}

fn the_last_falls_while_the_others_are_left_alone(path: Path) {
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let mut last = Killable::start(&addresses[2]);
    let mut setu = Setu::start(&several(path, &addresses, ONE_SOURCE));
    let proxy = setu.address("chat");
    (0..30).for_each(|_| attempt(proxy).unwrap());
    setu.wait_count("endpoint is down", 2);
    // Their back-offs grow: tried after 1 s and 3 s, they would be left alone until 7 s.
    thread::sleep(Duration::from_secs(5));
    let _others: Vec<_> = addresses[..2].iter().map(|address| Killable::start(address)).collect();
    last.kill();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..20).for_each(|_| attempt(proxy).unwrap()));
        }
    });
    let (_, reasons) = setu.stop();
    for reason in NOT_PLACED {
        assert_eq!(reasons.get(reason), None, "{reasons:?}");
    }
}

fn all_are_down_and_one_comes_back(path: Path) {
    let addresses = [free_address(), free_address()];
    let mut setu = Setu::start(&several(path, &addresses, ONE_SOURCE));
    let proxy = setu.address("chat");
    // Both are tried for each client, until both are ejected after the third.
    for _ in 0..8 {
        assert_eq!(end_of(&call(proxy)).unwrap_or(0), 0);
    }
    setu.wait_closed("upstream_down", 1);
    assert_eq!(setu.count("closed reason=connect_refused "), 3, "{}", setu.tail());
    assert_eq!(setu.count("endpoint is down"), 2);
    let _server = Killable::start(&addresses[1]);
    setu.wait_count("endpoint is up again", 1);
    for _ in 0..20 {
        attempt(proxy).unwrap();
    }
}

/// A listener on a port that is free on both loopback addresses.
fn two_hosts() -> (Upstream, Upstream, u16) {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.2", port)).is_ok() {
            drop(first);
            let host = |ip: &str| Upstream::on(&format!("{ip}:{port}"));
            return (host("127.0.0.1"), host("127.0.0.2"), port);
        }
    }
}

fn an_upstream_moves_while_flows_run(path: Path) {
    let (old, new, port) = two_hosts();
    let server = DnsServer::new();
    server.set("chat.test", Answer::addresses(&["127.0.0.1"], 1));
    let more = format!("[dns]\nservers = [\"{}\"]\n", server.address());
    let setu = Setu::start(&config(path, &format!("chat.test:{port}"), &more));
    let (client, flow) = old.connect(setu.address("chat"));
    exchange(&client, &flow, b"before");
    server.set("chat.test", Answer::addresses(&["127.0.0.2"], 1));
    new.echo();
    // Whoever comes before setu has heard of it goes to the old one, which accepts nobody any more.
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        let mut client = connect(setu.address("chat"));
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        client.write_all(b"new?").unwrap();
        if client.read_exact(&mut [0; 4]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the move is not noticed\n{}", setu.tail());
    }
    exchange(&client, &flow, b"the old flow goes on");
    exchange(&flow, &client, b"both ways");
}

fn resolvers_fail_and_lie(path: Path) {
    let address = free_address();
    let port = address.rsplit_once(':').unwrap().1;
    let _upstream = Killable::start(&address);
    let server = DnsServer::new();
    server.set("chat.test", Answer::addresses(&["127.0.0.1"], 1));
    let more = format!("[dns]\nservers = [\"{}\"]\n", server.address());
    let mut setu = Setu::start(&config(path, &format!("chat.test:{port}"), &more));
    attempt(setu.address("chat")).unwrap();
    for (lie, reason) in [(Answer::NoSuchName, "no_such_name"), (Answer::Silence, "unanswered")] {
        server.set("chat.test", lie);
        setu.wait_count(&format!("does not resolve name=chat.test reason=\"{reason}\" stale=true"), 1);
        for _ in 0..10 {
            attempt(setu.address("chat")).unwrap();
        }
    }
    server.set("chat.test", Answer::addresses(&["127.0.0.1"], 1));
    setu.wait_count("the name resolves again", 1);
    attempt(setu.address("chat")).unwrap();
    let (_, reasons) = setu.stop();
    for reason in NOT_PLACED {
        assert_eq!(reasons.get(reason), None, "{reasons:?}");
    }
}

/// A name has three addresses, and two of them are dead: who comes first finds out, and nobody after him asks them again.
#[test]
fn dead_addresses_are_found_out_once() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let (dead, living) = (&SERVERS[..2], SERVERS[2]);
    let upstream = network.upstream(living);
    let server = network.proxy.within(DnsServer::new);
    server.set("chat.test", Answer::addresses(&SERVERS, 3_600));
    let dead = dead.join(", ");
    network.proxy.nft(&format!("add rule ip faults leaving ip daddr {{ {dead} }} counter drop"));
    let asked = || {
        let listed = network.proxy.command("nft").args(["list", "chain", "ip", "faults", "leaving"]).output();
        let text = String::from_utf8(listed.unwrap().stdout).unwrap();
        let packets = text.split_once("counter packets ").unwrap().1.split(' ').next().unwrap();
        packets.parse::<usize>().unwrap()
    };
    let endpoint = upstream.address().replace(living, "chat.test");
    let more = format!("[dns]\nservers = [\"{}\"]\n", server.address());
    let setu = network.setu(Path::Userspace, &[endpoint], &more);
    let mut flows = vec![network.flow(&setu, &upstream)];
    let first = asked();
    assert!(first >= 2, "the dead ones come first: {first} packets");
    flows.extend((0..20).map(|_| network.flow(&setu, &upstream)));
    for (client, server) in &flows {
        exchange(client, server, b"to the living one");
    }
    assert_eq!(asked(), first, "the dead ones were asked again");
}

fn stopping_waits_for_no_resolver(path: Path) {
    let server = DnsServer::new();
    server.set("chat.test", Answer::Silence);
    let more = format!("[dns]\nservers = [\"{}\"]\n[timeouts]\nconnect = \"1h\"\n", server.address());
    let text = config(path, "chat.test:5222", &more);
    let setu = Setu::start(&text.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]"));
    let admin = setu.admin();
    let _waiting: Vec<_> = (0..10).map(|_| call(setu.address("chat"))).collect();
    let deadline = Instant::now() + PATIENCE;
    let all_wait = || {
        let metrics = admin::get(admin, "/metrics").body;
        let accepted = "setu_connections_total{listener=\"chat\"} ";
        let accepted = metrics.lines().find_map(|line| line.strip_prefix(accepted));
        server.queries() > 0 && accepted.unwrap().parse::<f64>().unwrap() == 10.0
    };
    while !all_wait() {
        assert!(Instant::now() < deadline, "nobody asks");
        thread::sleep(Duration::from_millis(10));
    }
    let (status, reasons) = setu.stop();
    assert!(status.success());
    assert_eq!(reasons.get("internal_error"), None, "{reasons:?}");
    assert_eq!(reasons.values().sum::<u64>(), 10, "{reasons:?}");
}

fn out_of_ephemeral_ports(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    const PORTS: usize = 4;
    let namespace = Netns::new();
    let set_range = |range: &str| {
        let set = format!("echo {range} > /proc/sys/net/ipv4/ip_local_port_range");
        assert!(namespace.command("sh").args(["-c", &set]).status().unwrap().success());
    };
    let second = namespace.address().trim_end_matches('2').to_owned() + "3";
    namespace.ip(&format!("address add {second}/24 dev {}", namespace.device()));
    let upstream = Upstream::on(&format!("{}:0", namespace.host_address()));
    for (sources, ports) in [(1, PORTS), (2, PORTS * 2)] {
        let all = [namespace.address(), second.clone()];
        let setup = config(path, &upstream.address(), "")
            .replace("127.0.0.1:0", &format!("{}:4000{sources}", namespace.address()))
            .replace("[security]", &format!("sources = {:?}\n[security]", &all[..sources]));
        // The self-test of the kernel path needs ports as well.
        set_range("32768 60999");
        let mut setu = Setu::start_in(&setup, Some(&namespace));
        set_range("50000 50003");
        let descriptors = setu.descriptors_at_rest();
        let proxy = setu.address("chat");
        let mut flows: Vec<_> = (0..ports).map(|_| upstream.connect(proxy)).collect();
        assert_eq!(end_of(&call(proxy)).unwrap_or(0), 0);
        setu.wait_closed("out_of_resources", 1);
        assert_eq!(setu.count("endpoint is down"), 0, "{}", setu.tail());
        // The client leaves first, so its place is free again when the upstream has left as well.
        let (client, server) = flows.pop().unwrap();
        drop(server);
        assert_eq!(end_of(&client).unwrap_or(0), 0);
        drop(client);
        // Its port is free once the kernel knows its connection no more.
        let taken = || {
            let mut command = namespace.command("ss");
            let output = command.args(["-Htan", "dst", &upstream.address()]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().lines().count()
        };
        admin::eventually("a port is free", taken, |taken| *taken < ports);
        flows.push(upstream.connect(proxy));
        for (client, server) in &flows {
            exchange(client, server, b"the others go on");
        }
        for (client, server) in flows {
            drop(server);
            assert_eq!(end_of(&client).unwrap_or(0), 0);
        }
        let deadline = Instant::now() + PATIENCE;
        while setu.descriptors() > descriptors {
            assert!(Instant::now() < deadline, "{} descriptors, {descriptors} before", setu.descriptors());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// With IPv6 switched off the error is that of a lack of ports.
#[test]
fn an_address_of_a_family_that_is_switched_off_is_out_of_reach() {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::alone();
    namespace.ip("link set lo up");
    namespace.set("net/ipv6/conf/all/disable_ipv6", "1");
    let text = config(Path::Userspace, "[::1]:5222", ONE_SOURCE)
        .replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:8199\"]");
    let mut setu = Setu::start_in(&text, Some(&namespace));
    let (chat, admin) = (setu.address("chat"), setu.admin());
    namespace.within(|| {
        for _ in 0..4 {
            let client = connect(chat);
            (&client).write_all(b"WA").unwrap();
            assert_eq!(end_of(&client).unwrap_or(0), 0);
        }
    });
    setu.wait_count("endpoint is down", 1);
    assert!(setu.count("closed reason=connect_unreachable ") > 0, "{}", setu.tail());
    assert_eq!(setu.count("out_of_resources"), 0, "{}", setu.tail());
    assert_eq!(namespace.within(|| admin::get(admin, "/readyz").status), 503);
}

/// The machine's own word on a name, which outdoes any resolver's.
#[test]
fn a_hosts_file_that_changes_is_followed() {
    if !crate::may_use_kernel() {
        return;
    }
    let (before, after, port) = two_hosts();
    let hosts = NamedTempFile::new().unwrap();
    fs::set_permissions(hosts.path(), Permissions::from_mode(0o644)).unwrap();
    let pin = |upstream: &Upstream| {
        let at: SocketAddr = upstream.address().parse().unwrap();
        fs::write(hosts.path(), format!("{} pinned.test\n", at.ip())).unwrap();
    };
    pin(&before);
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(hosts.path())
        .arg(Setu::binary());
    let setu =
        Setu::start_by(command, &config(Path::Userspace, &format!("pinned.test:{port}"), ONE_SOURCE), &[]);
    drop(before.connect(setu.address("chat")));
    pin(&after);
    // Without a reload; it is looked at every two seconds.
    thread::sleep(Duration::from_secs(4));
    drop(after.connect(setu.address("chat")));
}
