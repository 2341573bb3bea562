//! Upstreams that are not there, and processes that are killed.

use std::{
    io::Write as _,
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, config, maps,
    netns::Netns,
    peers::{Manner, PATIENCE, Upstream, call, end_of, exchange, finish, receive, send},
};

crate::on_both_paths! {
    upstream_refuses
    upstream_is_unreachable
    upstream_does_not_answer
    upstream_is_killed
    client_is_killed
    setu_is_killed
    network_loses_segments
}

fn upstream_refuses(path: Path) {
    let nobody = Upstream::new().address();
    let mut setu = Setu::start(&config(path, &nobody, ""));
    let client = call(setu.address("chat"));
    assert_eq!(end_of(&client).unwrap_or(0), 0);
    setu.wait_closed("connect_refused", 1);
}

fn upstream_is_unreachable(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::new();
    namespace.ip("route add unreachable 203.0.113.0/24");
    let setup =
        config(path, "203.0.113.1:443", "").replace("127.0.0.1:0", &format!("{}:0", namespace.address()));
    let mut setu = Setu::start_in(&setup, Some(&namespace));
    let client = call(setu.address("chat"));
    assert_eq!(end_of(&client).unwrap_or(0), 0);
    setu.wait_closed("connect_unreachable", 1);
}

fn upstream_does_not_answer(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::new();
    // On the wire, but nobody is there: ARP would give up after 3 s, the timeout is shorter.
    let nobody = namespace.address().trim_end_matches('2').to_owned() + "9";
    let setup = config(path, &format!("{nobody}:443"), "[timeouts]\nconnect = \"700ms\"\n");
    let setup = setup.replace("127.0.0.1:0", &format!("{}:0", namespace.address()));
    let mut setu = Setu::start_in(&setup, Some(&namespace));
    let client = call(setu.address("chat"));
    let begun = Instant::now();
    assert_eq!(end_of(&client).unwrap_or(0), 0);
    setu.wait_closed("connect_timeout", 1);
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
}

/// A peer in a process of its own: [`role`] of this binary.
fn child(role: &str, address: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "faults::peers::role", "--ignored", "--nocapture"]);
    command.env("SETU_TEST_ROLE", role).env("SETU_TEST_ADDRESS", address).spawn().unwrap()
}

/// Not a test: what [`child`] runs.
#[test]
#[ignore = "a role that other tests start as a child process"]
fn role() {
    let Ok(role) = std::env::var("SETU_TEST_ROLE") else { return };
    let address = std::env::var("SETU_TEST_ADDRESS").unwrap();
    let mut stream = match role.as_str() {
        "client" => TcpStream::connect(address).unwrap(),
        _ => Upstream::on(&address).accept(),
    };
    // Sends and never reads, until it is killed.
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && stream.write_all(&[7; 4096]).is_ok() {}
}

/// One segment in 200 is lost on its way to setu, on both legs: retransmissions repeat bytes, come late and in pieces.
fn network_loses_segments(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::new();
    let rules = "table inet loss {\nchain input {\ntype filter hook input priority 0;\n\
                 meta l4proto tcp numgen random mod 200 < 1 counter drop\n}\n}\n";
    let mut nft = namespace.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
    let upstream = Upstream::on(&format!("{}:0", namespace.host_address()));
    let setup = config(path, &upstream.address(), "");
    let setup = setup.replace("127.0.0.1:0", &format!("{}:0", namespace.address()));
    let mut setu = Setu::start_in(&setup, Some(&namespace));
    let pairs: Vec<_> = (0..3).map(|_| upstream.connect(setu.address("chat"))).collect();
    thread::scope(|scope| {
        for (number, (client, server)) in pairs.iter().enumerate() {
            for (end, other, seed) in [(client, server, number as u64), (server, client, 10 + number as u64)]
            {
                let manner = if number == 0 { Manner::FAST } else { Manner::UNEVEN };
                scope.spawn(move || {
                    send(end, seed, 8_000_000, manner);
                    finish(end);
                });
                scope.spawn(move || assert_eq!(receive(other, seed, manner), 8_000_000));
            }
        }
    });
    drop(pairs);
    setu.wait_count(" listener=chat", 4);
    let ends =
        ["client_closed", "upstream_closed"].map(|reason| setu.count(&format!("closed reason={reason} ")));
    assert_eq!(ends.iter().sum::<usize>(), 3, "{}", setu.tail());
    let output = namespace.command("nft").args(["list", "ruleset"]).output().unwrap();
    let lost = String::from_utf8_lossy(&output.stdout);
    assert!(!lost.contains("packets 0 "), "nothing was lost: {lost}");
}

fn upstream_is_killed(path: Path) {
    let address = Upstream::new().address();
    let mut setu = Setu::start(&config(path, &address, ""));
    let mut upstream = child("upstream", &address);
    let client = loop {
        let client = call(setu.address("chat"));
        if matches!(end_of(&client), Ok(1..)) {
            break client;
        }
        thread::sleep(Duration::from_millis(50));
    };
    // Bytes that the upstream never reads: the kernel answers for the dead process with RST.
    send(&client, 1, 100_000, Manner::FAST);
    thread::sleep(Duration::from_millis(100));
    upstream.kill().unwrap();
    upstream.wait().unwrap();
    let begun = Instant::now();
    while matches!(end_of(&client), Ok(1..)) {
        assert!(begun.elapsed() < Duration::from_secs(5), "no end");
    }
    setu.wait_closed("upstream_reset", 1);
}

fn client_is_killed(path: Path) {
    let upstream = Upstream::new();
    let mut setu = Setu::start(&config(path, &upstream.address(), ""));
    let mut client = child("client", &setu.address("chat").to_string());
    let server = upstream.accept();
    assert!(matches!(end_of(&server), Ok(1..)));
    // Bytes that the client never reads: the kernel answers for the dead process with RST.
    send(&server, 1, 100_000, Manner::FAST);
    thread::sleep(Duration::from_millis(100));
    client.kill().unwrap();
    client.wait().unwrap();
    let begun = Instant::now();
    while matches!(end_of(&server), Ok(1..)) {
        assert!(begun.elapsed() < Duration::from_secs(5), "no end");
    }
    setu.wait_closed("client_reset", 1);
}

fn setu_is_killed(path: Path) {
    let upstream = Upstream::new();
    let mut setu = Setu::start(&config(path, &upstream.address(), ""));
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"open");
    let (sender, receiver) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let sending = thread::spawn(move || {
        let mut sender = &sender;
        while sender.write_all(&[7; 65_536]).is_ok() {}
    });
    let mut received = 0;
    while received < 5_000_000 {
        received += end_of(&receiver).unwrap();
    }
    let maps = maps::of(setu.pid());
    assert_eq!(maps.is_empty(), path == Path::Userspace, "{maps:?}");
    setu.kill();
    let begun = Instant::now();
    while matches!(end_of(&receiver), Ok(1..)) {}
    sending.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "the peers hang");
    // The kernel frees maps after a grace period.
    let deadline = Instant::now() + Duration::from_secs(5);
    while maps.iter().any(|id| maps::exists(*id)) {
        assert!(Instant::now() < deadline, "maps of a dead setu: {maps:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
