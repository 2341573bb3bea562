//! What probes say, and what is wrong with it.

use std::{fs, path::PathBuf};

use setu_tests::peers::Random;

/// What is wrong with a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A whole hello for a name that is not allowed.
    Name,
    /// A whole hello for an address.
    Address,
    /// Records of TLS, but no hello; or TLS of another age.
    Malformed,
    /// Neither TLS nor chat, by its first bytes.
    Text,
    /// The beginning of an honest hello, and the end.
    CutHello,
    /// The beginning of the chat protocol, and the end.
    CutChat,
    /// The end.
    Silent,
}

pub(super) const CLASSES: [Class; 7] = [
    Class::Name,
    Class::Address,
    Class::Malformed,
    Class::Text,
    Class::CutHello,
    Class::CutChat,
    Class::Silent,
];

pub(super) type Probe = (Class, Vec<u8>);

/// The message of a ClientHello for a name, with so many bytes of padding (RFC 7685).
pub(super) fn hello_message(name: &[u8], padding: usize) -> Vec<u8> {
    let two = |len: usize| (len as u16).to_be_bytes();
    let server_name = [&[0, 0][..], &two(name.len() + 5), &two(name.len() + 3), &[0], &two(name.len()), name];
    let versions = &[0, 43, 0, 3, 2, 3, 4][..];
    let padding = [&[0, 21][..], &two(padding), &vec![0; padding]].concat();
    let extensions = [&server_name.concat(), versions, &padding].concat();
    let ciphers = &[0, 0, 2, 0x13, 1, 1, 0][..];
    let body = [&[3, 3][..], &[7; 32], ciphers, &two(extensions.len()), &extensions].concat();
    [&[1, 0][..], &two(body.len()), &body].concat()
}

/// A ClientHello for a name, in one record.
pub(super) fn hello(name: &[u8]) -> Vec<u8> {
    let message = hello_message(name, 0);
    [&[0x16, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

/// The committed corpus of a fuzz target.
pub(super) fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 10, "the corpus is missing");
    files
}

/// What a file of the corpora is to a gate; `None` for an honest client.
pub(super) fn class_of(target: &str, file: &str) -> Option<Class> {
    match target {
        "client_hello" if file.starts_with("bad-") => Some(Class::Malformed),
        "client_hello" if file.starts_with("other-") => Some(Class::Text),
        "client_hello" if file.contains("address") => Some(Class::Address),
        "first_bytes" if file == "tls" => Some(Class::CutHello),
        // Of the age before TLS, like the hello that the other corpus has.
        "first_bytes" if file == "ssl2" => Some(Class::Malformed),
        "first_bytes" if !file.starts_with("chat-") || file == "chat-routing-then-other" => Some(Class::Text),
        _ => None,
    }
}

const FORBIDDEN: &[&str] = &[
    "example.org",
    "EXAMPLE.ORG",
    "example.org.",
    "localhost",
    "net",
    "com.",
    "whatsapp",
    "whatsapp.net.example.org",
    "mmg.whatsapp.net.example",
    "evilwhatsapp.net",
    "EVILWHATSAPP.NET",
    "notwhatsapp.com",
    "mmg-whatsapp.net",
    "mmgwhatsapp.net",
    "whatsapp.net-a.org",
    "whatsapp.ne",
    "whatsapp.network",
    "whatsapp.org",
    "web.whatsapp.co",
    "whatsapp.com.br",
    "wa.me",
    "facebook.com",
    "mmg.whatsapp.net_",
    "xn--whatsapp-6fg.net",
    "metadata.google.internal",
    "chat.example",
];
const ADDRESSES: &[&str] = &[
    "127.0.0.1",
    "10.0.0.1",
    "157.240.1.1",
    "127.1",
    "0x7f.1",
    "2130706433",
    "0",
    "::1",
    "2a03:2880::1",
    "::ffff:10.0.0.1",
];
const NO_NAMES: &[&[u8]] = &[
    b"mmg.whatsapp.net\0.example.org",
    b"example.org\0.whatsapp.net",
    b"\0",
    b"*.whatsapp.net",
    b"a b.whatsapp.net",
    b"..whatsapp.net",
    b".whatsapp.net",
    b"mmg..whatsapp.net",
    b"mmg.whatsapp.net..",
    b"mmg.whatsapp.net/",
    b"https://mmg.whatsapp.net",
    b"mmg.whatsapp.net:443",
    b"mmg.whatsapp.net@example.org",
    "mmg.whatsapp.n\u{e9}t".as_bytes(),
    b"mmg.whatsapp.net\r\n",
    b"[::1]",
    b"",
    &[b'a'; 300],
];
pub(super) const WORDS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: mmg.whatsapp.net\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    b"GET http://web.whatsapp.com/ HTTP/1.1\r\nHost: web.whatsapp.com\r\n\r\n",
    b"POST /chat HTTP/1.1\r\nHost: g.whatsapp.net\r\nContent-Length: 4\r\n\r\nWA\x06\x03",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: whatsapp.net\r\n\r\n",
    b"CONNECT g.whatsapp.net:5222 HTTP/1.1\r\nHost: g.whatsapp.net:5222\r\n\r\n",
    b"CONNECT 127.0.0.1:22 HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x04\x01\x01\xbb\x9d\xf0\x01\x01user\0",
    b"\x04\x01\x14\x66\0\0\0\x01\0g.whatsapp.net\0",
    b"\x05\x01\x00",
    b"\x05\x02\x00\x02\x05\x01\x00\x03\x0eg.whatsapp.net\x14\x66",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"EHLO example.org\r\n",
    b"USER anonymous\r\n",
    b"WATCHING",
    b"WA \x03",
    b"WAVE",
    b"wa\x06\x03",
    b"EDIT 1 2 3",
    b"ED\0\x02\0\0\x02..WA\x06\x03",
    b"ED\0\x01\0\0\x02..GET / HTTP/1.1\r\n\r\n",
    b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0",
    b"\xef\xef\xef\xef\0\0\0\0",
    b"\0\x1d\0\0\x01\0\0\x01\0\0\0\0\0\0\x08whatsapp\x03net\0\0\x01\0\x01",
    b"PROXY TCP4 198.51.100.7 203.0.113.9 40001 443",
    b"PROXY hello\r\n",
    b"\r\n\r\n\r\n\r\n\r\n\r\n",
    b"\0\0\0\0\0\0\0\0",
    b"{\"jsonrpc\":\"2.0\"}\n",
];

/// So many probes of all classes.
pub(super) fn probes(count: usize, seed: u64) -> Vec<Probe> {
    let mut random = Random::new(seed);
    let mut probes: Vec<Probe> = Vec::with_capacity(count);
    probes.extend(FORBIDDEN.iter().map(|name| (Class::Name, hello(name.as_bytes()))));
    probes.extend(ADDRESSES.iter().map(|name| (Class::Address, hello(name.as_bytes()))));
    probes.extend(NO_NAMES.iter().map(|name| (Class::Malformed, hello(name))));
    probes.extend(WORDS.iter().map(|words| (Class::Text, words.to_vec())));
    for target in ["client_hello", "first_bytes"] {
        let files = corpus(target).into_iter();
        probes.extend(files.filter_map(|(file, bytes)| Some((class_of(target, &file)?, bytes))));
    }
    probes.extend((0..10).map(|_| (Class::Silent, Vec::new())));
    // A hello that says that it is longer than anything that is looked at.
    probes.push((Class::Malformed, [&[0x16, 3, 1, 0x40, 0, 1, 1, 0, 1][..], &[7; 20_000]].concat()));
    let honest = hello(b"mmg.whatsapp.net");
    while probes.len() < count {
        let label: String =
            (0..1 + random.below(12)).map(|_| (b'a' + random.below(26) as u8) as char).collect();
        probes.push(match random.below(6) {
            0 => (Class::Name, hello(format!("{label}.{}", FORBIDDEN[random.below(4) as usize]).as_bytes())),
            1 => (Class::Name, hello(format!("mmg.whatsapp.net.{label}").as_bytes())),
            2 => (Class::Name, hello(format!("{label}-whatsapp.net").as_bytes())),
            3 => (Class::CutHello, honest[..3 + random.below(honest.len() as u64 - 3) as usize].to_vec()),
            4 => (
                Class::CutChat,
                b"ED\0\x01\0\0\x04\x08\x0d\x08\x02WA\x04"[..1 + random.below(13) as usize].to_vec(),
            ),
            _ => {
                // Whatever it is, it begins like nothing that setu knows.
                let mut bytes: Vec<u8> = (0..8 + random.below(3000)).map(|_| random.number() as u8).collect();
                bytes[0] = [0, 1, 5, b'A', b'G', b'Z', b'{', 0x15, 0x17][random.below(9) as usize];
                (Class::Text, bytes)
            }
        });
    }
    probes
}

pub(super) const TOLD: [&[u8]; 2] = [
    b"PROXY TCP4 198.51.100.7 203.0.113.9 40001 443\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\xcb\0\x71\x09\x9c\x41\x01\xbb",
];

pub(super) fn is_header(file: &str) -> bool {
    file.starts_with("haproxy-")
        || ["v1-longest", "v1-mixed", "v1-unknown-with-rest"].contains(&file)
        || ["v2-datagram", "v2-local-with-rest", "v2-unix", "v2-unspec"].contains(&file)
}
