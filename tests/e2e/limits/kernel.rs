//! What the kernel path promises beyond behaviour: bounded memory, no wake-ups, little memory for idle flows.

use std::{
    io::{Read as _, Write as _},
    process::Command,
    sync::Mutex,
    thread,
    time::Duration,
};

use socket2::SockRef;

use setu_tests::{
    ONE_SOURCE, Path, Setu, config,
    machine::{available_kib, raise_file_limit},
    maps,
    network::{Network, SERVERS},
    peers::{Manner, Upstream, end_of, exchange, fill, receive, receive_some, send},
};

/// These tests look at the whole machine's memory: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn start(upstream: &Upstream) -> Option<Setu> {
    raise_file_limit();
    crate::may_use_kernel().then(|| Setu::start(&config(Path::Sockmap, &upstream.address(), ONE_SOURCE)))
}

#[test]
fn a_stalled_reader_is_bounded_and_loses_nothing() {
    let _alone = alone();
    let upstream = Upstream::new();
    let Some(setu) = start(&upstream) else { return };
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"in the kernel");
    let before = available_kib();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            send(&server, 9, 100_000_000, Manner::FAST);
            setu_tests::peers::finish(&server);
        });
        thread::sleep(Duration::from_secs(2));
        let grown = before - available_kib();
        println!("one stalled reader: {grown} KiB");
        assert!(!sending.is_finished(), "the sender was not blocked");
        assert!(grown < 16 * 1024, "{grown} KiB");
        assert_eq!(receive(&client, 9, Manner::FAST), 100_000_000);
    });
}

/// What the kernel was told to forward would never be written, and what the reader sends would wait behind it for ever.
#[test]
fn a_reader_that_stalls_before_the_kernel_has_the_flow_is_bounded() {
    const LATER: usize = 300_000;
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    network.clients.set("net/ipv4/tcp_rmem", "4096 16384 65536");
    let upstream = network.upstream(SERVERS[0]);
    let setu = network.setu(Path::Sockmap, &[upstream.address()], "");
    // From what the reader takes to what a send buffer of setu's takes as well: of some much is in there when the kernel gets the
    // flow.
    let flows: Vec<_> = (2..12).map(|part| (part * 20_000, network.flow(&setu, &upstream))).collect();
    thread::scope(|scope| {
        for (before, (_, server)) in &flows {
            scope.spawn(|| {
                send(server, 5, *before, Manner::FAST);
                thread::sleep(Duration::from_secs(1));
                send(server, 6, LATER, Manner::FAST);
            });
        }
        thread::sleep(Duration::from_secs(2));
        for (before, (client, server)) in &flows {
            SockRef::from(client).set_send_buffer_size(64 * 1024).unwrap();
            // The upstream does not read either.
            let taken = fill(client, 65_536);
            println!("{before} bytes before: {} KiB are taken", taken / 1024);
            assert!(taken < 24 << 20, "{taken} bytes");
            // And nothing is lost.
            receive_some(client, 5, *before);
            receive_some(client, 6, LATER);
            let mut bytes = vec![0; taken];
            let mut server = server;
            server.read_exact(&mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    });
    for (_, (client, server)) in &flows {
        exchange(client, server, b"and on");
    }
}

#[test]
fn two_hundred_stalled_readers_are_bounded_together() {
    let _alone = alone();
    let upstream = Upstream::new();
    let Some(setu) = start(&upstream) else { return };
    let healthy: Vec<_> = (0..8).map(|_| upstream.connect(setu.address("chat"))).collect();
    let stalled: Vec<_> = (0..200).map(|_| upstream.connect(setu.address("chat"))).collect();
    // What is measured is setu's, not the sender's own buffer.
    for (_, server) in &stalled {
        SockRef::from(server).set_send_buffer_size(64 * 1024).unwrap();
    }
    let before = available_kib();
    thread::scope(|scope| {
        for chunk in stalled.chunks(50) {
            scope.spawn(|| chunk.iter().for_each(|(_, server)| assert!(fill(server, 65_536) > 0)));
        }
    });
    let grown = before - available_kib();
    println!("200 stalled readers: {grown} KiB");
    // Two receive buffers' worth and a send buffer for each: less than half of what one alone may hold.
    assert!(grown < 200 * 8 * 1024, "{grown} KiB");
    for (client, server) in &healthy {
        for _ in 0..200 {
            exchange(client, server, &[1; 256]);
            exchange(server, client, &[2; 256]);
        }
    }
}

/// A direction reserves what it queues, not what it could: chats that are all quick fit into a budget of a few windows.
#[test]
fn many_chats_fit_into_a_small_budget() {
    const CHATS: usize = 500;
    let _alone = alone();
    raise_file_limit();
    if !crate::may_use_kernel() {
        return;
    }
    let upstream = Upstream::new();
    let limits = format!("{ONE_SOURCE}kernel_bytes = \"4MiB\"\n");
    let setu = Setu::start(&config(Path::Sockmap, &upstream.address(), &limits));
    let left = || setu.count("a flow left the kernel reason=\"congested\"");
    let before = left();
    let chats: Vec<_> = (0..CHATS).map(|_| upstream.connect(setu.address("chat"))).collect();
    for _ in 0..20 {
        for (client, server) in &chats {
            // In two segments: the second finds the first on its way.
            for (mut from, mut to) in [(client, server), (server, client)] {
                from.write_all(&[1; 300]).unwrap();
                from.write_all(&[2; 300]).unwrap();
                to.read_exact(&mut [0; 600]).unwrap();
            }
        }
    }
    // Those of the self-test aside.
    assert_eq!(left(), before, "{}", setu.tail());
}

#[test]
fn messages_wake_nobody() {
    let _alone = alone();
    let upstream = Upstream::new();
    let Some(setu) = start(&upstream) else { return };
    let flows: Vec<_> = (0..32).map(|_| upstream.connect(setu.address("chat"))).collect();
    for (client, server) in &flows {
        exchange(client, server, b"in the kernel");
    }
    thread::sleep(Duration::from_millis(200));
    let before = setu.context_switches();
    thread::scope(|scope| {
        for chunk in flows.chunks(8) {
            scope.spawn(move || {
                for _ in 0..100_000 / 64 {
                    for (client, server) in chunk {
                        exchange(client, server, &[1; 256]);
                        exchange(server, client, &[2; 256]);
                    }
                }
            });
        }
    });
    let switches = setu.context_switches() - before;
    println!("100,000 messages: {switches} context switches");
    assert!(switches <= 100, "{switches} context switches for 100,000 messages");
}

#[test]
fn nine_thousand_idle_flows_cost_little() {
    let _alone = alone();
    let upstream = Upstream::new();
    let Some(setu) = start(&upstream) else { return };
    // Buffers and threads that come with the first flows are not theirs.
    let mut flows: Vec<_> = (0..100).map(|_| upstream.connect(setu.address("chat"))).collect();
    thread::sleep(Duration::from_millis(500));
    let before = setu.status("VmRSS");
    while flows.len() < 9_100 {
        flows.push(upstream.connect(setu.address("chat")));
    }
    let (mut client, mut server) = (&flows[9_099].0, &flows[9_099].1);
    client.write_all(b"the last works").unwrap();
    server.read_exact(&mut [0; 14]).unwrap();
    thread::sleep(Duration::from_millis(500));
    let grown = setu.status("VmRSS") - before;
    println!("9,000 idle flows: {grown} KiB");
    assert!(grown <= 9_000, "{grown} KiB for 9,000 flows");
}

/// A stalled reader's flow leaves the kernel, so that TCP itself makes the sender wait; it goes back when both keep up.
#[test]
fn a_flow_goes_back_to_the_kernel_when_both_keep_up() {
    let _alone = alone();
    let upstream = Upstream::new();
    let Some(mut setu) = start(&upstream) else { return };
    let (client, server) = upstream.connect(setu.address("chat"));
    for round in 0..2 {
        thread::scope(|scope| {
            scope.spawn(|| send(&server, round, 40_000_000, Manner::FAST));
            thread::sleep(Duration::from_millis(500));
            receive_some(&client, round, 40_000_000);
        });
        // It goes back after 1 s, the second time after 2 s; on a slow machine it may have come and gone meanwhile, each time
        // for twice as long, 32 s at most.
        let mut switches = u64::MAX;
        for _ in 0..80 {
            thread::sleep(Duration::from_millis(500));
            let before = setu.context_switches();
            for _ in 0..2_000 {
                exchange(&client, &server, &[1; 256]);
                exchange(&server, &client, &[2; 256]);
            }
            switches = setu.context_switches() - before;
            if switches <= 40 {
                break;
            }
        }
        println!("4,000 messages after a stall: {switches} context switches");
        assert!(
            switches <= 40,
            "{switches} context switches: after 40 s of quiet the flow is not in the kernel"
        );
    }
    // Who ends first must be seen first.
    drop(client);
    assert_eq!(end_of(&server).unwrap(), 0);
    drop(server);
    setu.wait_count("closed reason=client_closed path=sockmap listener=chat", 1);
}

/// The kernel takes the memory of the maps at once: it must follow what the machine has, not only how many descriptors
/// there may be, of which the unit allows as many as there can be.
#[test]
fn there_is_room_for_as_many_flows_as_there_may_be_connections() {
    if !crate::may_use_kernel() {
        return;
    }
    const UNIT: &str = "--nofile=1048576:1048576";
    let _alone = alone();
    let upstream = Upstream::new();
    let may_raise = Command::new("prlimit").args([UNIT, "true"]).output().unwrap().status.success();
    if !may_raise {
        println!(
            "skipped in part: as many descriptors as the unit's need CAP_SYS_RESOURCE, and this has it not"
        );
    }
    for (more, limit) in [("", None), ("[limits]\nconnections = 1000\n", Some(1_000))] {
        let mut command = Command::new(if may_raise { "prlimit" } else { "env" });
        command.args(may_raise.then_some(UNIT)).arg(Setu::binary());
        let setu = Setu::start_by(command, &config(Path::Sockmap, &upstream.address(), more), &[]);
        let line = setu.lines(|line| line.contains("limits connections=")).pop().unwrap();
        let connections = line.split_once("connections=").unwrap().1.split(' ').next().unwrap();
        let connections: usize = connections.parse().unwrap();
        for name in ["SOCKETS", "SOURCES", "DIRECTIONS"] {
            let flows = maps::capacity(maps::named(setu.pid(), name).unwrap()) / 2;
            println!("{name}: {flows} flows, {connections} connections");
            // Connections leave descriptors to listeners; where memory is short they are the same.
            assert!(
                (connections..connections + 64).contains(&flows),
                "{flows} flows, {connections} connections"
            );
            assert!(limit.is_none_or(|limit| flows == limit), "{flows} flows");
        }
    }
}
