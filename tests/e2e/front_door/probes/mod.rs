//! Whoever looks for an open relay, or for what setu is, and whoever breaks the rules: nobody reaches an upstream, every
//! connection ends with the right reason, and nothing of it stays.
//!
//! A chat port without a gate is not among the listeners: like the reference's, it forwards whatever comes, so that no
//! change of the protocol can lock users out.

mod words;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustls::version::{TLS12, TLS13};
use setu_tests::{
    Path, Setu,
    dns::{Answer, DnsServer},
    front_door, listener,
    peers::{PATIENCE, connect},
    servers::Server,
    tls::{self, Tls},
    upstream,
};

use words::{CLASSES, Class, TOLD, WORDS, class_of, corpus, hello, hello_message, is_header, probes};

crate::on_both_paths! {
    ten_thousand_probes_reach_nobody
    the_malformed_get_their_reasons
    headers_of_strangers_are_not_believed
}

/// What inspects, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Media,
    MediaBySni,
    Chat,
    ChatTls,
    Auto,
    AutoFallback,
}

const KINDS: [Kind; 6] =
    [Kind::Media, Kind::MediaBySni, Kind::Chat, Kind::ChatTls, Kind::Auto, Kind::AutoFallback];

impl Kind {
    fn keys(self, fallback: SocketAddr) -> String {
        match self {
            Self::Media => "mode = \"media\"\nupstream = \"media\"".into(),
            Self::MediaBySni => "mode = \"media\"\nupstream = \"by-sni\"".into(),
            Self::Chat => "mode = \"chat\"\nupstream = \"chat\"\ngate = true".into(),
            Self::ChatTls => "mode = \"chat-tls\"\nupstream = \"chat\"\ngate = true".into(),
            Self::Auto => "mode = \"auto\"\nchat = \"chat\"\nmedia = \"by-sni\"".into(),
            Self::AutoFallback => {
                format!("mode = \"auto\"\nchat = \"chat\"\nmedia = \"media\"\nfallback = \"{fallback}\"")
            }
        }
    }

    fn name(self, told: bool) -> String {
        format!("{self:?}{}", if told { "-told" } else { "" })
    }

    fn ends_tls(self) -> bool {
        matches!(self, Self::ChatTls | Self::Auto | Self::AutoFallback)
    }
}

impl Class {
    /// The reasons for which such a client's connection may end.
    fn reasons(self, kind: Kind) -> &'static [&'static str] {
        // What rustls makes of a hello that the parser here would not let through.
        const TLS: &[&str] = &["tls_failed", "client_left"];
        match (kind, self) {
            (_, Self::Silent) => &["client_left"],
            (Kind::Media | Kind::MediaBySni, Self::Name | Self::Address) => &["name_refused"],
            (Kind::Media | Kind::MediaBySni, Self::Malformed) => &["malformed_hello"],
            (Kind::Media | Kind::MediaBySni, Self::Text | Self::CutChat) => &["not_tls"],
            (Kind::Media | Kind::MediaBySni, Self::CutHello) => &["client_left"],
            (Kind::Chat, Self::CutChat) => &["client_left"],
            (Kind::Chat, _) => &["not_chat"],
            (Kind::ChatTls, _) => TLS,
            (Kind::Auto | Kind::AutoFallback, Self::Text) => &["not_chat"],
            (Kind::Auto | Kind::AutoFallback, Self::Malformed) => &["tls_failed", "client_left", "not_chat"],
            (Kind::Auto | Kind::AutoFallback, Self::Name | Self::Address) => TLS,
            (Kind::Auto | Kind::AutoFallback, Self::CutHello | Self::CutChat) => &["client_left"],
        }
    }
}

/// Servers that nobody may reach.
struct Traps {
    chat: TcpListener,
    media: TcpListener,
    dns: DnsServer,
    web: Server,
    begun: Instant,
}

impl Traps {
    fn new() -> Self {
        let trap = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let web = Server::nginx(|[at]| format!("server {{ listen {at}; return 200 \"a page\"; }}"));
        let dns = DnsServer::new();
        dns.set("mmg.whatsapp.net", Answer::addresses(&["127.0.0.1"], 60));
        Self { chat: trap(), media: trap(), dns, web, begun: Instant::now() }
    }

    /// setu before them, with a listener of every kind, each also behind a load balancer.
    fn setu(&self, path: Path, state: &std::path::Path, more: &str) -> Setu {
        let address = |trap: &TcpListener| trap.local_addr().unwrap();
        let mut text = more.to_owned();
        for kind in KINDS {
            for told in [false, true] {
                let keys = format!("{}\naccept_proxy_protocol = {told}", kind.keys(self.web.address(0)));
                text += &listener(&kind.name(told), &keys);
            }
        }
        text += &upstream("chat", address(&self.chat), "off");
        text += &upstream("media", address(&self.media), "off");
        text += &upstream("by-sni", address(&self.media), "off");
        text += "route = \"sni\"\n";
        text += &format!("[dns]\nservers = [\"{}\"]\n", self.dns.address());
        Setu::start(&front_door(path, state, &text))
    }

    /// Nobody came but setu itself, which looks after its upstreams about once a minute, and says nothing.
    fn expect_nobody(&self) {
        let checks = self.begun.elapsed().as_secs() as usize / 50;
        for trap in [&self.chat, &self.media] {
            let mut came = 0;
            while let Ok((mut client, _)) = trap.accept() {
                came += 1;
                client.set_nonblocking(false).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(client.read(&mut [0; 64]).unwrap_or(0), 0, "a probe came through");
            }
            assert!(came <= checks * 2, "{came} connections came through");
        }
        assert_eq!(self.dns.queries(), 0, "a name was looked up");
    }

    /// The next to come through.
    fn expect(&self, trap: &TcpListener) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match trap.accept() {
                Ok((client, _)) => {
                    client.set_nonblocking(false).unwrap();
                    client.set_read_timeout(Some(PATIENCE)).unwrap();
                    return client;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < deadline, "nobody comes through");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sends, finishes, and waits for the end.
fn probe(at: SocketAddr, bytes: &[u8]) {
    let mut client = connect(at);
    // setu may have seen enough, and be gone, before it has everything.
    let _ = client.write_all(bytes);
    let _ = client.shutdown(Shutdown::Write);
    wait_for_end(client);
}

fn wait_for_end(mut client: TcpStream) {
    let mut rest = Vec::new();
    if let Err(error) = client.read_to_end(&mut rest) {
        assert_ne!(error.kind(), ErrorKind::WouldBlock, "no end");
    }
}

/// Why a listener's connections ended, in turn.
fn closed(setu: &Setu, listener: &str) -> Vec<String> {
    let end = format!(" listener={listener}");
    let lines = setu.lines(|line| line.ends_with(&end) && line.contains("closed reason="));
    lines
        .iter()
        .map(|line| line.split(['=', ' ']).skip_while(|word| *word != "reason").nth(1).unwrap().to_owned())
        .collect()
}

/// Sends a batch to a listener; every connection must end for one of these reasons.
fn expect(setu: &Setu, listener: &str, reasons: &[&str], count: usize, send: impl FnOnce(SocketAddr)) {
    let before = closed(setu, listener).len();
    send(setu.address(listener));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = closed(setu, listener).split_off(before);
        let wrong = ended.iter().position(|reason| !reasons.contains(&&**reason));
        assert_eq!(wrong.map(|at| (at, &*ended[at])), None, "{listener}: expected {reasons:?}");
        if ended.len() == count {
            return;
        }
        assert!(
            ended.len() < count && Instant::now() < deadline,
            "{listener}: {} of {count} ended for {reasons:?}\n{}",
            ended.len(),
            setu.tail()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

fn ten_thousand_probes_reach_nobody(path: Path) {
    let (traps, state) = (Traps::new(), tempfile::tempdir().unwrap());
    let setu = traps.setu(path, state.path(), "");
    let before = warm(&setu);
    let each = 10_000 / (KINDS.len() * 2) + 1;
    thread::scope(|scope| {
        for (index, kind) in KINDS.into_iter().enumerate() {
            for told in [false, true] {
                let setu = &setu;
                scope.spawn(move || {
                    let probes = probes(each, index as u64 * 2 + u64::from(told));
                    for class in CLASSES {
                        let batch: Vec<_> = probes.iter().filter(|probe| probe.0 == class).collect();
                        // A few at a time: one that does come through ends the test soon.
                        for few in batch.chunks(8) {
                            expect(setu, &kind.name(told), class.reasons(kind), few.len(), |at| {
                                for (number, (_, bytes)) in few.iter().enumerate() {
                                    let header = if told { TOLD[number % 2] } else { b"" };
                                    probe(at, &[header, bytes].concat());
                                }
                            });
                        }
                    }
                    if kind.ends_tls() {
                        probe_inside_tls(setu, kind, told);
                    }
                });
            }
        }
    });
    traps.expect_nobody();
    let total = setu.count("closed reason=");
    assert!(total >= 10_000, "{total} probes");
    expect_rest(&setu, before);
    // The traps work: honest clients come through.
    let honest = [
        (Kind::Chat, &b"WA\x06\x03"[..], &traps.chat),
        (Kind::Auto, b"ED\0\x01\0\0\0WA\x06\x03", &traps.chat),
        (Kind::Media, &hello(b"mmg.whatsapp.net"), &traps.media),
        (Kind::AutoFallback, &hello(b"MMG.WhatsApp.net."), &traps.media),
        (Kind::Media, &hello(b"whatsapp.net."), &traps.media),
    ];
    for (kind, bytes, trap) in honest {
        let mut client = connect(setu.address(&kind.name(false)));
        client.write_all(bytes).unwrap();
        let mut came = vec![0; bytes.len()];
        traps.expect(trap).read_exact(&mut came).unwrap();
        assert_eq!(came, bytes, "{kind:?}");
    }
    let mut client = connect(setu.address(&Kind::MediaBySni.name(false)));
    client.write_all(&hello(b"mmg.whatsapp.net")).unwrap();
    wait_for_end(client);
    assert!(traps.dns.queries() > 0, "an allowed name is not looked up");
}

/// Probes that know TLS, and speak something inside of it.
fn probe_inside_tls(setu: &Setu, kind: Kind, told: bool) {
    let reasons = if kind == Kind::AutoFallback {
        &["client_closed", "upstream_closed", "client_reset", "upstream_reset"][..]
    } else {
        &["not_chat"]
    };
    let nested = hello(b"mmg.whatsapp.net");
    let inside = [&WORDS[..12], &[b"", b"WA", &nested]].concat();
    let names = ["example.org", "mmg.whatsapp.net.example", "192.0.2.1"];
    expect(setu, &kind.name(told), reasons, inside.len() * 2, |at| {
        for (number, version) in [&TLS12, &TLS13].into_iter().enumerate() {
            let config = tls::client(version);
            for (word, name) in inside.iter().zip(names.iter().cycle()) {
                let mut tcp = connect(at);
                if told {
                    tcp.write_all(TOLD[number]).unwrap();
                }
                let mut session = Tls::connect(&config, name, tcp).unwrap();
                session.send(word).unwrap();
                // setu may have seen enough, and be gone.
                let _ = session.finish();
                let end = loop {
                    match session.receive(&mut [0; 4096]) {
                        Ok(0) => break None,
                        Ok(_) => {}
                        Err(error) => break Some(error),
                    }
                };
                assert!(end.is_none_or(|error| error.kind() != ErrorKind::WouldBlock), "no end");
            }
        }
    });
}

/// Uses every listener, until each worker must have been at work, and counts what is open then.
fn warm(setu: &Setu) -> usize {
    for kind in KINDS {
        for told in [false, true] {
            expect(setu, &kind.name(told), &["client_left"], 4, |at| (0..4).for_each(|_| probe(at, b"")));
        }
    }
    setu.descriptors()
}

/// No descriptor is left, and setu sleeps.
fn expect_rest(setu: &Setu, descriptors: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ticks = setu.ticks();
        thread::sleep(Duration::from_secs(1));
        let (ticks, open) = (setu.ticks() - ticks, setu.descriptors());
        // Workers keep a few pipes. A thread that spins would use a hundred ticks, or what others leave of them.
        if ticks <= 5 && open <= descriptors + 4 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{ticks} ticks in a second, {open} descriptors, {descriptors} before"
        );
    }
}

/// The corpora of the fuzz targets, at once, in single bytes, and without their end; and clients that take their time.
fn the_malformed_get_their_reasons(path: Path) {
    let (traps, state) = (Traps::new(), tempfile::tempdir().unwrap());
    let more = [
        "[timeouts]\ninspect = \"2s\"\nhandshake = \"2s\"\n".to_owned(),
        listener("header", "mode = \"chat\"\nupstream = \"chat\"\naccept_proxy_protocol = true"),
    ];
    let setu = traps.setu(path, state.path(), &more.concat());
    let before = warm(&setu);
    let files = |target: &'static str| {
        corpus(target)
            .into_iter()
            .filter_map(move |(file, bytes)| Some((class_of(target, &file)?, file, bytes)))
    };
    let malformed: Vec<_> = files("client_hello").chain(files("first_bytes")).collect();
    thread::scope(|scope| {
        for kind in KINDS {
            let (setu, malformed) = (&setu, &malformed);
            scope.spawn(move || {
                for (class, _, bytes) in malformed {
                    let listener = kind.name(false);
                    expect(setu, &listener, class.reasons(kind), 1, |at| trickle(at, bytes));
                }
            });
            scope.spawn(move || slow(setu, kind));
        }
        let setu = &setu;
        scope.spawn(move || {
            for (file, bytes) in corpus("proxy_protocol") {
                if !is_header(&file) {
                    expect(setu, "header", &["proxy_malformed"], 2, |at| {
                        probe(at, &bytes);
                        trickle(at, &bytes);
                    });
                }
            }
            // Without its end it is no header either.
            for header in TOLD {
                for len in [0, 1, 6, 12, 20, header.len() - 1] {
                    expect(setu, "header", &["client_left"], 1, |at| probe(at, &header[..len]));
                }
            }
        });
    });
    traps.expect_nobody();
    expect_rest(&setu, before);
    for (file, bytes) in corpus("proxy_protocol").into_iter().filter(|(file, _)| is_header(file)) {
        let mut client = connect(setu.address("header"));
        client.write_all(&bytes).unwrap();
        client.write_all(b"what follows").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut came = Vec::new();
        traps.expect(&traps.chat).read_to_end(&mut came).unwrap();
        assert!(came.ends_with(b"what follows") && !came.starts_with(b"PROXY "), "{file}: {came:?}");
        assert!(!came.windows(4).any(|four| four == b"QUIT"), "{file}: {came:?}");
    }
}

/// Sends byte by byte, each in a segment of its own, then finishes.
fn trickle(at: SocketAddr, bytes: &[u8]) {
    let mut client = connect(at);
    for byte in bytes {
        if client.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_micros(50));
    }
    let _ = client.shutdown(Shutdown::Write);
    wait_for_end(client);
}

/// Clients that stay: with nothing, with an honest opening that never ends, and with more than is looked at.
fn slow(setu: &Setu, kind: Kind) {
    let honest = hello(b"mmg.whatsapp.net");
    let listener = kind.name(true);
    let late = match kind {
        Kind::ChatTls => &["handshake_timeout"][..],
        _ => &["inspect_timeout"],
    };
    let opening = if kind == Kind::Chat { &b"ED\0\x01\0\x0f\xff"[..] } else { &honest };
    expect(setu, &listener, late, 6, |at| {
        thread::scope(|scope| {
            for header in TOLD {
                scope.spawn(move || {
                    let mut client = connect(at);
                    client.write_all(header).unwrap();
                    wait_for_end(client);
                });
                scope.spawn(move || {
                    let mut client = connect(at);
                    client.write_all(header).unwrap();
                    client.write_all(&opening[..opening.len() - 1]).unwrap();
                    wait_for_end(client);
                });
                scope.spawn(move || {
                    let mut client = connect(at);
                    client.write_all(header).unwrap();
                    // Far longer than setu waits.
                    for byte in &opening[..opening.len() - 1] {
                        if client.write_all(&[*byte]).is_err() {
                            break;
                        }
                        thread::sleep(Duration::from_millis(500));
                    }
                    wait_for_end(client);
                });
            }
        });
    });
    // A hello of 60 kB in records of one byte: more than is looked at.
    let long = hello_message(b"mmg.whatsapp.net", 60_000);
    let endless: Vec<u8> = long.iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
    let reasons = match kind {
        Kind::Chat => &["not_chat"][..],
        Kind::ChatTls => &["tls_failed"],
        // The kernel may take in less than is looked at.
        _ => &["malformed_hello", "inspect_timeout"],
    };
    expect(setu, &listener, reasons, 1, |at| probe(at, &[TOLD[0], &endless].concat()));
}

/// Those who may not speak for others.
fn headers_of_strangers_are_not_believed(path: Path) {
    let (traps, state) = (Traps::new(), tempfile::tempdir().unwrap());
    let setu = traps.setu(path, state.path(), "[proxy_protocol]\ntrusted = [\"192.0.2.0/24\"]\n");
    for kind in KINDS {
        for header in TOLD {
            let reasons = match kind {
                // One port takes clients, too: theirs is no header there, nor anything else that setu knows.
                Kind::Auto | Kind::AutoFallback => &["not_chat"][..],
                // No SYN of a stranger is answered.
                _ => {
                    let at = setu.address(&kind.name(true));
                    let refused = TcpStream::connect_timeout(&at, Duration::from_millis(500));
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut, "{kind:?}");
                    continue;
                }
            };
            let opening = [header, b"WA\x06\x03"].concat();
            expect(&setu, &kind.name(true), reasons, 1, |at| probe(at, &opening));
        }
    }
    traps.expect_nobody();
}
