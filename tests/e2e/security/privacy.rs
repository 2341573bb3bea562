//! What setu tells of its clients: nothing, unless `privacy.client_addresses` says otherwise. The test looks for their
//! addresses in all that setu ever writes, at the most talkative level of the log.

use std::{
    fs,
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    path,
    process::Command,
    time::Duration,
};

use setu_tests::{
    Path, Setu,
    admin::get,
    dns::{Answer, DnsServer},
    peers::{PATIENCE, Upstream, end_of},
    tls,
};
use socket2::{Domain, Socket, Type};

crate::on_both_paths! {
    no_client_address_is_written
    what_is_allowed_is_written
}

/// Addresses that only the clients of this test have: on sockets, and in PROXY headers.
const NETWORKS: [&str; 3] = ["127.77.", "198.51.100.", "2001:db8:77"];
const CLIENT: &str = "127.77.1.2";
const PROXIED: &str = "198.51.100.77";
const HELLO: &[u8] = include_bytes!("../../../fuzz/corpus/client_hello/curl-h2");

fn config(path: Path, upstream: &str, state: &path::Path, privacy: &str) -> String {
    let listener = |name: &str, mode: &str, more: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\nbind = [\"127.0.0.1:0\"]\nmode = \"{mode}\"\nupstream = \"test\"\n{more}\n"
        )
    };
    [
        format!("[relay]\npath = \"{}\"\n", path.name()),
        listener("chat", "chat", ""),
        listener("gated", "chat", "gate = true"),
        listener("proxied", "chat", "accept_proxy_protocol = true"),
        listener("tls", "chat-tls", ""),
        listener("media", "media", ""),
        format!("[upstream.test]\nendpoints = [\"{upstream}\"]\n"),
        "[upstream.dead]\nendpoints = [\"127.0.0.1:1\"]\n".into(),
        listener("dead", "chat", "").replace("\"test\"", "\"dead\""),
        "[security]\nallow_private_upstreams = true\n[admin]\nbind = [\"127.0.0.1:0\"]\n".into(),
        "[limits]\nper_source = 2\n[timeouts]\nidle = \"1s\"\ninspect = \"1s\"\n".into(),
        format!("[tls]\nstate_dir = {state:?}\n"),
        privacy.into(),
    ]
    .concat()
}

/// Connects from an address of this machine. It fails when setu turns the client away at once.
fn connect_from(from: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// Says something, and waits for the end or an answer.
fn say(from: &str, to: SocketAddr, bytes: &[u8]) {
    let mut stream = connect_from(from, to).unwrap();
    // It may be turned away before it has said anything.
    let _ = stream.write_all(bytes);
    let _ = end_of(&stream);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = end_of(&stream);
}

/// Good, refused, broken and vanishing clients, each from another address; returns all that setu wrote.
fn traffic(path: Path, privacy: &str) -> String {
    let upstream = Upstream::new();
    let address = upstream.address();
    upstream.echo();
    let state = tempfile::tempdir().unwrap();
    let mut setu = Setu::start_logging(&config(path, &address, state.path(), privacy), None, "trace");
    let chat = b"WA\x06\x03\x00\x00\x00";
    say(CLIENT, setu.address("chat"), chat);
    say("127.77.1.3", setu.address("gated"), b"GET / HTTP/1.1\r\n\r\n");
    say("127.77.1.4", setu.address("gated"), chat);
    say("127.77.1.5", setu.address("tls"), b"this is no TLS at all\r\n");
    say("127.77.1.6", setu.address("media"), HELLO);
    say("127.77.1.7", setu.address("media"), b"neither is this");
    say("127.77.1.8", setu.address("dead"), chat);
    // Nothing at all, until the deadline.
    say("127.77.1.9", setu.address("gated"), b"");
    let proxied = |header: &str| say("127.77.2.1", setu.address("proxied"), header.as_bytes());
    proxied(&format!("PROXY TCP4 {PROXIED} 192.0.2.1 4000 443\r\nWA\x06\x03"));
    proxied("PROXY TCP6 2001:db8:77::5 2001:db8::1 4000 443\r\nWA\x06\x03");
    proxied("PROXY TCP4 198.51.100.78 nonsense\r\n");
    // More of one source than it may have; the last are turned away.
    let many: Vec<_> = (0..5).flat_map(|_| connect_from("127.77.3.1", setu.address("chat"))).collect();
    setu.wait_closed("limit_per_source", 3);
    drop(many);
    // A client that resets.
    let gone = connect_from("127.77.4.1", setu.address("chat")).unwrap();
    setu_tests::peers::reset(gone);
    // A browser's TLS, with the certificate that setu made.
    let curl = Command::new("curl")
        .args(["--silent", "--insecure", "--max-time", "10", "--interface", "127.77.5.1"])
        .arg(format!("https://{}/", setu.address("tls")))
        .output()
        .unwrap();
    drop(curl);
    setu.wait_count("closed reason=", 17);
    let mut written = String::new();
    for document in ["/", "/metrics", "/status.json", "/readyz"] {
        let answer = get(setu.admin(), document);
        written += &format!("{}\n{}\n", answer.head, answer.body);
    }
    setu.signal("TERM");
    setu.wait_count("stopped", 1);
    std::thread::sleep(Duration::from_millis(100));
    written += &setu.log();
    let mut files = 0;
    for file in fs::read_dir(state.path()).unwrap() {
        let file = file.unwrap().path();
        written += &format!("{}\n{}\n", file.display(), String::from_utf8_lossy(&fs::read(&file).unwrap()));
        files += 1;
    }
    assert!(files > 0, "the certificate is not kept");
    written
}

/// Lines of a text that have one of the clients' addresses.
fn lines_with_addresses(written: &str) -> Vec<&str> {
    let has = |line: &&str| NETWORKS.iter().any(|network| line.contains(network));
    written.lines().filter(has).collect()
}

fn no_client_address_is_written(path: Path) {
    let written = traffic(path, "");
    // It was talkative, and of these clients.
    for evidence in
        [" DEBUG ", "closed reason=not_tls", "closed reason=not_chat", "closed reason=proxy_malformed"]
    {
        assert!(written.contains(evidence), "{evidence} is missing");
    }
    let found = lines_with_addresses(&written);
    assert!(found.is_empty(), "{} lines, as {:?}", found.len(), found.first());
}

fn what_is_allowed_is_written(path: Path) {
    let full = traffic(path, "[privacy]\nclient_addresses = \"full\"\n");
    for address in [CLIENT, PROXIED] {
        let line = format!("client=\"{address}:");
        assert!(full.contains(&line), "{line} is missing: {:?}", lines_with_addresses(&full));
    }
    assert!(full.contains("client=\"[2001:db8:77::5]:4000\""));
    let truncated = traffic(path, "[privacy]\nclient_addresses = \"truncated\"\n");
    for network in ["127.77.1.0/24", "198.51.100.0/24", "2001:db8:77::/48"] {
        assert!(truncated.contains(&format!("client=\"{network}\"")), "{network} is missing");
    }
    for line in lines_with_addresses(&truncated) {
        assert!(
            line.contains("closed reason=") && !line.contains(CLIENT) && !line.contains(PROXIED),
            "{line}"
        );
    }
}

/// The media cache of a provider's network tells its client's city.
#[test]
fn no_name_that_a_client_asked_for_is_written() {
    let resolver = DnsServer::new();
    let names = ["media.fbey4-1.fna.whatsapp.net", "media.nowhere4-1.fna.whatsapp.net"];
    resolver.set(names[0], Answer::addresses(&["127.0.0.50"], 60));
    let setup = format!(
        "[relay]\npath = \"userspace\"\n[[listener]]\nname = \"media\"\nbind = [\"127.0.0.1:0\"]\nmode = \"media\"\n\
         upstream = \"test\"\n[upstream.test]\nendpoints = [\"127.0.0.1:1\"]\nroute = \"sni\"\n\
         [dns]\nservers = [\"{}\"]\n[security]\nallow_private_upstreams = true\n[admin]\nbind = []\n",
        resolver.address()
    );
    // With all that libraries say.
    let mut setu = Setu::start_logging(&setup, None, "trace");
    for name in names {
        let tcp = TcpStream::connect(setu.address("media")).unwrap();
        assert!(tls::Tls::connect(&tls::client(&rustls::version::TLS13), name, tcp).is_err());
    }
    setu.wait_closed("connect_refused", 1);
    setu.wait_closed("resolve_failed", 1);
    let written = setu.log();
    assert!(written.contains("a name of a client's choice was looked up"), "{}", setu.tail());
    for part in ["fbey4", "nowhere4"] {
        let found: Vec<_> = written.lines().filter(|line| line.contains(part)).collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn no_client_address_is_logged() {
    let upstream = Upstream::new();
    let setu = Setu::start(&setu_tests::config(Path::Userspace, &upstream.address(), ""));
    let (client, _server) = upstream.connect(setu.address("chat"));
    let port = client.local_addr().unwrap().port();
    drop(client);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(setu.count(&format!(":{port}")), 0, "{}", setu.tail());
}
