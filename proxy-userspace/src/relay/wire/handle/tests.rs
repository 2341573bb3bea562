//! Flows whose keeper is the test.

use std::{
    io::Read as _,
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc::unbounded_channel,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    account::{Counters, ListenerCounts, Occupied},
    config::{PathChoice, testing::TIMEOUTS},
    relay::{Means, relay},
    sys,
};

/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what must not happen.
const A_WHILE: Duration = Duration::from_millis(100);

/// The keeper's end of a worker's socket.
struct FakeKeeper(OwnedFd);

impl FakeKeeper {
    fn try_hear(&self) -> io::Result<Option<(ToKeeper, [Option<OwnedFd>; 2])>> {
        let mut buffer = [0; MOST];
        let received = seqpacket::receive(self.0.as_fd(), &mut buffer)?;
        Ok(received.map(|came| (ToKeeper::decode(&buffer[..came.len]).unwrap(), came.descriptors)))
    }

    async fn hear(&self) -> (ToKeeper, [Option<OwnedFd>; 2]) {
        let hear = async {
            loop {
                match self.try_hear() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sleep(Duration::from_millis(1)).await;
                    }
                    heard => return heard.unwrap().unwrap(),
                }
            }
        };
        timeout(PATIENCE, hear).await.expect("the relay says nothing")
    }

    fn is_told_nothing(&self) -> bool {
        self.try_hear().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn say(&self, message: FromKeeper) {
        seqpacket::send(self.0.as_fd(), message.encode().as_ref(), &[]).unwrap();
    }

    /// The name and both sockets of a flow that is offered.
    async fn is_offered(&self) -> (u32, [OwnedFd; 2]) {
        match self.hear().await {
            (ToKeeper::Offer { id, .. }, [Some(client), Some(upstream)]) => (id, [client, upstream]),
            other => panic!("{other:?}"),
        }
    }

    /// As [`Self::is_offered`], and waits for the flow to be taken.
    async fn takes(&self) -> (u32, [OwnedFd; 2]) {
        let (id, sockets) = self.is_offered().await;
        self.say(FromKeeper::Ready { id, index: 3 });
        assert_eq!(self.hear().await.0, ToKeeper::Take { id, ahead: [0; 2] });
        (id, sockets)
    }
}

/// The two ends of a connection, which have heard each other.
async fn pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut accepted = listener.accept().await.unwrap().0;
    exchange(&mut peer, &mut accepted, b"1").await;
    [peer, accepted]
}

/// A worker with a keeper, and its books.
struct World {
    keeper: FakeKeeper,
    wire: Wire,
    counts: Arc<Counts>,
    counters: Arc<Counters>,
    listener: Arc<ListenerCounts>,
    /// What the last flow occupies.
    occupied: Arc<AtomicU8>,
}

/// What a flow occupies.
const ALL: u8 = 0;
const NO_SOCKETS: u8 = 1;
const NOTHING: u8 = 2;

#[derive(Debug)]
struct Held(Arc<AtomicU8>);

impl Occupied for Held {
    fn without_sockets(&mut self) {
        self.0.store(NO_SOCKETS, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(NOTHING, Ordering::Relaxed);
    }
}

impl World {
    fn new() -> Self {
        let (socket, keepers) = seqpacket::pair().unwrap();
        let counts = Arc::<Counts>::default();
        let counters = Arc::<Counters>::default();
        let listener = counters.listener("test");
        let adopt = {
            let (counters, listener) = (counters.clone(), listener.clone());
            Adopt(Box::new(move |_, _| Ticket::new(counters.clone(), listener.clone())))
        };
        let wire = Wire::new(socket, counts.clone(), adopt).unwrap();
        drop(wire.listen());
        let occupied = Arc::default();
        Self { keeper: FakeKeeper(keepers), wire, counts, counters, listener, occupied }
    }

    fn ticket(&self) -> Ticket {
        let mut ticket = Ticket::new(self.counters.clone(), self.listener.clone());
        ticket.hold(Held(self.occupied.clone()));
        ticket
    }

    /// Relays a flow in a task of its own: the phone's end, the server's end.
    async fn flow(&self) -> [TcpStream; 2] {
        let ([phone, client], [server, upstream]) = (pair().await, pair().await);
        let (wire, counters, ticket) = (self.wire.clone(), self.counters.clone(), self.ticket());
        tokio::spawn(async move {
            let (returns, _returned) = unbounded_channel();
            let means = Means {
                choice: PathChoice::Wire,
                kernel: None,
                wire: Some(&wire),
                returns: &returns,
                timeouts: &TIMEOUTS,
                counters: &counters,
            };
            relay(client, upstream, 2, ticket, means).await;
        });
        [phone, server]
    }

    async fn is_closed(&self, reason: CloseReason) {
        until(|| self.counters.closed(reason) == 1).await;
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it never comes true");
}

async fn exchange(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    timeout(PATIENCE, to.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, bytes);
}

#[tokio::test]
async fn a_flow_on_the_wire_is_its_ticket_alone() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    exchange(&mut phone, &mut server, b"hello").await;
    let (id, sockets) = world.keeper.is_offered().await;
    exchange(&mut server, &mut phone, b"relayed while it is offered").await;
    assert_eq!(world.occupied.load(Ordering::Relaxed), ALL);
    world.keeper.say(FromKeeper::Ready { id, index: 3 });
    assert_eq!(world.keeper.hear().await.0, ToKeeper::Take { id, ahead: [0; 2] });
    world.keeper.say(FromKeeper::Armed { id });
    until(|| world.listener.active(Path::Wire) == 1).await;
    assert_eq!((world.counts.flows(), world.counts.handed_over()), (1, 1));
    // The keeper's are the last descriptors: without them the connection is over.
    drop(sockets);
    assert!(phone.read(&mut [0]).await.is_err());
    assert_eq!(world.occupied.load(Ordering::Relaxed), ALL, "the keeper has its sockets");
    world.keeper.say(FromKeeper::Settled { id });
    until(|| world.occupied.load(Ordering::Relaxed) == NO_SOCKETS).await;
    world.keeper.say(FromKeeper::Gone { id, end: WireEnd::UpstreamReset, bytes: [1000, 2000] });
    world.is_closed(CloseReason::UpstreamReset).await;
    assert_eq!(world.occupied.load(Ordering::Relaxed), NOTHING);
    assert_eq!((world.counts.flows(), world.listener.active(Path::Wire)), (0, 0));
    let bytes = [Side::Client, Side::Upstream].map(|side| world.counters.bytes(side));
    assert_eq!(bytes, [1000 + 5, 2000 + 27], "those of both paths");
    assert!(world.keeper.is_told_nothing(), "what is on the wire is not taken back");
}

#[tokio::test]
async fn a_flow_that_is_settled_at_once_has_no_sockets() {
    let world = World::new();
    let [_phone, _server] = world.flow().await;
    let (id, _sockets) = world.keeper.takes().await;
    world.keeper.say(FromKeeper::Armed { id });
    world.keeper.say(FromKeeper::Settled { id });
    until(|| world.occupied.load(Ordering::Relaxed) == NO_SOCKETS).await;
    assert_eq!(world.listener.active(Path::Wire), 1);
}

#[tokio::test]
async fn who_waits_for_an_answer_reads_nothing() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    let (id, sockets) = world.keeper.takes().await;
    phone.write_all(b"meanwhile").await.unwrap();
    until(|| sys::queued(sockets[0].as_fd()).unwrap() == 9).await;
    let mut bytes = [0; 9];
    assert!(timeout(A_WHILE, server.read(&mut bytes)).await.is_err(), "it was read");
    world.keeper.say(FromKeeper::Busy { id });
    timeout(PATIENCE, server.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"meanwhile");
    assert_eq!(world.counts.busy(), 1);
    // It is tried again.
    assert_eq!(world.keeper.hear().await.0, ToKeeper::Take { id, ahead: [0; 2] });
    world.keeper.say(FromKeeper::Armed { id });
    until(|| world.listener.active(Path::Wire) == 1).await;
}

#[tokio::test]
async fn a_flow_that_was_over_before_it_was_settled_is_closed() {
    let world = World::new();
    let [_phone, _server] = world.flow().await;
    let (id, _sockets) = world.keeper.takes().await;
    world.keeper.say(FromKeeper::Armed { id });
    world.keeper.say(FromKeeper::Gone { id, end: WireEnd::Torn, bytes: [0; 2] });
    world.is_closed(CloseReason::InternalError).await;
    assert_eq!((world.counts.flows(), world.counts.torn()), (0, 1));
}

#[tokio::test]
async fn who_is_refused_is_relayed_on() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    let (id, sockets) = world.keeper.is_offered().await;
    drop(sockets);
    world.keeper.say(FromKeeper::Refused { id, refusal: WireRefusal::Mtu });
    until(|| world.counts.refused(WireRefusal::Mtu) == 1).await;
    exchange(&mut phone, &mut server, b"ping").await;
    exchange(&mut server, &mut phone, b"pong").await;
    sleep(A_WHILE).await;
    assert!(world.keeper.is_told_nothing());
    // Its name is another's now.
    let [_phone, _server] = world.flow().await;
    assert_eq!(world.keeper.is_offered().await.0, id);
}

#[tokio::test]
async fn a_flow_that_is_short_costs_the_keeper_nothing() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    exchange(&mut phone, &mut server, b"a probe").await;
    drop((phone, server));
    let closed = |reason| world.counters.closed(reason);
    until(|| CloseReason::ALL.iter().map(|reason| closed(*reason)).sum::<u64>() == 1).await;
    assert!(world.keeper.is_told_nothing());
}

#[tokio::test]
async fn what_finishes_while_it_is_offered_is_taken_back() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    let (id, sockets) = world.keeper.is_offered().await;
    phone.shutdown().await.unwrap();
    // At once, and not when the other has finished as well.
    assert_eq!(world.keeper.hear().await.0, ToKeeper::Drop { id });
    drop(sockets);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    exchange(&mut server, &mut phone, b"the other way goes on").await;
    // Its name is nobody's until the keeper has answered.
    let [_phone, _server] = world.flow().await;
    let (other, _sockets) = world.keeper.is_offered().await;
    assert_ne!(other, id);
    world.keeper.say(FromKeeper::Dropped { id });
    let [_phone, _server] = world.flow().await;
    assert_eq!(world.keeper.is_offered().await.0, id);
}

#[tokio::test]
async fn the_keeper_hears_of_the_end_before_the_sockets_close() {
    for _ in 0..20 {
        let world = World::new();
        let [phone, server] = world.flow().await;
        let (id, sockets) = world.keeper.is_offered().await;
        // Then the relay's are the last ones.
        drop(sockets);
        let mut phone = phone.into_std().unwrap();
        phone.set_nonblocking(false).unwrap();
        phone.set_read_timeout(Some(PATIENCE)).unwrap();
        let keeper = FakeKeeper(world.keeper.0.try_clone().unwrap());
        let looks = thread::spawn(move || {
            let end = phone.read(&mut [0]);
            (end, keeper.try_hear())
        });
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        world.is_closed(CloseReason::UpstreamReset).await;
        let (end, heard) = looks.join().unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(heard.unwrap().unwrap().0, ToKeeper::Drop { id });
    }
}

#[tokio::test]
async fn a_flow_that_has_no_quiet_moment_has_its_tap_closed_for_a_while() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    let (id, sockets) = world.keeper.is_offered().await;
    let clamps = || sockets.each_ref().map(|socket| sys::window_clamp(socket.as_fd()).unwrap());
    let is_closed = || sockets.iter().any(|socket| sys::is_clamped(socket.as_fd()));
    // More than all buffers between hold, and a server that reads nothing.
    let bytes: Vec<u8> = (0..32 << 20_u32).map(|at| (at % 251) as u8).collect();
    let mut sent = 0;
    while let Ok(len) = timeout(A_WHILE, phone.write(&bytes[sent..])).await {
        sent += len.unwrap();
    }
    assert!(sent < bytes.len());
    // Buffers have grown till here.
    let before = clamps();
    world.keeper.say(FromKeeper::Ready { id, index: 3 });
    until(is_closed).await;
    until(|| !is_closed()).await;
    assert_eq!(clamps(), before);
    assert!(world.keeper.is_told_nothing(), "there was no moment for it");
    // Every byte comes, also through the tap that is closed again.
    let mut got = vec![0; sent];
    timeout(PATIENCE, server.read_exact(&mut got)).await.unwrap().unwrap();
    assert!(got == bytes[..sent], "other bytes came than were sent");
    assert_eq!(world.keeper.hear().await.0, ToKeeper::Take { id, ahead: [0; 2] });
}

#[tokio::test]
async fn a_tap_does_not_stay_closed_because_the_keeper_is_busy() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    let (id, sockets) = world.keeper.is_offered().await;
    let writes = tokio::spawn(async move {
        let bytes = vec![7; 256 * 1024];
        while phone.write_all(&bytes).await.is_ok() {}
    });
    let reads = tokio::spawn(async move {
        let mut bytes = vec![0; 256 * 1024];
        while server.read(&mut bytes).await.is_ok_and(|len| len > 0) {
            // So that its sender is held up before the tap is closed.
            sleep(Duration::from_millis(1)).await;
        }
    });
    sleep(A_WHILE).await;
    world.keeper.say(FromKeeper::Ready { id, index: 3 });
    let mut is_closed = || {
        while let Ok(Some((ToKeeper::Take { .. }, _))) = world.keeper.try_hear() {
            world.keeper.say(FromKeeper::Busy { id });
        }
        sys::is_clamped(sockets[0].as_fd())
    };
    until(&mut is_closed).await;
    until(|| !is_closed()).await;
    writes.abort();
    reads.abort();
}

#[tokio::test]
async fn without_a_keeper_flows_go_on() {
    let world = World::new();
    let [mut phone, mut server] = world.flow().await;
    let (_, sockets) = world.keeper.is_offered().await;
    let [mut lost, _its_server] = world.flow().await;
    let (_, taken) = world.keeper.takes().await;
    drop((sockets, taken));
    let World { keeper, .. } = world;
    drop(keeper);
    exchange(&mut phone, &mut server, b"ping").await;
    // Nobody knows whether it is on the wire.
    let end = timeout(PATIENCE, lost.read(&mut [0])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    until(|| world.counts.refused(WireRefusal::KeeperGone) == 1).await;
}

/// As the keeper does, which has forgotten a flow that it refuses: a word about it is not answered.
#[tokio::test]
async fn a_refusal_that_nobody_looked_at_leaves_no_slot() {
    let world = World::new();
    let ([_phone, client], [_server, upstream]) = (pair().await, pair().await);
    let limits = Limits::from(&TIMEOUTS);
    for _ in 0..100 {
        let offer = world.wire.offer([&client, &upstream], 0, limits).unwrap().unwrap();
        let (id, _) = world.keeper.is_offered().await;
        world.keeper.say(FromKeeper::Refused { id, refusal: WireRefusal::Local });
        let is_refused = |slot: &Slot| matches!(slot, Slot::Offered { heard: Heard::Refused(_), .. });
        until(|| is_refused(&world.wire.0.slots().all[id as usize])).await;
        drop(offer);
        while world.keeper.try_hear().is_ok() {}
    }
    assert_eq!(world.wire.0.slots().all.len(), 1);
}

#[tokio::test]
async fn what_there_was_no_room_for_is_said_later() {
    let world = World::new();
    let ([_phone, client], [_server, upstream]) = (pair().await, pair().await);
    let limits = Limits::from(&TIMEOUTS);
    let mut offers = Vec::new();
    while let Some(offer) = world.wire.offer([&client, &upstream], 0, limits).unwrap() {
        offers.push(offer);
        assert!(offers.len() < 100_000, "there is room for all");
    }
    let count = offers.len();
    drop(offers);
    let (mut offered, mut dropped) = (0, 0);
    while dropped < count {
        match world.keeper.hear().await.0 {
            ToKeeper::Offer { id, .. } => {
                offered += 1;
                world.keeper.say(FromKeeper::Ready { id, index: 0 });
            }
            ToKeeper::Drop { id } => {
                dropped += 1;
                world.keeper.say(FromKeeper::Dropped { id });
            }
            other => panic!("{other:?}"),
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(offered, count);
    let is_all_free = || {
        let slots = world.wire.0.slots();
        slots.free.len() == slots.all.len()
    };
    until(is_all_free).await;
}

#[tokio::test]
async fn a_flow_that_a_predecessor_left_is_counted_until_it_is_gone() {
    let world = World::new();
    let id = 5 | ADOPTED;
    let address = "192.0.2.1:443".parse().unwrap();
    let names = FlowNames { client: address, local: address, upstream: address };
    world.keeper.say(FromKeeper::Adopted { id, listener: 0, names });
    until(|| world.listener.active(Path::Wire) == 1).await;
    assert_eq!((world.counts.flows(), world.counts.handed_over()), (1, 0));
    world.keeper.say(FromKeeper::Gone { id, end: WireEnd::Idle, bytes: [7, 8] });
    world.is_closed(CloseReason::Idle).await;
    assert_eq!((world.counts.flows(), world.counters.bytes(Side::Upstream)), (0, 8));
}

#[test]
fn a_flow_on_the_wire_is_small() {
    let held = size_of::<crate::front::limits::Permit>() + size_of::<Option<crate::upstream::PortLease>>();
    // The ticket is in the slot.
    let sizes = [size_of::<Slot>(), held];
    assert!(sizes.iter().sum::<usize>() <= 160, "{sizes:?}");
}
