//! What is on the wire is counted, shown, and can be taken away when setu is gone; nobody's address is told.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    process::{Command, Output},
    time::Duration,
};

use setu_tests::{
    Path, Setu,
    admin::{eventually, get, metrics},
    network::{Network, PROXY, PROXY_V6, SERVERS},
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
    let status = || network.proxy.within(|| get(admin, "/status.json").body);
    eventually("its end is told", status, |text| text.contains("the keeper of the wire is gone"));
    exchange(&client, &server, b"without a keeper");
    assert_eq!(setu.count("the keeper of the wire is gone"), 1, "{}", setu.tail());
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

#[test]
fn a_client_of_another_family_is_told_as_that() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let config = network.config(Path::Wire, &[upstream.address()], "");
    let config = config.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]");
    let config = config.replace(&format!("{PROXY}:0"), &format!("[{PROXY_V6}]:0"));
    let setu = network.start_with_pins(&config, "debug", &[]);
    let (client, server) = network.flow(&setu, &upstream);
    let refused = |reason: &str| format!("setu_wire_refused_total{{reason=\"{reason}\"}}");
    let samples = eventually(
        "it is refused",
        || {
            exchange(&client, &server, b"there");
            network.proxy.within(|| metrics(setu.admin()))
        },
        |samples| samples.iter().any(|(name, count)| name.starts_with("setu_wire_refused") && *count > 0.0),
    );
    assert_eq!((samples[&refused("mixed_families")], samples[&refused("no_port")]), (1.0, 0.0));
}

#[test]
fn two_that_have_the_same_ports_are_told() {
    const WARNED: &str = "is another setu's that runs in this network and has some of wire.ports";
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let config = |number: usize, ports: &str| {
        let state = folders[number].path().display();
        let more = format!("[tls]\nstate_dir = \"{state}\"\n[wire]\nports = \"{ports}\"\n");
        network.config(Path::Wire, &[upstream.address()], &more)
    };
    let first = network.start_with_pins(&config(0, "20000-20099"), "debug", &[]);
    assert_eq!(first.count(WARNED), 0);
    let second = network.start_with_pins(&config(1, "20100-20199"), "debug", &[]);
    assert_eq!(second.count(WARNED), 0, "{}", second.log());
    let third = config(2, "20050-20149");
    let file = folders[2].path().join("setu.toml");
    fs::write(&file, &third).unwrap();
    let setu = Setu::binary().display().to_string();
    let check = || {
        let mut command = network.pins.command(&network.proxy, &setu);
        let output = command.args(["check", "--config"]).arg(&file).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(check().contains("has some of wire.ports"), "{}", check());
    assert_eq!(network.start_with_pins(&third, "debug", &[]).count(WARNED), 1);
    // Who has ended is in nobody's way.
    assert!(first.stop().0.success() && second.stop().0.success());
    assert!(!check().contains("has some of wire.ports"), "{}", check());
}

#[test]
fn a_privilege_that_is_missing_is_named_and_nothing_is_left() {
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let config = network.config(Path::Wire, &["203.0.113.1:443".into()], "");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    fs::write(&file, config).unwrap();
    for name in ["net_admin", "net_raw", "perfmon", "bpf"] {
        let mut command = network.pins.command(&network.proxy, "setpriv");
        command.args(["--bounding-set", &format!("-{name}"), "--inh-caps", &format!("-{name}")]);
        let output = command.arg(Setu::binary()).args(["run", "--config"]).arg(&file).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let name = format!("CAP_{}", name.to_uppercase());
        let last = error.lines().last().unwrap_or_default();
        assert!(
            !output.status.success() && last.contains(&format!("this is missing: {name}, for ")),
            "{error}"
        );
    }
    assert!(shown(&network).starts_with("nothing"));
}
