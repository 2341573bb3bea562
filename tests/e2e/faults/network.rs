//! Faults of networks and machines, between hosts of their own: links that lose, stall or are slow, peers that vanish,
//! and a setu that runs out of what it needs. Each test looks at the bytes that arrive, at the reasons that are counted,
//! and at whether setu holds no more afterwards than before.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    level::Level,
    network::{Network, SERVERS, TO_CLIENTS, TO_SERVERS},
    peers::{Manner, PATIENCE, Upstream, end_of, exchange, finish, receive, receive_some, reset, send},
};

const MB: usize = 1_000_000;

crate::on_both_paths! {
    upstream_refuses
    upstream_is_a_black_hole
    upstream_answers_after_the_deadline
    upstream_resets_in_mid_stream
    upstream_vanishes_in_mid_stream
    client_vanishes_without_fin
    client_vanishes_while_it_is_sent_to
    link_is_cut_for_thirty_seconds
    link_of_one_megabit_before_a_fast_upstream
    setu_is_out_of_descriptors
}

/// The hosts, when namespaces can be made.
fn network() -> Option<Network> {
    crate::may_use_kernel().then(Network::new)
}

/// A silence that is short enough to be waited for: the shortest that the kernel's questions can tell.
const VANISHED: &str = "[timeouts]\nvanished = \"3s\"\n";

/// Whether the stream ended, and with no byte more.
fn is_closed(stream: &TcpStream) -> bool {
    match end_of(stream) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// A new flow, when the upstream may have been sent others that say nothing: checks, and clients that are gone.
fn new_flow(network: &Network, setu: &Setu, upstream: &Upstream) -> (TcpStream, TcpStream) {
    let client = network.client(setu);
    (&client).write_all(b"is it there?").unwrap();
    let server = loop {
        let server = upstream.accept();
        let mut buffer = [0; 13];
        if (&server).read_exact(&mut buffer).is_ok() {
            assert_eq!(&buffer, b"\nis it there?");
            break server;
        }
    };
    exchange(&server, &client, b"it is");
    (client, server)
}

fn upstream_refuses(path: Path) {
    let Some(network) = network() else { return };
    // No endpoint is down before the third failure; then clients are closed without an attempt.
    let nobody = network.upstream(SERVERS[0]).address();
    let mut setu = network.setu(path, &[nobody], "");
    let before = Level::of(&setu, &network);
    for _ in 0..20 {
        assert!(is_closed(&network.client(&setu)));
    }
    setu.wait_closed("connect_refused", 3);
    setu.wait_closed("upstream_down", 17);
    before.wait(&setu, &network);
}

fn upstream_is_a_black_hole(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], "[timeouts]\nconnect = \"500ms\"\n");
    let before = Level::of(&setu, &network);
    network.lose(TO_SERVERS, "");
    let waiting: Vec<_> = (0..5).map(|_| network.client(&setu)).collect();
    for client in &waiting {
        assert!(is_closed(client));
    }
    setu.wait_closed("connect_timeout", 3);
    drop(waiting);
    before.wait(&setu, &network);
    // It is back once a check has found out.
    network.mend();
    setu.wait_count("endpoint is up again", 1);
    drop(new_flow(&network, &setu, &upstream));
    before.wait(&setu, &network);
}

fn upstream_answers_after_the_deadline(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], "[timeouts]\nconnect = \"700ms\"\n");
    let before = Level::of(&setu, &network);
    // The answer is on its way, but for the last step.
    network.proxy.nft(&format!(
        "add rule ip faults arriving iifname {TO_SERVERS} tcp flags & (syn | ack) == (syn | ack) drop"
    ));
    assert!(is_closed(&network.client(&setu)));
    setu.wait_closed("connect_timeout", 1);
    // The kernel sends it again after one second, and after three: nobody wants it any more.
    network.mend();
    let half_open = || {
        let output = network.servers.command("ss").args(["-Htan", "state", "syn-recv"]).output().unwrap();
        !output.stdout.is_empty()
    };
    let deadline = Instant::now() + PATIENCE;
    while half_open() {
        assert!(Instant::now() < deadline, "the late answer is not refused");
        thread::sleep(Duration::from_millis(50));
    }
    upstream.turn_away(|| before.wait(&setu, &network));
    drop(new_flow(&network, &setu, &upstream));
    upstream.turn_away(|| before.wait(&setu, &network));
}

fn upstream_resets_in_mid_stream(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], "");
    let before = Level::of(&setu, &network);
    for seed in 0..10 {
        let (client, server) = network.flow(&setu, &upstream);
        // Both ways, so that bytes are everywhere when the reset comes.
        thread::scope(|scope| {
            scope.spawn(|| send(&server, seed, 3 * MB, Manner::FAST));
            scope.spawn(|| send(&client, seed + 100, MB, Manner::FAST));
            receive_some(&server, seed + 100, MB);
            receive_some(&client, seed, 2 * MB);
        });
        reset(server);
        let end = loop {
            match end_of(&client) {
                Ok(1..) => {}
                end => break end,
            }
        };
        // A reset must not look like the end of a whole stream.
        assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
    setu.wait_closed("upstream_reset", 10);
    before.wait(&setu, &network);
}

fn upstream_vanishes_in_mid_stream(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], VANISHED);
    let before = Level::of(&setu, &network);
    let (client, server) = network.flow(&setu, &upstream);
    let (idle, idle_server) = network.flow(&setu, &upstream);
    exchange(&idle, &idle_server, b"then nothing");
    thread::scope(|scope| {
        scope.spawn(|| send(&client, 1, 2 * MB, Manner::FAST));
        receive_some(&server, 1, 2 * MB);
    });
    network.lose(TO_SERVERS, "");
    (&client).write_all(&[7; 100_000]).unwrap();
    for client in [&client, &idle] {
        assert_eq!(end_of(client).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
    setu.wait_closed("upstream_timed_out", 2);
    network.mend();
    drop((server, idle_server));
    before.wait(&setu, &network);
}

fn client_vanishes_without_fin(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], VANISHED);
    let before = Level::of(&setu, &network);
    let gone: Vec<_> = (0..20).map(|_| network.flow(&setu, &upstream)).collect();
    let stays = network.flow(&setu, &upstream);
    for (client, server) in &gone {
        exchange(client, server, b"before the tunnel");
        exchange(server, client, b"both ways");
    }
    let ports: Vec<_> =
        gone.iter().map(|(client, _)| client.local_addr().unwrap().port().to_string()).collect();
    let ports = ports.join(", ");
    network.proxy.nft(&format!(
        "add rule ip faults arriving iifname {TO_CLIENTS} tcp sport {{ {ports} }} drop; \
         add rule ip faults leaving oifname {TO_CLIENTS} tcp dport {{ {ports} }} drop"
    ));
    for (_, server) in &gone {
        assert_eq!(end_of(server).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
    setu.wait_closed("client_timed_out", 20);
    exchange(&stays.0, &stays.1, b"nobody else is touched");
    network.mend();
    drop((gone, stays));
    before.wait(&setu, &network);
}

fn client_vanishes_while_it_is_sent_to(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], VANISHED);
    let before = Level::of(&setu, &network);
    let (client, server) = network.flow(&setu, &upstream);
    let ended = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (mut server, deadline) = (&server, Instant::now() + PATIENCE);
            while Instant::now() < deadline {
                if let Err(error) = server.write_all(&[7; 65_536]) {
                    return error.kind();
                }
            }
            panic!("the upstream is never told");
        });
        let (mut received, mut client, mut buffer) = (0, &client, vec![0; 65_536]);
        while received < MB {
            received += client.read(&mut buffer).unwrap();
        }
        network.lose(TO_CLIENTS, "");
        sending.join().unwrap()
    });
    assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended}");
    setu.wait_closed("client_timed_out", 1);
    network.mend();
    drop((client, server));
    before.wait(&setu, &network);
}

/// As long as a phone takes to change networks: with the default timeouts nothing may break.
fn link_is_cut_for_thirty_seconds(path: Path) {
    const CUT: Duration = Duration::from_secs(30);
    // The last repetition within the cut, and the next after twice as long.
    const RETURN: Duration = Duration::from_secs(90);
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let setu = network.setu(path, &[upstream.address()], "");
    let before = Level::of(&setu, &network);
    let chats: Vec<_> = (0..10).map(|_| network.flow(&setu, &upstream)).collect();
    let (download, server) = network.flow(&setu, &upstream);
    for stream in chats.iter().flat_map(|(client, server)| [client, server]).chain([&download, &server]) {
        stream.set_read_timeout(Some(RETURN)).unwrap();
        stream.set_write_timeout(Some(RETURN)).unwrap();
    }
    for (client, server) in &chats {
        exchange(client, server, b"before");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            send(
                &server,
                1,
                30 * MB,
                Manner { pause_each: 1, pause: Duration::from_millis(2), ..Manner::FAST },
            );
            finish(&server);
        });
        let receiving = scope.spawn(|| receive(&download, 1, Manner::FAST));
        thread::sleep(Duration::from_millis(200));
        network.lose(TO_CLIENTS, "");
        for (number, (client, server)) in chats.iter().enumerate() {
            // Half of them have something on its way, in one direction each.
            match number % 4 {
                0 => (&*client).write_all(b"underway").unwrap(),
                1 => (&*server).write_all(b"underway").unwrap(),
                _ => {}
            }
        }
        thread::sleep(CUT);
        assert!(!receiving.is_finished(), "nothing was on its way");
        network.mend();
        for (number, (client, server)) in chats.iter().enumerate() {
            let mut buffer = [0; 8];
            match number % 4 {
                0 => (&*server).read_exact(&mut buffer).unwrap(),
                1 => (&*client).read_exact(&mut buffer).unwrap(),
                _ => buffer = *b"underway",
            }
            assert_eq!(&buffer, b"underway");
            exchange(client, server, b"after");
            exchange(server, client, b"both ways");
        }
        assert_eq!(receiving.join().unwrap(), 30 * MB);
    });
    // The line that tells the address is the only one.
    assert_eq!(setu.count(" listener=chat"), 1, "{}", setu.tail());
    // Checks have connected as well, and nobody accepted them.
    drop((chats, download, server, upstream));
    before.wait(&setu, &network);
}

fn link_of_one_megabit_before_a_fast_upstream(path: Path) {
    const BYTES_PER_SECOND: f64 = 1e6 / 8.0;
    const TIME: Duration = Duration::from_secs(8);
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let setu = network.setu(path, &[upstream.address()], "");
    let before = Level::of(&setu, &network);
    let resident = setu.status("VmRSS");
    network.slow_down(TO_CLIENTS, "1mbit");
    let (client, server) = network.flow(&setu, &upstream);
    // What is on its way is setu's, not the sender's own.
    socket2::SockRef::from(&server).set_send_buffer_size(64 * 1024).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    server.set_nonblocking(true).unwrap();
    let (mut sent, mut received, mut late) = (0_usize, 0_usize, None);
    let block: Vec<u8> = (0..MB).map(|at| (at % 251) as u8).collect();
    let mut buffer = vec![0; 65_536];
    let begun = Instant::now();
    while begun.elapsed() < TIME {
        // As much as it takes.
        let from = sent % 251;
        sent += (&server).write(&block[from..]).unwrap_or(0);
        let count = (&client).read(&mut buffer).unwrap_or(0);
        let from = received % 251;
        assert!(buffer[..count] == block[from..from + count], "wrong bytes after {received}");
        received += count;
        // The first second is that of slow start, and of the burst that the link allows.
        if late.is_none() && begun.elapsed() > Duration::from_secs(1) {
            late = Some((Instant::now(), received));
        }
    }
    let (since, already) = late.unwrap();
    let rate = (received - already) as f64 / since.elapsed().as_secs_f64() / BYTES_PER_SECOND;
    let held = sent - received;
    let grown = setu.status("VmRSS").saturating_sub(resident);
    println!("1 Mbit/s: {rate:.2} of the link's rate, {held} bytes underway, {grown} KiB resident more");
    // The rest of the link's bytes are headers.
    assert!(rate > 0.8 && rate < 1.1, "{rate:.2} of the link's rate");
    assert!(held < 8 * MB, "{held} bytes underway");
    assert!(grown < 8 * 1024, "{grown} KiB");
    reset(client);
    drop(server);
    before.wait(&setu, &network);
}

fn set_file_limit(setu: &Setu, limit: usize) {
    let limit = format!("--nofile={limit}:");
    let status = Command::new("prlimit").args(["--pid", &setu.pid().to_string(), &limit]).status();
    assert!(status.unwrap().success(), "prlimit is needed: cargo xtask setup");
}

fn setu_is_out_of_descriptors(path: Path) {
    let Some(network) = network() else { return };
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.setu(path, &[upstream.address()], "");
    let before = Level::of(&setu, &network);
    let flows: Vec<_> = (0..10).map(|_| network.flow(&setu, &upstream)).collect();
    for (client, server) in &flows {
        exchange(client, server, b"before");
    }
    // None is left, but for the one that is kept to say no.
    set_file_limit(&setu, setu.next_descriptor());
    for _ in 0..10 {
        let proxy = setu.address("chat");
        // It may be told no before it knows that it was connected.
        match network.clients.within(|| TcpStream::connect(proxy)) {
            Ok(mut client) => {
                let _ = client.write_all(b"hello");
                assert!(is_closed(&client));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    setu.wait_closed("out_of_resources", 10);
    // That one is gone as well.
    set_file_limit(&setu, 3);
    let waiting: Vec<_> = (0..50).map(|_| network.client(&setu)).collect();
    let (ticks, begun) = (setu.ticks(), Instant::now());
    while begun.elapsed() < Duration::from_secs(2) {
        for (client, server) in &flows {
            exchange(client, server, b"existing flows go on");
            exchange(server, client, b"both ways");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let busy = (setu.ticks() - ticks) as f64 / (begun.elapsed().as_secs_f64() * 100.0);
    println!("out of descriptors: {busy:.3} of a core");
    assert!(busy < 0.3, "{busy:.3} of a core: it spins");
    set_file_limit(&setu, 10_000);
    drop(waiting);
    // Those that waited are gone; whoever comes now is served.
    drop((flows, new_flow(&network, &setu, &upstream), upstream));
    before.wait(&setu, &network);
}
