//! Flows on the wire: nothing of setu's is between both ends, and its end and its successors are.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    admin::{eventually, get},
    machine::raise_file_limit,
    network::{Network, SERVERS},
    peers::{Upstream, end_of, exchange, finish},
};

pub(super) const PATIENCE: Duration = Duration::from_secs(90);
/// Nobody ends a flow for its silence in a test, and no start waits for upstreams.
pub(super) const CALM: &str = "[timeouts]\nidle = \"10m\"\n";

pub(super) fn config(network: &Network, upstream: &Upstream, more: &str) -> String {
    let config = network.config(Path::Wire, &[upstream.address()], more);
    config.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]")
}

/// What setu counts.
pub(super) fn counts(network: &Network, admin: SocketAddr) -> BTreeMap<String, u64> {
    let text = network.proxy.within(|| {
        let mut stream = TcpStream::connect(admin).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let number = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse::<f64>().ok()? as u64))
    };
    text.lines().filter_map(number).collect()
}

/// Waits until a number is what it is to be.
pub(super) fn await_count(network: &Network, setu: &mut Setu, name: &str, wanted: u64) {
    let (admin, deadline) = (setu.admin(), Instant::now() + PATIENCE);
    loop {
        let all = counts(network, admin);
        if all.get(name) == Some(&wanted) {
            return;
        }
        let wire: Vec<_> = all.iter().filter(|(name, value)| name.contains("wire") && **value > 0).collect();
        assert!(Instant::now() < deadline, "{name} does not become {wanted}: {wire:?}\n{}", setu.tail());
        thread::sleep(Duration::from_millis(50));
    }
}

/// The keeper of a setu.
pub(super) fn keeper(setu: &Setu) -> String {
    let output = Command::new("pgrep").args(["-P", &setu.pid().to_string()]).output().unwrap();
    let pid = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "setu-keeper");
    pid
}

pub(super) fn is_gone(pid: &str) -> bool {
    // Whoever has not been waited for is a zombie.
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

pub(super) type Flows = Vec<(TcpStream, TcpStream)>;

pub(super) fn spliced(network: &Network, setu: &mut Setu, upstream: &Upstream, count: u64) -> Flows {
    let flows = (0..count).map(|_| network.flow(setu, upstream)).collect();
    await_count(network, setu, "setu_wire_flows", count);
    // Until both ends have all of setu's own bytes its sockets are there, and their end is the flow's.
    let deadline = Instant::now() + PATIENCE;
    while network.connections() > 0 {
        assert!(Instant::now() < deadline, "{} sockets are left", network.connections());
        thread::sleep(Duration::from_millis(20));
    }
    flows
}

pub(super) fn talk(flows: &Flows) {
    for (client, server) in flows {
        exchange(client, server, &[7; 30_000]);
        exchange(server, client, &[8; 30_000]);
    }
}

#[test]
fn nothing_of_setu_is_left_of_a_flow_but_its_account() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
    let before = setu.descriptors_at_rest();
    let flows = spliced(&network, &mut setu, &upstream, 20);
    talk(&flows);
    // Connections that were asked for their counts are gone as well.
    let deadline = Instant::now() + PATIENCE;
    while setu.descriptors() > before {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", setu.descriptors());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(network.connections(), 0, "sockets of setu's host");
    for (client, server) in &flows {
        finish(client);
        assert_eq!(end_of(server).unwrap(), 0);
        exchange(server, client, b"the other way goes on");
        finish(server);
        assert_eq!(end_of(client).unwrap(), 0);
    }
    setu.wait_closed("client_closed", 20);
    let all = counts(&network, setu.admin());
    assert_eq!((all["setu_wire_handed_over_total"], all["setu_wire_torn_total"]), (20, 0));
    assert!(all["setu_bytes_total{direction=\"upstream\"}"] >= 20 * 30_000);
}

/// An upstream that has not heard the end of the handshake takes nothing but that.
#[test]
fn a_flow_waits_until_its_upstream_has_heard_of_it() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
    // The handshake goes on, its last acknowledgement and all that comes after it do not.
    network.servers.nft(
        "add table ip faults; add chain ip faults arriving { type filter hook prerouting priority -300; }; \
         add rule ip faults arriving tcp flags & (syn | ack) == ack drop",
    );
    let mut client = network.client(&setu);
    client.write_all(b"more").unwrap();
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert_eq!(counts(&network, setu.admin())["setu_wire_handed_over_total"], 0, "{}", setu.tail());
        thread::sleep(Duration::from_millis(100));
    }
    network.servers.nft("delete table ip faults");
    let mut server = upstream.answer();
    let mut more = [0; 4];
    server.read_exact(&mut more).unwrap();
    assert_eq!(&more, b"more");
    await_count(&network, &mut setu, "setu_wire_flows", 1);
    talk(&vec![(client, server)]);
}

#[test]
fn flows_outlive_setu_and_are_its_successors() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let config = config(&network, &upstream, CALM);
    let mut setu = network.start_with_pins(&config, "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 20);
    let first = keeper(&setu);
    // All of it dies.
    setu.kill();
    Command::new("kill").args(["-9", &first]).status().unwrap();
    talk(&flows);
    let mut second = network.start_with_pins(&config, "debug", &[]);
    await_count(&network, &mut second, "setu_wire_flows", 20);
    talk(&flows);
    // Its keeper outlives it, until the next is there.
    let orphan = keeper(&second);
    second.kill();
    talk(&flows);
    let mut third = network.start_with_pins(&config, "debug", &[]);
    await_count(&network, &mut third, "setu_wire_flows", 20);
    assert!(is_gone(&orphan));
    talk(&flows);
    let more = network.flow(&third, &upstream);
    await_count(&network, &mut third, "setu_wire_flows", 21);
    talk(&vec![more]);
    for (client, server) in &flows {
        finish(server);
        assert_eq!(end_of(client).unwrap(), 0);
        finish(client);
        assert_eq!(end_of(server).unwrap(), 0);
    }
    third.wait_closed("upstream_closed", 20);
}

/// What is pinned is the first one's, and no keeper is left of a setu that did not start or has ended.
#[test]
fn a_second_setu_takes_nothing_from_the_first() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let config = config(&network, &upstream, CALM);
    let mut first = network.start_with_pins(&config, "debug", &[]);
    let flows = spliced(&network, &mut first, &upstream, 5);
    let pinned = || network.pins.all().into_iter().filter(|path| path.starts_with("setu")).count();
    let before = pinned();
    assert!(before > 0);
    let keepers = || {
        let inode = network.proxy.within(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
        let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let is_one = |path: &std::path::PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "setu-keeper")
                && fs::read_link(path.join("ns/net")).is_ok_and(|link| link == inode)
        };
        all.filter(is_one).count()
    };
    // It cannot listen where the first does.
    let taken = config.replace("10.79.1.1:0", &first.address("chat").to_string());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    fs::write(&file, taken).unwrap();
    let mut command = network.pins.command(&network.proxy, &Setu::binary().display().to_string());
    command.args(["run", "--config"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(!command.status().unwrap().success());
    let second = network.start_with_pins(&config, "debug", &[]);
    assert!(second.stop().0.success());
    let deadline = Instant::now() + PATIENCE;
    while keepers() != 1 {
        assert!(Instant::now() < deadline, "{} keepers", keepers());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(pinned(), before);
    talk(&flows);
    let keeper = keeper(&first);
    first.kill();
    Command::new("kill").args(["-9", &keeper]).status().unwrap();
    talk(&flows);
}

/// Whoever waits for the flows of a state directory goes on with its pins, also when who had them ends in order.
#[test]
fn who_waits_for_another_that_ends_has_pins_as_well() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let config = config(&network, &upstream, &format!("{CALM}drain = \"1s\"\n"));
    let mut first = network.start_with_pins(&config, "debug", &[]);
    let old = spliced(&network, &mut first, &upstream, 3);
    let mut second = network.start_with_pins(&config, "debug", &[]);
    second.wait_count("another keeper has the connections of this state directory", 1);
    let (admin, note) = (second.admin(), "another keeper has the connections of this state directory");
    let status = || network.proxy.within(|| get(admin, "/status.json").body);
    eventually("the page says so", status, |text| text.contains(note));
    assert!(first.stop().0.success());
    for (client, server) in &old {
        assert!(end_of(client).is_err() && end_of(server).is_err(), "a stop resets them");
    }
    second.wait_count("the other keeper is gone", 1);
    eventually("the page says it no more", status, |text| !text.contains(note));
    assert_eq!(second.count("go on connections="), 0, "none does");
    let flows = spliced(&network, &mut second, &upstream, 3);
    let keeper = keeper(&second);
    second.kill();
    Command::new("kill").args(["-9", &keeper]).status().unwrap();
    talk(&flows);
    let third = network.start_with_pins(&config, "debug", &[]);
    assert_eq!(third.count("those that were on the wire go on connections=3"), 1, "{}", third.log());
    talk(&flows);
}

/// Under traffic: all of setu dies, setu alone dies, and one replaces the other.
#[test]
fn hundreds_of_flows_that_talk_outlive_every_end_of_setu() {
    const FLOWS: u64 = 300;
    if !crate::may_use_kernel() {
        return;
    }
    raise_file_limit();
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let state = tempfile::tempdir().unwrap();
    let more =
        format!("{CALM}[limits]\nper_source = 1000\n[tls]\nstate_dir = \"{}\"\n", state.path().display());
    let config = config(&network, &upstream, &more);
    let mut first = network.start_with_pins(&config, "debug", &[]);
    let flows = spliced(&network, &mut first, &upstream, FLOWS);
    let (is_over, said) = (AtomicBool::new(false), AtomicU64::new(0));
    // Each flow speaks after every step, and all the time.
    let await_more = || {
        let before = said.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while said.load(Ordering::Relaxed) < before + 2 * FLOWS {
            assert!(Instant::now() < deadline, "flows do not go on");
            thread::sleep(Duration::from_millis(10));
        }
    };
    thread::scope(|scope| {
        for (part, some) in flows.chunks(FLOWS as usize / 4).enumerate() {
            let (is_over, said) = (&is_over, &said);
            scope.spawn(move || {
                let end = Instant::now() + 10 * PATIENCE;
                for round in 0.. {
                    if is_over.load(Ordering::Relaxed) || Instant::now() > end {
                        break;
                    }
                    for (number, (client, server)) in some.iter().enumerate() {
                        // No other flow's, no other round's, and no other place's.
                        let begin = part * 7_919 + number * 101 + round;
                        let bytes: Vec<u8> = (begin..begin + 3_000).map(|at| (at % 251) as u8).collect();
                        exchange(client, server, &bytes);
                        exchange(server, client, &bytes[1_000..1_300]);
                        said.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _over = Over(&is_over);
        await_more();
        let keeper = keeper(&first);
        first.kill();
        Command::new("kill").args(["-9", &keeper]).status().unwrap();
        await_more();
        let mut second = network.start_with_pins(&config, "debug", &[]);
        await_count(&network, &mut second, "setu_wire_flows", FLOWS);
        await_more();
        let mut third = network.start_with_pins(&config, "debug", &["--replace"]);
        assert!(second.ended().0.success());
        await_count(&network, &mut third, "setu_wire_flows", FLOWS);
        await_more();
        third.kill();
        await_more();
        let mut fourth = network.start_with_pins(&config, "debug", &[]);
        await_count(&network, &mut fourth, "setu_wire_flows", FLOWS);
        await_more();
        assert_eq!(counts(&network, fourth.admin())["setu_closed_total{reason=\"internal_error\"}"], 0);
    });
}

/// Ends what others do until then, also when this panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_end_in_order_resets_both_sides_and_leaves_nothing() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let more = "[timeouts]\nidle = \"10m\"\ndrain = \"1s\"\n";
    let mut setu = network.start_with_pins(&config(&network, &upstream, more), "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 5);
    talk(&flows);
    let keeper = keeper(&setu);
    let pinned =
        || network.pins.all().into_iter().filter(|path| path.starts_with("setu")).collect::<Vec<_>>();
    assert!(!pinned().is_empty());
    let (status, reasons) = setu.stop();
    assert!(status.success());
    assert_eq!(reasons.get("shutdown"), Some(&5), "{reasons:?}");
    for (client, server) in &flows {
        for end in [client, server] {
            let error = end_of(end).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    assert!(is_gone(&keeper));
    assert!(pinned().is_empty(), "{:?}", pinned());
}
