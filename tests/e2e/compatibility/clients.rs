//! Programs that nobody wrote for setu, before and behind it: what they say of each other must be what they say without
//! it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use setu_tests::{
    Path, Setu, front_door, listener,
    peers::{Upstream, connect, finish},
    servers::{self, Ended, Server},
    tls::Certificate,
    upstream,
};
use tempfile::TempDir;

crate::on_both_paths! {
    openssl_through_chat_over_tls
    openssl_through_media
    curl_through_chat_over_tls_and_media
    gnutls_through_chat_over_tls_and_media
    chromium_through_media
    haproxy_before_and_behind
    nginx_is_told_the_client
}

const MEDIA: &str = "mmg.whatsapp.net";
/// A mobile client's opening.
const HELLO: &[u8] = b"ED\0\x01\0\0\x04\x08\x0d\x08\x02WA\x04\x02\0\x01\x18\x12";
/// One request, after whose answer nginx closes.
const ABOUT: &[u8] = b"GET /about HTTP/1.0\r\n\r\n";

/// setu before nginx: `chat-tls` before a server of HTTP, `media` before one of HTTPS. A page tells of the request's TLS.
struct Web {
    setu: Setu,
    nginx: Server,
    certificate: Certificate,
    _state: TempDir,
}

impl Web {
    fn start(path: Path) -> Self {
        let certificate = Certificate::new(&[MEDIA, "*.cdn.whatsapp.net"]);
        let nginx = Server::nginx(|[http, https]| {
            format!(
                "default_type text/html; ssl_certificate {}; ssl_certificate_key {};\n\
                 server {{ listen {http}; location = /about {{ return 200 \"plain $http_user_agent\"; }} }}\n\
                 server {{ listen {https} ssl; ssl_protocols TLSv1.2 TLSv1.3; location = /about {{ return 200 \
                 \"name=$ssl_server_name version=$ssl_protocol reused=$ssl_session_reused curves=$ssl_curves \
                 agent=$http_user_agent\"; }} }}",
                certificate.chain().display(),
                certificate.key().display()
            )
        });
        let state = tempfile::tempdir().unwrap();
        let more = [
            listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"http\""),
            listener("media", "mode = \"media\"\nupstream = \"https\""),
            upstream("http", nginx.address(0), "off"),
            upstream("https", nginx.address(1), "off"),
        ];
        let setu = Setu::start(&front_door(path, state.path(), &more.concat()));
        Self { setu, nginx, certificate, _state: state }
    }

    /// So many media connections, at least, ended in the path that was asked for.
    fn expect_media(&mut self, path: Path, count: usize) {
        self.setu.wait_count(&format!(" path={} listener=media", path.name()), count);
    }
}

/// Starts `openssl s_client` and says something.
fn openssl(to: SocketAddr, arguments: &[&str], words: &[u8]) -> std::process::Child {
    let to = to.to_string();
    let mut child =
        servers::start("openssl", &[&["s_client", "-connect", &to, "-ign_eof"], arguments].concat());
    child.stdin.as_mut().unwrap().write_all(words).unwrap();
    child
}

fn openssl_through_chat_over_tls(path: Path) {
    let (servers, state) = (Upstream::new(), tempfile::tempdir().unwrap());
    let more = [
        listener("chat-tls", "mode = \"chat-tls\"\nupstream = \"test\"\ngate = true"),
        upstream("test", servers.address(), "off"),
    ];
    let mut setu = Setu::start(&front_door(path, state.path(), &more.concat()));
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        for name in [&["-servername", "proxy.example.org"][..], &["-noservername"]] {
            let session = state.path().join("session");
            for (file, word) in [("-sess_out", "New"), ("-sess_in", "Reused")] {
                let arguments = [&[option, file, session.to_str().unwrap()], name].concat();
                let client = openssl(setu.address("chat-tls"), &arguments, HELLO);
                let mut server = servers.accept();
                let mut hello = [0; HELLO.len()];
                server.read_exact(&mut hello).unwrap();
                assert_eq!(hello, HELLO);
                server.write_all(b"the servers' answer").unwrap();
                finish(&server);
                let Ended { output, errors, .. } = servers::finish(client);
                assert!(output.contains(&format!("{word}, {version}, ")), "{arguments:?}: {output}{errors}");
                assert!(output.contains("the servers' answer"), "{arguments:?}: {output}{errors}");
            }
        }
    }
    setu.wait_closed("upstream_closed", 8);
}

fn openssl_through_media(path: Path) {
    let mut web = Web::start(path);
    let folder = tempfile::tempdir().unwrap();
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        for (name, named) in [(&["-servername", MEDIA][..], MEDIA), (&["-noservername"], "")] {
            let session = folder.path().join("session");
            for (file, reused) in [("-sess_out", "."), ("-sess_in", "r")] {
                let arguments = [&[option, file, session.to_str().unwrap()], name].concat();
                let client = openssl(web.setu.address("media"), &arguments, ABOUT);
                let ended = servers::finish(client);
                let expected = format!("name={named} version={version} reused={reused} ");
                assert!(ended.output.contains(&expected), "{arguments:?}: {ended:?}");
            }
        }
    }
    let refused = servers::finish(openssl(
        web.setu.address("media"),
        &["-servername", "mmg.whatsapp.net.example"],
        b"",
    ));
    assert!(refused.errors.contains("unrecognized name"), "{refused:?}");
    web.expect_media(path, 8);
}

fn curl_through_chat_over_tls_and_media(path: Path) {
    let mut web = Web::start(path);
    let big: Vec<u8> = (0..4_000_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    fs::write(web.nginx.folder().join("big"), &big).unwrap();
    let (chat, media) = (web.setu.address("chat-tls"), web.setu.address("media"));
    let chain = web.certificate.chain();
    let chain = chain.to_str().unwrap();
    let file = web.nginx.folder().join("received");
    let known = |host: &str| format!("{host}:{}:127.0.0.1", media.port());
    for (version, options) in [("TLSv1.2", &["--tls-max", "1.2"][..]), ("TLSv1.3", &["--tlsv1.3"])] {
        // Chat: setu's own certificate, and HTTP stands for whatever is inside.
        for host in [chat.to_string(), format!("localhost:{}", chat.port())] {
            let url = format!("https://{host}/about");
            let ended = servers::run("curl", &[&["-sSk", &url][..], options].concat());
            assert!(ended.output.starts_with("plain curl/"), "{ended:?}");
        }
        // Media: the server's own certificate is checked, end to end.
        let (url, resolve) = (format!("https://{MEDIA}:{}", media.port()), known(MEDIA));
        let about = format!("{url}/about");
        let ended = servers::run(
            "curl",
            &[&["-sS", "--cacert", chain, "--resolve", &resolve, &about], options].concat(),
        );
        assert!(ended.output.starts_with(&format!("name={MEDIA} version={version} ")), "{ended:?}");
        let url = format!("{url}/big");
        let to = ["-o", file.to_str().unwrap()];
        let ended = servers::run(
            "curl",
            &[&["-sS", "--cacert", chain, "--resolve", &resolve, &url][..], &to, options].concat(),
        );
        assert!(ended.success && fs::read(&file).unwrap() == big, "{ended:?}");
        // An address is no name, and curl sends none.
        let url = format!("https://{media}/about");
        let ended = servers::run("curl", &[&["-sSk", &url][..], options].concat());
        assert!(ended.output.starts_with(&format!("name= version={version} ")), "{ended:?}");
        let url = format!("https://example.org:{}/about", media.port());
        let resolve = known("example.org");
        let ended = servers::run("curl", &[&["-sSk", "--resolve", &resolve, &url][..], options].concat());
        assert_eq!(ended.code, Some(35), "{ended:?}");
        assert!(ended.errors.contains("unrecognized name"), "{ended:?}");
    }
    web.setu.wait_closed("name_refused", 2);
    // When curl was slow, the file has come through userspace in the end.
    web.expect_media(path, 4);
}

fn gnutls_through_chat_over_tls_and_media(path: Path) {
    let mut web = Web::start(path);
    for (version, priority) in
        [("TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.2"), ("TLS1.3", "NORMAL:-VERS-ALL:+VERS-TLS1.3")]
    {
        for (listener, expected) in [("chat-tls", "plain "), ("media", "name=mmg.whatsapp.net version=TLSv1")]
        {
            let port = web.setu.address(listener).port().to_string();
            let mut client = servers::start(
                "gnutls-cli",
                &[
                    "--insecure",
                    "--resume",
                    "--waitresumption",
                    "--priority",
                    priority,
                    "--sni-hostname",
                    MEDIA,
                    "--port",
                    &port,
                    "127.0.0.1",
                ],
            );
            client.stdin.as_mut().unwrap().write_all(ABOUT).unwrap();
            let ended = servers::finish(client);
            for words in [expected, version, "This is a resumed session"] {
                assert!(ended.output.contains(words), "{words} is missing: {ended:?}");
            }
        }
    }
    web.expect_media(path, 4);
}

/// A browser's hello is longer than a segment, has GREASE, a post-quantum key share, and its extensions in random order.
fn chromium_through_media(path: Path) {
    let mut web = Web::start(path);
    let page = servers::browse(&format!("https://{MEDIA}/about"), MEDIA, web.setu.address("media"));
    // X25519MLKEM768 is 11ec, for which this nginx has no name.
    for words in [&format!("name={MEDIA} version=TLSv1.3 ")[..], "0x11ec", "Chrome/"] {
        assert!(page.output.contains(words), "{words} is missing: {page:?}");
    }
    web.expect_media(path, 1);
}

/// What HAProxy says of a connection that it was told of by a header.
fn told(from: SocketAddr, to: SocketAddr) -> String {
    format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port())
}

/// Asks over HTTP for what the server knows of the client: the client's own address, and the answer.
fn ask(at: SocketAddr) -> (SocketAddr, String) {
    let mut client = connect(at);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
    (client.local_addr().unwrap(), body.unwrap_or(answer))
}

fn haproxy_before_and_behind(path: Path) {
    const DEFAULTS: &str = "global\n  maxconn 100\ndefaults\n  timeout connect 20s\n  timeout client 20s\n  timeout \
                            server 20s\n";
    let behind = Server::haproxy(|[bind]| {
        format!(
            "{DEFAULTS}frontend f\n  mode http\n  bind {bind} accept-proxy\n  http-request return status 200 \
             content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
        )
    });
    let state = tempfile::tempdir().unwrap();
    let mut more = String::new();
    for version in ["v1", "v2"] {
        more += &upstream(version, behind.address(0), version);
        for (prefix, accept) in [("direct", false), ("told", true)] {
            let keys = format!("mode = \"chat\"\nupstream = \"{version}\"\naccept_proxy_protocol = {accept}");
            more += &listener(&format!("{prefix}-{version}"), &keys);
        }
    }
    let mut setu = Setu::start(&front_door(path, state.path(), &more));
    for version in ["v1", "v2"] {
        let direct = setu.address(&format!("direct-{version}"));
        let (client, answer) = ask(direct);
        assert_eq!(answer, told(client, direct), "{version}");
    }
    let before = Server::haproxy(|binds: [String; 4]| {
        let ways = [("v1", "send-proxy"), ("v2", "send-proxy-v2")];
        let pairs = ways.iter().flat_map(|way| [(way.1, "v1"), (way.1, "v2")]);
        let sections = binds.iter().zip(pairs).enumerate().map(|(number, (bind, (option, sent)))| {
            let setu = setu.address(&format!("told-{sent}"));
            format!("listen l{number}\n  mode tcp\n  bind {bind}\n  server setu {setu} {option}\n")
        });
        format!("{DEFAULTS}{}", sections.collect::<String>())
    });
    for number in 0..4 {
        let at = before.address(number);
        let (client, answer) = ask(at);
        assert_eq!(answer, told(client, at), "way {number}");
    }
    // Some end before there is a moment in which the kernel could have them.
    setu.wait_count(" listener=told-", 4);
}

fn nginx_is_told_the_client(path: Path) {
    let nginx = Server::nginx(|[bind]| {
        format!(
            "server {{ listen {bind} proxy_protocol; return 200 \"$proxy_protocol_addr $proxy_protocol_port \
             $proxy_protocol_server_addr $proxy_protocol_server_port\"; }}"
        )
    });
    let state = tempfile::tempdir().unwrap();
    let mut more = String::new();
    for version in ["v1", "v2"] {
        more += &upstream(version, nginx.address(0), version);
        let keys = format!("mode = \"chat\"\nupstream = \"{version}\"");
        more += &listener(&format!("ipv4-{version}"), &keys);
        more += &listener(&format!("ipv6-{version}"), &keys).replace("127.0.0.1:0", "[::1]:0");
    }
    let setu = Setu::start(&front_door(path, state.path(), &more));
    for family in ["ipv4", "ipv6"] {
        for version in ["v1", "v2"] {
            let at = setu.address(&format!("{family}-{version}"));
            let (client, answer) = ask(at);
            assert_eq!(answer, told(client, at), "{family} {version}");
        }
    }
}
