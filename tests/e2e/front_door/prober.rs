//! Whoever probes the ports meets a web server like very many others, or nobody.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig,
    version::{TLS12, TLS13},
};
use setu_tests::{
    Path, Setu, front_door, listener,
    netns::Netns,
    peers::{Upstream, connect},
    servers::Server,
    tls::{self, Certificate, Tls},
    upstream,
};

/// Requests and what is none, each complete enough to be answered.
fn words() -> Vec<Vec<u8>> {
    let host = "Host: example.org\r\n";
    let long = "x".repeat(9_000);
    let mut words: Vec<String> = vec![
        format!("GET / HTTP/1.1\r\n{host}\r\n"),
        format!("GET /any/path?query HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}User-Agent: Mozilla/5.0 (KHTML, like Gecko) Chrome/120.0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}User-Agent: Mozilla/5.0 Gecko/20100101 Firefox/120.0\r\n\r\n"),
        format!("HEAD / HTTP/1.1\r\n{host}\r\n"),
        format!("POST / HTTP/1.1\r\n{host}Content-Length: 2\r\n\r\nhi"),
        format!("OPTIONS / HTTP/1.1\r\n{host}\r\n"),
        format!("FOO / HTTP/1.1\r\n{host}\r\n"),
        format!("TRACE / HTTP/1.1\r\n{host}\r\n"),
        format!("CONNECT example.org:443 HTTP/1.1\r\n{host}\r\n"),
        format!("GET http://example.org/ HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/3.0\r\n{host}\r\n"),
        format!("GET /%zz HTTP/1.1\r\n{host}\r\n"),
        format!("GET /../x HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/1.1\r\n{host}{host}\r\n"),
        format!("GET / HTTP/1.1\r\n{host}X: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/1.1\r\n{host}Content-Length: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n"),
    ];
    words.extend(
        [
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nBad Name: a\r\nHost: a\r\n\r\n",
            "GET /\r\n",
            "get / HTTP/1.1\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "\r\n\r\n\0\r\nQUIT\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "hello\r\n",
            "x",
        ]
        .map(str::to_owned),
    );
    words.into_iter().map(String::into_bytes).collect()
}

/// How long an end is waited for, of connections that may be kept. Servers answer at once.
const SHORT: Duration = Duration::from_millis(1_500);

/// All that comes, without the time of day in it, and whether it ended.
fn all(mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> (String, &'static str) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let end = loop {
        match read(&mut buffer) {
            Ok(0) => break "end",
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break "kept",
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break "cut",
            Err(error) => panic!("{error}"),
        }
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines = text.split_inclusive("\r\n").map(|line| match line.strip_prefix("Date: ") {
        Some(date) => format!("Date: {} letters\r\n", date.len()),
        None => line.to_owned(),
    });
    (lines.collect(), end)
}

fn plain(at: SocketAddr, bytes: &[u8]) -> (String, &'static str) {
    let mut client = connect(at);
    client.set_read_timeout(Some(SHORT)).unwrap();
    client.write_all(bytes).unwrap();
    all(|buffer| client.read(buffer))
}

fn inside(config: &Arc<ClientConfig>, at: SocketAddr, bytes: &[u8]) -> (String, &'static str) {
    let tcp = connect(at);
    tcp.set_read_timeout(Some(SHORT)).unwrap();
    let mut client = Tls::connect(config, "example.org", tcp).unwrap();
    client.send(bytes).unwrap();
    all(|buffer| client.receive(buffer))
}

/// A setu with a port of each kind that speaks TLS, and an nginx that has nothing.
fn both(state: &std::path::Path, upstreams: &Upstream) -> (Setu, Server, Certificate) {
    let certificate = Certificate::new(&["example.org"]);
    let nginx = Server::nginx(|[at]| {
        format!(
            "server_tokens off; server {{ listen {at} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; \
             location / {{ return 404; }} }}",
            certificate.chain().display(),
            certificate.key().display()
        )
    });
    let more = [
        listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"test\"\ngate = true"),
        listener("auto", "mode = \"auto\"\nchat = \"test\"\nmedia = \"test\""),
        listener("site", "mode = \"auto\"\nchat = \"test\"\nmedia = \"test\"\nfallback = \"127.0.0.1:9\""),
        listener("media", "mode = \"media\"\nupstream = \"test\""),
        upstream("test", upstreams.address(), "off"),
    ];
    let text = front_door(Path::Userspace, state, &more.concat());
    (Setu::start(&text), nginx, certificate)
}

/// Compares many at once, for each waits for an end that may not come.
fn compare(
    expected: impl Fn(&[u8]) -> (String, &'static str) + Sync,
    got: impl Fn(&[u8]) -> (String, &'static str) + Sync,
) {
    let words = words();
    for few in words.chunks(12) {
        thread::scope(|scope| {
            for word in few {
                scope.spawn(|| {
                    let shown = String::from_utf8_lossy(&word[..word.len().min(60)]).into_owned();
                    assert_eq!(got(word), expected(word), "{shown:?}");
                });
            }
        });
    }
}

#[test]
fn plain_http_at_a_port_of_tls_is_answered_as_nginx_does() {
    let (state, upstreams) = (tempfile::tempdir().unwrap(), Upstream::new());
    let (setu, nginx, _certificate) = both(state.path(), &upstreams);
    for name in ["chat-tls", "auto", "site", "media"] {
        let at = setu.address(name);
        compare(|word| plain(nginx.address(0), word), |word| plain(at, word));
    }
    assert_eq!(setu.count("closed reason=internal_error"), 0);
}

#[test]
fn requests_inside_tls_are_answered_as_nginx_does() {
    let (state, upstreams) = (tempfile::tempdir().unwrap(), Upstream::new());
    let (setu, nginx, _certificate) = both(state.path(), &upstreams);
    let configs = [&TLS12, &TLS13].map(tls::client);
    for (name, config) in ["chat-tls", "auto"].into_iter().zip(&configs) {
        let at = setu.address(name);
        compare(|word| inside(config, nginx.address(0), word), |word| inside(config, at, word));
    }
    // One after another, and pipelined, with a body that means nothing.
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let posted =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n".to_owned() + &"GET ".repeat(7_500);
    let three = [request, &posted, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat();
    let (text, end) = inside(&configs[1], setu.address("auto"), three.as_bytes());
    assert_eq!((text.matches("HTTP/1.1 404 Not Found").count(), end), (3, "end"), "{text}");
    assert_eq!((text.clone(), end), inside(&configs[1], nginx.address(0), three.as_bytes()));
    assert!(!text.to_lowercase().contains("setu"));
    // Chat is chat, as ever.
    let mut chat = Tls::connect(&configs[1], "example.org", connect(setu.address("auto"))).unwrap();
    chat.send(b"WA\x06\x03").unwrap();
    let mut came = [0; 4];
    upstreams.accept().read_exact(&mut came).unwrap();
    assert_eq!(&came, b"WA\x06\x03");
}

#[test]
fn alpn_is_agreed_on_with_browsers_and_keeps_nobody_out() {
    let (state, upstreams) = (tempfile::tempdir().unwrap(), Upstream::new());
    let (setu, nginx, _certificate) = both(state.path(), &upstreams);
    for version in [&TLS12, &TLS13] {
        let agreed = |at, offered: &[&str]| {
            let mut config = Arc::unwrap_or_clone(tls::client(version));
            config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
            let client = Tls::connect(&Arc::new(config), "example.org", connect(at)).unwrap();
            client.alpn().map(|name| String::from_utf8(name).unwrap())
        };
        let browsers: [&[&str]; 3] = [&[], &["http/1.1"], &["h2", "http/1.1"]];
        for offered in browsers {
            let expected = agreed(nginx.address(0), offered);
            for name in ["chat-tls", "auto"] {
                assert_eq!(agreed(setu.address(name), offered), expected, "{name} {offered:?}");
            }
        }
        // Of nginx only newer versions refuse these.
        for offered in [&["h2"][..], &["chat"]] {
            assert_eq!(agreed(setu.address("chat-tls"), offered), None);
            assert_eq!(agreed(setu.address("auto"), offered), None);
        }
    }
}

/// Those who say nothing, or half a word, all wait as long, wherever they are, and their end is the same: a FIN.
#[test]
fn the_silent_are_left_at_the_same_time_whatever_the_port() {
    const WAIT: Duration = Duration::from_secs(3);
    let (state, upstreams) = (tempfile::tempdir().unwrap(), Upstream::new());
    let more = [
        "[timeouts]\ninspect = \"3s\"\nhandshake = \"3s\"\n".to_owned(),
        listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"test\"\ngate = true"),
        listener("auto", "mode = \"auto\"\nchat = \"test\"\nmedia = \"test\""),
        listener("media", "mode = \"media\"\nupstream = \"test\""),
        listener("chat", "mode = \"chat\"\nupstream = \"test\"\ngate = true"),
        upstream("test", upstreams.address(), "off"),
    ];
    let setu = Setu::start(&front_door(Path::Userspace, state.path(), &more.concat()));
    thread::scope(|scope| {
        for name in ["chat-tls", "auto", "media", "chat"] {
            let anywhere = [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost:", b"\x16", b"\x16\x03\x01\x02\x00\x01"];
            // What may become chat, or a PROXY header, is waited for by that port; others have answered some.
            let auto = [&b"P"[..], b"PROXY", b"\r", b"\r\n\r\n\0", b"W", b"WA\x06", b"ED\0"];
            for said in anywhere.into_iter().chain(auto.into_iter().filter(|_| name == "auto")) {
                // What cannot become chat is told at once there, which is no port of TLS.
                if name == "chat" && !said.is_empty() {
                    continue;
                }
                let at = setu.address(name);
                scope.spawn(move || {
                    let begun = Instant::now();
                    let mut client = connect(at);
                    client.write_all(said).unwrap();
                    let mut got = Vec::new();
                    client.read_to_end(&mut got).unwrap_or_else(|error| panic!("{name} {said:?}: {error}"));
                    let after = begun.elapsed();
                    assert_eq!(got, b"", "{name} {said:?}");
                    let late = WAIT + Duration::from_secs(3);
                    assert!(
                        after > WAIT - Duration::from_millis(100) && after < late,
                        "{name} {said:?} {after:?}"
                    );
                });
            }
        }
    });
}

/// Who may send no PROXY header sees a port that a firewall closes; who may is served.
#[test]
fn ports_for_proxies_are_silent_to_everyone_else() {
    let (network, state) = (Netns::alone(), tempfile::tempdir().unwrap());
    network.ip("address add 2001:db8::1/128 dev lo");
    let text = |trusted: &str, more: &str| {
        let keys = "mode = \"chat\"\nupstream = \"test\"\naccept_proxy_protocol = true";
        let listeners = [
            listener("v4", keys).replace(":0", ":8222"),
            listener("v6", keys).replace("127.0.0.1:0", "[::1]:8222"),
            // Clients come here as well.
            listener(
                "both",
                &format!(
                    "mode = \"auto\"\nchat = \"test\"\nmedia = \"test\"\n{}",
                    "accept_proxy_protocol = true"
                ),
            )
            .replace(":0", ":8443"),
        ];
        let trusted = format!("[proxy_protocol]\ntrusted = [{trusted}]\n");
        let all = [&listeners.concat(), &upstream("test", "127.0.0.1:1", "off"), &trusted, more].concat();
        front_door(Path::Userspace, state.path(), &all)
    };
    let visit = |from: &str, to: &str| -> Option<ErrorKind> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        network.within(|| {
            let socket =
                socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
            socket.bind(&from.into()).unwrap();
            // A SYN that was dropped comes again after a second.
            socket.connect_timeout(&to.into(), Duration::from_millis(700)).err().map(|error| error.kind())
        })
    };
    let (friend, stranger) = ("127.9.9.9:0", "127.8.8.8:0");
    let (friend6, stranger6) = ("[2001:db8::1]:0", "[::1]:0");
    let expect = |friends: bool| {
        let hidden = Some(ErrorKind::TimedOut);
        let (one, other) = if friends { (None, hidden) } else { (hidden, None) };
        assert_eq!(visit(friend, "127.0.0.1:8222"), one);
        assert_eq!(visit(stranger, "127.0.0.1:8222"), other);
        assert_eq!(visit(friend6, "[::1]:8222"), one);
        assert_eq!(visit(stranger6, "[::1]:8222"), other);
        for from in [friend, stranger] {
            assert_eq!(visit(from, "127.0.0.1:8443"), None);
        }
    };
    let friends = "\"127.9.9.0/24\", \"2001:db8::/32\"";
    let mut setu = Setu::start_in(&text(friends, ""), Some(&network));
    expect(true);
    setu.reload(&text(friends, "[timeouts]\ninspect = \"4s\"\n"));
    expect(true);

    // A connection of before is not cut by a reload that changes who is let in, and the filter follows.
    let mut kept = network.within(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&friend.parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&"127.0.0.1:8222".parse::<SocketAddr>().unwrap().into()).unwrap();
        TcpStream::from(socket)
    });
    let strangers = "\"127.8.0.0/16\", \"::1\"";
    setu.reload(&text(strangers, ""));
    assert_eq!(setu.count("not reloaded"), 0, "{}", setu.tail());
    if setu.count("the port cannot be hidden") == 0 {
        expect(false);
    } else {
        // Kernels can be set to let root alone attach filters. Whoever is trusted gets in at least.
        println!("this kernel lets setu attach no filter after its start");
        assert_eq!([visit(stranger, "127.0.0.1:8222"), visit(stranger6, "[::1]:8222")], [None; 2]);
    }
    kept.write_all(b"no header").unwrap();
    setu.wait_closed("proxy_malformed", 1);

    // A successor gets the sockets, and hides them from others.
    let command = network.command(&Setu::binary().display().to_string());
    let successor = Setu::start_by(command, &text(friends, ""), &["--replace"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while setu.count("stopping: a successor serves") == 0 {
        assert!(Instant::now() < deadline, "{}", setu.tail());
        thread::sleep(Duration::from_millis(20));
    }
    expect(true);
    assert_eq!(successor.count("cannot be hidden"), 0);
    drop(successor);
}

/// More ranges than a filter takes: that is said, and strangers are turned away after they connected.
#[test]
fn a_port_that_cannot_be_hidden_is_told() {
    let state = tempfile::tempdir().unwrap();
    let ranges: Vec<_> =
        (0..3_000).map(|number| format!("\"10.{}.{}.1\"", number / 200, number % 200)).collect();
    let more = [
        listener("proxy", "mode = \"chat\"\nupstream = \"test\"\naccept_proxy_protocol = true"),
        upstream("test", "127.0.0.1:1", "off"),
        format!("[proxy_protocol]\ntrusted = [{}]\n", ranges.join(", ")),
    ];
    let mut setu = Setu::start(&front_door(Path::Userspace, state.path(), &more.concat()));
    assert_eq!(setu.count("the port cannot be hidden"), 1, "{}", setu.tail());
    drop(connect(setu.address("proxy")));
    setu.wait_closed("proxy_untrusted", 1);
}
