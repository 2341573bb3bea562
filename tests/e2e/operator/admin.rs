//! The admin endpoint: what an operator and Prometheus see of traffic, of trouble, and what others do not see.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    admin::{ask, eventually, get, metrics},
    config,
    peers::{Manner, PATIENCE, Upstream, call, connect, end_of, exchange, finish, receive, send},
};

crate::on_both_paths! {
    metrics_follow_the_traffic
}

/// A configuration with an admin endpoint.
fn with_admin(path: Path, upstream: &str) -> String {
    config(path, upstream, "").replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]")
}

fn metrics_follow_the_traffic(path: Path) {
    const UP: usize = 3_000_000;
    const DOWN: usize = 5_000_000;
    let upstream = Upstream::new();
    let mut setu = Setu::start(&with_admin(path, &upstream.address()));
    let admin = setu.admin();
    let before = metrics(admin);
    let active = format!("setu_connections_active{{listener=\"chat\",path=\"{}\"}}", path.name());
    assert_eq!((before[&active], before["setu_connections_total{listener=\"chat\"}"]), (0.0, 0.0));
    let pairs: Vec<_> = (0..3).map(|_| upstream.connect(setu.address("chat"))).collect();
    for (client, server) in &pairs {
        exchange(client, server, b"hello");
    }
    let during = eventually("three are active", || metrics(admin), |samples| samples[&active] == 3.0);
    assert_eq!(during["setu_connections_total{listener=\"chat\"}"], 3.0);
    let endpoint = format!("{{upstream=\"test\",endpoint=\"{}\"}}", upstream.address());
    assert_eq!(during[&format!("setu_upstream_up{endpoint}")], 1.0);
    assert_eq!(during[&format!("setu_upstream_connections{endpoint}")], 3.0);
    let in_kernel = if path == Path::Sockmap { 3.0 } else { 0.0 };
    assert_eq!(during["setu_kernel_flows"], in_kernel);
    assert_eq!(during["setu_kernel_path_available"], in_kernel / 3.0);
    thread::scope(|scope| {
        for (client, server) in &pairs {
            scope.spawn(|| {
                send(client, 1, UP, Manner::FAST);
                finish(client);
                assert_eq!(receive(client, 2, Manner::FAST), DOWN);
            });
            scope.spawn(|| {
                assert_eq!(receive(server, 1, Manner::FAST), UP);
                send(server, 2, DOWN, Manner::FAST);
                finish(server);
            });
        }
    });
    setu.wait_closed("client_closed", 3);
    let after = metrics(admin);
    assert_eq!(after[&active], 0.0);
    assert_eq!(after["setu_closed_total{reason=\"client_closed\"}"], 3.0);
    assert_eq!(after["setu_bytes_total{direction=\"upstream\"}"], 3.0 * (UP + 6) as f64);
    assert_eq!(after["setu_bytes_total{direction=\"client\"}"], 3.0 * DOWN as f64);
    assert_eq!(after["setu_kernel_flows"], 0.0);
    assert!(after["process_resident_memory_bytes"] > 1e6 && after["process_open_fds"] > 10.0);
    assert!(after["setu_build_info{version=\"0.1.0\"}"] == 1.0 && after["setu_start_time_seconds"] > 1.7e9);
    // Labels are of the configuration and the code: traffic adds no series.
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
}

#[test]
fn bytes_of_a_live_flow_are_counted() {
    for path in [Path::Userspace, Path::Sockmap] {
        if path == Path::Sockmap && !crate::may_use_kernel() {
            continue;
        }
        let upstream = Upstream::new();
        let setu = Setu::start(&with_admin(path, &upstream.address()));
        let (client, server) = upstream.connect(setu.address("chat"));
        thread::scope(|scope| {
            scope.spawn(|| send(&client, 1, 20_000_000, Manner::FAST));
            setu_tests::peers::receive_some(&server, 1, 20_000_000);
        });
        let name = "setu_bytes_total{direction=\"upstream\"}";
        eventually("most bytes are counted", || metrics(setu.admin())[name], |bytes| *bytes >= 18e6);
        drop((client, server));
    }
}

#[test]
fn readiness_follows_the_upstream_and_health_does_not() {
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap().to_string();
    drop(reserved);
    let setu = Setu::start(&with_admin(Path::Userspace, &address));
    let admin = setu.admin();
    assert_eq!(get(admin, "/readyz").status, 200);
    let refused = || {
        let _ = end_of(&call(setu.address("chat")));
        get(admin, "/readyz")
    };
    let answer = eventually("not ready", refused, |answer| answer.status == 503);
    assert_eq!(answer.body, format!("chat does not work: {address} does not answer (connect_refused)\n"));
    assert_eq!(get(admin, "/healthz").status, 200);
    assert!(get(admin, "/").body.contains("Not working"));
    assert_eq!(metrics(admin)["setu_ready"], 0.0);
    let back = Upstream::on(&address);
    eventually("ready again", || get(admin, "/readyz").status, |status| *status == 200);
    drop(back);
    let status: String = get(admin, "/status.json").body;
    assert!(status.contains("\"ready\":true") && status.contains("\"standing\":\"up\""), "{status}");
}

#[test]
fn the_page_speaks_the_browsers_language() {
    let upstream = Upstream::new();
    let setu = Setu::start(&with_admin(Path::Userspace, &upstream.address()));
    let admin = setu.admin();
    let page = |languages: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: {admin}\r\nAccept-Language: {languages}\r\n\r\n");
        ask(admin, &request).body
    };
    for (languages, root, title) in [
        ("ar-EG,ar;q=0.9,en;q=0.8", "<html lang=\"ar\" dir=\"rtl\">", "setu، جسر إلى واتساب"),
        ("xx,es", "<html lang=\"es\" dir=\"ltr\">", "setu, un puente hacia WhatsApp"),
        ("xx", "<html lang=\"en\" dir=\"ltr\">", "setu, a bridge to WhatsApp"),
    ] {
        let page = page(languages);
        assert!(page.contains(root) && page.contains(&format!("<h1>{title}</h1>")), "{languages}: {page}");
        assert!(page.ends_with("</html>\n"), "{languages}");
    }
    // Nobody has reviewed what was translated, and it says so.
    assert!(page("es").contains("hablante nativo") && !page("en").contains("native speaker"));
}

#[test]
fn documents_are_read_only_and_shown_to_nobody_elses_page() {
    let upstream = Upstream::new();
    let setu = Setu::start(&with_admin(Path::Userspace, &upstream.address()));
    let admin = setu.admin();
    let page = get(admin, "/");
    assert!(page.status == 200 && page.body.ends_with("</html>\n"), "{}", page.head);
    for header in
        ["content-security-policy: default-src 'none'; style-src 'sha256-", "cache-control: no-store"]
    {
        assert!(page.head.contains(header), "{header} is missing: {}", page.head);
    }
    assert!(page.head.contains("\r\nrefresh: "));
    assert!(!get(admin, "/?refresh=off").head.contains("\r\nrefresh: "));
    assert_eq!(get(admin, "/nothing").status, 404);
    // Its port changes with each start: there is nothing that a phone could be set to.
    let none = get(admin, "/share?host=proxy.example");
    assert!(none.status == 400 && none.body.contains("no listener takes chat"), "{}", none.body);
    let head = ask(admin, &format!("HEAD / HTTP/1.1\r\nHost: {admin}\r\n\r\n"));
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer =
            ask(admin, &format!("{method} / HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 2\r\n\r\nhi"));
        assert_eq!(answer.status, 405, "{method}");
    }
    let rebound = ask(admin, "GET /metrics HTTP/1.1\r\nHost: attacker.example\r\n\r\n");
    assert_eq!(rebound.status, 421);
    assert!(!rebound.body.contains("setu_"), "{}", rebound.body);
    let long = "x".repeat(60_000);
    let answer = ask(admin, &format!("GET / HTTP/1.1\r\nHost: {admin}\r\nX: {long}\r\n\r\n"));
    assert_eq!(answer.status, 431);
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out() {
    let upstream = Upstream::new();
    let setu = Setu::start(&with_admin(Path::Userspace, &upstream.address()));
    let silent: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = connect(setu.admin());
            stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
            stream
        })
        .collect();
    // More than all of it is taken; the silent are sent away one after another.
    assert_eq!(get(setu.admin(), "/healthz").status, 200);
    drop(silent);
    // Clients of the proxy never noticed.
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"hello");
}

/// Silent, slow at asking, slow at reading: nobody keeps health checks out.
#[test]
fn slow_clients_do_not_take_the_places_of_health_checks() {
    let upstream = Upstream::new();
    let setu = Setu::start(&with_admin(Path::Userspace, &upstream.address()));
    let admin = setu.admin();
    let mut held: Vec<TcpStream> = Vec::new();
    for said in [&b""[..], b"GET / HTTP/1.1\r\nHo", b"G"] {
        held.extend((0..40).map(|_| {
            let mut stream = connect(admin);
            stream.write_all(said).unwrap();
            stream
        }));
        for path in ["/healthz", "/readyz"] {
            let begun = Instant::now();
            assert_eq!(get(admin, path).status, 200);
            // Nobody is waited for: the deadline of a request is 5 s.
            assert!(begun.elapsed() < Duration::from_secs(3), "{path} after {:?}", begun.elapsed());
        }
    }
    // Those who ask, and read nothing: their documents have places of their own.
    held.extend((0..40).map(|_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.connect(&admin.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n").as_bytes()).unwrap();
        stream
    }));
    for path in ["/healthz", "/readyz"] {
        let begun = Instant::now();
        assert_eq!(get(admin, path).status, 200);
        assert!(begun.elapsed() < Duration::from_secs(3), "{path} after {:?}", begun.elapsed());
    }
    // None of the silent is kept for long.
    let first = held.remove(0);
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(end_of(&first).is_ok_and(|count| count == 0) || end_of(&first).is_err());
}

#[test]
fn only_by_names_that_are_its_own_it_is_asked() {
    let upstream = Upstream::new();
    let network = setu_tests::netns::Netns::alone();
    network.ip("address add 192.0.2.7/32 dev lo");
    let text = with_admin(Path::Userspace, &upstream.address()).replace(
        "[admin]\nbind = [\"127.0.0.1:0\"]",
        "[admin]\nbind = [\"127.0.0.1:8199\", \"[::1]:8199\", \"192.0.2.7:8199\"]\nhosts = [\"setu.example\"]",
    );
    let mut setu = Setu::start_in(&text, Some(&network));
    let status = |at: &str, host: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n");
        network.within(|| ask(at.parse().unwrap(), &request)).status
    };
    for at in ["127.0.0.1:8199", "[::1]:8199", "192.0.2.7:8199"] {
        for host in [at, "localhost:8199", "setu.example", "SETU.example:443"] {
            assert_eq!(status(at, host), 200, "{at} {host}");
        }
        for host in ["attacker.example", "setu.example.attacker.example:8199", "x.setu.example", ""] {
            assert_eq!(status(at, host), 421, "{at} {host}");
        }
    }
    // The names change with a reload.
    setu.reload(&text.replace("setu.example", "other.example"));
    assert_eq!(status("192.0.2.7:8199", "other.example"), 200);
    assert_eq!(status("192.0.2.7:8199", "setu.example"), 421);
}

#[test]
fn an_address_in_use_is_told_as_for_any_listener() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = with_admin(Path::Userspace, "127.0.0.1:1").replace(
        "[admin]\nbind = [\"127.0.0.1:0\"]",
        &format!("[admin]\nbind = [\"{}\"]", taken.local_addr().unwrap()),
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(Setu::binary()).args(["run", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("is in use by ") && text.contains("or give admin.bind another port"), "{text}");
}

#[test]
fn an_endpoint_that_others_can_reach_is_warned_about() {
    let upstream = Upstream::new();
    let private = Setu::start(&with_admin(Path::Userspace, &upstream.address()));
    assert_eq!(private.count("can be reached from other machines"), 0);
    let public = with_admin(Path::Userspace, &upstream.address())
        .replace("[admin]\nbind = [\"127.0.0.1:0\"]", "[admin]\nbind = [\"0.0.0.0:0\"]");
    let public = Setu::start(&public);
    assert_eq!(public.count("can be reached from other machines"), 1);
    let port = public.admin().port();
    assert_eq!(get(([127, 0, 0, 1], port).into(), "/healthz").status, 200);
}
