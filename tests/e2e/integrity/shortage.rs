//! Whole streams when the machine or the network is short of something: what arrives is all that was sent, byte for byte,
//! whichever path carries it and however often it changes.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use setu_tests::{
    ONE_SOURCE, Path, Setu, config,
    network::{Network, SERVERS, TO_CLIENTS},
    peers::{Manner, Upstream, exchange, finish, receive, send},
};

/// A narrow queue drops so much that TCP's timeouts double a few times.
const PATIENCE: Duration = Duration::from_secs(60);
/// With `relay.path = "auto"` a flow that has been quiet for so long is in the kernel.
const QUIET: Duration = Duration::from_secs(3);

/// What the client asks by; the upstream waits for it.
const QUESTION: &[u8] = b"all of it";

#[test]
fn small_answers_arrive_whole_through_a_narrow_queue_in_the_kernel() {
    through_a_narrow_queue(Path::Sockmap);
}

#[test]
fn small_answers_arrive_whole_through_a_narrow_queue_by_default() {
    through_a_narrow_queue(Path::Auto);
}

/// The queue before the clients holds eight full packets, and the processors are busy with other work: the kernel's
/// worker that writes what was redirected comes late, and finds no room.
fn through_a_narrow_queue(path: Path) {
    const LEN: usize = 100_000;
    const AT_ONCE: u64 = 20;
    const ROUNDS: u64 = 10;
    /// Messages of a busy server, one after the other.
    const MESSAGES: Manner = Manner { chunk: 16_000, pause_each: 1, pause: Duration::from_millis(2) };
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    network.narrow(TO_CLIENTS, "200mbit", "12kb", "12kb");
    let setu = network.setu(path, &[upstream.address()], ONE_SOURCE);
    let _busy = Busy::new(4);
    let mut broken = 0;
    for round in 0..ROUNDS {
        let flows: Vec<_> = (0..AT_ONCE).map(|_| network.flow(&setu, &upstream)).collect();
        for (client, server) in &flows {
            exchange(client, server, b"hello");
            exchange(server, client, b"hello");
        }
        thread::sleep(if path == Path::Auto { QUIET } else { Duration::from_millis(100) });
        broken += cut(&flows, round * AT_ONCE, LEN, MESSAGES);
    }
    assert_eq!(broken, 0, "of {} flows, not all arrived whole\n{}", ROUNDS * AT_ONCE, setu.tail());
}

crate::on_both_paths! {
    fast_downloads_are_not_cut
}

#[test]
fn fast_downloads_are_not_cut_by_default() {
    if crate::may_use_kernel() {
        fast_downloads_are_not_cut(Path::Auto);
    }
}

/// Servers that send, and clients that read, as fast as they can; nobody stalls.
fn fast_downloads_are_not_cut(path: Path) {
    const LEN: usize = 64 << 20;
    const AT_ONCE: usize = 30;
    let upstream = Upstream::new();
    let setu = Setu::start(&config(path, &upstream.address(), ONE_SOURCE));
    let flows: Vec<_> = (0..AT_ONCE).map(|_| upstream.connect(setu.address("chat"))).collect();
    let broken = cut(&flows, 0, LEN, Manner::FAST);
    assert_eq!(broken, 0, "of {AT_ONCE} downloads, not all arrived whole\n{}", setu.tail());
}

/// Has each client ask, and each server answer and finish; returns how many answers were not whole. Each of those says
/// why on the terminal.
fn cut(flows: &[(TcpStream, TcpStream)], first_seed: u64, len: usize, manner: Manner) -> usize {
    /// As much as a client with a large buffer reads.
    const READING: Manner = Manner { chunk: 1 << 20, ..Manner::FAST };
    thread::scope(|scope| {
        let mut answers = Vec::new();
        for ((client, server), seed) in flows.iter().zip(first_seed..) {
            for stream in [client, server] {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
            }
            let mut asking = client;
            asking.write_all(QUESTION).unwrap();
            answers.push(scope.spawn(move || {
                let mut listening = server;
                listening.read_exact(&mut [0; QUESTION.len()]).unwrap();
                send(server, seed, len, manner);
                finish(server);
            }));
        }
        // Answers have begun when reading does, so that some of each waits in buffers.
        let reading = flows.iter().zip(first_seed..);
        let reading: Vec<_> =
            reading.map(|((client, _), seed)| scope.spawn(move || receive(client, seed, READING))).collect();
        let ends = answers.into_iter().zip(reading).map(|(answering, receiving)| {
            let received = receiving.join();
            let answered = answering.join().is_ok();
            if let Ok(count) = received
                && count < len
            {
                println!("the end came after {count} of {len} bytes");
            }
            !answered || !received.is_ok_and(|count| count == len)
        });
        ends.filter(|broken| *broken).count()
    })
}

/// Threads that want all of the processors. Dropping it ends them.
struct Busy {
    over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn new(threads: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let spin = |over: Arc<AtomicBool>| {
            while !over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        let start = |_| {
            let over = over.clone();
            thread::spawn(move || spin(over))
        };
        Self { threads: (0..threads).map(start).collect(), over }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

/// Readers that stall while their servers send, and go on: most of their flows leave the kernel, some with much in their
/// queues, and some come back.
#[test]
fn stalled_readers_that_go_on_miss_nothing() {
    const FLOWS: u64 = 200;
    const LEN: usize = 3_000_000;
    for path in [Path::Sockmap, Path::Auto] {
        if !crate::may_use_kernel() {
            return;
        }
        let upstream = Upstream::new();
        let setu = Setu::start(&config(path, &upstream.address(), ONE_SOURCE));
        let flows: Vec<_> = (0..FLOWS).map(|_| upstream.connect(setu.address("chat"))).collect();
        for (client, server) in &flows {
            exchange(client, server, b"hello");
        }
        thread::sleep(if path == Path::Auto { QUIET } else { Duration::from_millis(100) });
        let broken = thread::scope(|scope| {
            let ends: Vec<_> = (0..FLOWS)
                .zip(&flows)
                .map(|(seed, (client, server))| {
                    scope.spawn(move || {
                        send(server, seed, LEN, Manner::FAST);
                        finish(server);
                    });
                    scope.spawn(move || {
                        thread::sleep(Duration::from_secs(2));
                        assert_eq!(receive(client, seed, Manner::UNEVEN), LEN);
                    })
                })
                .collect();
            ends.into_iter().filter_map(|end| end.join().err()).count()
        });
        assert_eq!(broken, 0, "of {FLOWS} flows on {}, not all arrived whole\n{}", path.name(), setu.tail());
    }
}
