//! A container with little memory: whatever clients do, the kernel has no reason to kill setu in it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    cgroup::Cgroup,
    machine::raise_file_limit,
    network::{Network, PROXY, SERVERS},
    peers::{PATIENCE, connect, exchange},
};
use socket2::{Domain, Socket, Type};

const MIB: u64 = 1 << 20;
/// A small container.
const CONTAINER: u64 = 256 * MIB;

/// Other addresses of the clients' host, for those that mean harm: in inspection, and beyond it.
const HARM: [&str; 2] = ["10.79.1.66", "10.79.1.67"];

/// Clients of each kind that mean harm.
const STALLED: usize = 500;
const HELLOS: usize = 150;
const SILENT: usize = 100;

/// Answers with bytes without end if the first is this, else with what it was sent.
const FLOOD: u8 = b'F';

fn serve(upstream: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, _)) = upstream.accept() {
            thread::spawn(move || {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let floods = buffer[0] == FLOOD;
                    let answer = if floods { &vec![7; 64 * 1024] } else { &buffer[..count] };
                    while stream.write_all(answer).is_ok() && floods {}
                }
            });
        }
    });
}

/// A setu in a container. `None`, and why, where this is not root; as root there must be one.
fn contained(path: Path, memory: u64) -> Option<(Network, Cgroup, Setu, tempfile::TempDir)> {
    if !crate::may_use_kernel() {
        return None;
    }
    raise_file_limit();
    let group = Cgroup::new(memory).unwrap_or_else(|why| panic!("no control group for the test: {why}"));
    let network = Network::new();
    for harm in HARM {
        network.clients.ip(&format!("address add {harm}/24 dev proxy"));
    }
    let upstream = network.servers.within(|| TcpListener::bind((SERVERS[0], 0)).unwrap());
    let address = upstream.local_addr().unwrap().to_string();
    serve(upstream);
    let state = tempfile::tempdir().unwrap();
    let more: String = [("media", "media"), ("tls", "chat-tls")]
        .map(|(name, mode)| {
            format!("[[listener]]\nname = \"{name}\"\nbind = [\"{PROXY}:0\"]\nmode = \"{mode}\"\nupstream = \"test\"\n")
        })
        .concat();
    let more = format!(
        "{more}[tls]\nstate_dir = \"{}\"\n[limits]\nper_source = 0\nper_source_rate = 0\n\
         [timeouts]\ninspect = \"60s\"\nhandshake = \"60s\"\n",
        state.path().display()
    );
    let mut command = group.command(&network.proxy.command(&Setu::binary().display().to_string()));
    command.env("SETU_LOG", "setu=debug");
    let setu = Setu::start_by(command, &network.config(path, &[address], &more), &[]);
    Some((network, group, setu, state))
}

/// Connects and says something; whoever is refused is `None`.
fn say(network: &Network, setu: &Setu, listener: &str, words: &[u8]) -> Option<TcpStream> {
    let to = setu.address(listener);
    let mut client = network.clients.within(|| connect(to));
    client.write_all(words).ok().map(|()| client)
}

/// As [`say`], from another address, which has places of its own.
fn say_from(ip: &str, network: &Network, setu: &Setu, listener: &str, words: &[u8]) -> Option<TcpStream> {
    let to = setu.address(listener);
    let socket = network.clients.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(ip.parse().unwrap(), 0).into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).map(|()| socket)
    });
    let mut client = TcpStream::from(socket.ok()?);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(words).ok().map(|()| client)
}

#[test]
fn a_small_container_is_not_killed_through_userspace() {
    is_not_killed(Path::Userspace);
}

#[test]
fn a_small_container_is_not_killed_by_default() {
    is_not_killed(Path::Auto);
}

fn is_not_killed(path: Path) {
    let Some((network, group, setu, _state)) = contained(path, CONTAINER) else { return };
    let idle = group.used();
    let over = AtomicBool::new(false);
    let (peak, messages, downloaded) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    // Where a reader gets no processor it stalls as well as any.
    let cut = AtomicU64::new(0);
    // Who has come before does not notice; nor does who comes later.
    let chats: Vec<_> = (0..10).map(|_| say(&network, &setu, "chat", b"hello").unwrap()).collect();
    let downloads: Vec<_> = (0..3).map(|_| say(&network, &setu, "chat", &[FLOOD]).unwrap()).collect();
    for mut chat in &chats {
        chat.read_exact(&mut [0; 5]).unwrap();
    }
    let held = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(group.used(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for chat in &chats {
                    exchange(chat, chat, b"they go on");
                    messages.fetch_add(1, Ordering::Relaxed);
                }
                let late = say(&network, &setu, "chat", b"hello").unwrap();
                (&late).read_exact(&mut [0; 5]).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        for mut download in downloads {
            let (over, downloaded, cut, network, setu) = (&over, &downloaded, &cut, &network, &setu);
            scope.spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while !over.load(Ordering::Relaxed) {
                    match download.read(&mut buffer) {
                        Ok(0) => panic!("a download ended"),
                        Ok(count) => _ = downloaded.fetch_add(count as u64, Ordering::Relaxed),
                        Err(_) => {
                            cut.fetch_add(1, Ordering::Relaxed);
                            download = say(network, setu, "chat", &[FLOOD]).unwrap();
                        }
                    }
                    // A fast link, not the machine's whole processor.
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let held = attack(&network, &setu);
        thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
        held
    });
    let shed = setu.count("closed reason=memory_pressure ");
    println!(
        "{}: of {} MiB {} idle, {} at most; {shed} of {} stalled went; {} messages, {} MiB downloaded",
        path.name(),
        CONTAINER / MIB,
        idle / MIB,
        peak.load(Ordering::Relaxed) / MIB,
        STALLED,
        messages.load(Ordering::Relaxed),
        downloaded.load(Ordering::Relaxed) / MIB
    );
    assert_eq!(group.killed(), 0, "{}", setu.tail());
    assert!(peak.load(Ordering::Relaxed) < CONTAINER, "{} bytes", peak.load(Ordering::Relaxed));
    assert!(shed > 0, "nobody had to go: {}", setu.tail());
    // It is the readers that stalled, and hardly ever one that moved.
    let cut = cut.load(Ordering::Relaxed);
    assert!(shed <= STALLED + cut as usize && cut <= shed as u64 / 20, "{shed} went, {cut} of them moved");
    drop(held);
    for chat in &chats {
        exchange(chat, chat, b"and on");
    }
    drop(chats);
    let (status, reasons) = setu.stop();
    assert!(status.success(), "{status}");
    assert_eq!(reasons.get("internal_error"), None, "{reasons:?}");
}

/// Silent clients, hellos that do not end, readers that stall: half of them have read a while.
fn attack(network: &Network, setu: &Setu) -> Vec<TcpStream> {
    let mut hello = vec![0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xfa, 0];
    // Records of 16 KiB, of one message of 64,000 bytes that lacks its end.
    hello.resize(5 + 0x3fff, 0);
    for _ in 0..2 {
        hello.extend([0x16, 3, 1, 0x3f, 0xff]);
        hello.resize(hello.len() + 0x3fff, 0);
    }
    let mut held = Vec::new();
    held.extend((0..SILENT).filter_map(|_| say_from(HARM[0], network, setu, "chat", b"")));
    for listener in ["media", "tls"] {
        held.extend((0..HELLOS / 2).filter_map(|_| say_from(HARM[0], network, setu, listener, &hello)));
    }
    let begun = Instant::now();
    for number in 0..STALLED {
        let Some(mut reader) = say_from(HARM[1], network, setu, "chat", &[FLOOD]) else { continue };
        if number % 2 == 0 {
            let mut left = 1 << 20;
            let mut buffer = [0; 64 * 1024];
            // It may have to go at once.
            while left > 0
                && let Ok(count @ 1..) = reader.read(&mut buffer)
            {
                left -= count.min(left);
            }
        }
        held.push(reader);
    }
    println!("{STALLED} readers stalled within {:?}", begun.elapsed());
    held
}

/// What a container may have is looked at anew by a reload.
#[test]
fn a_reload_takes_the_containers_memory_anew() {
    let Some((network, group, mut setu, _state)) = contained(Path::Userspace, CONTAINER) else { return };
    let limit = |setu: &Setu| -> u64 {
        let line = setu.lines(|line| line.contains("limits connections=")).pop().unwrap();
        let rest = line.split_once("connections=").unwrap().1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let before = limit(&setu);
    // A half of it, at 96 KiB each.
    assert_eq!(before, CONTAINER / 2 / (96 * 1024));
    group.change(2 * CONTAINER);
    let text = network.config(Path::Userspace, &["127.0.0.1:1".into()], "");
    setu.reload(&text);
    assert_eq!(limit(&setu), CONTAINER / (96 * 1024), "{}", setu.tail());
}
