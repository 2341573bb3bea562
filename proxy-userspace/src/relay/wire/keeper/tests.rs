//! Flows between real hosts, with this process as the relay.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread::{self, JoinHandle},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use setu_tests::netns::Netns;
use socket2::{Domain, Socket, Type};

use super::*;

const LIMITS: Limits = Limits {
    idle: Duration::from_secs(60),
    half_close: Duration::from_secs(20),
    vanished: Duration::from_secs(20),
};
const FIRST: u16 = 20_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of one family.
#[derive(Debug, Clone, Copy)]
struct Family {
    front: &'static str,
    toward_server: &'static str,
    server: &'static str,
}

const V4: Family = Family { front: "10.1.0.1", toward_server: "10.2.0.1", server: "10.2.0.2" };
const V6: Family = Family { front: "fd01::1", toward_server: "fd02::1", server: "fd02::2" };

/// A client's host, setu's and a server's, with a keeper on setu's.
struct World {
    client: Netns,
    setu: Netns,
    server: Netns,
    worker: OwnedFd,
    control: OwnedFd,
    keeper: Option<JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        let (client, setu, server) = (Netns::alone(), Netns::alone(), Netns::alone());
        client.join("c0", "10.1.0.2/24", &setu, "s0", "10.1.0.1/24");
        server.join("u0", "10.2.0.2/24", &setu, "s1", "10.2.0.1/24");
        for (host, device, address) in [
            (&client, "c0", "fd01::2/64"),
            (&setu, "s0", "fd01::1/64"),
            (&setu, "s1", "fd02::1/64"),
            (&server, "u0", "fd02::2/64"),
        ] {
            host.ip(&format!("address add {address} dev {device} nodad"));
        }
        let (worker, its_worker) = seqpacket::pair().unwrap();
        let (control, its_control) = seqpacket::pair().unwrap();
        let (made, is_made) = std::sync::mpsc::channel();
        let keeper = thread::scope(|_| {
            let name = format!("/run/netns/{}", setu.name());
            thread::spawn(move || {
                setu_tests::netns::enter(&name);
                let program = Program::load(64, FIRST..=FIRST + 99, None).unwrap();
                let network = Network::open().unwrap();
                let keeper = Keeper::new(program, network, its_control, vec![its_worker]).unwrap();
                made.send(()).unwrap();
                keeper.run().unwrap();
            })
        });
        is_made.recv().unwrap();
        Self { client, setu, server, worker, control, keeper: Some(keeper) }
    }

    /// A flow: the client's end, setu's legs, the server's end.
    fn flow(&self, port: u16) -> (TcpStream, [OwnedFd; 2], TcpStream) {
        let front = self.listener(V4);
        self.flow_by(&front, V4, port, || TcpStream::connect(front.local_addr().unwrap()).unwrap())
    }

    /// Where setu listens.
    fn listener(&self, family: Family) -> TcpListener {
        self.setu.within(|| TcpListener::bind((family.front.parse::<IpAddr>().unwrap(), 0)).unwrap())
    }

    /// As [`Self::flow`], from a client that comes to a listener in a way of its own.
    fn flow_by(
        &self,
        front: &TcpListener,
        family: Family,
        port: u16,
        client: impl FnOnce() -> TcpStream + Send,
    ) -> (TcpStream, [OwnedFd; 2], TcpStream) {
        let server: IpAddr = family.server.parse().unwrap();
        let back = self.server.within(|| TcpListener::bind((server, 0)).unwrap());
        let phone = self.client.within(client);
        let (leg, _) = front.accept().unwrap();
        let upstream = self.setu.within(|| {
            let local = SocketAddr::new(family.toward_server.parse().unwrap(), port);
            let socket = Socket::new(Domain::for_address(local), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&local.into()).unwrap();
            socket.connect(&back.local_addr().unwrap().into()).unwrap();
            socket
        });
        let (end, _) = back.accept().unwrap();
        for socket in [&phone, &end] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.set_nodelay(true).unwrap();
        }
        (phone, [leg.into(), upstream.into()], end)
    }

    /// A flow that is on the wire.
    fn on_the_wire(&self, family: Family, id: u32, limits: Limits) -> (TcpStream, TcpStream) {
        let front = self.listener(family);
        let (phone, legs, server) = self.flow_by(&front, family, FIRST + id as u16, || {
            TcpStream::connect(front.local_addr().unwrap()).unwrap()
        });
        // No flow goes on the wire whose ends have not heard of each other.
        let [mut leg, mut upstream] = legs.each_ref().map(|leg| TcpStream::from(leg.try_clone().unwrap()));
        let (mut phone, mut server) = (phone, server);
        exchange(&mut phone, &mut leg, b"hello");
        exchange(&mut upstream, &mut server, b"hello");
        drop((leg, upstream));
        self.splice_within(id, legs, limits);
        (phone, server)
    }

    /// Waits until setu has no connection left.
    fn is_alone(&self) {
        for _ in 0..2000 {
            let mut ss = self.setu.command("ss");
            let output = ss.args(["-Htan", "state", "connected", "exclude", "time-wait"]).output().unwrap();
            if output.stdout.is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("setu's sockets are still there");
    }

    fn say(&self, message: ToKeeper, legs: &[OwnedFd]) {
        let legs: Vec<_> = legs.iter().map(|leg| leg.as_fd()).collect();
        seqpacket::send(self.worker.as_fd(), message.encode().as_ref(), &legs).unwrap();
    }

    /// What the keeper says next, but for when it has closed sockets.
    fn hear(&self) -> FromKeeper {
        loop {
            match self.hear_any() {
                FromKeeper::Settled { .. } => {}
                other => return other,
            }
        }
    }

    fn hear_any(&self) -> FromKeeper {
        let mut fds = [PollFd::new(&self.worker, PollFlags::IN)];
        let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "the keeper says nothing");
        let mut buffer = [0; MOST];
        let received = seqpacket::receive(self.worker.as_fd(), &mut buffer).unwrap().unwrap();
        FromKeeper::decode(&buffer[..received.len]).unwrap()
    }

    /// Puts a flow on the wire.
    fn splice(&self, id: u32, legs: [OwnedFd; 2]) {
        self.splice_within(id, legs, LIMITS);
    }

    fn splice_within(&self, id: u32, legs: [OwnedFd; 2], limits: Limits) {
        self.say(ToKeeper::Offer { id, listener: 0, limits }, &legs);
        drop(legs);
        let FromKeeper::Ready { .. } = self.hear() else { panic!("not ready") };
        for _ in 0..1000 {
            self.say(ToKeeper::Take { id, ahead: [0; 2] }, &[]);
            match self.hear() {
                FromKeeper::Armed { .. } => return,
                FromKeeper::Busy { .. } => thread::sleep(Duration::from_millis(1)),
                other => panic!("{other:?}"),
            }
        }
        panic!("never armed");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // An error means that it was told before, and is gone.
        let _ = seqpacket::send(self.control.as_fd(), ToKeeper::Stop.encode().as_ref(), &[]);
        let ended = self.keeper.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(bytes).unwrap());
        let mut got = vec![0; bytes.len()];
        to.read_exact(&mut got).unwrap();
        assert!(got == bytes, "other bytes came than were sent");
    });
}

/// Waits until an end hears that its connection was reset.
fn hears_reset(stream: &TcpStream) {
    for _ in 0..6000 {
        if let Some(error) = stream.take_error().unwrap() {
            // An end whose peer has finished before hears of it as EPIPE (`tcp_reset`, net/ipv4/tcp_input.c).
            let expected = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(expected.contains(&error.kind()), "{error}");
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no reset came");
}

fn ends(heard: FromKeeper) -> (u32, WireEnd) {
    let FromKeeper::Gone { id, end, .. } = heard else { panic!("{heard:?} where an end was expected") };
    (id, end)
}

const SHORT: Duration = Duration::from_secs(1);

#[test]
fn a_flow_goes_on_without_setu() {
    let world = World::new();
    let (mut phone, legs, mut server) = world.flow(FIRST);
    // What setu relayed before.
    let [leg, upstream] = legs.each_ref().map(|leg| TcpStream::from(leg.try_clone().unwrap()));
    let (mut leg, mut upstream) = (leg, upstream);
    phone.write_all(b"hello").unwrap();
    let mut five = [0; 5];
    leg.read_exact(&mut five).unwrap();
    upstream.write_all(b"PROXY hello").unwrap();
    server.read_exact(&mut [0; 11]).unwrap();
    drop((leg, upstream));
    world.splice(7, legs);
    assert_eq!(world.hear_any(), FromKeeper::Settled { id: 7 });
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    exchange(&mut phone, &mut server, b"ping");
    exchange(&mut server, &mut phone, b"pong");
    exchange(&mut phone, &mut server, &bytes);
    exchange(&mut server, &mut phone, &bytes);
    // After all sockets of setu's are gone.
    thread::sleep(Duration::from_millis(300));
    exchange(&mut phone, &mut server, &bytes);
    exchange(&mut server, &mut phone, &bytes);
    phone.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
    exchange(&mut server, &mut phone, b"the other way goes on");
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(phone.read(&mut [0; 1]).unwrap(), 0);
    let FromKeeper::Gone { id: 7, end: WireEnd::ClientFinished, bytes: [up, down] } = world.hear() else {
        panic!("not over")
    };
    assert!(up >= 600_004 && down >= 600_025, "{up} {down}");
}

#[test]
fn an_idle_flow_is_reset_on_both_sides() {
    let world = World::new();
    for (id, family) in [(1, V4), (2, V6)] {
        let (phone, server) = world.on_the_wire(family, id, Limits { idle: SHORT, ..LIMITS });
        assert_eq!(ends(world.hear()), (id, WireEnd::Idle));
        hears_reset(&phone);
        hears_reset(&server);
    }
}

#[test]
fn a_half_closed_flow_that_is_silent_is_reset_on_both_sides() {
    let world = World::new();
    for (id, family) in [(1, V4), (2, V6), (3, V4), (4, V6)] {
        let (mut phone, mut server) = world.on_the_wire(family, id, Limits { half_close: SHORT, ..LIMITS });
        let (one, other) = if id < 3 { (&mut phone, &mut server) } else { (&mut server, &mut phone) };
        one.shutdown(Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
        exchange(other, one, b"the other way goes on");
        assert_eq!(ends(world.hear()), (id, WireEnd::HalfClosed));
        hears_reset(&phone);
        hears_reset(&server);
    }
}

#[test]
fn a_reset_reaches_the_other_side_and_ends_the_flow() {
    let world = World::new();
    for (id, family) in [(1, V4), (2, V6), (3, V4), (4, V6)] {
        let (phone, server) = world.on_the_wire(family, id, LIMITS);
        let (one, other) = if id < 3 { (phone, server) } else { (server, phone) };
        SockRef::from(&one).set_linger(Some(Duration::ZERO)).unwrap();
        drop(one);
        hears_reset(&other);
    }
    let mut all: Vec<_> = (0..4).map(|_| ends(world.hear())).collect();
    all.sort_unstable_by_key(|(id, _)| *id);
    let (client, upstream) = (WireEnd::ClientReset, WireEnd::UpstreamReset);
    assert_eq!(all, [(1, client), (2, client), (3, upstream), (4, upstream)]);
}

#[test]
fn an_end_that_is_gone_answers_with_its_hosts_reset() {
    let world = World::new();
    for (id, family) in [(1, V4), (2, V6)] {
        let (phone, mut server) = world.on_the_wire(family, id, LIMITS);
        sys::close_silently(phone.into()).unwrap();
        server.write_all(b"is anybody there?").unwrap();
        hears_reset(&server);
    }
    let mut all = [ends(world.hear()), ends(world.hear())];
    all.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(all, [(1, WireEnd::ClientReset), (2, WireEnd::ClientReset)]);
}

/// Its packets go nowhere, as those of a phone out of reach.
#[test]
fn who_does_not_answer_has_vanished() {
    let world = World::new();
    let limits = Limits { vanished: SHORT, ..LIMITS };
    let flows = [(1, V4), (2, V6)].map(|(id, family)| world.on_the_wire(family, id, limits));
    // A flow in which nobody owes anything is only silent.
    let (mut phone, mut server) = world.on_the_wire(V4, 3, limits);
    exchange(&mut phone, &mut server, b"heard");
    world.is_alone();
    let cut = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
               add rule inet cut in meta l4proto tcp drop";
    world.client.nft(cut);
    for (_, server) in &flows {
        (&*server).write_all(b"is anybody there?").unwrap();
    }
    let mut all = [ends(world.hear()), ends(world.hear())];
    all.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(all, [(1, WireEnd::ClientVanished), (2, WireEnd::ClientVanished)]);
    for (_, server) in &flows {
        hears_reset(server);
    }
    world.client.nft("delete table inet cut");
    exchange(&mut server, &mut phone, b"and this one lives");
}

#[test]
fn what_the_relay_ends_is_reset_on_both_sides() {
    let world = World::new();
    for (id, family) in [(1, V4), (2, V6)] {
        let (phone, server) = world.on_the_wire(family, id, LIMITS);
        world.say(ToKeeper::End { id }, &[]);
        assert_eq!(ends(world.hear()), (id, WireEnd::Shutdown));
        hears_reset(&phone);
        hears_reset(&server);
    }
}

#[test]
fn a_stop_resets_every_flow_on_both_sides() {
    let world = World::new();
    let flows = [(1, V4), (2, V6)].map(|(id, family)| world.on_the_wire(family, id, LIMITS));
    world.is_alone();
    seqpacket::send(world.control.as_fd(), ToKeeper::Stop.encode().as_ref(), &[]).unwrap();
    for (phone, server) in &flows {
        hears_reset(phone);
        hears_reset(server);
    }
}

/// In the window of what may come, but not what comes next: its end refuses it.
#[test]
fn a_forged_reset_changes_nothing() {
    let world = World::new();
    world.setu.ip("link set s0 address 02:00:00:00:00:01");
    let (mut phone, mut server) = world.on_the_wire(V4, 1, LIMITS);
    exchange(&mut phone, &mut server, b"before");
    world.is_alone();
    let sequence = sys::numbers(phone.as_fd()).unwrap().written;
    let (from, to) = (phone.local_addr().unwrap(), phone.peer_addr().unwrap());
    let packets = world.client.within(|| setu_tests::packets::PacketSocket::open("c0").unwrap());
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
        .ipv4([10, 1, 0, 2], [10, 1, 0, 1], 64)
        .tcp(from.port(), to.port(), sequence.wrapping_add(1000), 0)
        .rst()
        .write(&mut frame, &[])
        .unwrap();
    packets.send(&frame).unwrap();
    // Longer than a reset is waited for.
    thread::sleep(Duration::from_secs(13));
    exchange(&mut phone, &mut server, b"it lives");
    exchange(&mut server, &mut phone, b"both ways");
}
