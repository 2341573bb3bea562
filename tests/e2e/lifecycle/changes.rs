//! Stopping, reloading, and replacing a running setu: what clients notice of it, which is nothing.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::{SocketAddr as UnixAddress, UnixDatagram},
        },
    },
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    ONE_SOURCE, Path, Setu, config,
    machine::{is_root, raise_file_limit},
    peers::{Upstream, connect, end_of, exchange, finish},
};

crate::on_both_paths! {
    stopping_lets_flows_finish
    a_second_signal_ends_at_once
    a_reload_touches_no_flow
    a_successor_takes_over_without_refusing_a_client
}

fn drain(time: &str) -> String {
    format!("[timeouts]\ndrain = \"{time}\"\n{ONE_SOURCE}")
}

/// An address that nobody has, for a listener that must keep it.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        thread::sleep(Duration::from_millis(10));
    }
}

fn stopping_lets_flows_finish(path: Path) {
    let upstream = Upstream::new();
    let mut setu = Setu::start(&config(path, &upstream.address(), &drain("1h")));
    let address = setu.address("chat");
    let mut flows: Vec<_> = (0..3).map(|_| upstream.connect(address)).collect();
    for (client, server) in &flows {
        exchange(client, server, b"before");
    }
    setu.signal("TERM");
    setu.wait_count("draining connections=3", 1);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let other = TcpListener::bind(address).expect("others can bind what setu listened on");
    for (client, server) in &flows {
        exchange(client, server, b"still");
        exchange(server, client, b"here");
    }
    let (client, server) = flows.pop().unwrap();
    finish(&client);
    assert_eq!(end_of(&server).unwrap(), 0);
    exchange(&server, &client, b"the rest of a half-closed one");
    drop(server);
    assert_eq!(end_of(&client).unwrap(), 0);
    // Who ends first must be seen first.
    for (client, server) in flows {
        drop(client);
        assert_eq!(end_of(&server).unwrap(), 0);
    }
    let (status, reasons) = setu.ended();
    assert!(status.success(), "{status}");
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("client_closed".into(), 3)]);
    drop(other);
}

fn a_second_signal_ends_at_once(path: Path) {
    let upstream = Upstream::new();
    let mut setu = Setu::start(&config(path, &upstream.address(), &drain("1h")));
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"open");
    setu.signal("TERM");
    setu.wait_count("draining connections=1", 1);
    let (status, reasons) = setu.stop();
    assert!(status.success(), "{status}");
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("shutdown".into(), 1)]);
}

#[test]
fn stopping_without_flows_waits_for_nothing() {
    let upstream = Upstream::new();
    let setu = Setu::start(&config(Path::Userspace, &upstream.address(), &drain("1h")));
    let (status, reasons) = setu.stop();
    assert!(status.success() && reasons.is_empty(), "{status} {reasons:?}");
}

/// A certificate for this name, in files that every user can read.
fn certificate(name: &str, folder: &std::path::Path) {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";
    let mut openssl = Command::new("openssl");
    openssl.args(arguments.split(' ')).args(["-subj", &format!("/CN={name}")]);
    let [key, chain] = ["key.pem", "cert.pem"].map(|file| folder.join(file));
    let output = openssl.arg("-keyout").arg(&key).arg("-out").arg(&chain).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::set_permissions(key, Permissions::from_mode(0o644)).unwrap();
}

/// Whom the certificate that clients are shown is about.
fn subject(address: SocketAddr) -> String {
    let script = "openssl s_client -connect \"$0\" </dev/null 2>/dev/null | openssl x509 -noout -subject";
    let output = Command::new("sh").args(["-c", script, &address.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Listeners come and go; the upstream, limits and the certificate change.
fn a_reload_touches_no_flow(path: Path) {
    raise_file_limit();
    let (before, after) = (Upstream::new(), Upstream::new());
    let text =
        |upstream: &Upstream, more: &str| config(path, &upstream.address(), &format!("{ONE_SOURCE}{more}"));
    let added = |name: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\nbind = [\"127.0.0.1:0\"]\nmode = \"chat\"\nupstream = \"test\"\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let tls = format!(
        "{}[tls]\ncertificate = \"{folder}/cert.pem\"\nkey = \"{folder}/key.pem\"\n",
        added("tls").replace("\"chat\"\nup", "\"chat-tls\"\nup"),
        folder = folder.path().display()
    );
    certificate("before", folder.path());
    let old = tls.clone() + &added("old").replace(":0", &format!(":{}", free_address().port()));
    let mut setu = Setu::start(&text(&before, &old));
    let (kept, removed) = (setu.address("chat"), setu.address("old"));
    let flows: Vec<_> =
        (0..1000).map(|number| before.connect(if number % 2 == 0 { kept } else { removed })).collect();
    for (client, server) in &flows {
        exchange(client, server, b"before");
    }

    assert_eq!(subject(setu.address("tls")), "subject=CN = before");

    certificate("after", folder.path());
    let new = tls + &added("new");
    setu.reload(&text(&after, &new));
    assert_eq!(subject(setu.address("tls")), "subject=CN = after");
    let (client, server) = after.connect(kept);
    exchange(&client, &server, b"to the new upstream");
    let (client, server) = after.connect(setu.address("new"));
    exchange(&client, &server, b"through the new listener");
    assert_eq!(TcpStream::connect(removed).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    for (client, server) in &flows {
        exchange(client, server, b"after");
        exchange(server, client, b"and back");
    }

    // Two are in already, of one more.
    let limited = text(&after, &new).replace("[limits]", "[limits]\nconnections = 3");
    setu.reload(&limited);
    // The reset may be there before the client knows that it is connected.
    assert!(!matches!(TcpStream::connect(kept).and_then(|client| end_of(&client)), Ok(1..)));
    setu.wait_closed("limit_connections", 1);
    for (client, server) in &flows {
        exchange(client, server, b"and on");
    }
    // Who ends first must be seen first.
    let (clients, servers): (Vec<_>, Vec<_>) = flows.into_iter().unzip();
    drop(clients);
    for server in &servers {
        assert_eq!(end_of(server).unwrap(), 0);
    }
    drop(servers);
    setu.wait_closed("client_closed", 1000);
    let flow = after.connect(kept);
    exchange(&flow.0, &flow.1, b"room again");
    assert_eq!(setu.count("ERROR"), 0, "{}", setu.tail());
}

#[test]
fn an_invalid_reload_changes_nothing_and_says_why() {
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), ONE_SOURCE);
    let mut setu = Setu::start(&text);
    let (client, server) = upstream.connect(setu.address("chat"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (wrong, why) in [
        (
            text.replace("per_source_rate", "per_sorce_rate"),
            "limits.per_sorce_rate: there is no such key; write",
        ),
        (text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")), "is in use"),
        (
            format!(
                "{}[tls]\ncertificate = \"none.pem\"\nkey = \"none.pem\"\n",
                text.replace("\"chat\"\nup", "\"chat-tls\"\nup")
            ),
            "none.pem: cannot be read",
        ),
    ] {
        setu.reload(&wrong);
        assert_eq!(setu.count(why), 1, "{why}: {}", setu.tail());
        exchange(&client, &server, b"as before");
        let (client, server) = upstream.connect(setu.address("chat"));
        exchange(&client, &server, b"and for new ones");
    }
    assert_eq!(setu.count("not reloaded, nothing has changed"), 3, "{}", setu.tail());
    setu.wait_count("path=userspace listener=chat", 3);
    let descriptors = setu.descriptors();
    setu.reload(&text);
    assert_eq!(setu.descriptors(), descriptors, "the same listeners take as many");
}

#[test]
fn what_only_a_restart_changes_is_said() {
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), ONE_SOURCE);
    let mut setu = Setu::start(&text);
    setu.reload(
        &text.replace("\"userspace\"", "\"auto\"").replace("[limits]", "[limits]\nkernel_bytes = \"1MiB\""),
    );
    for key in ["relay.path", "limits.kernel_bytes"] {
        assert_eq!(setu.count(&format!("with the next start key=\"{key}\"")), 1, "{}", setu.tail());
    }
    if is_root() {
        setu.reload(&text.replace("127.0.0.1:0", "127.0.0.1:81"));
        assert_eq!(setu.count("no right to bind port 81"), 1, "{}", setu.tail());
    }
}

/// Clients that connect one after the other until told to stop: how many there were, and how many failed.
struct Visitors {
    stop: AtomicBool,
    served: AtomicUsize,
    failed: AtomicUsize,
}

impl Visitors {
    fn none() -> Self {
        Self { stop: AtomicBool::new(false), served: AtomicUsize::new(0), failed: AtomicUsize::new(0) }
    }

    fn come(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            match Self::visit(to) {
                Ok(()) => self.served.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    println!("a visitor failed: {error}");
                    self.failed.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    }

    fn visit(to: SocketAddr) -> io::Result<()> {
        use std::io::{Read as _, Write as _};
        let mut client = TcpStream::connect(to)?;
        client.set_read_timeout(Some(Duration::from_secs(20)))?;
        client.write_all(b"echo")?;
        client.read_exact(&mut [0; 4])
    }

    /// Waits for so many more.
    fn wait(&self, more: usize) {
        let wanted = self.served.load(Ordering::Relaxed) + more;
        wait_until("visitors", || self.served.load(Ordering::Relaxed) >= wanted);
    }
}

#[test]
fn reloads_refuse_no_client() {
    reload_under_visitors("127.0.0.1:0", Setu::start);
}

/// One worker accepts and deals clients out: those on their way from worker to worker are not lost, either.
#[test]
fn reloads_refuse_no_client_of_a_passed_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    reload_under_visitors(&address, |text| Setu::start_by(activated(&listener), text, &[]));
}

fn reload_under_visitors(bind: &str, start: impl FnOnce(&str) -> Setu) {
    let echo = Upstream::new();
    let text = config(Path::Userspace, &echo.address(), ONE_SOURCE).replace("127.0.0.1:0", bind);
    echo.echo();
    let mut setu = start(&text);
    let address = setu.address("chat");
    let visitors = Visitors::none();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| visitors.come(address));
        }
        for _ in 0..20 {
            setu.reload(&text);
            visitors.wait(20);
        }
        visitors.stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(visitors.failed.into_inner(), 0, "{}", setu.tail());
    let served = visitors.served.into_inner() as u64;
    let (_, reasons) = setu.stop();
    assert_eq!(reasons.values().sum::<u64>(), served, "each is counted once: {reasons:?}");
}

fn a_successor_takes_over_without_refusing_a_client(path: Path) {
    raise_file_limit();
    let (upstream, echo) = (Upstream::new(), Upstream::new());
    let state = tempfile::tempdir().unwrap();
    let text = |upstream: &Upstream| {
        let more = format!("{}[tls]\nstate_dir = \"{}\"\n", drain("1h"), state.path().display());
        config(path, &upstream.address(), &more)
    };
    let mut old = Setu::start(&text(&upstream));
    let address = old.address("chat");
    let flows: Vec<_> = (0..500).map(|_| upstream.connect(address)).collect();
    for (client, server) in &flows {
        exchange(client, server, b"before");
    }
    let next = text(&echo);
    old.reload(&next);
    echo.echo();
    let visitors = Visitors::none();
    let mut new = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| visitors.come(address));
        }
        visitors.wait(100);
        let new = Setu::start_by(Command::new(Setu::binary()), &next, &["--replace"]);
        old.wait_count("stopping: a successor serves", 1);
        visitors.wait(200);
        visitors.stop.store(true, Ordering::Relaxed);
        new
    });
    assert_eq!(visitors.failed.into_inner(), 0, "{}\n{}", old.tail(), new.tail());
    assert_eq!(new.address("chat"), address);
    for (client, server) in &flows {
        exchange(client, server, b"after");
        exchange(server, client, b"and back");
    }
    drop(flows);
    let (status, reasons) = old.ended();
    assert!(status.success(), "{status}");
    assert_eq!(reasons.get("shutdown"), None, "{reasons:?}");
    // And once more: the successor has a door of its own.
    let newest = Setu::start_by(Command::new(Setu::binary()), &next, &["--replace"]);
    new.wait_count("stopping: a successor serves", 1);
    assert!(new.ended().0.success());
    assert_eq!(newest.address("chat"), address);
    assert!(newest.stop().0.success());
    assert!(!state.path().join("handover.sock").exists());
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    let upstream = Upstream::new();
    let state = tempfile::tempdir().unwrap();
    let more = format!("[tls]\nstate_dir = \"{}\"\n", state.path().display());
    let text = config(Path::Userspace, &upstream.address(), &more);
    let mut setu = Setu::start(&text);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong =
        text.replace("[\"127.0.0.1:0\"]", &format!("[\"127.0.0.1:0\", \"{}\"]", taken.local_addr().unwrap()));
    let file = state.path().join("wrong.toml");
    fs::write(&file, wrong).unwrap();
    let output =
        Command::new(Setu::binary()).args(["run", "--replace", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("is in use"), "{said}");
    setu.wait_count("a successor did not take over", 1);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"as before");
}

/// As systemd starts setu: the listening socket is descriptor 3.
fn activated(listener: &TcpListener) -> Command {
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(Setu::binary()).stdin(OwnedFd::from(listener.try_clone().unwrap()));
    command
}

#[test]
fn sockets_of_the_service_manager_survive_a_restart() {
    let upstream = Upstream::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let text = config(Path::Userspace, &upstream.address(), &drain("1h"))
        .replace("127.0.0.1:0", &address.to_string());
    let mut first = Setu::start_by(activated(&listener), &text, &[]);
    assert_eq!(first.address("chat"), address);
    let (client, server) = upstream.connect(address);
    exchange(&client, &server, b"before");
    first.signal("TERM");
    first.wait_count("draining connections=1", 1);
    // Nobody accepts now, and nobody is refused.
    let waiting: Vec<_> = (0..10).map(|_| connect(address)).collect();
    exchange(&client, &server, b"the old one drains");
    let second = Setu::start_by(activated(&listener), &text, &[]);
    for (number, mut client) in (0..).zip(&waiting) {
        client.write_all(&[number]).unwrap();
    }
    // Two workers serve: in which order, nobody knows.
    for _ in &waiting {
        let mut server = upstream.accept();
        let mut number = [0];
        server.read_exact(&mut number).unwrap();
        exchange(&server, &waiting[usize::from(number[0])], b"for the one that waited");
    }
    drop((client, server));
    assert!(first.ended().0.success());
    drop(waiting);
    assert!(second.stop().0.success());
}

/// What each epoll of a setu watches, by descriptor and inode (proc(5), "/proc/pid/fdinfo").
fn watched(setu: &Setu) -> Vec<BTreeSet<(u64, u64)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", setu.pid())).unwrap() {
        // It may have been closed since.
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        let target = |line: &str| {
            let descriptor = line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok()?;
            let inode = line.split_once("ino:")?.1.split(' ').next()?;
            Some((descriptor, u64::from_str_radix(inode, 16).ok()?))
        };
        let watched: BTreeSet<_> = text.lines().filter_map(target).collect();
        // tokio has two descriptors of each epoll.
        if !watched.is_empty() && !all.contains(&watched) {
            all.push(watched);
        }
    }
    all
}

/// One socket in several epolls wakes all of their threads for each client, and whoever is first has it.
#[test]
fn a_passed_socket_wakes_one_worker_and_all_serve() {
    const FLOWS: usize = 200;
    raise_file_limit();
    let upstream = Upstream::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let text =
        config(Path::Userspace, &upstream.address(), ONE_SOURCE).replace("127.0.0.1:0", &address.to_string());
    let mut setu = Setu::start_by(activated(&listener), &text, &[]);
    let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino();
    let watchers = |setu: &Setu| {
        let has = |watched: &BTreeSet<_>| watched.iter().any(|(_, watched)| *watched == inode);
        watched(setu).iter().filter(|watched| has(watched)).count()
    };
    assert_eq!(watchers(&setu), 1);
    let flows: Vec<_> = (0..FLOWS).map(|_| upstream.connect(address)).collect();
    for (client, server) in &flows {
        exchange(client, server, b"open");
    }
    let workers = thread::available_parallelism().unwrap().get();
    let busy: Vec<_> =
        watched(&setu).iter().map(BTreeSet::len).filter(|count| *count > FLOWS / workers).collect();
    println!("sockets of each of {workers} workers: {busy:?}");
    assert_eq!(busy.len(), workers, "{busy:?}");
    // Two for each flow, and a few of the worker's own.
    let share = 2 * FLOWS / workers;
    assert!(busy.iter().all(|count| (share - 2..share + 10).contains(count)), "{busy:?}");
    setu.reload(&text);
    assert_eq!(watchers(&setu), 1, "the same after a reload");
    for (client, server) in flows {
        drop(client);
        assert_eq!(end_of(&server).unwrap(), 0);
    }
    setu.wait_closed("client_closed", FLOWS);
    let (status, reasons) = setu.stop();
    assert!(status.success());
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("client_closed".into(), FLOWS as u64)]);
}

#[test]
fn a_service_manager_at_an_abstract_address_is_told() {
    let name = format!("setu-test-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&UnixAddress::from_abstract_name(&name).unwrap()).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = Command::new(Setu::binary());
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let setu = Setu::start_by(command, &config(Path::Userspace, &Upstream::new().address(), ""), &[]);
    let mut buffer = [0; 512];
    let count = manager.recv(&mut buffer).unwrap();
    assert!(buffer[..count].starts_with(b"READY=1\n"), "{}", String::from_utf8_lossy(&buffer[..count]));
    assert!(setu.stop().0.success());
}

#[test]
fn the_service_manager_is_told() {
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    // For the user that setu becomes.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let wait = |needles: &[&str]| loop {
        let mut buffer = [0; 512];
        let count = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{needles:?}: {error}"));
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if needles.iter().all(|needle| text.contains(needle)) {
            return;
        }
    };
    let mut command = Command::new(Setu::binary());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let kernel = if crate::may_use_kernel() { Path::Sockmap } else { Path::Userspace };
    let text = config(kernel, &upstream.address(), "");
    let setu = Setu::start_by(command, &text, &[]);
    wait(&["READY=1", "STATUS=serving"]);
    wait(&["WATCHDOG=1"]);
    wait(&["WATCHDOG=1"]);
    let flow = upstream.connect(setu.address("chat"));
    setu.signal("HUP");
    wait(&["RELOADING=1", "MONOTONIC_USEC="]);
    wait(&["READY=1"]);
    setu.signal("TERM");
    wait(&["STOPPING=1", "STATUS=draining, 1 connections left", "EXTEND_TIMEOUT_USEC="]);
    wait(&["WATCHDOG=1"]);
    drop(flow);
    assert!(setu.ended().0.success());
}
