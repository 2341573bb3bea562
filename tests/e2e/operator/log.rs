//! The log: every line names setu as its source, levels and parts choose what is told, and whoever reads it cannot stop
//! setu.

use std::{
    fs::{self, File},
    io::{self, PipeReader, PipeWriter, Write as _, pipe},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    ONE_SOURCE, Path, Setu, admin, config,
    peers::{Upstream, call, end_of, exchange},
};
use socket2::SockRef;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a line of the log begins with after the time: its level and its target.
fn level_and_target(line: &str) -> (&str, &str) {
    let mut words = line.split_whitespace().skip(1);
    let (level, target) = (words.next(), words.next().and_then(|word| word.strip_suffix(':')));
    level.zip(target).unwrap_or_else(|| panic!("no level or no target: {line}"))
}

fn is_of(part: &str, line: &str) -> bool {
    let rest = level_and_target(line).1.strip_prefix(part);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All that setu writes about one flow, from its start to its stop.
fn log_of_a_flow(path: Path, filter: &str) -> Vec<String> {
    let upstream = Upstream::new();
    let setu = Setu::start_logging(&config(path, &upstream.address(), ""), None, filter);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"hello");
    drop((client, server));
    let transcript = setu.transcript();
    let (status, reasons) = setu.stop();
    assert!(status.success(), "{status}");
    assert_eq!(reasons.values().sum::<u64>(), 1, "{reasons:?}");
    let log = transcript.lock().unwrap();
    log.clone()
}

#[test]
fn lines_name_setu_and_no_crate_of_it() {
    let path = if crate::may_use_kernel() { Path::Sockmap } else { Path::Userspace };
    for line in log_of_a_flow(path, "trace") {
        assert!(!line.contains("proxy_userspace") && !line.contains("proxy_ebpf"), "{line}");
    }
    // Without what libraries say, and with all that setu says.
    let log = log_of_a_flow(path, "setu=trace");
    for line in &log {
        assert!(is_of("setu", line), "{line}");
    }
    for said in ["ready path=", "closed reason=", "stopped"] {
        assert!(log.iter().any(|line| line.contains(said)), "{said} is missing: {}", log.join("\n"));
    }
}

#[test]
fn connections_are_told_from_debug_on() {
    for (filter, lines) in [("info", 0), ("setu=debug", 1)] {
        let log = log_of_a_flow(Path::Userspace, filter);
        let told = log.iter().filter(|line| line.contains("closed reason=")).count();
        assert_eq!(told, lines, "{filter}: {}", log.join("\n"));
    }
}

#[test]
fn one_part_can_tell_more_than_the_others() {
    let nobody = Upstream::new().address();
    let setup = config(Path::Userspace, &nobody, "");
    let mut setu = Setu::start_logging(&setup, None, "info,setu::upstream=debug");
    assert_eq!(end_of(&call(setu.address("chat"))).unwrap_or(0), 0);
    setu.wait_count("not connected", 1);
    let transcript = setu.transcript();
    assert!(setu.stop().0.success());
    let log = transcript.lock().unwrap();
    for line in log.iter().filter(|line| level_and_target(line).0 == "DEBUG") {
        assert!(is_of("setu::upstream", line), "{line}");
    }
}

/// A setu whose log goes where a test says. Dropping it kills it.
struct Logging {
    child: Child,
    upstream: Upstream,
    chat: SocketAddr,
    admin: SocketAddr,
    _folder: TempDir,
}

impl Logging {
    /// Starts it, and returns when it serves.
    fn to(log: impl Into<Stdio>, last_octet: u8) -> Self {
        let upstream = Upstream::new();
        // Its log cannot tell them, so they are chosen here.
        let pid = std::process::id();
        let at = |port: u16| SocketAddr::from(([127, (pid >> 8) as u8 | 128, pid as u8, last_octet], port));
        let (chat, admin) = (at(5222), at(8199));
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let file = folder.path().join("setu.toml");
        let text = config(Path::Userspace, &upstream.address(), ONE_SOURCE)
            .replace("127.0.0.1:0", &chat.to_string())
            .replace("[admin]\nbind = []", &format!("[admin]\nbind = [\"{admin}\"]"));
        fs::write(&file, text).unwrap();
        let child = Command::new(Setu::binary())
            .args(["run", "--config"])
            .arg(&file)
            .env("SETU_LOG", "setu=debug")
            .stderr(log)
            .spawn()
            .unwrap();
        let mut setu = Self { child, upstream, chat, admin, _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        // It is served last.
        while TcpStream::connect(setu.admin).is_err() {
            assert!(setu.child.try_wait().unwrap().is_none(), "setu ended at its start");
            assert!(Instant::now() < deadline, "setu does not serve");
            thread::sleep(Duration::from_millis(20));
        }
        setu
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Lines that it says were lost.
    fn lost(&self) -> u64 {
        let metrics = admin::get(self.admin, "/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("setu_log_lines_lost_total "));
        line.unwrap_or_else(|| panic!("no such metric: {metrics}")).parse::<f64>().unwrap() as u64
    }

    /// Has it write lines, and sees that it serves all the same.
    fn goes_on(&mut self) {
        self.signal("HUP");
        for _ in 0..20 {
            let (client, server) = self.upstream.connect(self.chat);
            exchange(&client, &server, b"hello");
            // Who ends first must be seen first.
            drop(client);
            assert_eq!(end_of(&server).unwrap(), 0);
        }
        assert!(self.child.try_wait().unwrap().is_none(), "setu ended");
    }

    fn stops(mut self) {
        self.signal("TERM");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "SIGTERM does not end it");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}");
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_end_setu() {
    let (reader, writer) = pipe().unwrap();
    let mut setu = Logging::to(writer, 1);
    drop(reader);
    setu.goes_on();
    assert!(setu.lost() > 0);
    setu.stops();
}

#[test]
fn a_log_on_a_full_disk_does_not_end_setu() {
    let mut setu = Logging::to(File::options().write(true).open("/dev/full").unwrap(), 2);
    setu.goes_on();
    assert!(setu.lost() > 0);
    setu.stops();
}

/// A pipe with no room left, which setu finds blocking or not.
fn full(nonblocking: bool, pipe: &(PipeReader, PipeWriter)) {
    let set = |nonblocking| SockRef::from(&pipe.1).set_nonblocking(nonblocking).unwrap();
    set(true);
    let error = loop {
        if let Err(error) = (&pipe.1).write(b"x") {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}, descriptor {}", pipe.1.as_raw_fd());
    set(nonblocking);
}

#[test]
fn a_log_without_room_stops_neither_the_page_nor_the_end() {
    for nonblocking in [false, true] {
        let pipe = pipe().unwrap();
        let mut setu = Logging::to(pipe.1.try_clone().unwrap(), 3);
        full(nonblocking, &pipe);
        setu.goes_on();
        assert_eq!(admin::get(setu.admin, "/healthz").status, 200);
        setu.stops();
    }
}

#[test]
fn what_a_slow_reader_had_no_room_for_is_written_later() {
    let pipe = pipe().unwrap();
    let mut setu = Logging::to(pipe.1.try_clone().unwrap(), 4);
    full(true, &pipe);
    setu.goes_on();
    assert_eq!(setu.lost(), 0, "the queue has room");
    let (reader, writer) = pipe;
    drop(writer);
    let text = thread::spawn(|| io::read_to_string(reader).unwrap());
    setu.stops();
    let text = text.join().unwrap();
    for said in ["reloaded", "closed reason=client_closed", "stopped"] {
        assert!(text.contains(said), "{said} is missing: {}", text.trim_start_matches('x'));
    }
}

#[test]
fn a_level_that_is_none_is_told_and_the_default_is_logged() {
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "");
    for (filter, wrong) in [("warning", "warning"), ("setu=loud", "loud")] {
        let setu = Setu::start_logging(&text, None, filter);
        let told = format!("SETU_LOG: \"{wrong}\" is no level; write error, warn, info, debug, trace or off");
        assert_eq!(setu.count(&told), 1, "{}", setu.log());
        assert!(setu.stop().0.success());
    }
}
