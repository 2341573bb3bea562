//! What a client and an upstream see of setu: order, half-close, reset, timeouts. Alike on both paths.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use setu_tests::{
    Path, Setu, config,
    peers::{Manner, Upstream, end_of, exchange, finish, receive, reset, send},
    repair::step_back,
};

const MB: usize = 1_000_000;

crate::on_both_paths! {
    random_data_both_ways
    half_close_by_the_client_with_data_coming
    half_close_by_the_upstream_with_data_going
    half_close_before_a_stream_without_end
    reset_by_the_client
    reset_by_the_upstream
    data_before_the_upstream_is_connected
    single_bytes
    ten_megabytes_then_fin
    fin_without_data
    stalled_reader_resumes
    both_write_before_the_upstream_reads
    a_retransmission_that_repeats_bytes
    a_retransmission_that_adds_only_the_fin
    thousand_short_connections
    idle_and_half_closed_time_out
    a_killed_setu_resets_its_flows
    urgent_data_stays_in_line
    termination_closes_flows
}

fn start(path: Path, upstream: &Upstream) -> Setu {
    Setu::start(&config(path, &upstream.address(), ""))
}

fn random_data_both_ways(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let pairs: Vec<_> = (0..4).map(|_| upstream.connect(setu.address("chat"))).collect();
    thread::scope(|scope| {
        for (number, (client, server)) in pairs.iter().enumerate() {
            let (up, down) = (number as u64 * 2, number as u64 * 2 + 1);
            for (end, out, back) in [(client, up, down), (server, down, up)] {
                scope.spawn(move || {
                    send(end, out, 12 * MB, Manner::UNEVEN);
                    finish(end);
                });
                scope.spawn(move || assert_eq!(receive(end, back, Manner::UNEVEN), 12 * MB));
            }
        }
    });
    setu.wait_count(" listener=chat", 5);
    assert_eq!(
        setu.count("closed reason=client_closed") + setu.count("closed reason=upstream_closed"),
        4,
        "{}",
        setu.tail()
    );
}

fn half_close_by_the_client_with_data_coming(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    thread::scope(|scope| {
        scope.spawn(|| {
            // It answers only after the client's end.
            assert_eq!(receive(&server, 1, Manner::FAST), MB);
            send(&server, 2, 8 * MB, Manner::UNEVEN);
            finish(&server);
        });
        send(&client, 1, MB, Manner::UNEVEN);
        finish(&client);
        assert_eq!(receive(&client, 2, Manner::SLOW), 8 * MB);
    });
    setu.wait_closed("client_closed", 1);
}

fn half_close_by_the_upstream_with_data_going(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"hello");
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&server, 1, MB, Manner::FAST);
            finish(&server);
            assert_eq!(receive(&server, 2, Manner::SLOW), 8 * MB);
        });
        assert_eq!(receive(&client, 1, Manner::FAST), MB);
        send(&client, 2, 8 * MB, Manner::FAST);
        finish(&client);
    });
    setu.wait_closed("upstream_closed", 1);
}

/// The upstream sends until it sees the client's FIN, faster than the client reads.
fn half_close_before_a_stream_without_end(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    let sent = thread::scope(|scope| {
        let streaming = scope.spawn(|| {
            let mut server = &server;
            server.set_nonblocking(true).unwrap();
            let (deadline, mut sent) = (Instant::now() + Duration::from_secs(15), 0);
            loop {
                match server.read(&mut [0; 16]) {
                    Ok(0) => break,
                    Ok(_) => panic!("bytes from a client that sent none"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                sent += server.write(&[7; 65_536]).unwrap_or(0);
                assert!(Instant::now() < deadline, "the FIN does not come");
            }
            finish(server);
            sent
        });
        let mut buffer = vec![0; 50_000];
        let (mut client, mut received, mut shut) = (&client, 0, false);
        loop {
            let count = client.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            received += count;
            if received > 2 * MB && !shut {
                shut = true;
                finish(client);
            }
            thread::sleep(Duration::from_millis(1));
        }
        (streaming.join().unwrap(), received)
    });
    assert_eq!(sent.0, sent.1);
    setu.wait_closed("client_closed", 1);
}

fn expect_reset(stream: &TcpStream) {
    let end = end_of(stream);
    assert_eq!(end.as_ref().map_err(std::io::Error::kind), Err(ErrorKind::ConnectionReset), "{end:?}");
}

fn reset_by_the_client(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"hello");
    reset(client);
    expect_reset(&server);
    setu.wait_closed("client_reset", 1);
}

fn reset_by_the_upstream(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&server, &client, b"hello");
    reset(server);
    expect_reset(&client);
    setu.wait_closed("upstream_reset", 1);
}

fn data_before_the_upstream_is_connected(path: Path) {
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    for round in 0..50 {
        let client = setu_tests::peers::connect(setu.address("chat"));
        send(&client, round, 30_000, Manner::FAST);
        finish(&client);
        let server = upstream.accept();
        assert_eq!(receive(&server, round, Manner::FAST), 30_000);
    }
}

fn single_bytes(path: Path) {
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    for byte in 0..=255 {
        exchange(&client, &server, &[byte]);
        exchange(&server, &client, &[byte]);
    }
    thread::scope(|scope| {
        let one = Manner { chunk: 1, ..Manner::FAST };
        let client = &client;
        scope.spawn(move || {
            send(client, 5, 60_000, one);
            finish(client);
        });
        assert_eq!(receive(&server, 5, Manner::FAST), 60_000);
    });
}

fn ten_megabytes_then_fin(path: Path) {
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    for upwards in [true, false] {
        let (client, server) = upstream.connect(setu.address("chat"));
        let (from, to) = if upwards { (&client, &server) } else { (&server, &client) };
        thread::scope(|scope| {
            scope.spawn(|| {
                send(from, 3, 10 * MB, Manner::FAST);
                finish(from);
            });
            assert_eq!(receive(to, 3, Manner::UNEVEN), 10 * MB);
        });
    }
}

fn fin_without_data(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    thread::sleep(Duration::from_millis(50));
    finish(&client);
    assert_eq!(end_of(&server).unwrap(), 0);
    exchange(&server, &client, b"still here");
    finish(&server);
    assert_eq!(end_of(&client).unwrap(), 0);
    setu.wait_closed("client_closed", 1);
}

fn stalled_reader_resumes(path: Path) {
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            send(&server, 4, 60 * MB, Manner::FAST);
            finish(&server);
        });
        thread::sleep(Duration::from_millis(1500));
        assert!(!sending.is_finished(), "60 MB were taken while nobody read");
        assert_eq!(receive(&client, 4, Manner::FAST), 60 * MB);
    });
}

/// An upstream that writes all before it reads: one direction's stall must not stop the other.
fn both_write_before_the_upstream_reads(path: Path) {
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&server, 6, 12 * MB, Manner::FAST);
            finish(&server);
            assert_eq!(receive(&server, 7, Manner::FAST), 12 * MB);
        });
        scope.spawn(|| {
            send(&client, 7, 12 * MB, Manner::FAST);
            finish(&client);
        });
        assert_eq!(receive(&client, 6, Manner::SLOW), 12 * MB);
    });
}

/// A segment whose head has arrived before, which the kernel hands to the program whole.
fn a_retransmission_that_repeats_bytes(path: Path) {
    if !crate::may_use_kernel() {
        return;
    }
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    for repeated in [6, 400] {
        let (client, server) = upstream.connect(setu.address("chat"));
        let bytes: Vec<u8> = (0..30_000).map(|at| (at * 7 % 251) as u8).collect();
        exchange(&client, &server, &bytes[..10_000]);
        thread::sleep(Duration::from_millis(100));
        let mut client = step_back(client, repeated);
        client.write_all(&bytes[10_000 - repeated as usize..]).unwrap();
        let mut rest = vec![0; 20_000];
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (&server).read_exact(&mut rest).unwrap_or_else(|error| panic!("{repeated} repeated: {error}"));
        assert!(rest == bytes[10_000..], "{repeated} repeated bytes came through");
        exchange(&server, &client, b"the way back");
        exchange(&client, &server, b"and on");
    }
}

/// When the last acknowledgement and the FIN are lost, TCP sends both bytes and FIN again, in one segment.
fn a_retransmission_that_adds_only_the_fin(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    for repeated in [1, 400] {
        let (client, server) = upstream.connect(setu.address("chat"));
        let bytes: Vec<u8> = (0..10_000).map(|at| (at * 7 % 251) as u8).collect();
        exchange(&client, &server, &bytes);
        exchange(&server, &client, b"an answer");
        thread::sleep(Duration::from_millis(100));
        let client = step_back(client, repeated);
        let again = &bytes[bytes.len() - repeated as usize..];
        // Held back, so that the FIN goes with them.
        SockRef::from(&client).send_with_flags(again, libc::MSG_MORE).unwrap();
        finish(&client);
        assert_eq!(end_of(&server).unwrap_or_else(|error| panic!("{repeated} repeated: {error}")), 0);
        exchange(&server, &client, b"the way back is open");
        drop(server);
        assert_eq!(end_of(&client).unwrap(), 0);
    }
    setu.wait_closed("client_closed", 2);
}

fn thousand_short_connections(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let before = setu.descriptors_at_rest();
    for round in 0..1000 {
        let (client, server) = upstream.connect(setu.address("chat"));
        exchange(&client, &server, b"a message of a short connection");
        exchange(&server, &client, b"the answer");
        if round % 2 == 0 {
            drop(client);
            assert_eq!(end_of(&server).unwrap(), 0);
        } else {
            drop(server);
            assert_eq!(end_of(&client).unwrap(), 0);
        }
    }
    setu.wait_closed("client_closed", 500);
    setu.wait_closed("upstream_closed", 500);
    // A worker may keep a few pipes.
    assert!(setu.descriptors() <= before + 4, "{} descriptors, {before} before", setu.descriptors());
    let (status, reasons) = setu.stop();
    assert!(status.success(), "{status}");
    assert_eq!(
        reasons.into_iter().collect::<Vec<_>>(),
        [("client_closed".into(), 500), ("upstream_closed".into(), 500)]
    );
}

fn idle_and_half_closed_time_out(path: Path) {
    let upstream = Upstream::new();
    let timeouts = "[timeouts]\nidle = \"1s\"\nhalf_close = \"500ms\"\n";
    let mut setu = Setu::start(&config(path, &upstream.address(), timeouts));
    let (silent, silent_server) = upstream.connect(setu.address("chat"));
    let (busy, busy_server) = upstream.connect(setu.address("chat"));
    let (half, half_server) = upstream.connect(setu.address("chat"));
    exchange(&silent, &silent_server, b"then nothing");
    exchange(&half, &half_server, b"then a FIN");
    // Not while the flow is still on its way into the kernel.
    thread::sleep(Duration::from_millis(200));
    finish(&half);
    for _ in 0..25 {
        exchange(&busy, &busy_server, b"alive");
        thread::sleep(Duration::from_millis(100));
    }
    setu.wait_closed("idle", 1);
    setu.wait_closed("half_close_timeout", 1);
    assert_eq!(setu.count(&format!(" path={} listener=chat", path.name())), 2, "{}", setu.tail());
    exchange(&busy_server, &busy, b"still alive");
    // Their streams had not ended: no peer may take this for it.
    for peer in [&silent, &silent_server, &half] {
        assert_eq!(end_of(peer).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

fn a_killed_setu_resets_its_flows(path: Path) {
    let upstream = Upstream::new();
    let mut setu = start(path, &upstream);
    let (quiet, quiet_server) = upstream.connect(setu.address("chat"));
    let (half, half_server) = upstream.connect(setu.address("chat"));
    exchange(&quiet, &quiet_server, b"a message");
    exchange(&half, &half_server, b"a message");
    finish(&half);
    thread::sleep(Duration::from_millis(600));
    setu.kill();
    for peer in [&quiet, &quiet_server, &half] {
        assert_eq!(end_of(peer).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

/// An urgent byte stops a splice, and a socket that is not told otherwise takes it out of the stream.
fn urgent_data_stays_in_line(path: Path) {
    const PIECE: usize = 150_001;
    let upstream = Upstream::new();
    let setu = start(path, &upstream);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"a message");
    for (from, to) in [(&client, &server), (&server, &client)] {
        SockRef::from(to).set_out_of_band_inline(true).unwrap();
        let bytes: Vec<u8> = (0..PIECE * 20).map(|at| (at % 251) as u8).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for piece in bytes.chunks(PIECE) {
                    let (urgent, before) = piece.split_last().unwrap();
                    (&mut &*from).write_all(before).unwrap();
                    assert_eq!(SockRef::from(from).send_out_of_band(&[*urgent]).unwrap(), 1);
                }
            });
            let mut got = vec![0; bytes.len()];
            (&mut &*to).read_exact(&mut got).unwrap();
            assert!(got == bytes);
        });
    }
}

fn termination_closes_flows(path: Path) {
    let upstream = Upstream::new();
    let setu = Setu::start(&config(path, &upstream.address(), "[timeouts]\ndrain = \"1s\"\n"));
    let flows: Vec<_> = (0..10).map(|_| upstream.connect(setu.address("chat"))).collect();
    for (client, server) in &flows {
        exchange(client, server, b"open");
    }
    let begun = Instant::now();
    let (status, reasons) = setu.stop();
    assert!(status.success() && begun.elapsed() < Duration::from_secs(5), "{status}");
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("shutdown".into(), 10)]);
    for (client, _) in &flows {
        assert!(!matches!(end_of(client), Ok(1..)));
    }
}
