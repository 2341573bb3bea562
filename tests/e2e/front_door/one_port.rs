//! One port for everything: chat inside TLS and in the clear, media, and the operator's web server for whoever is no client.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use rustls::version::{TLS12, TLS13};
use setu_tests::{
    Path, Setu, front_door, listener,
    peers::{Upstream, connect, finish},
    servers::{self, Server},
    tls::{self, Certificate, Tls},
    upstream,
};

crate::on_both_paths! {
    everything_on_one_port
}

const MEDIA: &str = "mmg.whatsapp.net";
/// What is told in the clear.
const REFUSAL: &str = "The plain HTTP request was sent to HTTPS port";
const PAGE: &str = "the operator's own page";
/// Openings of a web client, and of a mobile one.
const CHAT: [&[u8]; 2] =
    [b"WA\x06\x03\0\0\x01x", b"ED\0\x01\0\0\x04\x08\x0d\x08\x02WA\x04\x02\0\x01\x18\x12"];

/// The headers of a load balancer: none, version 1, version 2.
const HEADERS: [&[u8]; 3] = [
    b"",
    b"PROXY TCP4 198.51.100.7 203.0.113.9 40001 443\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\xcb\0\x71\x09\x9c\x41\x01\xbb",
];

/// One port before chat servers, a media server and a web server.
struct OnePort {
    setu: Setu,
    chat: Upstream,
    servers: Server,
}

fn everything_on_one_port(path: Path) {
    let certificate = Certificate::new(&[MEDIA]);
    let servers = Server::nginx(|[web, media]| {
        format!(
            "default_type text/html; client_header_timeout 2s;\n\
             server {{ listen {web}; server_tokens off; return 200 \"{PAGE}\"; }}\n\
             server {{ listen {media} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; \
             return 200 \"media for $ssl_server_name\"; }}",
            certificate.chain().display(),
            certificate.key().display()
        )
    });
    let (chat, state) = (Upstream::new(), tempfile::tempdir().unwrap());
    let keys = format!(
        "mode = \"auto\"\nchat = \"chat\"\nmedia = \"media\"\nfallback = \"{}\"\naccept_proxy_protocol = ",
        servers.address(0)
    );
    let more = [
        "[timeouts]\ninspect = \"1s\"\n".to_owned(),
        listener("door", &format!("{keys}false")),
        listener("behind-lb", &format!("{keys}true")),
        upstream("chat", chat.address(), "v1"),
        upstream("media", servers.address(1), "off"),
    ];
    let setu = Setu::start(&front_door(path, state.path(), &more.concat()));
    let mut one = OnePort { setu, chat, servers };
    let door = one.setu.address("door");
    one.serves_all("door", HEADERS[0]);
    for header in HEADERS {
        one.serves_all("behind-lb", header);
    }
    one.looks_like_the_web_server();
    // A browser and curl find the web server at the door, inside TLS; curl also behind a load balancer. In the clear
    // they are told that this is a port of TLS.
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://web.example:{}/", door.port());
        let page = servers::browse(&url, "web.example", door);
        let expected = if scheme == "http" { REFUSAL } else { PAGE };
        assert!(page.output.contains(expected), "{page:?}");
        for (listener, options) in
            [("door", "-sSk"), ("behind-lb", "-sSk"), ("behind-lb", "-sSk --haproxy-protocol")]
        {
            let url = format!("{scheme}://{}/", one.setu.address(listener));
            let options: Vec<_> = options.split(' ').chain([&*url]).collect();
            let ended = servers::run("curl", &options);
            let is_page = ended.output == PAGE;
            assert!(if scheme == "http" { ended.output.contains(REFUSAL) } else { is_page }, "{ended:?}");
        }
    }
    // And the media server, by its name and its own certificate.
    for (listener, options) in [("door", "-sS"), ("behind-lb", "-sS --haproxy-protocol")] {
        let port = one.setu.address(listener).port();
        let (url, resolve) = (format!("https://{MEDIA}:{port}/"), format!("{MEDIA}:{port}:127.0.0.1"));
        let chain = certificate.chain();
        let more = ["--cacert", chain.to_str().unwrap(), "--resolve", &resolve, &url];
        let ended = servers::run("curl", &options.split(' ').chain(more).collect::<Vec<_>>());
        assert_eq!(ended.output, format!("media for {MEDIA}"), "{ended:?}");
    }
    one.setu.wait_count(&format!(" path={} listener=door", path.name()), 3);
    let (status, reasons) = one.setu.stop();
    assert!(status.success());
    for reason in reasons.keys() {
        assert!(
            // Browsers and curl end without a close_notify, and a browser that ends resets what it has open or leaves it.
            [
                "client_closed",
                "client_truncated",
                "client_reset",
                "upstream_closed",
                "client_left",
                "shutdown",
                // In the clear, and silent.
                "not_chat",
                "inspect_timeout"
            ]
            .contains(&&**reason),
            "{reasons:?}"
        );
    }
}

impl OnePort {
    /// Chat inside TLS and in the clear, media, and the web server, after this header.
    fn serves_all(&mut self, listener: &str, header: &[u8]) {
        let at = self.setu.address(listener);
        let open = || {
            let mut tcp = connect(at);
            tcp.write_all(header).unwrap();
            tcp
        };
        for (opening, (version, name)) in
            CHAT.into_iter().zip([(&TLS12, "proxy.example.org"), (&TLS13, "192.0.2.1")])
        {
            // In one segment with the header, which must not come through a second time.
            let mut client = connect(at);
            client.write_all(&[header, opening].concat()).unwrap();
            let mut server = self.expect_chat(&client, header, opening);
            server.write_all(b"an answer").unwrap();
            finish(&server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"an answer");

            let tcp = open();
            let address = tcp.try_clone().unwrap();
            let mut client = Tls::connect(&tls::client(version), name, tcp).unwrap();
            client.send(opening).unwrap();
            let mut server = self.expect_chat(&address, header, opening);
            server.write_all(b"an answer").unwrap();
            finish(&server);
            assert_eq!(read(&mut client), b"an answer");
        }
        for version in [&TLS12, &TLS13] {
            let mut client = Tls::connect(&tls::client(version), MEDIA, open()).unwrap();
            client.send(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let answer = String::from_utf8(read(&mut client)).unwrap();
            assert!(answer.ends_with(&format!("media for {MEDIA}")), "{answer}");
        }
        for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"GET /\r\n\r\n"] {
            let refused = String::from_utf8(answer_in_the_clear(open(), bytes)).unwrap();
            assert!(refused.contains(REFUSAL), "{refused}");
            assert!(answer_inside_tls(open(), bytes).ends_with(PAGE.as_bytes()));
        }
    }

    /// The chat connection that came, after the header that tells of the client: the load balancer's, where it sent one.
    fn expect_chat(&self, client: &TcpStream, header: &[u8], opening: &[u8]) -> TcpStream {
        let mut server = self.chat.accept();
        let expected = if header.is_empty() {
            let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
        } else {
            HEADERS[1].to_vec()
        };
        let mut came = vec![0; expected.len() + opening.len()];
        server.read_exact(&mut came).unwrap();
        assert_eq!(came, [&expected, opening].concat());
        server
    }

    /// What is nothing that setu serves gets, inside TLS, the web server's own answer, byte for byte; silence gets silence.
    fn looks_like_the_web_server(&mut self) {
        let (door, web) = (self.setu.address("door"), self.servers.address(0));
        let odd: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"OPTIONS * HTTP/1.0\r\n\r\n",
            b"CONNECT g.whatsapp.net:5222 HTTP/1.1\r\n\r\n",
            b"\x05\x01\x00\x05\x01\x00\x03\x0ex\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"PROXY nonsense\r\n",
        ];
        for bytes in odd {
            let direct = answer_in_the_clear(connect(web), bytes);
            assert_eq!(answer_inside_tls(connect(door), bytes), direct, "{}", bytes.escape_ascii());
        }
        let mut silent = connect(door);
        let mut answer = Vec::new();
        silent.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"");
    }
}

/// Reads to the server's close_notify.
fn read(client: &mut Tls) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match client.receive(&mut buffer).unwrap() {
            0 => return all,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

fn answer_in_the_clear(mut client: TcpStream, bytes: &[u8]) -> Vec<u8> {
    client.write_all(bytes).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    without_date(&all)
}

fn answer_inside_tls(client: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut client = Tls::connect(&tls::client(&TLS13), "proxy.example.org", client).unwrap();
    client.send(bytes).unwrap();
    without_date(&read(&mut client))
}

/// The one line that differs from second to second.
fn without_date(answer: &[u8]) -> Vec<u8> {
    let lines = answer.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"Date: "));
    lines.flatten().copied().collect()
}
