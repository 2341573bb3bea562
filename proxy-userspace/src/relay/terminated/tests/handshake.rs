//! Handshakes: what is not TLS, clients that stall, and what is looked at before the relay.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    time::Duration,
};

use rustls::{
    ProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio::{net::TcpStream, time::Instant};

use super::super::testing::{Proxy, client, handshake, ping};
use crate::{
    account::CloseReason,
    config::{
        Timeouts,
        testing::{PATIENCE, TIMEOUTS},
    },
    front::tls::{accept, testing::acceptor},
};

#[test]
fn what_is_not_tls_is_refused_in_its_own_words_and_gets_fin() {
    let proxy = Proxy::start(TIMEOUTS);
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"[..], &[0; 300], b"WA\x06\x03", &[0x16; 70_000]]
    {
        let mut tcp = proxy.tcp();
        // The proxy may have enough before it has everything.
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).unwrap();
        let reason = proxy.reason();
        if bytes[0] == 0x16 {
            assert_eq!((answer.first(), answer.len()), (Some(&21), 7), "{answer:?}");
        } else {
            assert!(answer.starts_with(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n"), "{answer:?}");
        }
        assert_eq!(reason, CloseReason::TlsFailed);
    }
}

#[test]
fn a_message_without_end_is_not_kept() {
    let proxy = Proxy::start(TIMEOUTS);
    let mut tcp = proxy.tcp();
    // A ClientHello of nearly 16 MiB, in records of 16 KiB.
    let mut record = vec![0x16, 3, 1, 0x40, 0];
    record.extend_from_slice(&[1, 0xff, 0xff, 0xff]);
    record.resize(5 + 0x4000, 0);
    for _ in 0..1000 {
        if tcp.write_all(&record).is_err() {
            break;
        }
        record[5..9].fill(0);
    }
    assert_eq!(proxy.reason(), CloseReason::TlsFailed);
}

#[test]
fn a_hello_with_any_byte_wrong_is_an_end_like_others() {
    let proxy = Proxy::start(TIMEOUTS);
    let mut hello = Vec::new();
    let name = "chat.example".try_into().unwrap();
    rustls::ClientConnection::new(client(&TLS13), name).unwrap().write_tls(&mut hello).unwrap();
    let mut refused = 0;
    for place in 0..hello.len() {
        let mut wrong = hello.clone();
        wrong[place] ^= 0x55;
        let mut tcp = proxy.tcp();
        // The proxy may have enough before it has everything.
        let _ = tcp.write_all(&wrong);
        let _ = tcp.shutdown(Shutdown::Write);
        match proxy.reason() {
            CloseReason::TlsFailed => refused += 1,
            // Nothing that matters was wrong, or the length, so that the rest was awaited.
            reason => assert_eq!(reason, CloseReason::ClientLeft, "{place}"),
        }
    }
    assert!(refused > 10, "{refused} of {}", hello.len());
}

#[test]
fn a_client_that_stalls_or_leaves_is_named() {
    let proxy = Proxy::start(Timeouts { connect: Duration::from_millis(200), ..TIMEOUTS });
    let stalled = proxy.tcp();
    assert_eq!(proxy.reason(), CloseReason::HandshakeTimeout);
    drop(stalled);
    drop(proxy.tcp());
    assert_eq!(proxy.reason(), CloseReason::ClientLeft);
}

#[test]
fn a_hello_may_be_peeked_at_and_come_byte_by_byte() {
    for version in [&TLS12, &TLS13] {
        let proxy = Proxy::start(TIMEOUTS);
        let config = client(version);
        let mut hello = Vec::new();
        let name = "chat.example".try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
        connection.write_tls(&mut hello).unwrap();
        let mut tcp = proxy.tcp();
        tcp.set_nodelay(true).unwrap();
        for byte in &hello {
            tcp.write_all(&[*byte]).unwrap();
        }
        let mut client = rustls::StreamOwned::new(connection, tcp);
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock).unwrap();
        }
        ping(&mut client, &mut proxy.accept());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let state = tempfile::tempdir().unwrap();
    let acceptor = acceptor(state.path());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = std::thread::spawn(move || handshake(&client(&TLS13), tcp));
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let terminated = runtime.block_on(async {
        let stream = TcpStream::from_std(stream).unwrap();
        assert!(stream.peek(&mut [0; 5]).await.unwrap() > 0);
        accept(stream, acceptor.config(), Instant::now() + PATIENCE, || {}).await.unwrap()
    });
    assert_eq!((terminated.version(), terminated.is_resumed()), (Some(ProtocolVersion::TLSv1_3), false));
    peer.join().unwrap();
}

#[test]
fn the_first_bytes_are_looked_at_and_relayed_once() {
    let proxy = Proxy::start_with(TIMEOUTS, |mut terminated| async {
        let parse = |bytes: &[u8]| (bytes.len() >= 4).then(|| bytes.starts_with(b"WA"));
        let deadline = Instant::now() + Duration::from_millis(400);
        match terminated.first_bytes(deadline, 1000, parse).await {
            Ok(Some(true)) => Ok(terminated),
            Ok(Some(false)) => Err(CloseReason::DestinationRefused),
            Ok(None) => Err(CloseReason::Shutdown),
            Err(failure) => Err(failure.close_reason()),
        }
    });
    let config = client(&TLS13);
    let mut chat = handshake(&config, proxy.tcp());
    for byte in b"WA\x06\x03 and more" {
        chat.write_all(&[*byte]).unwrap();
    }
    let mut upstream = proxy.accept();
    chat.write_all(b", all").unwrap();
    chat.conn.send_close_notify();
    chat.flush().unwrap();
    let mut received = Vec::new();
    upstream.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"WA\x06\x03 and more, all");
    drop(upstream);
    assert_eq!(proxy.reason(), CloseReason::ClientClosed);

    // Another protocol; too few bytes and then silence; too few bytes and then the end.
    let mut other = handshake(&config, proxy.tcp());
    other.write_all(b"GET /").unwrap();
    assert_eq!(proxy.reason(), CloseReason::DestinationRefused);
    let mut silent = handshake(&config, proxy.tcp());
    silent.write_all(b"WA").unwrap();
    assert_eq!(proxy.reason(), CloseReason::Shutdown);
    let mut brief = handshake(&config, proxy.tcp());
    brief.write_all(b"WA").unwrap();
    brief.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(proxy.reason(), CloseReason::Shutdown);
}
