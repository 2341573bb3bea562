//! The keeper: the process that puts flows on the wire, and sees to their end.
//!
//! It alone has CAP_NET_ADMIN, which TCP_REPAIR asks for, and writes the maps. It reads no byte of a flow, and opens no file
//! and no connection. It believes nothing but the descriptors that it is handed: names come from the sockets themselves,
//! the rest from the kernel. A relay that was broken into can splice sockets that it has, but write no rule of its own.
//!
//! ```text
//!  Offer ──install──▶ Watch ──grace──▶ Ready ──Take──▶ Hand ──both have acknowledged, grace──▶ Spliced ──▶ Over ──▶ gone
//!                       └───── Drop, refused ─────┘         (the program translates from here on)
//! ```

mod arm;
mod eligible;
mod ending;
mod grace;
mod indices;
mod names;
pub(super) mod notes;

use std::{
    collections::{HashMap, VecDeque},
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use socket2::SockRef;

use proxy_common::wire::{
    layout::{ACTIVE, DEAD, IPV4, IPV6, Names, OWN_ACKNOWLEDGED, sender_mark},
    sequence::after,
};

use self::{
    arm::NotYet,
    eligible::Leg,
    ending::{Verdict, View},
    grace::{Grace, Number},
    indices::Indices,
    notes::{Owner, State},
};
use super::{
    handle::WAITS,
    loader::Program,
    message::{ADOPTED, Encoded, FlowNames, FromKeeper, Limits, MOST, ToKeeper, WireEnd, WireRefusal},
    network::{Changes, Conntrack, Network, NoWay, Question, Reset, TooBig},
};
use crate::sys::{self, ConnRef, Epoll, Event, Interest, Seen, seqpacket};

/// How often flows are looked at whose own bytes are not acknowledged yet.
const POLL: Duration = Duration::from_millis(5);
/// How often a part of all flows is looked at, and into how many parts they are divided.
const SWEEP: Duration = Duration::from_millis(100);
const PARTS: u32 = 10;
/// So many at once at most: beyond, a round takes longer.
const AT_ONCE: u32 = 10_000;
/// So many bytes of a flow are told of together.
const TOGETHER: u64 = 1 << 20;
/// How long a flow is tried to be armed in one go.
const TRY: Duration = Duration::from_micros(300);
/// How often it is looked whether a predecessor has ended.
const CLAIM: Duration = Duration::from_millis(20);
/// How long another may have the flows before that is told of.
const LONG: Duration = Duration::from_secs(5);
/// How soon a peer that did not answer is asked again for a sign of life.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Tokens of what the loop waits for; workers' come after these.
const EVENTS: u64 = 0;
const GRACE: u64 = 1;
const NETWORK: u64 = 2;
const CONTROL: u64 = 3;
const WORKERS: u64 = 16;

/// The keeper's state.
pub(crate) struct Keeper {
    /// Whether the flows are its own: until a predecessor has ended it listens to nobody.
    owns: bool,
    program: Program,
    network: Network,
    grace: Grace,
    epoll: Epoll,
    /// Where it is told to end.
    control: OwnedFd,
    workers: Vec<Worker>,
    indices: Indices,
    /// Flows of which sockets are held, by index.
    held: HashMap<u32, Held>,
    /// Those that wait for a grace period, in the order in which they came.
    watching: VecDeque<(Number, u32)>,
    /// Those on the wire.
    hands: Vec<u32>,
    /// How many flows are in the table.
    flows: u32,
    /// Where the sweep goes on.
    cursor: u32,
    /// Raised when routes change.
    generation: u32,
    /// Flows whose ends were asked whether a reset was one, with [`View::asked`].
    doubts: HashMap<u32, (u32, WireEnd)>,
    /// Set once it is over.
    ends: Option<End>,
    begun: Instant,
    /// It was told that another has the flows.
    is_waiting_told: bool,
}

/// How the keeper ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Every flow with it.
    Clear,
    /// Who comes next finds the flows in the pins.
    Leave,
}

/// A worker's end of the protocol.
struct Worker {
    /// `None`: it is gone.
    socket: Option<OwnedFd>,
    /// Index of each flow, by its name.
    flows: HashMap<u32, u32>,
    /// What it had no room for.
    unsent: VecDeque<Encoded>,
}

/// A flow of which setu's sockets are still there.
struct Held {
    sockets: [OwnedFd; 2],
    legs: [Leg; 2],
    stage: Stage,
    /// What is in the receive queues and was forwarded all the same, once the flow is on the wire.
    ahead: [u32; 2],
    /// When peers were asked for a sign of life.
    asked: Option<Instant>,
}

enum Stage {
    /// It waits for a grace period.
    Watch,
    Ready,
    /// On the wire. `settled`: both have acknowledged all own bytes, and the sockets may go after this.
    Hand {
        since: Instant,
        settled: Option<Number>,
    },
}

impl Keeper {
    /// # Errors
    /// Out of descriptors or threads.
    pub(crate) fn new(
        program: Program,
        network: Network,
        control: OwnedFd,
        workers: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let grace = Grace::start()?;
        epoll.add(program.events(), EVENTS, Interest::Read)?;
        epoll.add(grace.as_fd(), GRACE, Interest::Read)?;
        epoll.add(control.as_fd(), CONTROL, Interest::Read)?;
        for descriptor in network.descriptors() {
            epoll.add(descriptor, NETWORK, Interest::Read)?;
        }
        for (number, socket) in workers.iter().enumerate() {
            epoll.add(socket.as_fd(), WORKERS + number as u64, Interest::Read)?;
        }
        let worker = |socket| Worker { socket: Some(socket), flows: HashMap::new(), unsent: VecDeque::new() };
        let indices = Indices::new(program.most);
        let mut keeper = Self {
            owns: false,
            program,
            network,
            grace,
            epoll,
            control,
            workers: workers.into_iter().map(worker).collect(),
            indices,
            held: HashMap::new(),
            watching: VecDeque::new(),
            hands: Vec::new(),
            flows: 0,
            cursor: 0,
            generation: 1,
            doubts: HashMap::new(),
            ends: None,
            begun: Instant::now(),
            is_waiting_told: false,
        };
        keeper.claim();
        if !keeper.owns {
            keeper.program.want();
        } else if !keeper.program.is_attached() {
            return Err(io::Error::other("the program can be attached to no device"));
        }
        Ok(keeper)
    }

    /// Runs until nobody needs it any more.
    ///
    /// # Errors
    /// The epoll's.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = [Event { events: 0, u64: 0 }; 64];
        let mut next_sweep = Instant::now();
        let end = loop {
            if let Some(end) = self.ends {
                break end;
            }
            let now = Instant::now();
            let is_late = self.workers.iter().any(|worker| !worker.unsent.is_empty());
            let rest = next_sweep.saturating_duration_since(now);
            let rest = match self.network.next_send() {
                Some(at) => rest.min(at.saturating_duration_since(now)),
                None => rest,
            };
            let rest = if self.owns { rest } else { CLAIM };
            let rest = if !self.hands.is_empty() || is_late { rest.min(POLL) } else { rest };
            let tokens: Vec<u64> =
                self.epoll.wait(&mut events, Some(rest))?.map(|ready| ready.token).collect();
            for token in tokens {
                match token {
                    EVENTS => while self.program.next_event().is_some() {},
                    GRACE => {}
                    NETWORK => self.network_changed(),
                    CONTROL => self.be_told(),
                    worker => self.hear((worker - WORKERS) as usize),
                }
            }
            if !self.owns {
                self.claim();
                self.wait_for_flows();
                continue;
            }
            self.advance();
            if Instant::now() >= next_sweep {
                self.sweep();
                next_sweep = Instant::now() + SWEEP;
            }
            self.network.send(Instant::now());
            self.send_late();
            if self.workers.iter().all(|worker| worker.socket.is_none()) && self.hands.is_empty() {
                // Setu is gone. What is on the wire is kept until it ends by itself, or a successor is there.
                if self.flows == 0 {
                    self.ends.get_or_insert(End::Clear);
                } else if self.program.is_wanted() {
                    self.ends.get_or_insert(End::Leave);
                }
            }
        };
        // Else what is pinned is another's.
        if self.owns && end == End::Clear {
            self.reset_all();
            // Who waits goes on with the maps: without pins its flows would end with it.
            if !self.program.is_wanted() {
                self.program.unload();
            }
        }
        Ok(())
    }

    /// Attaches the program to every device that is there.
    fn attach(&mut self) {
        let devices = self.network.devices();
        for device in &devices {
            if let Err(error) = self.program.attach(device.index, &device.name) {
                tracing::warn!(device = device.name, %error, "the wire's program cannot be attached");
            }
        }
        self.program.retain(|index| devices.iter().any(|device| device.index == index));
    }

    /// Takes the flows over once they are nobody else's.
    fn claim(&mut self) {
        self.owns = self.program.claim();
        if self.owns {
            self.program.want_no_more();
            // Not before: the links that are pinned would have this program, whose ports may be others.
            self.attach();
            self.program.note_ports();
            self.adopt();
            let go_on = (0..self.indices.end())
                .filter(|index| notes::state(self.program.conns.conn(*index)) == State::Spliced)
                .count();
            if go_on > 0 {
                tracing::info!(connections = go_on, "those that were on the wire go on");
            }
            if self.is_waiting_told {
                tracing::info!("the other keeper is gone: connections go on the wire");
                self.tell(0, FromKeeper::Waits { waits: false });
            }
            (0..self.workers.len()).for_each(|worker| self.hear(worker));
        }
    }

    /// Another has the flows: a predecessor that ends in a moment, or a setu of the same state directory.
    fn wait_for_flows(&mut self) {
        if self.owns {
            return;
        }
        // Again and again: another that waited as well may have taken it away.
        self.program.want();
        if !self.is_waiting_told && self.begun.elapsed() >= LONG {
            self.is_waiting_told = true;
            tracing::warn!(pins = %self.program.folder(), "{WAITS}");
            self.tell(0, FromKeeper::Waits { waits: true });
        }
    }

    /// Takes over the flows that a predecessor left.
    fn adopt(&mut self) {
        let is_active = |program: &Program, index| {
            let conn = program.conns.conn(index);
            conn.gate() & ACTIVE != 0 && notes::state(conn) != State::Free
        };
        self.indices.restore(|index| is_active(&self.program, index), self.grace.next());
        // What was not on the wire yet went with the predecessor.
        for (names, place) in self.program.flows() {
            if !is_active(&self.program, place / 2) {
                self.program.remove(&names);
            }
        }
        for index in 0..self.indices.end() {
            let conn = self.program.conns.conn(index);
            if conn.gate() & ACTIVE == 0 {
                notes::set_state(conn, State::Free);
            }
            let state = notes::state(conn);
            if state == State::Free {
                continue;
            }
            self.flows += 1;
            self.tell_of(index);
            // The sockets went with the predecessor: whoever lacks bytes of theirs would wait for ever.
            if let State::Offered | State::Hand = state {
                self.end(index, WireEnd::Shutdown);
            }
        }
    }

    /// Gives a flow that a predecessor left to a worker, so that it counts as a connection, and has its port.
    fn tell_of(&mut self, index: u32) {
        let conn = self.program.conns.conn(index);
        let (id, listener) = (index | ADOPTED, notes::listener(conn));
        notes::set_owner(conn, Owner { worker: 0, id });
        let State::Spliced = notes::state(conn) else { return };
        let [(_, client), (local, upstream)] = self.ends_of(index);
        self.tell(0, FromKeeper::Adopted { id, listener, names: FlowNames { client, local, upstream } });
    }

    fn network_changed(&mut self) {
        let Changes { links, routes } = match self.network.drain() {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(%error, "the network cannot be watched");
                Changes { links: true, routes: true }
            }
        };
        if links && self.owns {
            self.attach();
        }
        if links || routes {
            self.generation = self.generation.wrapping_add(1).max(1);
        }
        for message in self.network.too_big() {
            self.translate_too_big(&message);
        }
    }

    /// A router says that what setu sent is too big for it. Nobody but the other side can send less.
    fn translate_too_big(&mut self, message: &TooBig) {
        // What was sent to an end has that end's names the other way round.
        let names = names::of_packets(message.destination, message.source);
        let Some(place) = self.program.find(&names) else { return };
        let (index, addressee) = (place / 2, (place % 2) as usize);
        let sender = 1 - addressee;
        let (local, peer) = self.ends_of(index)[sender];
        let conn = self.program.conns.conn(index);
        let sequence = message.sequence.wrapping_sub(conn.constants(sender).add_sequence);
        // It is about something that is under way, as only who sees it can say (RFC 5927, section 7.2).
        let heard =
            conn.seen(addressee).acknowledged.wrapping_add(conn.constants(addressee).add_acknowledgement);
        if after(sequence, heard) < 0 || after(conn.seen(sender).end, sequence) <= 0 {
            return;
        }
        self.network.send_too_big(
            index,
            &TooBig { source: peer, destination: local, sequence, mtu: message.mtu },
            Instant::now(),
        );
    }

    /// Whether it is to end.
    fn be_told(&mut self) {
        let mut buffer = [0; MOST];
        let received = match seqpacket::receive(self.control.as_fd(), &mut buffer) {
            Ok(Some(received)) => received,
            // Setu is gone, and what is pinned is another's: nothing is to be kept.
            Ok(None) if !self.owns => {
                self.ends = Some(End::Leave);
                return;
            }
            // Nobody could take over what is not pinned, nor be told of it.
            Ok(None) if !self.program.is_pinned() => {
                self.ends = Some(End::Clear);
                return;
            }
            // Without setu it goes on as long as there are flows.
            _ => return,
        };
        match buffer.get(..received.len).and_then(ToKeeper::decode) {
            Some(ToKeeper::Stop) => self.ends = Some(End::Clear),
            Some(ToKeeper::Yield) => self.ends = Some(End::Leave),
            _ => {}
        }
    }

    /// What a worker says.
    fn hear(&mut self, number: usize) {
        let mut buffer = [0; MOST];
        while self.owns {
            let Some(socket) = self.workers.get(number).and_then(|worker| worker.socket.as_ref()) else {
                return;
            };
            match seqpacket::receive(socket.as_fd(), &mut buffer) {
                Ok(Some(received)) => {
                    let message = buffer.get(..received.len).and_then(ToKeeper::decode);
                    self.obey(number, message, received.descriptors);
                }
                Ok(None) => return self.lose(number),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Not a message, or one with more descriptors than there may be: what it was about is not known.
                Err(_) => {}
            }
        }
    }

    fn obey(&mut self, worker: usize, message: Option<ToKeeper>, descriptors: [Option<OwnedFd>; 2]) {
        match message {
            Some(ToKeeper::Offer { id, listener, limits }) => {
                let owner = Owner { worker: worker as u32, id };
                if let Err(refusal) = self.install(owner, listener, limits, descriptors) {
                    self.tell(worker, FromKeeper::Refused { id, refusal });
                }
            }
            Some(ToKeeper::Take { id, ahead }) => self.take(worker, id, ahead),
            Some(ToKeeper::Drop { id }) => {
                if let Some(index) = self.of(worker, id)
                    && self.is_unarmed(index)
                {
                    self.drop_flow(index);
                    self.tell(worker, FromKeeper::Dropped { id });
                }
            }
            Some(ToKeeper::End { id }) => {
                if let Some(index) = self.of(worker, id)
                    && !self.is_unarmed(index)
                {
                    self.end(index, WireEnd::Shutdown);
                }
            }
            Some(ToKeeper::Stop | ToKeeper::Yield) | None => {
                tracing::warn!("a message that is none came to the keeper")
            }
        }
    }

    fn of(&self, worker: usize, id: u32) -> Option<u32> {
        self.workers.get(worker)?.flows.get(&id).copied()
    }

    fn is_unarmed(&self, index: u32) -> bool {
        self.held.get(&index).is_some_and(|held| !matches!(held.stage, Stage::Hand { .. }))
    }

    /// A worker is gone: what was in its hands is reset, what is on the wire goes on.
    fn lose(&mut self, number: usize) {
        let Some(worker) = self.workers.get_mut(number) else { return };
        worker.socket = None;
        worker.unsent.clear();
        let flows = mem::take(&mut worker.flows);
        for index in flows.into_values().filter(|index| self.is_unarmed(*index)).collect::<Vec<_>>() {
            if let Some(held) = self.held.get(&index) {
                held.reset_on_close();
            }
            self.drop_flow(index);
        }
    }

    /// Takes an offered flow out of the table, and closes the keeper's descriptors of it.
    fn drop_flow(&mut self, index: u32) {
        self.forget(index);
        self.held.remove(&index);
    }

    /// Looks whether a flow can go on the wire, and lets the program watch it.
    fn install(
        &mut self,
        owner: Owner,
        listener: u16,
        limits: Limits,
        descriptors: [Option<OwnedFd>; 2],
    ) -> Result<(), WireRefusal> {
        let [Some(client), Some(upstream)] = descriptors else { return Err(WireRefusal::NotTcp) };
        let sockets = [client, upstream];
        if self.workers.get(owner.worker as usize).is_none_or(|worker| worker.flows.contains_key(&owner.id)) {
            return Err(WireRefusal::Kernel);
        }
        let legs = [self.leg(sockets[0].as_fd())?, self.leg(sockets[1].as_fd())?];
        // Before the port: that of such a flow is none of the wire's.
        if eligible::are_mixed(&legs) {
            return Err(WireRefusal::MixedFamilies);
        }
        // Its table would fill with connections of which it sees no end.
        if self.network.conntrack() == Conntrack::Keeps {
            return Err(WireRefusal::Conntrack);
        }
        let port = legs[1].local.port();
        if !self.program.owns(port) {
            return Err(WireRefusal::NoPort);
        }
        let upstream = legs[1].peer;
        let noted =
            self.program.noted(port, sender_mark(names::words(upstream.ip()), upstream.port().to_be()));
        eligible::check(&legs, noted)?;
        let index = self.indices.take(|number| self.grace.is_over(number)).ok_or(WireRefusal::Full)?;
        let family = if upstream.is_ipv4() { IPV4 } else { IPV6 };
        let notes = notes::new(owner, family, listener, limits, self.generation);
        self.program.conns.conn(index).install(notes);
        let keys = legs.each_ref().map(|leg| names::of_packets(leg.peer, leg.local));
        for side in 0..2 {
            if self.program.insert(&keys[side], index * 2 + side as u32).is_err() {
                // A name is still there of a flow that is over, or the map is full.
                keys.iter().take(side).for_each(|names| self.program.remove(names));
                notes::set_state(self.program.conns.conn(index), State::Free);
                self.indices.free(index, self.grace.next());
                return Err(WireRefusal::NoPort);
            }
        }
        if let Some(worker) = self.workers.get_mut(owner.worker as usize) {
            worker.flows.insert(owner.id, index);
        }
        self.held.insert(index, Held { sockets, legs, stage: Stage::Watch, ahead: [0; 2], asked: None });
        self.watching.push_back((self.grace.next(), index));
        self.flows += 1;
        Ok(())
    }

    /// What is known of a leg.
    fn leg(&mut self, socket: BorrowedFd<'_>) -> Result<Leg, WireRefusal> {
        let info = sys::leg_info(socket).map_err(|_| WireRefusal::NotTcp)?;
        if !info.established {
            return Err(WireRefusal::Finished);
        }
        let (local, peer) = sys::ends(socket).map_err(|_| WireRefusal::NotTcp)?;
        let (local, peer) = (names::plain(local), names::plain(peer));
        let way = self.network.way(local.ip(), peer.ip()).map_err(refusal)?;
        Ok(Leg { local, peer, info, way })
    }

    /// Puts a flow on the wire, if it can be now.
    fn take(&mut self, worker: usize, id: u32, ahead: [u32; 2]) {
        let Some(index) = self.of(worker, id) else { return };
        let Some(held) = self.held.get_mut(&index) else { return };
        if !matches!(held.stage, Stage::Ready) {
            return self.tell(worker, FromKeeper::Busy { id });
        }
        let conn = self.program.conns.conn(index);
        let until = Instant::now() + TRY;
        let armed = loop {
            match arm::arm(conn, &held.sockets, &held.legs, ahead) {
                Err(NotYet::Busy) if Instant::now() < until => {}
                armed => break armed,
            }
        };
        match armed {
            Ok(()) => {
                held.reset_on_close();
                held.ahead = ahead;
                held.stage = Stage::Hand { since: Instant::now(), settled: None };
                notes::set_state(conn, State::Hand);
                held.open_taps();
                self.hands.push(index);
                self.tell(worker, FromKeeper::Armed { id });
            }
            Err(NotYet::Busy) => self.tell(worker, FromKeeper::Busy { id }),
            Err(NotYet::Stale) => {
                held.ask(conn);
                self.tell(worker, FromKeeper::Busy { id });
            }
            Err(NotYet::Refused(refusal)) => {
                self.drop_flow(index);
                self.tell(worker, FromKeeper::Refused { id, refusal });
            }
        }
    }

    /// Takes flows further of which sockets are held.
    fn advance(&mut self) {
        while let Some((number, index)) = self.watching.front().copied()
            && self.grace.is_over(number)
        {
            self.watching.pop_front();
            self.ready(index);
        }
        for index in mem::take(&mut self.hands) {
            if self.settle(index) {
                self.hands.push(index);
            }
        }
    }

    /// A grace period is over since the flow was installed, if it is still there.
    fn ready(&mut self, index: u32) {
        let Some(held) = self.held.get_mut(&index) else { return };
        if !matches!(held.stage, Stage::Watch) {
            return;
        }
        held.stage = Stage::Ready;
        let conn = self.program.conns.conn(index);
        held.ask(conn);
        let Owner { worker, id } = notes::owner(conn);
        self.tell(worker as usize, FromKeeper::Ready { id, index });
    }

    /// Lets go of a flow's sockets once nobody needs them, and returns whether that is not yet.
    fn settle(&mut self, index: u32) -> bool {
        let conn = self.program.conns.conn(index);
        let Some(Held { stage: Stage::Hand { since, settled }, .. }) = self.held.get_mut(&index) else {
            return false;
        };
        let view = view(conn);
        let flags = view.seen.map(|seen| seen.flags);
        let is_reset = view.is_reset(sys::monotonic_coarse_tick());
        match settled {
            Some(number) if !self.grace.is_over(*number) => return true,
            Some(_) => {}
            None if is_reset => {}
            // An acknowledgement of own bytes that was passed to a socket may still be under way.
            None if flags[0] & flags[1] & OWN_ACKNOWLEDGED != 0 => {
                *settled = Some(self.grace.next());
                return true;
            }
            None => {
                let is_late = since.elapsed() >= notes::limits(conn).vanished;
                if is_late || self.held.get(&index).is_some_and(Held::is_broken) {
                    let lacks = flags[0] & OWN_ACKNOWLEDGED == 0;
                    self.end(index, if lacks { WireEnd::ClientVanished } else { WireEnd::UpstreamVanished });
                    return false;
                }
                return true;
            }
        }
        // A packet slipped past the count: nothing is ever lost in silence.
        if !is_reset && self.held.get(&index).is_some_and(Held::is_torn) {
            self.end(index, WireEnd::Torn);
            return false;
        }
        self.close_sockets(index);
        let conn = self.program.conns.conn(index);
        notes::set_state(conn, State::Spliced);
        let Owner { worker, id } = notes::owner(conn);
        self.tell(worker as usize, FromKeeper::Settled { id });
        false
    }

    /// Closes setu's sockets of a flow without a word, and has the firewall forget the connections.
    fn close_sockets(&mut self, index: u32) {
        let Some(held) = self.held.remove(&index) else { return };
        for socket in held.sockets {
            // Closed in repair a socket sends nothing, whatever is unsent or unread (`__tcp_close`, net/ipv4/tcp.c). One that
            // the kernel has closed by itself refuses, and has nothing to send.
            let _ = sys::close_silently(socket);
        }
        for leg in &held.legs {
            if let Err(error) = self.network.forget(leg.local, leg.peer) {
                tracing::debug!(%error, "conntrack does not forget a connection");
            }
        }
    }

    /// Both ends of a flow on the wire, setu's and the peer's of each leg.
    fn ends_of(&self, index: u32) -> [(SocketAddr, SocketAddr); 2] {
        let conn = self.program.conns.conn(index);
        let both = [conn.constants(0), conn.constants(1)];
        let is_ipv4 = notes::family(conn) == IPV4;
        [names::of_leg(&both[1], is_ipv4), names::of_leg(&both[0], is_ipv4)]
    }

    fn keys(&self, index: u32) -> [Names; 2] {
        if let Some(held) = self.held.get(&index) {
            return held.legs.each_ref().map(|leg| names::of_packets(leg.peer, leg.local));
        }
        self.ends_of(index).map(|(local, peer)| names::of_packets(peer, local))
    }

    /// Resets both sides of a flow on the wire, tells its owner, and keeps it for what comes late.
    fn end(&mut self, index: u32, end: WireEnd) {
        self.close_sockets(index);
        let conn = self.program.conns.conn(index);
        let expected = [conn.seen(0).acknowledged, conn.seen(1).acknowledged];
        for (side, (local, peer)) in self.ends_of(index).into_iter().enumerate() {
            self.network.reset(&Reset { from: local, to: peer, sequence: expected[side] }, Instant::now());
        }
        self.over(index, end);
    }

    /// A flow is over: its owner hears of it, and it is kept for what comes late.
    fn over(&mut self, index: u32, end: WireEnd) {
        let conn = self.program.conns.conn(index);
        notes::set_state(conn, State::Over(sys::monotonic_coarse_tick()));
        let bytes = notes::last_news(conn, [conn.seen(0).bytes, conn.seen(1).bytes]);
        let Owner { worker, id } = notes::owner(conn);
        if let Some(worker) = self.workers.get_mut(worker as usize) {
            worker.flows.remove(&id);
        }
        self.tell(worker as usize, FromKeeper::Gone { id, end, bytes });
    }

    /// Takes a flow out of the table.
    fn forget(&mut self, index: u32) {
        for names in self.keys(index) {
            self.program.remove(&names);
        }
        let conn = self.program.conns.conn(index);
        let Owner { worker, id } = notes::owner(conn);
        if let Some(worker) = self.workers.get_mut(worker as usize)
            && worker.flows.get(&id) == Some(&index)
        {
            worker.flows.remove(&id);
        }
        notes::set_state(conn, State::Free);
        // Another flow has the index next.
        self.doubts.remove(&index);
        self.indices.free(index, self.grace.next());
        self.flows = self.flows.saturating_sub(1);
    }

    /// Looks at a part of all flows.
    fn sweep(&mut self) {
        let now = sys::monotonic_coarse_tick();
        let end = self.indices.end();
        let count = end.div_ceil(PARTS).min(AT_ONCE);
        for _ in 0..count {
            let index = self.cursor;
            self.cursor = if index + 1 >= end { 0 } else { index + 1 };
            self.look(index, now);
        }
    }

    fn look(&mut self, index: u32, now: u32) {
        let conn = self.program.conns.conn(index);
        let state = notes::state(conn);
        if !matches!(state, State::Spliced | State::Over(_)) {
            return;
        }
        let view = View { asked: self.doubts.get(&index).copied(), ..view(conn) };
        let is_dead = conn.gate() & DEAD != 0;
        if let State::Over(since) = state {
            if is_dead || view.is_forgotten(since, now) {
                self.forget(index);
            }
            return;
        }
        if is_dead {
            // A new connection has its name: it was over.
            self.over(index, view.end());
            return self.forget(index);
        }
        let verdict = view.judge(now);
        if !view.is_over() {
            self.doubts.remove(&index);
        }
        match verdict {
            Verdict::Doubtful(end) => self.ask(index, now, end),
            Verdict::Lives { owes_since } => {
                notes::set_owes_since(conn, owes_since);
                let Owner { worker, id } = notes::owner(conn);
                if let Some(bytes) = notes::news(conn, view.seen.map(|seen| seen.bytes), TOGETHER) {
                    self.tell(worker as usize, FromKeeper::Moved { id, bytes });
                }
                let conn = self.program.conns.conn(index);
                if notes::generation(conn) != self.generation {
                    self.find_way(index);
                }
            }
            Verdict::Finished(end) => self.over(index, end),
            Verdict::Reset(end) => {
                self.over(index, end);
                self.forget(index);
            }
            Verdict::End(end) => self.end(index, end),
        }
    }

    /// Asks both ends of a flow whether they are there.
    fn ask(&mut self, index: u32, now: u32, end: WireEnd) {
        let conn = self.program.conns.conn(index);
        let mut are_asked = true;
        for (side, (local, peer)) in self.ends_of(index).into_iter().enumerate() {
            let Seen { acknowledged, end, .. } = conn.seen(side);
            let question = Question { from: local, to: peer, sequence: acknowledged, acknowledgement: end };
            are_asked &= self.network.ask(&question, Instant::now());
        }
        // Else in the next round.
        if are_asked {
            self.doubts.insert(index, (now, end));
        }
    }

    /// Routes have changed: by which devices a flow's packets leave.
    fn find_way(&mut self, index: u32) {
        let ends = self.ends_of(index);
        let conn = self.program.conns.conn(index);
        for (side, (local, peer)) in ends.into_iter().enumerate() {
            // Without one the flow waits for its way to come back, as anybody's would.
            if let Ok(way) = self.network.way(local.ip(), peer.ip()) {
                conn.out_device(1 - side).store(way.device, std::sync::atomic::Ordering::Release);
            }
        }
        notes::set_generation(conn, self.generation);
    }

    /// Resets what is on the wire, as far as that can be done at once: once the program is gone, the kernel answers what comes
    /// after.
    fn reset_all(&mut self) {
        for index in 0..self.indices.end() {
            match notes::state(self.program.conns.conn(index)) {
                State::Hand | State::Spliced => self.end(index, WireEnd::Shutdown),
                State::Free | State::Offered | State::Over(_) => {}
            }
        }
        self.network.send(Instant::now());
        self.send_late();
    }

    fn tell(&mut self, worker: usize, message: FromKeeper) {
        let Some(worker) = self.workers.get_mut(worker) else { return };
        if worker.socket.is_some() {
            worker.unsent.push_back(message.encode());
            worker.send();
        }
    }

    fn send_late(&mut self) {
        self.workers.iter_mut().for_each(Worker::send);
    }
}

/// What is known of a flow.
fn view(conn: ConnRef<'_>) -> View {
    View {
        seen: [conn.seen(0), conn.seen(1)],
        constants: [conn.constants(0), conn.constants(1)],
        owes_since: notes::owes_since(conn),
        limits: notes::limits(conn),
        asked: None,
    }
}

/// Why there is no way for the wire.
fn refusal(why: NoWay) -> WireRefusal {
    match why {
        NoWay::Local => WireRefusal::Local,
        NoWay::NoEthernet => WireRefusal::NoEthernet,
        NoWay::NoRoute => WireRefusal::NoRoute,
    }
}

impl Worker {
    /// Sends what waits, as far as there is room.
    fn send(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(message) = self.unsent.front() {
            match seqpacket::send(socket.as_fd(), message.as_ref(), &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is gone, which the loop hears of.
                Err(_) => return self.unsent.clear(),
                Ok(()) => drop(self.unsent.pop_front()),
            }
        }
    }
}

impl Held {
    /// Asks peers for a sign of life of which the clock is not known.
    fn ask(&mut self, conn: ConnRef<'_>) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return;
        }
        self.asked = Some(Instant::now());
        let now = sys::monotonic_coarse_tick();
        for (side, (socket, leg)) in self.sockets.iter().zip(&self.legs).enumerate() {
            if !arm::knows_time(&conn.seen(side), leg, now) {
                // An error means that the connection is over, which the relay hears of.
                let _ = sys::probe_window(socket.as_fd());
            }
        }
    }

    /// Should the process die now, the ends see a reset, not a false end of the stream.
    fn reset_on_close(&self) {
        for socket in &self.sockets {
            // An error means that the connection is over.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Where the relay has closed a side's window, so that it would stand, the other is asked for its own, which the side
    /// then hears of. First for the side that streams: the answer carries a time that setu's own clock has not come to, and
    /// whoever has it does not answer what is asked after that (PAWS: RFC 7323, section 5).
    fn open_taps(&self) {
        let streams = usize::from(self.ahead[1] > self.ahead[0]);
        for (side, other) in [(streams, 1 - streams), (1 - streams, streams)]
            .map(|(side, other)| (&self.sockets[side], &self.sockets[other]))
        {
            if sys::is_clamped(side.as_fd()) {
                // An error means that the connection is over.
                let _ = sys::probe_window(other.as_fd());
            }
        }
    }

    /// Whether a socket failed.
    fn is_broken(&self) -> bool {
        self.sockets.iter().any(|socket| sys::tcp_info(socket.as_fd()).is_ok_and(|info| info.closed))
    }

    /// Whether bytes are in a socket that nobody will read.
    fn is_torn(&self) -> bool {
        let differs = |(socket, ahead): (&OwnedFd, &u32)| {
            sys::queued(socket.as_fd()).is_ok_and(|bytes| bytes != u64::from(*ahead))
        };
        self.sockets.iter().zip(&self.ahead).any(differs)
    }
}

#[cfg(test)]
mod tests;
