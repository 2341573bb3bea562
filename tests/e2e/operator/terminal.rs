//! `setu status` in a terminal: it fits, the verdict is first, and the terminal is given back however it ends.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use setu_tests::{Setu, peers::PATIENCE, terminal::Terminal};

/// Eight listeners, a dead upstream, and notes that are long: of a real setu a test would wait long for all of it.
const CROWDED: &str = include_str!("../../page/status/degraded.json");

/// An admin endpoint that has one status to show. Dropping it stops it.
struct Admin {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    fn new(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::<AtomicBool>::default();
        let told = stop.clone();
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                answer(&stream, status);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    fn watched(&self) -> Command {
        let mut command = Command::new(Setu::binary());
        command.args(["status", "--admin", &self.address.to_string()]);
        command
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for somebody; an error means that it has ended.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who asks may leave before the answer.
fn answer(mut stream: &TcpStream, status: &str) {
    let mut lines = BufReader::new(stream).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{status}", status.len());
}

/// A program that runs in a terminal. Dropping it kills it.
struct Running(Child);

impl Running {
    fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn columns(lines: &[String]) -> usize {
    lines.iter().map(|line| line.chars().count()).max().unwrap_or(0)
}

#[test]
fn a_crowded_status_fits_and_the_verdict_is_first() {
    let admin = Admin::new(CROWDED);
    let terminal = Terminal::new(80, 24);
    assert!(terminal.is_usual());
    let running = Running(terminal.run(&admin.watched()));
    let is_whole = |lines: &[&str]| lines.last().is_some_and(|last| last.starts_with("q ends this"));
    let lines = terminal.wait("the status", is_whole);
    assert!(lines.len() <= 24 && columns(&lines) <= 80, "{lines:#?}");
    assert!(lines[0].starts_with("working, but chat on ports 80 and 8080 does not work: "), "{lines:#?}");
    let all = lines.join("\n");
    for needed in [
        "on the others it does",
        "the reload of",
        "connections ",
        "chat-tls-proxy",
        "media-alt",
        "does not answer ",
    ] {
        assert!(all.contains(needed), "{needed}: {all}");
    }
    assert!(!terminal.is_usual(), "keys are shown");

    // Whatever becomes of the window.
    for (width, rows) in [(40, 10), (132, 50), (20, 4)] {
        terminal.resize(width, rows);
        let is_drawn = |lines: &[&str]| {
            let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
            is_whole(lines)
                && lines.len() <= rows.into()
                && widest <= width.into()
                && (rows < 50 || widest > 80)
        };
        let lines = terminal.wait("another size", is_drawn);
        assert!(lines[0].starts_with("working, but chat"), "{lines:#?}");
    }
    terminal.press(b"\x1b[A");
    terminal.press(b"x");
    terminal.press(b"q");
    assert!(running.ended().success());
    terminal.wait_given_back();
    assert!(terminal.is_usual());
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    let admin = Admin::new(CROWDED);
    let keys: [&[u8]; 3] = [b"q", b"\x03", b"\x1b"];
    let signals = ["TERM", "INT", "HUP"];
    for way in keys.map(Ok).into_iter().chain(signals.map(Err)) {
        let terminal = Terminal::new(80, 24);
        let running = Running(terminal.run(&admin.watched()));
        let _ = terminal.wait("the status", |lines| lines[0].starts_with("working"));
        match way {
            Ok(key) => terminal.press(key),
            Err(signal) => {
                let id = running.0.id().to_string();
                assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
            }
        }
        assert!(running.ended().success(), "{way:?}");
        terminal.wait_given_back();
        assert!(terminal.is_usual(), "{way:?}");
    }
}

/// A setu that ends while it is watched is told of, and found again.
#[test]
fn an_answer_that_does_not_come_is_told_in_its_place() {
    let admin = Admin::new(CROWDED);
    let terminal = Terminal::new(80, 24);
    let running = Running(terminal.run(&admin.watched()));
    let _ = terminal.wait("the status", |lines| lines[0].starts_with("working"));
    drop(admin);
    let lines =
        terminal.wait("no answer", |lines| lines[0] == "NO ANSWER" && lines.last() == Some(&"q ends this."));
    assert!(columns(&lines) <= 80, "{lines:#?}");
    terminal.press(b"q");
    assert!(running.ended().success());
    terminal.wait_given_back();
    assert!(terminal.is_usual());
}

/// What is printed once leaves the terminal alone, and is no wider.
#[test]
fn once_prints_and_touches_nothing() {
    let admin = Admin::new(CROWDED);
    let terminal = Terminal::new(60, 24);
    let running = Running(terminal.run(admin.watched().arg("--once")));
    assert_eq!(running.ended().code(), Some(0));
    let written = terminal.wait_written("the end", |written| written.contains("client_closed"));
    assert!(written.starts_with("working, but ") && !written.contains('\x1b'), "{written}");
    assert!(!written.contains("q ends"), "{written}");
    assert!(written.lines().all(|line| line.trim_end().chars().count() <= 60), "{written}");
    drop(admin);
}
