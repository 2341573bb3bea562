//! Ready is who can give clients chat and media: each upstream dead in turn, names that nobody resolves, the start, the end.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    admin::{Answer, get},
    config,
    dns::{self, DnsServer},
    front_door, listener,
    peers::{PATIENCE, Silent, Upstream, connect, end_of, exchange, finish},
    upstream,
};

const ADMIN: &str = "[admin]\nbind = []\nready_after = \"0s\"";

/// A configuration with an admin endpoint, and so long to find out whether it is ready.
fn waiting(text: &str, ready_after: &str) -> String {
    text.replace(ADMIN, &format!("[admin]\nbind = [\"127.0.0.1:0\"]\nready_after = \"{ready_after}\""))
}

fn until(what: &str, mut ask: impl FnMut() -> Answer, is_so: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if is_so(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never is {what}: {} {}", answer.status, answer.body);
        thread::sleep(Duration::from_millis(20));
    }
}

fn readyz(admin: SocketAddr) -> Answer {
    get(admin, "/readyz")
}

/// `setu status --once`: its exit code, and what it says first.
fn status(admin: SocketAddr) -> (Option<i32>, String) {
    let output = Command::new(Setu::binary())
        .args(["status", "--once", "--admin", &admin.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text.lines().next().unwrap_or_default().to_owned())
}

/// An address that refuses, and that nobody else gets.
fn refusing() -> (socket2::Socket, String) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    (socket, address)
}

/// Chat has two upstreams, as by default, and media one.
#[test]
fn each_upstream_dead_in_turn() {
    const NAMES: [&str; 3] = ["chat", "chat-http", "media"];
    let state = tempfile::tempdir().unwrap();
    for dead in [&["chat"][..], &["chat-http"], &["media"], &["chat", "chat-http"], &[]] {
        let (_refusing, refusing) = refusing();
        let living = Upstream::new();
        let mut more = String::new();
        for name in NAMES {
            let mode = if name == "media" { "media" } else { "chat" };
            more += &listener(name, &format!("mode = \"{mode}\"\nupstream = \"{name}\""));
            let address = if dead.contains(&name) { refusing.clone() } else { living.address() };
            more += &upstream(name, address, "off");
        }
        let mut setu = Setu::start(&waiting(&front_door(Path::Userspace, state.path(), &more), "1h"));
        let admin = setu.admin();
        let cause = format!("{refusing} does not answer (connect_refused)");
        let (ready, words) = match *dead {
            [] => (200, "ready".to_owned()),
            ["media"] => (503, format!("media does not work: {cause}")),
            [_, _] => (503, format!("chat does not work: {cause}")),
            [one] => (
                200,
                format!(
                    "ready, degraded: chat on listener \"{one}\" does not work: {cause}; on the others it does"
                ),
            ),
            _ => unreachable!(),
        };
        if ready == 503 {
            // Nothing that it waits for comes: it says so, for as long as it may.
            let purpose = words.split(' ').next().unwrap();
            let starting =
                format!("starting: {purpose} waits for an answer of {refusing} (connect_refused)\n");
            until("starting", || readyz(admin), |answer| answer.body == starting);
            assert_eq!(status(admin).0, Some(4));
            setu.reload(&waiting(&front_door(Path::Userspace, state.path(), &more), "1ms"));
        }
        judge(&setu, ready, &words);
    }
}

/// What it comes to say, wherever it is asked.
fn judge(setu: &Setu, ready: u16, words: &str) {
    let admin = setu.admin();
    let says = until(words, || readyz(admin), |answer| answer.body == format!("{words}\n"));
    assert_eq!(says.status, ready);
    let json = get(admin, "/status.json").body;
    let page = get(admin, "/").body;
    let metrics = get(admin, "/metrics").body;
    let cause = words.trim_start_matches("ready, degraded: ");
    let (code, line) = status(admin);
    let flag = |name: &str, value: bool| {
        assert!(metrics.contains(&format!("\n{name} {}.0\n", u8::from(value))), "{name}: {metrics}");
    };
    flag("setu_ready", ready == 200);
    flag("setu_degraded", words.starts_with("ready, "));
    assert!(json.contains("\"starting\":false"), "{json}");
    if ready == 503 {
        assert!(page.contains("Not working") && code == Some(3), "{code:?} {page}");
        assert_eq!(line, format!("NOT WORKING: {cause}"));
        assert!(json.contains("\"ready\":false") && json.contains("\"degraded\":[]"), "{json}");
    } else if cause == "ready" {
        assert!(
            page.contains("<strong>Working</strong>") && json.contains("\"degraded\":[]"),
            "{page} {json}"
        );
        assert_eq!((code, line.as_str()), (Some(0), "working"));
    } else {
        assert!(page.contains("Working in part") && json.contains("\"problems\":[]"), "{page} {json}");
        assert_eq!((code, line), (Some(0), format!("working, but {cause}")));
    }
}

/// Names that nobody resolves: from the first moment on no health check passes, and the words are there.
#[test]
fn dead_names_are_never_green() {
    let resolver = DnsServer::new();
    for name in ["chat.test", "media.test"] {
        resolver.set(name, dns::Answer::Silence);
    }
    let state = tempfile::tempdir().unwrap();
    let living = Upstream::new();
    let port = living.address().rsplit_once(':').unwrap().1.to_owned();
    let more = format!(
        "[dns]\nservers = [\"{}\"]\n[timeouts]\nconnect = \"300ms\"\n{}{}{}{}",
        resolver.address(),
        listener("chat", "mode = \"chat\"\nupstream = \"chat\""),
        listener("media", "mode = \"media\"\nupstream = \"media\""),
        upstream("chat", format!("chat.test:{port}"), "off"),
        upstream("media", format!("media.test:{port}"), "off"),
    );
    let text = front_door(Path::Userspace, state.path(), &more);
    let mut setu = Setu::start(&waiting(&text, "1h"));
    let admin = setu.admin();
    let failing = |answer: &Answer| {
        assert_eq!(answer.status, 503, "{}", answer.body);
        answer.body.matches("(resolve_failed)").count() == 2
    };
    let said = until("failing", || readyz(admin), failing);
    assert!(said.body.starts_with("starting: chat waits for an answer of chat.test:"), "{}", said.body);
    let page = get(admin, "/").body;
    assert!(page.contains("<strong>Starting</strong>") && page.contains("media waits for"), "{page}");
    // The time that it may take is over.
    setu.reload(&waiting(&text, "1ms"));
    let said = until(
        "told",
        || readyz(admin),
        |answer| {
            assert_eq!(answer.status, 503, "{}", answer.body);
            answer.body.contains("media does not work: media.test:")
        },
    );
    assert!(said.body.starts_with("chat does not work: chat.test:"), "{}", said.body);
    for name in ["chat.test", "media.test"] {
        resolver.set(name, dns::Answer::addresses(&["127.0.0.1"], 60));
    }
    until("ready", || readyz(admin), |answer| answer.status == 200);
}

/// Of a server that says nothing at all nothing is known.
#[test]
fn what_is_not_known_is_waited_for_and_no_longer_than_that() {
    let silent = Silent::new("127.0.0.1:0");
    let address = silent.address().to_string();
    let text = |ready_after: &str, upstream: &str| {
        waiting(&config(Path::Userspace, upstream, "[timeouts]\nconnect = \"1h\"\n"), ready_after)
    };
    let mut setu = Setu::start(&text("1h", &address));
    let admin = setu.admin();
    for _ in 0..5 {
        let answer = readyz(admin);
        assert_eq!(answer.body, format!("starting: chat waits for an answer of {address}\n"));
        assert_eq!(answer.status, 503);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status(admin), (Some(4), format!("starting: chat waits for an answer of {address}")));
    setu.reload(&text("1ms", &address));
    assert_eq!(readyz(admin).body, "ready\n");
    // It never starts again: who knows nothing against new servers goes on.
    let living = Upstream::new();
    setu.reload(&text("1h", &living.address()));
    assert_eq!(readyz(admin).body, "ready\n");
    setu.reload(&text("1h", &address));
    for _ in 0..5 {
        assert_eq!(readyz(admin).body, "ready\n");
        thread::sleep(Duration::from_millis(100));
    }
    // Nobody asks anybody where nothing is waited for.
    let living = Upstream::new();
    let at_once = Setu::start(&text("0s", &living.address()));
    assert_eq!(readyz(at_once.admin()).body, "ready\n");
    assert!(living.comes_within(Duration::from_secs(2)).is_none(), "it was connected to");
}

/// Its predecessor served: nothing is waited for, and load balancers see one setu after the other.
#[test]
fn a_successor_is_ready_at_once() {
    let silent = Silent::new("127.0.0.1:0");
    let state = tempfile::tempdir().unwrap();
    let more = format!("[timeouts]\nconnect = \"1h\"\n[tls]\nstate_dir = \"{}\"\n", state.path().display());
    let text = waiting(&config(Path::Userspace, &silent.address().to_string(), &more), "1h");
    let old = Setu::start(&text);
    assert_eq!(readyz(old.admin()).status, 503);
    let new = Setu::start_by(Command::new(Setu::binary()), &text, &["--replace"]);
    assert_eq!(readyz(new.admin()).body, "ready\n");
    assert!(old.ended().0.success());
}

fn lame_duck(upstream: &Upstream, time: &str, state: &std::path::Path) -> String {
    let more = format!(
        "[timeouts]\nlame_duck = \"{time}\"\ndrain = \"1h\"\n[tls]\nstate_dir = \"{}\"\n",
        state.display()
    );
    waiting(&config(Path::Userspace, &upstream.address(), &more), "0s")
}

/// Told to stop, it sends health checks away and serves who comes all the same.
#[test]
fn a_lame_duck_serves_and_is_not_ready() {
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    // For the user that setu becomes.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(Setu::binary());
    command.env("NOTIFY_SOCKET", &path);
    let setu = Setu::start_by(command, &lame_duck(&upstream, "1h", state.path()), &[]);
    let (admin, chat) = (setu.admin(), setu.address("chat"));
    let early = upstream.connect(chat);
    assert_eq!(readyz(admin).status, 200);
    setu.signal("TERM");
    let answer = until("stopping", || readyz(admin), |answer| answer.status == 503);
    assert_eq!(answer.body, "stopping\n");
    assert_eq!(status(admin).0, Some(5));
    let told = loop {
        let mut buffer = [0; 512];
        let count = manager.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if text.contains("STOPPING=1") {
            break text;
        }
    };
    assert!(told.contains("STATUS=stopping, new clients are still taken\nEXTEND_TIMEOUT_USEC=36"), "{told}");
    let late = upstream.connect(chat);
    for (client, server) in [&early, &late] {
        exchange(client, server, b"served");
    }
    // A second signal waits neither for others nor for flows.
    let (ended, reasons) = setu.stop();
    assert!(ended.success());
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("shutdown".into(), 2)]);
}

#[test]
fn after_its_time_a_lame_duck_refuses_and_drains() {
    let upstream = Upstream::new();
    let state = tempfile::tempdir().unwrap();
    let mut setu = Setu::start(&lame_duck(&upstream, "100ms", state.path()));
    let (client, server) = upstream.connect(setu.address("chat"));
    setu.signal("TERM");
    setu.wait_count("draining connections=1", 1);
    let error = std::net::TcpStream::connect(setu.address("chat")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    exchange(&client, &server, b"still here");
    finish(&client);
    assert_eq!(end_of(&server).unwrap(), 0);
    drop(server);
    let (ended, reasons) = setu.ended();
    assert!(ended.success());
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("client_closed".into(), 1)]);
}

/// Whoever takes over takes the clients as well: there is nothing to wait for.
#[test]
fn a_successor_ends_a_lame_duck() {
    let upstream = Upstream::new();
    let state = tempfile::tempdir().unwrap();
    let text = lame_duck(&upstream, "1h", state.path());
    let mut old = Setu::start(&text);
    let flow = upstream.connect(old.address("chat"));
    old.signal("TERM");
    old.wait_count("new clients are still taken", 1);
    let new = Setu::start_by(Command::new(Setu::binary()), &text, &["--replace"]);
    old.wait_count("draining connections=1", 1);
    let (client, server) = upstream.connect(new.address("chat"));
    exchange(&client, &server, b"to the new one");
    drop(flow);
    assert!(old.ended().0.success());
}

/// A resolver that is there and silent, as behind a firewall that drops.
#[test]
fn nothing_is_green_while_nothing_was_heard() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = waiting(
        &config(
            Path::Userspace,
            "chat.test:5222",
            &format!(
                "[timeouts]\nconnect = \"1s\"\n[dns]\nservers = [\"{}\"]\n",
                nobody.local_addr().unwrap()
            ),
        ),
        "10s",
    );
    let setu = Setu::start(&text);
    // Through the end of the start, long before which the first attempt fails.
    let said = until(
        "not working",
        || readyz(setu.admin()),
        |answer| {
            assert_eq!(answer.status, 503, "{}", answer.body);
            answer.body.starts_with("chat does not work: ")
        },
    );
    assert_eq!(said.body, "chat does not work: chat.test:5222 does not answer (resolve_failed)\n");
    let _ = end_of(&connect(setu.address("chat")));
    assert_eq!(readyz(setu.admin()).status, 503);
}
