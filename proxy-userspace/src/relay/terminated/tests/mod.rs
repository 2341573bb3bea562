//! Real sockets, a client of rustls', and an upstream that sees what a server would see.

mod handshake;
mod resumption;

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error as TlsError,
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use socket2::SockRef;

use crate::{
    account::CloseReason,
    config::{Timeouts, testing::TIMEOUTS},
    relay::terminated::testing::{Proxy, Tls, client, pattern, ping},
};

/// Sends `close_notify`, but no FIN.
fn notify(client: &mut Tls) {
    client.conn.send_close_notify();
    while client.conn.wants_write() {
        client.conn.write_tls(&mut client.sock).unwrap();
    }
}

/// Makes the close an RST.
fn abort(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

fn read_all(upstream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    upstream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn is_reset(upstream: &mut TcpStream) -> bool {
    upstream.read(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// The alert that the proxy sent, read by the client.
fn alert(client: &mut Tls) -> AlertDescription {
    let error = client.read(&mut [0; 16]).unwrap_err();
    match error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) {
        Some(TlsError::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?}"),
    }
}

#[test]
fn bytes_arrive_whole_both_ways_at_once() {
    for version in [&TLS12, &TLS13] {
        let proxy = Proxy::start(TIMEOUTS);
        let (mut client, mut upstream) = proxy.connect(&client(version));
        let (up, down) = (pattern(10 << 20, 1), pattern(10 << 20, 2));
        let hashes = (Sha256::digest(&up), Sha256::digest(&down));
        let server = thread::spawn(move || {
            let mut writer = upstream.try_clone().unwrap();
            let sender = thread::spawn(move || {
                writer.write_all(&down).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let hash = Sha256::digest(read_all(&mut upstream));
            sender.join().unwrap();
            hash
        });
        // The client is one thread: it must not wait for its writes while the other side waits for its reads.
        client.sock.set_nonblocking(true).unwrap();
        let (mut sent, mut received, mut ended) = (0, Vec::new(), false);
        let mut buffer = vec![0; 64 << 10];
        while !ended || sent < up.len() || client.conn.wants_write() {
            let mut idle = true;
            if sent < up.len()
                && let Ok(count) = client.write(&up[sent..])
            {
                (sent, idle) = (sent + count, false);
                if sent == up.len() {
                    client.conn.send_close_notify();
                }
            }
            if client.conn.wants_write() {
                idle &= client.conn.write_tls(&mut client.sock).is_err();
            }
            match client.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(count) => {
                    received.extend_from_slice(&buffer[..count]);
                    idle = false;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            if idle {
                thread::sleep(Duration::from_micros(200));
            }
        }
        assert_eq!(Sha256::digest(&received), hashes.1, "{version:?}");
        assert_eq!(server.join().unwrap(), hashes.0, "{version:?}");
        assert!(matches!(proxy.reason(), CloseReason::ClientClosed | CloseReason::UpstreamClosed));
    }
}

#[test]
fn half_close_works_both_ways() {
    for version in [&TLS12, &TLS13] {
        let proxy = Proxy::start(TIMEOUTS);
        let answer = pattern(300_000, 3);

        let (mut first, mut upstream) = proxy.connect(&client(version));
        first.write_all(b"question").unwrap();
        notify(&mut first);
        assert_eq!(read_all(&mut upstream), b"question");
        upstream.write_all(&answer).unwrap();
        drop(upstream);
        let mut received = Vec::new();
        // rustls makes an error of an end without close_notify.
        first.read_to_end(&mut received).unwrap();
        assert!(received == answer);
        assert_eq!(proxy.reason(), CloseReason::ClientClosed);

        let (mut second, mut upstream) = proxy.connect(&client(version));
        upstream.write_all(&answer).unwrap();
        upstream.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        second.read_to_end(&mut received).unwrap();
        assert!(received == answer);
        second.write_all(b"still here").unwrap();
        notify(&mut second);
        assert_eq!(read_all(&mut upstream), b"still here");
        assert_eq!(proxy.reason(), CloseReason::UpstreamClosed);
    }
}

#[test]
fn truncation_is_the_end_and_is_named() {
    let proxy = Proxy::start(TIMEOUTS);
    let (mut client, mut upstream) = proxy.connect(&client(&TLS13));
    client.write_all(b"cut").unwrap();
    client.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut upstream), b"cut");
    upstream.write_all(b"answer").unwrap();
    drop(upstream);
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"answer");
    assert_eq!(proxy.reason(), CloseReason::ClientTruncated);
}

#[test]
fn resets_go_through() {
    let proxy = Proxy::start(TIMEOUTS);
    let config = client(&TLS13);
    let (mut client, mut upstream) = proxy.connect(&config);
    ping(&mut client, &mut upstream);
    abort(client.sock);
    assert!(is_reset(&mut upstream));
    assert_eq!(proxy.reason(), CloseReason::ClientReset);

    let (mut client, mut upstream) = proxy.connect(&config);
    ping(&mut client, &mut upstream);
    abort(upstream);
    let error = client.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.reason(), CloseReason::UpstreamReset);
}

#[test]
fn what_is_not_tls_is_told_so_and_resets_the_upstream() {
    for version in [&TLS12, &TLS13] {
        for half_closed in [false, true] {
            let proxy = Proxy::start(TIMEOUTS);
            let (mut client, mut upstream) = proxy.connect(&client(version));
            ping(&mut client, &mut upstream);
            if half_closed {
                upstream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
            }
            let mut record = vec![0x17, 3, 3, 0, 64];
            record.extend_from_slice(&[7; 64]);
            client.sock.write_all(&record).unwrap();
            if half_closed {
                // Nothing follows close_notify.
                assert_eq!(client.sock.read(&mut [0; 16]).unwrap(), 0);
            } else {
                assert_eq!(alert(&mut client), AlertDescription::BadRecordMac);
            }
            assert!(is_reset(&mut upstream));
            assert_eq!(proxy.reason(), CloseReason::TlsBroken);
        }
    }
}

#[test]
fn silence_ends_a_flow() {
    let timeouts =
        Timeouts { idle: Duration::from_millis(400), half_close: Duration::from_millis(200), ..TIMEOUTS };
    let proxy = Proxy::start(timeouts);
    let config = client(&TLS13);
    let (mut first, mut upstream) = proxy.connect(&config);
    ping(&mut first, &mut upstream);
    assert_eq!(proxy.reason(), CloseReason::Idle);
    let (mut second, mut upstream) = proxy.connect(&config);
    ping(&mut second, &mut upstream);
    notify(&mut second);
    assert_eq!(read_all(&mut upstream), b"");
    assert_eq!(proxy.reason(), CloseReason::HalfCloseTimeout);
}

#[test]
fn a_side_that_does_not_read_stops_the_other() {
    /// More than all the kernel's buffers on the way together.
    const MUCH: usize = 256 << 20;
    /// Less than what a client of rustls' takes at once.
    const SMALL: usize = 32 << 10;
    /// A side that takes nothing for so long has stopped, or is slow, which makes the test weaker but not wrong.
    const STALL: Duration = Duration::from_millis(500);
    let proxy = Proxy::start(TIMEOUTS);
    let config = client(&TLS13);
    let chunk = pattern(64 << 10, 4);

    let (mut client, mut upstream) = proxy.connect(&config);
    client.sock.set_nonblocking(true).unwrap();
    let mut sent = Sha256::new();
    let mut total = 0;
    let mut moved = Instant::now();
    while moved.elapsed() < STALL {
        if !client.conn.wants_write() {
            client.conn.writer().write_all(&chunk[..SMALL]).unwrap();
            sent.update(&chunk[..SMALL]);
            total += SMALL;
            assert!(total < MUCH, "nothing stops the client");
        }
        match client.conn.write_tls(&mut client.sock) {
            Ok(_) => moved = Instant::now(),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    client.sock.set_nonblocking(false).unwrap();
    let reader = thread::spawn(move || read_all(&mut upstream));
    // What rustls has taken is sent before the end.
    notify(&mut client);
    client.sock.shutdown(Shutdown::Write).unwrap();
    let received = reader.join().unwrap();
    assert_eq!(received.len(), total);
    assert_eq!(Sha256::digest(&received), sent.finalize());
    assert_eq!(proxy.reason(), CloseReason::ClientClosed);

    let (mut client, mut upstream) = proxy.connect(&config);
    upstream.set_write_timeout(Some(STALL)).unwrap();
    let mut sent = Sha256::new();
    let mut total = 0;
    while let Ok(count) = upstream.write(&chunk) {
        sent.update(&chunk[..count]);
        total += count;
        assert!(total < MUCH, "nothing stops the upstream");
    }
    drop(upstream);
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), total);
    assert_eq!(Sha256::digest(&received), sent.finalize());
}

#[test]
fn keys_may_change_at_any_time() {
    let proxy = Proxy::start(TIMEOUTS);
    let (mut client, mut upstream) = proxy.connect(&client(&TLS13));
    for _ in 0..100 {
        client.conn.refresh_traffic_keys().unwrap();
        ping(&mut client, &mut upstream);
    }
    // A record of two reads, and the upstream's bytes between them: the session must encrypt while it holds a part.
    client.conn.refresh_traffic_keys().unwrap();
    client.conn.writer().write_all(&[9; 1000]).unwrap();
    let mut records = Vec::new();
    while client.conn.wants_write() {
        client.conn.write_tls(&mut records).unwrap();
    }
    for byte in &records[..records.len() - 1] {
        client.sock.write_all(&[*byte]).unwrap();
    }
    upstream.write_all(b"between").unwrap();
    let mut buffer = [0; 7];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"between");
    client.sock.write_all(&records[records.len() - 1..]).unwrap();
    let mut buffer = [0; 1000];
    upstream.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, [9; 1000]);
}

/// A client that makes its records itself, to make those that no library makes.
struct Forger {
    tcp: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    fn new(client: Tls) -> Self {
        let (sequence, secrets) = client.conn.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another cipher") };
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
        Self { tcp: client.sock, key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    /// Sends a record (RFC 8446, sections 5.2 and 5.3).
    fn send(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        let len = u8::try_from(content.len() + 17).unwrap();
        let mut record = [content, &[kind]].concat();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from([0x17, 3, 3, 0, len]), &mut record).unwrap();
        self.tcp.write_all(&[&[0x17, 3, 3, 0, len], &record[..]].concat())
    }
}

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

#[test]
fn a_flood_of_empty_records_ends_the_connection() {
    let proxy = Proxy::start(TIMEOUTS);
    let (client, mut upstream) = proxy.connect(&client(&TLS13));
    let mut forger = Forger::new(client);
    let refused = (0..100_000).any(|_| forger.send(DATA, &[]).is_err());
    assert!(refused);
    assert!(is_reset(&mut upstream));
    assert_eq!(proxy.reason(), CloseReason::TlsBroken);
}

#[test]
fn a_message_in_pieces_stops_neither_direction() {
    let proxy = Proxy::start(TIMEOUTS);
    let config = client(&TLS13);
    for rest in [&[0, 1, 0][..], &[]] {
        let (client, mut upstream) = proxy.connect(&config);
        let mut forger = Forger::new(client);
        forger.send(DATA, b"before").unwrap();
        upstream.read_exact(&mut [0; 6]).unwrap();
        // The beginning of a KeyUpdate, which the session keeps while it encrypts the answer.
        forger.send(HANDSHAKE, &[24, 0]).unwrap();
        upstream.write_all(b"answer").unwrap();
        // A ticket may be before it.
        let mut answer = vec![0; 5 + 6 + 17];
        while !answer.starts_with(&[0x17, 3, 3, 0, 6 + 17]) {
            forger.tcp.read_exact(&mut answer[..5]).unwrap();
            answer.resize(5 + usize::from(u16::from_be_bytes([answer[3], answer[4]])), 0);
            forger.tcp.read_exact(&mut answer[5..]).unwrap();
        }
        if rest.is_empty() {
            // Nothing may come between the pieces (RFC 8446, section 5.1).
            forger.send(DATA, b"between").unwrap();
            assert!(is_reset(&mut upstream));
            assert_eq!(proxy.reason(), CloseReason::TlsBroken);
        } else {
            forger.send(HANDSHAKE, rest).unwrap();
            forger.tcp.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut upstream), b"");
            drop(upstream);
            assert_eq!(proxy.reason(), CloseReason::ClientTruncated);
        }
    }
}
