//! Clients that mean harm: whatever they do ends by a deadline, costs a bounded amount, and is not felt by others.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu,
    admin::eventually,
    level::Level,
    machine::raise_file_limit,
    network::{Network, PROXY, SERVERS},
    peers::{connect, exchange, finish, reset},
};
use socket2::{Domain, SockRef, Socket, Type};

crate::on_both_paths! {
    slowloris_ends_by_its_deadline
    who_trickles_is_served_when_the_hello_is_whole
    a_flood_of_clients_that_vanish
    a_flood_of_half_open_connections
    zero_window_readers
    writers_of_single_bytes
}

/// A ClientHello, as a client sent it.
const HELLO: &[u8] = include_bytes!("../../../fuzz/corpus/client_hello/openssl-tls13");
/// Another address of the clients' host, for those that mean harm.
const HARM: &str = "10.79.1.66";

/// The hosts, an upstream that echoes, and a setu with a listener for each stage that waits for a client.
struct Scene {
    network: Network,
    setu: Setu,
    before: Level,
    _state: tempfile::TempDir,
}

impl Scene {
    fn new(path: Path, more: &str) -> Option<Self> {
        if !crate::may_use_kernel() {
            return None;
        }
        raise_file_limit();
        let network = Network::new();
        network.clients.ip(&format!("address add {HARM}/24 dev proxy"));
        let upstream = network.upstream(SERVERS[0]);
        let address = upstream.address();
        network.servers.within(|| upstream.echo());
        let state = tempfile::tempdir().unwrap();
        let listener = |name: &str, mode: &str, rest: &str| {
            format!(
                "[[listener]]\nname = \"{name}\"\nbind = [\"{PROXY}:0\"]\nmode = \"{mode}\"\nupstream = \"test\"\n{rest}\n"
            )
        };
        let listeners = [
            listener("gate", "chat", "gate = true"),
            listener("proxy", "chat", "accept_proxy_protocol = true"),
            listener("media", "media", ""),
            listener("tls", "chat-tls", "gate = true"),
        ];
        let more = format!(
            "{}[tls]\nstate_dir = \"{}\"\n[limits]\nper_source = 0\nper_source_rate = 0\n{more}",
            listeners.concat(),
            state.path().display()
        );
        let setu = network.setu(path, &[address], &more);
        let before = Level::of(&setu, &network);
        Some(Self { network, setu, before, _state: state })
    }

    /// Lets honest clients come, talk and go until `harm` is over; each must be served.
    fn serve_while<T>(&self, harm: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let proxy = self.setu.address("chat");
        thread::scope(|scope| {
            let honest: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| self.network.clients.within(|| serve_until(&over, proxy))))
                .collect();
            // Also where harm ends by a panic: else those who are honest would go on for ever.
            let end = End(&over);
            let result = harm();
            drop(end);
            let served: usize = honest.into_iter().map(|honest| honest.join().unwrap()).sum();
            println!("{served} honest clients were served");
            assert!(served > 0);
            result
        })
    }
}

/// Tells the honest that it is over, when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One client after another, each with a few messages that are echoed.
fn serve_until(over: &AtomicBool, proxy: SocketAddr) -> usize {
    let mut served = 0;
    while !over.load(Ordering::Relaxed) || served == 0 {
        let client = connect(proxy);
        for _ in 0..10 {
            exchange(&client, &client, b"an honest message");
            thread::sleep(Duration::from_millis(5));
        }
        served += 1;
    }
    served
}

/// Bytes that would open a connection, one by one, until setu has enough.
fn slowly(to: SocketAddr, opening: &[u8]) {
    let mut client = connect(to);
    for byte in opening {
        if client.write_all(&[*byte]).is_err() {
            break;
        }
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match client.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // An end, a reset, or an alert before the end.
            _ => return,
        }
    }
    panic!("{} bytes were taken, one each 100 ms", opening.len());
}

fn slowloris_ends_by_its_deadline(path: Path) {
    const EACH: usize = 25;
    let timeouts = "[timeouts]\ninspect = \"1s\"\nhandshake = \"1s\"\n";
    let Some(mut scene) = Scene::new(path, timeouts) else { return };
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443".repeat(3);
    // Routing information of four thousand bytes, which is never complete.
    let chat = [b"ED\0\x01\0\x0f\xff", &[7; 200][..]].concat();
    let stages: [(&str, &[u8]); 4] = [("proxy", &header), ("media", HELLO), ("tls", HELLO), ("gate", &chat)];
    scene.serve_while(|| {
        scene.network.clients.within(|| {
            thread::scope(|scope| {
                for (listener, opening) in stages {
                    let to = scene.setu.address(listener);
                    for _ in 0..EACH {
                        scope.spawn(move || slowly(to, opening));
                    }
                }
            });
        });
    });
    // After the handshake, nothing is said.
    let tls = scene.setu.address("tls").to_string();
    let mut openssl = scene.network.clients.command("openssl");
    openssl.args(["s_client", "-quiet", "-connect", &tls]);
    let mut client =
        openssl.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for (reason, listener, count) in [
        ("inspect_timeout", "proxy", EACH),
        ("inspect_timeout", "media", EACH),
        ("handshake_timeout", "tls", EACH),
        ("inspect_timeout", "gate", EACH),
        // Silence inside TLS is not chat.
        ("not_chat", "tls", 1),
    ] {
        scene.setu.wait_count(&format!("closed reason={reason} path=none listener={listener}"), count);
    }
    drop(client.stdin.take());
    client.wait().unwrap();
    scene.before.wait(&scene.setu, &scene.network);
}

fn who_trickles_is_served_when_the_hello_is_whole(path: Path) {
    const EACH: usize = 100;
    // Nobody is late, however slow the machine is; those who would be are in the test above.
    let Some(scene) = Scene::new(path, "[timeouts]\ninspect = \"5m\"\nhandshake = \"5m\"\n") else {
        return;
    };
    let listeners = ["media", "tls"].map(|listener| scene.setu.address(listener));
    scene.serve_while(|| {
        let [media, tls] = listeners.map(|to| {
            let open = |_| scene.network.clients.within(|| connect(to));
            (0..EACH).map(open).collect::<Vec<_>>()
        });
        let (last, most) = HELLO.split_last().unwrap();
        for byte in most {
            for mut client in media.iter().chain(&tls) {
                client.write_all(&[*byte]).unwrap();
            }
            thread::sleep(Duration::from_millis(2));
        }
        let closed = |line: &str| {
            line.contains("closed reason=")
                && ["listener=media", "listener=tls"].iter().any(|own| line.ends_with(own))
        };
        assert!(scene.setu.lines(closed).is_empty(), "{}", scene.setu.tail());
        for mut client in media.iter().chain(&tls) {
            client.write_all(&[*last]).unwrap();
        }
        for mut client in &media {
            let mut echoed = vec![0; HELLO.len()];
            client.read_exact(&mut echoed).unwrap();
            assert!(echoed == HELLO, "the hello is not the one that was sent");
        }
        // Where TLS ends the answer is setu's own: a record of the handshake.
        for mut client in &tls {
            let mut answer = [0; 1];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [22]);
        }
    });
    scene.before.wait(&scene.setu, &scene.network);
}

fn a_flood_of_clients_that_vanish(path: Path) {
    const CLIENTS: usize = 3_000;
    let Some(mut scene) = Scene::new(path, "") else { return };
    let resident = scene.setu.status("VmRSS");
    let listeners = ["chat", "media"].map(|listener| scene.setu.address(listener));
    scene.serve_while(|| {
        scene.network.clients.within(|| {
            thread::scope(|scope| {
                for to in listeners {
                    scope.spawn(move || {
                        for number in 0..CLIENTS / 2 {
                            let client = connect(to);
                            if number % 2 == 0 {
                                reset(client);
                            }
                        }
                    });
                }
            });
        });
    });
    scene.setu.wait_count("closed reason=client_left path=none listener=media", CLIENTS / 4);
    scene.before.wait(&scene.setu, &scene.network);
    let grown = scene.setu.status("VmRSS").saturating_sub(resident);
    println!("{CLIENTS} clients that vanished: {grown} KiB resident more");
    assert!(grown < 16 * 1024, "{grown} KiB");
}

fn a_flood_of_half_open_connections(path: Path) {
    /// More than the kernel remembers for a listener.
    const CLIENTS: usize = 9_000;
    let Some(scene) = Scene::new(path, "") else { return };
    // Their answers are lost, so that the last step is never made.
    scene.network.proxy.nft(&format!("add rule ip faults leaving ip daddr {HARM} drop"));
    let to = scene.setu.address("chat");
    let descriptors = scene.setu.descriptors_at_rest();
    let half_open: Vec<Socket> = scene.serve_while(|| {
        scene.network.clients.within(|| {
            let open = |_| {
                let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
                client.bind(&SocketAddr::new(HARM.parse().unwrap(), 0).into()).unwrap();
                let _ = client.connect(&to.into());
                client
            };
            let half_open = (0..CLIENTS).map(open).collect();
            thread::sleep(Duration::from_secs(1));
            half_open
        })
    });
    // setu does not know of them.
    assert!(scene.setu.descriptors() <= descriptors + 16, "{} descriptors", scene.setu.descriptors());
    drop(half_open);
    scene.network.mend();
    scene.before.wait(&scene.setu, &scene.network);
}

fn zero_window_readers(path: Path) {
    const READERS: usize = 40;
    let Some(scene) = Scene::new(path, "[timeouts]\nvanished = \"4s\"\n") else { return };
    let resident = scene.setu.status("VmRSS");
    // The memory that the kernel gives to TCP is the whole machine's, and other tests need theirs: only setu's host may
    // hold much.
    for namespace in [&scene.network.clients, &scene.network.servers] {
        namespace.set("net/ipv4/tcp_rmem", "4096 16384 65536");
        namespace.set("net/ipv4/tcp_wmem", "4096 16384 65536");
    }
    // What is echoed to them they never read.
    let proxy = scene.setu.address("chat");
    let open = |_| scene.network.clients.within(|| connect(proxy));
    let readers: Vec<TcpStream> = (0..READERS).map(open).collect();
    let taken = scene.serve_while(|| {
        let mut taken = 0;
        let block = [7; 65_536];
        for reader in &readers {
            SockRef::from(reader).set_send_buffer_size(64 * 1024).unwrap();
            reader.set_nonblocking(true).unwrap();
        }
        let mut blocked = Instant::now();
        while blocked.elapsed() < Duration::from_millis(500) {
            let before = taken;
            for mut reader in &readers {
                taken += reader.write(&block).unwrap_or(0);
            }
            if taken == before {
                thread::sleep(Duration::from_millis(10));
            } else {
                blocked = Instant::now();
            }
        }
        taken
    });
    let grown = scene.setu.status("VmRSS").saturating_sub(resident);
    println!("{READERS} zero-window readers: {} KiB taken, {grown} KiB resident more", taken / 1024);
    assert!(taken < READERS * (24 << 20), "{taken} bytes");
    assert!(grown < READERS as u64 * 3 * 1024, "{grown} KiB");
    assert_eq!(scene.setu.status("Threads"), scene.before.threads);
    // They answer each question, but have no room, nor has the upstream, which waits for them: that ends as well.
    // Where one stalled as its flow went into the kernel, what is to be sent to it is there still.
    let timed_out = |line: &str| line.contains("_timed_out path=") && line.contains(" listener=chat");
    eventually("each is ended", || scene.setu.lines(timed_out).len(), |ended| *ended >= READERS);
    drop(readers);
    scene.before.wait(&scene.setu, &scene.network);
}

fn writers_of_single_bytes(path: Path) {
    const WRITERS: usize = 100;
    const BYTES: usize = 2_000;
    let Some(mut scene) = Scene::new(path, "") else { return };
    let resident = scene.setu.status("VmRSS");
    let proxy = scene.setu.address("chat");
    let writers: Vec<_> = (0..WRITERS).map(|_| scene.network.clients.within(|| connect(proxy))).collect();
    scene.serve_while(|| {
        let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 249) as u8).collect();
        for byte in &bytes {
            for mut writer in &writers {
                writer.write_all(&[*byte]).unwrap();
            }
        }
        let grown = scene.setu.status("VmRSS").saturating_sub(resident);
        println!("{WRITERS} writers of single bytes: {grown} KiB resident more");
        assert!(grown < 16 * 1024, "{grown} KiB");
        for mut writer in &writers {
            finish(writer);
            let mut echoed = Vec::new();
            writer.read_to_end(&mut echoed).unwrap();
            assert!(echoed == bytes, "{} of {BYTES} bytes", echoed.len());
        }
    });
    scene.setu.wait_closed("client_closed", WRITERS);
    drop(writers);
    scene.before.wait(&scene.setu, &scene.network);
}
