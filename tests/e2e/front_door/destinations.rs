//! Where a client may be led: not into the operator's own network, and not back to setu.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustls::version::TLS13;
use setu_tests::{
    Path, Setu, config,
    dns::{Answer, DnsServer},
    front_door, listener,
    netns::Netns,
    peers::{PATIENCE, Upstream, call, connect, end_of},
    tls::{self, Certificate, Tls},
    upstream,
};

crate::on_both_paths! {
    private_destinations_are_refused
    setu_does_not_dial_itself
}

const MEDIA: &str = "mmg.whatsapp.net";

/// An honest hello for a name, of which no answer is expected.
fn ask_for(name: &str, at: SocketAddr) {
    let refused = Tls::connect(&tls::client(&TLS13), name, connect(at));
    assert!(refused.is_err(), "{name} answers");
}

/// An allowed name whose owner, or a liar on the way, leads it into the operator's own network.
fn private_destinations_are_refused(path: Path) {
    let (dns, state) = (DnsServer::new(), tempfile::tempdir().unwrap());
    let more = [
        listener("media", "mode = \"media\"\nupstream = \"by-sni\""),
        upstream("by-sni", "media.whatsapp.net:443", "off"),
        "route = \"sni\"\n".to_owned(),
        format!("[dns]\nservers = [\"{}\"]\n", dns.address()),
    ];
    let text =
        front_door(path, state.path(), &more.concat()).replace("_upstreams = true", "_upstreams = false");
    let mut setu = Setu::start(&text);
    let private = [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "fd00::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "64:ff9b::10.0.0.1",
    ];
    for (number, address) in private.into_iter().enumerate() {
        let name = format!("media-{number}.cdn.whatsapp.net");
        dns.set(&name, Answer::addresses(&[address], 60));
        ask_for(&name, setu.address("media"));
        setu.wait_closed("destination_refused", number + 1);
    }
    assert_eq!(setu.count(" listener=media"), private.len() + 1, "{}", setu.tail());
}

/// A program that is killed when the test is over.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Names that lead to setu's own listeners would have it forward to itself until nothing is left. In a namespace, since
/// servers that clients name are dialed on port 443.
fn setu_does_not_dial_itself(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    let namespace = Netns::new();
    let (own, other) = (namespace.address(), namespace.address().trim_end_matches('2').to_owned() + "3");
    namespace.ip(&format!("address add {other}/24 dev {}", namespace.device()));
    let certificate = Certificate::new(&[MEDIA]);
    let mut command = namespace.command("openssl");
    command.args(["s_server", "-quiet", "-www", "-accept", &format!("{other}:443"), "-cert"]);
    command.arg(certificate.chain()).arg("-key").arg(certificate.key()).stdin(Stdio::null());
    let _server = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((&*other, 443)).is_err() {
        assert!(Instant::now() < deadline, "the server does not start");
        thread::sleep(Duration::from_millis(20));
    }

    let dns = DnsServer::on(&namespace.host_address());
    dns.set("chat.test", Answer::addresses(&[&own], 60));
    dns.set("loop.whatsapp.net", Answer::addresses(&[&own], 60));
    dns.set(MEDIA, Answer::addresses(&[&other], 60));
    let state = tempfile::tempdir().unwrap();
    let more = [
        listener("media", "mode = \"media\"\nupstream = \"by-sni\"")
            .replace("127.0.0.1:0", &format!("{own}:443")),
        listener("chat", "mode = \"chat\"\nupstream = \"chat\"")
            .replace("127.0.0.1:0", &format!("{own}:5222")),
        upstream("chat", "chat.test:5222", "off"),
        upstream("by-sni", "chat.test:5222", "off"),
        "route = \"sni\"\n".to_owned(),
        format!("[dns]\nservers = [\"{}\"]\n", dns.address()),
    ];
    let mut setu = Setu::start_in(&front_door(path, state.path(), &more.concat()), Some(&namespace));
    // The server that the name means is served.
    let mut client = Tls::connect(&tls::client(&TLS13), MEDIA, connect(setu.address("media"))).unwrap();
    client.send(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = [0; 15];
    let mut got = 0;
    while got < page.len() {
        got += client.receive(&mut page[got..]).unwrap();
    }
    assert_eq!(&page, b"HTTP/1.0 200 ok");
    drop(client);
    // Both ways back to setu are not.
    ask_for("loop.whatsapp.net", setu.address("media"));
    setu.wait_closed("destination_refused", 1);
    let mut client = call(setu.address("chat"));
    let _ = client.read(&mut [0; 16]);
    setu.wait_closed("destination_refused", 2);
    // One connection each, and no further that came back: they end, and are listened for.
    for (listener, count) in [("media", 2), ("chat", 1)] {
        setu.wait_count(&format!(" listener={listener}"), count + 1);
        assert_eq!(setu.count(&format!(" listener={listener}")), count + 1, "{}", setu.tail());
    }
}

#[test]
fn a_name_with_a_private_address_is_refused() {
    let upstream = Upstream::new();
    let port = upstream.address().rsplit_once(':').unwrap().1.to_owned();
    let text = config(Path::Userspace, &format!("localhost:{port}"), "")
        .replace("_upstreams = true", "_upstreams = false");
    let mut setu = Setu::start(&text);
    let client = call(setu.address("chat"));
    assert_eq!(end_of(&client).unwrap_or(0), 0);
    setu.wait_closed("destination_refused", 1);
}
