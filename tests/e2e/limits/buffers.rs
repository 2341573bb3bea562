//! What a flow in userspace may take of the machine: buffers, descriptors.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    ONE_SOURCE, Path, Setu, config,
    delay::Delay,
    machine::raise_file_limit,
    netns::Netns,
    network::{Network, SERVERS},
    peers::{Upstream, connect, exchange, fill},
};

/// When a reader stalls.
#[derive(Debug, Clone, Copy)]
enum Stalls {
    AtOnce,
    /// After a message and so long without one.
    AfterCalm(Duration),
    /// After reading as fast as it can for so long.
    AfterSpeed(Duration),
}

/// However much a reader has read before, and however fast, one that stalls costs a megabyte at most: setu's own memory
/// and what its two sockets hold.
#[test]
fn a_reader_that_stalls_costs_little() {
    const FLOWS: usize = 10;
    if !crate::may_use_kernel() {
        return;
    }
    let second = Duration::from_secs(1);
    let all = [Stalls::AtOnce, Stalls::AfterCalm(2 * second), Stalls::AfterSpeed(2 * second)];
    for (path, stalls) in
        [Path::Userspace, Path::Auto].into_iter().flat_map(|path| all.map(|stalls| (path, stalls)))
    {
        let network = Network::new();
        let upstream = network.upstream(SERVERS[0]);
        let setu = network.setu(path, &[upstream.address()], ONE_SOURCE);
        let flows: Vec<_> = (0..FLOWS).map(|_| network.flow(&setu, &upstream)).collect();
        for (client, server) in &flows {
            exchange(client, server, b"send it");
        }
        let memory = setu.status("RssAnon");
        if let Stalls::AfterCalm(time) = stalls {
            thread::sleep(time);
        }
        thread::scope(|scope| {
            for (client, server) in &flows {
                let reading = scope.spawn(move || {
                    if let Stalls::AfterSpeed(time) = stalls {
                        read_for(client, time);
                    }
                });
                scope.spawn(move || {
                    // On a busy machine nothing may be taken for a while although it is read.
                    while !reading.is_finished() {
                        let _ = fill(server, 256 * 1024);
                    }
                    let _ = fill(server, 256 * 1024);
                });
            }
        });
        let memory = setu.status("RssAnon").saturating_sub(memory) * 1024;
        let each = (memory + network.socket_memory()) / FLOWS as u64;
        println!("{} {stalls:?}: {} KiB each", path.name(), each >> 10);
        assert!(each <= 1 << 20, "{} {stalls:?}: {each} bytes each", path.name());
    }
}

fn read_for(mut stream: &TcpStream, time: Duration) {
    let mut buffer = vec![0; 256 * 1024];
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(stream.read(&mut buffer).unwrap() > 0);
    }
}

/// What a sender gets rid of while nobody reads is what setu, and the client's kernel, hold.
#[test]
fn a_reader_that_never_reads_costs_little() {
    /// Twice a receive buffer of the kernel's default size on either leg, what setu lets wait, and the sender's own.
    const HELD: usize = 1024 * 1024;
    if !crate::may_use_kernel() {
        return;
    }
    let network = Network::new();
    let upstream = network.upstream(SERVERS[0]);
    let setu = network.setu(Path::Userspace, &[upstream.address()], "");
    for _ in 0..5 {
        let (client, server) = network.flow(&setu, &upstream);
        for (from, mut to) in [(&server, &client), (&client, &server)] {
            socket2::SockRef::from(from).set_send_buffer_size(32 * 1024).unwrap();
            let held = fill(from, 4096);
            println!("{held} bytes are held");
            assert!(held < HELD, "{held} bytes are held");
            // Whoever reads in the end has all of it.
            let mut received = vec![0; held];
            to.read_exact(&mut received).unwrap();
            assert!(received.iter().all(|byte| *byte == 7));
        }
    }
}

/// Bulk takes pipes, which take descriptors: not those of clients. Without a pipe bytes are copied.
#[test]
fn bulk_takes_no_descriptor_that_a_client_needs() {
    const BULK: usize = 80;
    raise_file_limit();
    let upstream = Upstream::new();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=400:400").arg(Setu::binary());
    let setup = config(Path::Userspace, &upstream.address(), ONE_SOURCE);
    let setu = Setu::start_by(command, &setup, &[]);
    let log = setu.log();
    let possible =
        log.split_once("limits connections=").and_then(|(_, rest)| rest.split_once(' ')).unwrap().0;
    let possible: usize = possible.parse().unwrap();
    assert!(possible > BULK, "{possible}");
    let flows: Vec<_> = (0..BULK).map(|_| upstream.connect(setu.address("chat"))).collect();
    let sent: Vec<_> = thread::scope(|scope| {
        let filling: Vec<_> =
            flows.iter().map(|(_, server)| scope.spawn(|| fill(server, 256 * 1024))).collect();
        filling.into_iter().map(|filling| filling.join().unwrap()).collect()
    });
    let pipes = setu.pipes() / 2;
    assert!(pipes > 0 && pipes < BULK, "{pipes} pipes");
    // As many clients as setu has said that it can serve.
    let rest: Vec<_> = (BULK..possible).map(|_| upstream.connect(setu.address("chat"))).collect();
    for (client, server) in &rest {
        exchange(client, server, b"hello");
        exchange(server, client, b"hello");
    }
    assert_eq!(setu.count("closed reason="), 0, "{}", setu.tail());
    // What went through pipes and what was copied arrives.
    for ((client, server), sent) in flows.iter().zip(sent) {
        let mut bytes = vec![0; sent];
        (&mut &*client).read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        (&mut &*server).write_all(b"more").unwrap();
        let mut more = [0; 4];
        (&mut &*client).read_exact(&mut more).unwrap();
        assert_eq!(&more, b"more");
    }
}

/// What bounds a reader that stalls must not hold up one that is far: a megabyte over a long way takes about as long as
/// through a relay that leaves all buffers to the kernel.
#[test]
fn a_long_way_is_no_slower_than_through_a_plain_relay() {
    const BYTES: usize = 1_000_000;
    if !crate::may_use_kernel() {
        return;
    }
    let [clients, proxy, servers] = [(); 3].map(|()| Netns::alone());
    let _far = Delay::new([(&clients, "10.78.1.1"), (&proxy, "10.78.1.2")], Duration::from_millis(60));
    let _near = Delay::new([(&servers, "10.78.2.1"), (&proxy, "10.78.2.2")], Duration::from_millis(6));
    let upstream = servers.within(|| Upstream::on("10.78.2.1:0"));
    let setup =
        config(Path::Userspace, &upstream.address(), ONE_SOURCE).replace("127.0.0.1:0", "10.78.1.2:0");
    let setu = Setu::start_in(&setup, Some(&proxy));
    let plain = proxy.within(|| plain_relay("10.78.1.2:0", upstream.address()));
    let upload = |to| {
        let mut client = clients.within(|| connect(to));
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut server = upstream.accept();
                server.read_exact(&mut vec![0; BYTES]).unwrap();
                server.write_all(b"k").unwrap();
            });
            client.write_all(&vec![7; BYTES]).unwrap();
            client.read_exact(&mut [0]).unwrap();
        });
        begun.elapsed()
    };
    let mut times = [(); 5].map(|()| [upload(setu.address("chat")), upload(plain)]);
    let mut median = |of: usize| {
        times.sort_by_key(|time| time[of]);
        times[times.len() / 2][of]
    };
    let (setu, plain) = (median(0), median(1));
    println!("setu {setu:?}, a plain relay {plain:?}");
    assert!(setu <= plain * 5 / 4, "{setu:?}, a plain relay {plain:?}");
}

/// Copies both ways, for clients one after the other, until the process ends.
fn plain_relay(listen: &str, upstream: String) -> SocketAddr {
    let listener = TcpListener::bind(listen).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let server = TcpStream::connect(&upstream).unwrap();
            let copy = |mut from: &TcpStream, mut to: &TcpStream| {
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            };
            thread::scope(|scope| {
                scope.spawn(|| copy(&client, &server));
                copy(&server, &client);
            });
        }
    });
    address
}
