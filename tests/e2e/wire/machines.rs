//! Machines as operators have them: what else is on the way of packets does flows on the wire no harm.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::SockRef;

use setu_tests::{
    netns::Netns,
    network::{CLIENT, Network, PROXY, SERVERS, SERVERS_V6, TO_CLIENTS},
    packets::PacketSocket,
    peers::{Manner, Upstream, call, end_of, exchange, finish, receive_some, send},
};

use super::flows::{CALM, Flows, await_count, config, spliced, talk};

const LEN: usize = 1_000_000;

/// All of a stream, both ways at once.
fn stream(flows: &Flows) {
    for (client, server) in flows {
        thread::scope(|scope| {
            for (from, to, seed) in [(client, server, 1), (server, client, 2)] {
                scope.spawn(move || send(from, seed, LEN, Manner::FAST));
                scope.spawn(move || receive_some(to, seed, LEN));
            }
        });
    }
}

fn finish_all(flows: &Flows) {
    for (client, server) in flows {
        finish(client);
        assert_eq!(end_of(server).unwrap(), 0);
        finish(server);
        assert_eq!(end_of(client).unwrap(), 0);
    }
}

/// Nobody but the other end can send less; and only setu's host hears of it.
#[test]
fn an_end_is_told_of_a_router_that_the_other_ends_packets_are_too_long_for() {
    if !crate::may_use_kernel() {
        return;
    }
    for number in [0, 1] {
        for family in [0, 1] {
            let mut longest = [None; 2];
            // As long as any, until the flow is on the wire.
            longest[number] = Some(1500);
            let network = Network::routed(longest);
            let upstream = network.upstream([SERVERS, SERVERS_V6][family][0]);
            let config = config(&network, &upstream, CALM);
            let config = if family == 0 { config } else { config.replace("10.79.1.1:0", "[fd79:1::1]:0") };
            let mut setu = network.start_with_pins(&config, "debug", &[]);
            let flows = spliced(&network, &mut setu, &upstream, 1);
            stream(&flows);
            network.narrow_router(number, 1280);
            stream(&flows);
            finish_all(&flows);
            setu.wait_closed("client_closed", 1);
        }
    }
}

/// What is on the wire passes no firewall, and is in no table of tracked connections.
#[test]
fn a_firewall_that_drops_what_it_does_not_know_is_no_hindrance() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let rules = ["input", "output", "forward"].map(|hook| {
        format!(
            "add chain inet strict {hook} {{ type filter hook {hook} priority 10; }}; \
             add rule inet strict {hook} ct state invalid counter drop; "
        )
    });
    network.proxy.nft(&format!("add table inet strict; {}", rules.concat()));
    let tracked = || {
        network.proxy.within(|| {
            let text = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
            text.lines().filter(|line| line.contains(CLIENT) || line.contains(SERVERS[0])).count()
        })
    };
    let upstream = network.upstream(SERVERS[0]);
    let more = format!("{CALM}drain = \"1s\"\n");
    let mut setu = network.start_with_pins(&config(&network, &upstream, &more), "debug", &[]);
    let relayed = network.flow(&setu, &upstream);
    assert!(tracked() > 0, "nothing is tracked: the test shows nothing");
    finish_all(&vec![relayed]);
    await_count(&network, &mut setu, "setu_wire_flows", 0);
    let flows = spliced(&network, &mut setu, &upstream, 10);
    stream(&flows);
    // The two of the flow that was relayed to its end may be there for a while.
    assert!(tracked() <= 2, "{} connections are tracked", tracked());
    // An end in order resets both, through the firewall.
    setu.stop();
    for (client, server) in &flows {
        for end in [client, server] {
            assert_eq!(end_of(end).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

/// One device leads to both, as in a container; the host before it gives setu a port of its own address, and hides setu's behind
/// that.
#[test]
fn a_host_that_translates_addresses_sees_connections_without_a_fault() {
    const HOST: &str = "10.79.3.1";
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::routed([Some(1500), None]);
    network.proxy.ip("route add default via 10.79.4.1");
    let upstream = network.clients.within(|| Upstream::on(&format!("{CLIENT}:0")));
    let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
    let host = network.routers[0].as_ref().unwrap();
    host.nft(&format!(
        "add table ip host; \
         add chain ip host before {{ type nat hook prerouting priority -100; }}; \
         add rule ip host before ip daddr {HOST} tcp dport 443 dnat to {}; \
         add chain ip host after {{ type nat hook postrouting priority 100; }}; \
         add rule ip host after ip saddr {PROXY} masquerade; \
         add chain ip host forward {{ type filter hook forward priority 0; }}; \
         add rule ip host forward ct state invalid counter drop",
        setu.address("chat")
    ));
    let public = format!("{HOST}:443").parse().unwrap();
    let flows: Flows = (0..10)
        .map(|_| {
            let client = network.clients.within(|| call(public));
            let server = upstream.answer();
            assert_eq!(server.peer_addr().unwrap().ip().to_string(), HOST, "it is translated");
            (client, server)
        })
        .collect();
    await_count(&network, &mut setu, "setu_wire_flows", 10);
    stream(&flows);
    talk(&flows);
    finish_all(&flows);
    setu.wait_closed("client_closed", 10);
    let output = host.command("nft").args(["list", "chain", "ip", "host", "forward"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("counter packets 0 "), "{text}");
}

/// Who filters at the same device, before setu is there or since, still sees all that is no flow of setu's on the wire.
#[test]
fn the_filter_of_another_has_what_is_not_setus() {
    if !crate::may_use_kernel() {
        return;
    }
    for is_first in [true, false] {
        let network = Network::new();
        let [open, shut] = [(); 2].map(|()| network.proxy.within(|| TcpListener::bind((PROXY, 0)).unwrap()));
        let port = shut.local_addr().unwrap().port();
        // Nothing of it stays: no socket but listeners' is to be left beside flows on the wire.
        let reaches = |listener: &TcpListener| {
            let to = listener.local_addr().unwrap();
            let client =
                network.clients.within(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)));
            client.is_ok_and(|client| {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                listener.accept().is_ok()
            })
        };
        assert!(reaches(&shut), "before there is a filter");
        let upstream = network.upstream(SERVERS[0]);
        if is_first {
            drop_at(&network.proxy, TO_CLIENTS, port);
        }
        let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
        let flows = spliced(&network, &mut setu, &upstream, 3);
        if !is_first {
            drop_at(&network.proxy, TO_CLIENTS, port);
        }
        stream(&flows);
        assert!(!reaches(&shut), "setu is before the filter and lets past what it drops");
        assert!(reaches(&open));
        finish_all(&flows);
        setu.wait_closed("client_closed", 3);
        setu.stop();
        assert!(!reaches(&shut), "setu took the filter with it");
        assert!(reaches(&open));
    }
}

/// Drops what comes to a port by a device, IPv4 without options: as other programs at ingress do it.
fn drop_at(host: &Netns, device: &str, port: u16) {
    // The type of Ethernet, the protocol of IP, the destination of TCP; 2 is TC_ACT_SHOT, 0 TC_ACT_OK.
    let program = format!(
        "9,40 0 0 12,21 0 6 2048,48 0 0 23,21 0 4 6,177 0 0 14,72 0 0 16,21 0 1 {port},6 0 0 2,6 0 0 0"
    );
    for arguments in [
        &["qdisc", "replace", "dev", device, "clsact"][..],
        &["filter", "add", "dev", device, "ingress", "bpf", "da", "bytecode", &program],
    ] {
        assert!(host.command("tc").args(arguments).status().unwrap().success(), "tc {arguments:?}");
    }
}

/// What a leg's device is, when it is not one of Ethernet itself.
#[test]
fn bridges_bonds_and_vlans_carry_flows_on_the_wire() {
    if !crate::may_use_kernel() {
        return;
    }
    for kind in ["bridge", "bond", "vlan"] {
        let network = Network::new();
        if !has(&network.proxy, kind) {
            println!("skipped: this kernel has no {kind}");
            continue;
        }
        match kind {
            "bridge" => drop(network.bridge(TO_CLIENTS)),
            "bond" => bond(&network.proxy),
            _ => vlan(&network),
        }
        let upstream = network.upstream(SERVERS[0]);
        let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
        let flows = spliced(&network, &mut setu, &upstream, 3);
        stream(&flows);
        talk(&flows);
        finish_all(&flows);
        setu.wait_closed("client_closed", 3);
    }
}

/// Whether the kernel knows a kind of device.
/// What has a tag belongs to that network, and comes again at its device; one that has a priority alone is the flow's.
#[test]
fn what_belongs_to_a_vlan_is_not_the_devices() {
    const VLAN: u16 = 9;
    const PRIORITY: u16 = 5 << 13;
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let mut setu = network.start_with_pins(&config(&network, &upstream, CALM), "debug", &[]);
    let flows = spliced(&network, &mut setu, &upstream, 1);
    let (client, server) = &flows[0];
    let open = |host: &Netns, device: &str| host.within(|| PacketSocket::open(device).unwrap());
    let (arriving, leaving) = (open(&network.proxy, TO_CLIENTS), open(&network.servers, "proxy"));
    let sender = open(&network.clients, "proxy");
    let text = b"the only segment with these bytes";
    exchange(client, server, text);
    let frame = frames(&arriving, text).pop().expect("the client's segment");
    assert_eq!(frames(&leaving, text).len(), 1);
    // The same once more, of which the server has no use.
    let tagged = |tag: u16| {
        let [high, low] = tag.to_be_bytes();
        sender.send(&[&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()).unwrap();
        thread::sleep(Duration::from_millis(300));
        frames(&leaving, text)
    };
    assert_eq!(tagged(VLAN).len(), 0, "another network's");
    let [plain] = tagged(PRIORITY).try_into().unwrap();
    assert_eq!(plain[12..14], [8, 0], "it has no tag any more");
    stream(&flows);
}

/// Those that came meanwhile and have these bytes.
fn frames(socket: &PacketSocket, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(len) = socket.receive(&mut buffer) {
        let frame = &buffer[..len.min(buffer.len())];
        if frame.windows(bytes.len()).any(|part| part == bytes) {
            found.push(frame.to_vec());
        }
    }
    found
}

fn has(host: &Netns, kind: &str) -> bool {
    let mut command = host.command("ip");
    command.args(["link", "add"]);
    match kind {
        "vlan" => command.args(["link", TO_CLIENTS, "name", "tried", "type", "vlan", "id", "9"]),
        _ => command.args(["name", "tried", "type", kind]),
    };
    let is_there = command.output().unwrap().status.success();
    if is_there {
        host.ip("link delete tried");
    }
    is_there
}

/// Makes the device to clients the one of a bond.
fn bond(proxy: &Netns) {
    proxy.ip("link add bundle type bond mode active-backup miimon 100");
    proxy.ip(&format!("address flush dev {TO_CLIENTS}"));
    proxy.ip(&format!("link set {TO_CLIENTS} down"));
    proxy.ip(&format!("link set {TO_CLIENTS} master bundle"));
    proxy.ip("address add 10.79.1.1/24 dev bundle");
    proxy.ip("link set bundle up");
}

/// Makes the link to clients a VLAN of it.
fn vlan(network: &Network) {
    for (host, device, address) in
        [(&network.proxy, TO_CLIENTS, "10.79.1.1/24"), (&network.clients, "proxy", "10.79.1.2/24")]
    {
        host.ip(&format!("link add link {device} name tagged type vlan id 7"));
        host.ip(&format!("address flush dev {device}"));
        host.ip(&format!("address add {address} dev tagged"));
        host.ip("link set tagged up");
    }
    // Its first packets are lost until the link is up.
    thread::sleep(Duration::from_millis(200));
}
