//! What is counted as useful: who is served, as soon as he is, and nobody who only tries the ports.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use rustls::{ClientConnection, version::TLS13};
use setu_tests::{
    Path, Setu,
    admin::{eventually, metrics},
    front_door, listener,
    peers::{Upstream, connect},
    tls::{self, Tls},
    upstream,
};

crate::on_both_paths! {
    who_is_served_counts_and_who_tries_the_ports_does_not
}

/// As the doctor's: `WA`, the version, and a frame. Its key is no matter.
const HELLO: &[u8] = b"WA\x06\x03\0\0\x24\x12\x22\x0a\x20................................";
/// What no chat begins with, and no server of WhatsApp's is asked.
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// Bytes of media that are no use yet, both ways together.
const MEDIA: usize = 16 * 1024;

/// Says something, and has it back from an upstream that echoes.
fn say(client: &mut (impl Read + Write), bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    client.flush().unwrap();
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, bytes);
}

/// The same inside TLS.
fn say_inside(client: &mut Tls, bytes: &[u8]) {
    client.send(bytes).unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while answer.len() < bytes.len() {
        let count = client.receive(&mut buffer).unwrap();
        assert_ne!(count, 0, "it ended");
        answer.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(answer, bytes);
}

/// The hello of a media client.
fn client_hello() -> Vec<u8> {
    let name = "mmg.whatsapp.net".try_into().unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(tls::client(&TLS13), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// What is counted as useful, of a listener and a kind.
fn useful(admin: SocketAddr, listener: &str, kind: &str) -> f64 {
    metrics(admin)[&format!("setu_useful_flows_total{{listener=\"{listener}\",kind=\"{kind}\"}}")]
}

/// All that is counted as useful, once nobody is connected any more.
fn settled(admin: SocketAddr) -> f64 {
    let sum = |samples: &BTreeMap<String, f64>, name: &str| -> f64 {
        samples.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, value)| value).sum()
    };
    let none_is_open = |samples: &_| sum(samples, "setu_connections_active") == 0.0;
    sum(&eventually("all are gone", || metrics(admin), none_is_open), "setu_useful_flows_total")
}

fn who_is_served_counts_and_who_tries_the_ports_does_not(path: Path) {
    let (chat, media, state) = (Upstream::new(), Upstream::new(), tempfile::tempdir().unwrap());
    let more = [
        listener("chat", "mode = \"chat\"\nupstream = \"chat\""),
        listener("tls", "mode = \"chat-tls\"\nupstream = \"chat\""),
        listener("media", "mode = \"media\"\nupstream = \"media\""),
        upstream("chat", chat.address(), "off"),
        upstream("media", media.address(), "off"),
    ];
    let text = front_door(path, state.path(), &more.concat());
    let setu = Setu::start(&text.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]"));
    chat.echo();
    media.echo();
    let (admin, at) = (setu.admin(), |listener| connect(setu.address(listener)));
    let tls_client = || Tls::connect(&tls::client(&TLS13), "proxy.example", at("tls")).unwrap();

    // A health check; a scanner that has an answer and asks again; who says hello, is answered and leaves.
    for listener in ["chat", "tls", "media"] {
        drop(at(listener));
    }
    for hello in [&[REQUEST, REQUEST][..], &[HELLO]] {
        let (mut clear, mut inside) = (at("chat"), tls_client());
        for words in hello {
            say(&mut clear, words);
            say_inside(&mut inside, words);
        }
    }
    let _ = at("media").write_all(REQUEST);
    assert_eq!(settled(admin), 0.0);
    doctor(&setu, &text);
    assert!(metrics(admin)["setu_connections_total{listener=\"chat\"}"] >= 4.0, "the doctor did not come");
    assert_eq!(settled(admin), 0.0, "after the doctor's visit");

    // Chat that goes on, while it is open, and once.
    let (mut clear, mut inside) = (at("chat"), tls_client());
    for words in [HELLO, b"finish", b"a message"] {
        say(&mut clear, words);
        say_inside(&mut inside, words);
    }
    for listener in ["chat", "tls"] {
        let counted = || useful(admin, listener, "chat");
        assert_eq!(eventually("chat counts while it is open", counted, |count| *count > 0.0), 1.0);
    }
    drop((clear, inside));
    assert_eq!(settled(admin), 2.0);

    // Media, below and above the bound. An echo moves everything twice.
    let hello = client_hello();
    let transfer = |more: usize| -> TcpStream {
        let mut client = at("media");
        say(&mut client, &hello);
        say(&mut client, &vec![7; MEDIA / 2 - hello.len()]);
        say(&mut client, &vec![8; more]);
        client
    };
    drop(transfer(0));
    assert_eq!(settled(admin), 2.0);
    let client = transfer(1);
    let counted = || useful(admin, "media", "media");
    assert_eq!(eventually("media counts while it is open", counted, |count| *count > 0.0), 1.0);
    drop(client);
    assert_eq!(settled(admin), 3.0);
}

/// Lets the doctor try the ports of a setu of this configuration. What it finds is another matter.
fn doctor(setu: &Setu, config: &str) {
    let mut config = config.to_owned();
    for listener in ["chat", "tls", "media"] {
        let named = format!("name = \"{listener}\"\nbind = [\"");
        let address = setu.address(listener);
        config = config.replace(&format!("{named}127.0.0.1:0"), &format!("{named}{address}"));
    }
    config = config.replace("[admin]\nbind = []", &format!("[admin]\nbind = [\"{}\"]", setu.admin()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    std::fs::write(&file, config).unwrap();
    Command::new(Setu::binary()).args(["doctor", "--config"]).arg(&file).output().unwrap();
}
