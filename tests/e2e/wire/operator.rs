//! What is on the wire is counted, shown, and can be taken away when setu is gone; nobody's address is told.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    process::{Command, Output},
    time::Duration,
};

use setu_tests::{
    Path, Setu,
    admin::{eventually, metrics},
    network::{Network, SERVERS},
    peers::exchange,
};

/// `setu wire`, where the setu of a network finds its pins.
fn wire(network: &Network, command: &str) -> Output {
    let setu = Setu::binary().display().to_string();
    network.pins.command(&network.proxy, &setu).args(["wire", command]).output().unwrap()
}

fn shown(network: &Network) -> String {
    let Output { status, stdout, stderr } = wire(network, "show");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The processes that this one has made.
fn children(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap();
    let all: Vec<_> = tasks.map(|task| of(task.unwrap())).collect();
    all.iter().flat_map(|pids| pids.split_whitespace().map(Into::into)).collect()
}

#[test]
fn what_is_on_the_wire_is_counted_shown_and_taken_away() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    assert!(shown(&network).starts_with("nothing of the wire is pinned"));
    let upstream = network.upstream(SERVERS[0]);
    let config = network.config(Path::Wire, &[upstream.address()], "");
    let config = config.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]");
    let mut setu = network.start_with_pins(&config, "debug", &[]);
    let (mut client, server) = network.flow(&setu, &upstream);
    let admin = setu.admin();
    let samples = eventually(
        "it is on the wire",
        || {
            exchange(&client, &server, b"there");
            exchange(&server, &client, b"and back");
            network.proxy.within(|| metrics(admin))
        },
        |samples| samples["setu_wire_flows"] == 1.0,
    );
    assert_eq!((samples["setu_wire_handed_over_total"], samples["setu_wire_torn_total"]), (1.0, 0.0));
    assert_eq!(samples["setu_wire_refused_total{reason=\"mtu\"}"], 0.0);
    let text = shown(&network);
    let has = |part: &str| assert!(text.contains(part), "{part}: {text}");
    has("keeper       runs\n");
    has(" clients (");
    has(" servers (");
    has("connections  1 on the wire, 0 that ended a short while ago, of 65");
    assert!(!text.contains("10.79."), "{text}");
    let refused = wire(&network, "clear");
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && error.contains("stop that setu"), "{error}");
    exchange(&client, &server, b"still there");

    // Until both ends have all of setu's own bytes its sockets are there, and their end is the flow's.
    eventually("setu's sockets are gone", || network.connections(), |sockets| *sockets == 0);
    let keepers = children(setu.pid());
    let kill = Command::new("kill").args(["-s", "KILL"]).args(&keepers).status().unwrap();
    assert!(kill.success() && keepers.len() == 1, "{keepers:?}");
    setu.kill();
    let is_gone = |text: &String| text.contains("keeper       is gone");
    let text = eventually("the keeper is gone", || shown(&network), is_gone);
    assert!(text.contains("  1 on the wire"), "{text}");
    exchange(&client, &server, b"without any of setu");
    let cleared = wire(&network, "clear");
    let text = String::from_utf8(cleared.stdout).unwrap();
    assert!(cleared.status.success() && text.contains("and 1 connection with it"), "{text}");
    // The kernel has some of its own there.
    let left = network.pins.all();
    assert!(!left.iter().any(|path| path.starts_with("setu")), "{left:?}");
    assert!(shown(&network).starts_with("nothing"));
    // The host answers what it knows no connection of, once the keeper, which was killed, is no more to the last descriptor.
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let _reset = eventually(
        "the client hears a reset",
        || {
            let written = client.write_all(b"nobody translates this");
            written.and_then(|()| client.read(&mut [0; 1])).map_err(|error| error.kind())
        },
        |heard| matches!(heard, Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)),
    );
}
