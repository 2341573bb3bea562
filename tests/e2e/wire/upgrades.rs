//! Who takes the wire by itself, and what becomes of flows on it where the next setu has none, or nothing is pinned.

use std::{process::Command, thread, time::Duration};

use setu_tests::{
    Path, Setu,
    network::{Network, SERVERS},
    peers::{Upstream, end_of, exchange, finish},
};

use super::flows::{CALM, await_count, config, spliced, talk};

const NOT_ON_THE_WIRE: &str = "no connection goes on the wire";

/// The same with `relay.path = "auto"` and all that belongs to it, and a state directory.
fn auto(config: &str, state: &std::path::Path) -> String {
    let with = config.replace("path = \"wire\"", "path = \"auto\"");
    assert_ne!(with, config);
    format!("{with}[tls]\nstate_dir = \"{}\"\n", state.display())
}

#[test]
fn auto_takes_the_wire_where_nobody_else_has_its_ports() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let config = config(&network, &upstream, CALM);
    let states = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = states.each_ref().map(|state| auto(&config, state.path()));
    // Without pins as well: neither has a BPF file system.
    for with_pins in [true, false] {
        let start = |text: &str| {
            if with_pins {
                network.start_with_pins(text, "debug", &[])
            } else {
                network.start(text, "debug", &[])
            }
        };
        let mut one = start(&first);
        let flows = spliced(&network, &mut one, &upstream, 3);
        // `setu check` says what a start does.
        let check = |text: &str| {
            let file = states[1].path().join("setu.toml");
            std::fs::write(&file, text).unwrap();
            let setu = Setu::binary().display().to_string();
            let mut command = if with_pins {
                network.pins.command(&network.proxy, &setu)
            } else {
                network.proxy.command(&setu)
            };
            let output = command.args(["check", "--config"]).arg(&file).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let text = check(&second);
        assert!(text.contains("note  no connection goes on the wire, where it would cost least: "), "{text}");
        assert!(text.contains("has some of wire.ports") && !text.contains("path: wire"), "{text}");
        let apart = second.replace("[relay]", "[wire]\nports = \"9000-9099\"\n[relay]");
        let text = check(&apart);
        assert!(text.contains("ok    path: wire") && !text.contains("no connection goes on"), "{text}");
        let two = start(&second);
        assert_eq!(two.count(NOT_ON_THE_WIRE), 1, "{}", two.log());
        assert_eq!(two.count("has some of wire.ports"), 1, "{}", two.log());
        assert_eq!(two.count("ready path=sockmap"), 1, "{}", two.log());
        let (client, server) = network.flow(&two, &upstream);
        exchange(&client, &server, b"by another way");
        drop(two);
        // Of its own, or told not to.
        assert_eq!(start(&apart).count("ready path=wire"), 1);
        let without = second.replace("[relay]", "[wire]\nauto = false\n[relay]");
        let without = start(&without);
        assert_eq!((without.count("ready path=sockmap"), without.count(NOT_ON_THE_WIRE)), (1, 0));
        talk(&flows);
    }
}

#[test]
fn auto_does_without_the_wire_where_setu_listens_at_its_ports() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let state = tempfile::tempdir().unwrap();
    let text =
        auto(&config(&network, &upstream, CALM), state.path()).replace("10.79.1.1:0", "10.79.1.1:10443");
    let setu = network.start_with_pins(&text, "debug", &[]);
    assert_eq!(setu.count("has the port of listener"), 1, "{}", setu.log());
    let (client, server) = network.flow(&setu, &upstream);
    exchange(&client, &server, b"all the same");
}

/// The configuration of a setu that lets its connections end by themselves.
fn patient(network: &Network, upstream: &Upstream, state: &std::path::Path) -> String {
    let more = format!("{CALM}drain = \"10m\"\n[tls]\nstate_dir = \"{}\"\n", state.display());
    config(network, upstream, &more)
}

/// Whether both ends of each hear a reset.
fn are_reset(flows: &[(std::net::TcpStream, std::net::TcpStream)]) {
    for end in flows.iter().flat_map(|(client, server)| [client, server]) {
        assert_eq!(end_of(end).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// Nobody could find its flows again, nor would another know of their ports.
#[test]
fn a_keeper_without_pins_ends_with_its_setu() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.start(&config(&network, &upstream, CALM), "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 3);
    let keeper = super::flows::keeper(&setu);
    talk(&flows);
    setu.kill();
    are_reset(&flows);
    let deadline = std::time::Instant::now() + super::flows::PATIENCE;
    while !super::flows::is_gone(&keeper) {
        assert!(std::time::Instant::now() < deadline, "the keeper stays");
        thread::sleep(Duration::from_millis(50));
    }
}

/// `next`: the successor's configuration. Its predecessor keeps what is on the wire until it is over.
fn the_predecessor_drains(network: &Network, upstream: &Upstream, pinned: bool, from: &str, next: &str) {
    let start = |text: &str, more: &[&str]| {
        if pinned { network.start_with_pins(text, "debug", more) } else { network.start(text, "debug", more) }
    };
    let mut old = start(from, &[]);
    let mut flows = spliced(network, &mut old, upstream, 3);
    let new = start(next, &["--replace"]);
    old.wait_count("stopping: a successor serves", 1);
    for _ in 0..3 {
        talk(&flows);
        thread::sleep(Duration::from_millis(200));
    }
    let more = network.flow(&new, upstream);
    exchange(&more.0, &more.1, b"by the next");
    let (client, server) = flows.remove(0);
    finish(&client);
    finish(&server);
    old.wait_closed("client_closed", 1);
    talk(&flows);
    old.signal("TERM");
    let (status, reasons) = old.ended();
    assert!(status.success());
    assert_eq!(reasons.get("shutdown"), Some(&2), "{reasons:?}");
    are_reset(&flows);
    exchange(&more.0, &more.1, b"still by the next");
}

#[test]
fn a_successor_without_the_wire_leaves_its_flows_to_the_predecessor() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let state = tempfile::tempdir().unwrap();
    let from = patient(&network, &upstream, state.path());
    for path in [Path::Userspace, Path::Sockmap] {
        let next = from.replace("path = \"wire\"", &format!("path = \"{}\"", path.name()));
        the_predecessor_drains(&network, &upstream, true, &from, &next);
    }
    the_predecessor_drains(&network, &upstream, false, &from, &from);
}

/// What goes on is not closed, also where the predecessor's keeper has died before.
#[test]
fn what_a_successor_takes_over_is_not_told_as_closed() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let state = tempfile::tempdir().unwrap();
    let text = patient(&network, &upstream, state.path());
    let mut old = network.start_with_pins(&text, "debug", &[]);
    let flows = spliced(&network, &mut old, &upstream, 3);
    for keeper_dies in [false, true] {
        if keeper_dies {
            let keeper = super::flows::keeper(&old);
            Command::new("kill").args(["-9", &keeper]).status().unwrap();
            old.wait_count("the keeper of the wire is gone", 1);
        }
        let mut new: Setu = network.start_with_pins(&text, "debug", &["--replace"]);
        old.wait_count("left on the wire to the successor connections=3", 1);
        assert_eq!(old.count("setu wire clear"), 0, "{}", old.log());
        let (status, reasons) = old.ended();
        assert!(status.success());
        assert_eq!(reasons.get("shutdown"), None, "{reasons:?}");
        await_count(&network, &mut new, "setu_wire_flows", 3);
        let counts = super::flows::counts(&network, new.admin());
        assert_eq!(counts["setu_connections_total{listener=\"chat\"}"], 0, "it accepted none");
        assert_eq!(counts["setu_wire_keeper"], 1);
        talk(&flows);
        old = new;
    }
}
