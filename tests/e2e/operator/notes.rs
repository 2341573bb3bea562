//! What is told at once where it would otherwise only be felt: lists that refuse everyone, limits that the machine shrinks.

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    admin::get,
    config,
    peers::{Upstream, connect, end_of, exchange},
};

const REFUSED: &str = "refused: none of those who tried is in proxy_protocol.trusted";
const NOTE: &str = "attempts were refused, for proxy_protocol.trusted has not who tried";

/// A setu behind a load balancer, which these ranges are to name.
fn behind_a_proxy(upstream: &Upstream, trusted: &[String]) -> String {
    let ranges: Vec<_> = trusted.iter().map(|range| format!("\"{range}\"")).collect();
    let more = format!("[proxy_protocol]\ntrusted = [{}]\n", ranges.join(", "));
    config(Path::Userspace, &upstream.address(), &more)
        .replace("mode = \"chat\"\n", "mode = \"chat\"\naccept_proxy_protocol = true\n")
        .replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]")
}

/// What the page and the terminal say.
fn shown(setu: &Setu) -> [String; 2] {
    let mut status = Command::new(Setu::binary());
    let terminal = status.args(["status", "--once", "--admin", &setu.admin().to_string()]).output().unwrap();
    [get(setu.admin(), "/").body, String::from_utf8_lossy(&terminal.stdout).into_owned()]
}

fn wait_until_shown(setu: &Setu, wanted: bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while shown(setu).iter().any(|text| text.contains(NOTE) != wanted) {
        assert!(Instant::now() < deadline, "shown: {:?}", shown(setu));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_served(upstream: &Upstream, at: SocketAddr) {
    let mut client = connect(at);
    client.write_all(b"PROXY TCP4 192.0.2.9 192.0.2.1 5000 443\r\nhello").unwrap();
    let server = upstream.accept();
    let mut hello = [0; 5];
    std::io::Read::read_exact(&mut &server, &mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    exchange(&client, &server, b"and more");
}

/// The kernel refuses them, so that nobody sees them.
#[test]
fn a_list_that_refuses_everyone_is_told_of() {
    let upstream = Upstream::new();
    let [wrong, right] =
        ["10.9.0.0/16", "127.0.0.0/8"].map(|range| behind_a_proxy(&upstream, &[range.into()]));
    let mut setu = Setu::start(&wrong);
    wait_until_shown(&setu, false);
    let at = setu.address("chat");
    let balancer = TcpStream::connect_timeout(&at, Duration::from_millis(300));
    assert_eq!(balancer.unwrap_err().kind(), ErrorKind::TimedOut);
    setu.wait_count(REFUSED, 1);
    wait_until_shown(&setu, true);
    let lines = setu.lines(|line| line.contains(REFUSED));
    assert!(lines[0].contains(" INFO ") && lines[0].contains("listener=chat count=1"), "{lines:?}");
    assert_eq!(get(setu.admin(), "/readyz").status, 200);
    // Not for each: once a minute.
    for _ in 0..2 {
        assert!(TcpStream::connect_timeout(&at, Duration::from_millis(1_200)).is_err());
    }
    assert_eq!(setu.count(REFUSED), 1, "{}", setu.tail());
    setu.reload(&right);
    is_served(&upstream, at);
    wait_until_shown(&setu, false);

    let setu = Setu::start(&right);
    is_served(&upstream, setu.address("chat"));
    std::thread::sleep(Duration::from_millis(1_500));
    wait_until_shown(&setu, false);
    assert_eq!(setu.count(REFUSED), 0, "{}", setu.tail());
}

/// More ranges than the kernel takes: setu itself refuses them.
#[test]
fn so_is_one_that_is_too_long_to_hide_the_port() {
    let upstream = Upstream::new();
    let wrong: Vec<_> = (0..400).map(|number| format!("2001:db8:{number:x}::/48")).collect();
    let mut setu = Setu::start(&behind_a_proxy(&upstream, &wrong));
    assert!(!matches!(end_of(&connect(setu.address("chat"))), Ok(1..)));
    setu.wait_closed("proxy_untrusted", 1);
    setu.wait_count(REFUSED, 1);
    wait_until_shown(&setu, true);
}

#[test]
fn a_limit_that_the_machine_shrinks_is_a_warning() {
    let upstream = Upstream::new();
    let with = |limit: &str| config(Path::Userspace, &upstream.address(), &format!("[limits]\n{limit}\n"));
    let said = "limits.connections is more than this machine has room for";
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 1000; exec \"$@\"", "sh"]).arg(Setu::binary());
    let mut setu = Setu::start_by(command, &with("connections = 500000"), &[]);
    for (need, remedy) in [("open files", "LimitNOFILE="), ("source ports", "net.ipv4.ip_local_port_range")] {
        let lines = setu.lines(|line| line.contains(said) && line.contains(&format!("by=\"{need}\"")));
        assert!(lines.len() == 1 && lines[0].contains("wanted=500000"), "{need}: {}", setu.log());
        assert!(lines[0].contains(" WARN ") && lines[0].contains(remedy), "{lines:?}");
    }
    let warnings = setu.count(said);
    setu.reload(&with("connections = 100"));
    assert_eq!(setu.count(said), warnings, "{}", setu.log());
    setu.reload(&with("connections = 400000"));
    assert_eq!(setu.count("wanted=400000"), warnings, "{}", setu.log());
    for limit in ["connections = 300", ""] {
        let setu = Setu::start(&with(limit));
        assert_eq!(setu.count(said), 0, "{limit}: {}", setu.log());
    }
}
