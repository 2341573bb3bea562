//! As many idle flows on the wire as one likes: each comes in and goes on the wire like any other, rests while setu
//! looks at all of them in turn, and must answer when it is spoken to. What they cost is told.
//!
//! Who has memory for a million flows has none for the four million sockets of clients, servers and a proxy that keeps
//! them: both ends of each flow are this program's, on packet sockets at the far ends of the proxy's devices, and the
//! hosts there know nothing of their addresses.
//!
//! ```text
//! 10.96.0.0/12 ── packet socket ── veth ── proxy: setu ── veth ── packet socket ── 10.112.0.0/12
//! ```

mod ends;

use std::{
    collections::VecDeque,
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use procfs::{Current as _, Meminfo, process::Process};
use setu_tests::{
    Path, Setu, admin, machine,
    netns::Netns,
    network::{CLIENT, Network, PROXY, PROXY_TO_SERVERS, SERVERS, TO_CLIENTS, TO_SERVERS},
    packets::PacketSocket,
};

use ends::{End, FRAME, Frame, News, Segment, Stage};

/// Clients' first address, and how many connections each has.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const EACH: u32 = 50_000;
/// The first port of a client.
const PORT: u16 = 10_000;
/// Servers' first address, and their port.
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 112, 0, 1);
const SERVICE: u16 = 5222;
/// Ports from which setu dials: so many flows to each server.
const PORTS: (u16, u16) = (10_000, 59_999);
/// Flows that wait for an answer at once.
const TOGETHER: usize = 400;
/// So many may be open that are not on the wire yet: each of them has two sockets of setu's, for which it may open files.
const BEFORE_THE_WIRE: u64 = 4000;
/// After so many it is looked whether there is room for more.
const LOOK: usize = 500;
/// What is not acknowledged is sent again after this, so many times.
const AGAIN: Duration = Duration::from_millis(500);
const TIMES: u32 = 20;
/// How long all flows may take until they are on the wire, once they are open.
const SETTLE: Duration = Duration::from_secs(120);
/// What the keeper looks at in a second when there is much to look at.
const SWEPT: u64 = 100_000;

/// Opens so many, lets them rest, and speaks to each.
///
/// # Errors
/// A flow that does not open, does not go on the wire, ends, or answers wrong; a machine without room.
pub(crate) fn run(flows: u32) -> Result<()> {
    ensure!(machine::is_root(), "network namespaces need root: run it as root, or by sudo");
    crate::interrupt::watch()?;
    let network = Network::new();
    let endpoints = flows.div_ceil(u32::from(PORTS.1 - PORTS.0)) + 1;
    let before = Meminfo::current()?;
    let mut setu = start(&network, flows, endpoints);
    let mut all = All::new(&network, &setu, flows, endpoints)?;
    let at_rest = Memory::read(&setu)?;
    println!("{flows} flows to {endpoints} servers");

    let begun = Instant::now();
    let wait_for_room = |open: usize| Ok(on_the_wire(&network, &setu)? + BEFORE_THE_WIRE >= open as u64);
    all.round(1, &wait_for_room).with_context(|| reasons(&network, &setu))?;
    println!("open, each with a message there and back: {:.1} s", begun.elapsed().as_secs_f64());
    settle(&network, &mut setu, &mut all)?;
    println!("all on the wire after {:.1} s", begun.elapsed().as_secs_f64());

    // Twice past each, with what the sweep does not look at beside.
    let rest = Duration::from_secs(2 * u64::from(flows) / SWEPT + 12);
    all.rest(rest)?;
    println!("at rest for {} s, in which setu looked at each twice", rest.as_secs());
    let with_all = Memory::read(&setu)?;
    let begun = Instant::now();
    all.round(2, &|_| Ok(true))?;
    println!("each has answered again: {:.1} s", begun.elapsed().as_secs_f64());
    let left = on_the_wire(&network, &setu)?;
    ensure!(left == u64::from(flows), "of {flows} flows {left} are on the wire");

    let begun = Instant::now();
    setu.stop();
    println!("stopped: {:.1} s", begun.elapsed().as_secs_f64());

    println!("\n{}", Memory::table(&before, &at_rest, &with_all, flows));
    Ok(())
}

fn start(network: &Network, flows: u32, endpoints: u32) -> Setu {
    let (clients, servers) = (format!("{CLIENTS}/12"), format!("{ENDPOINTS}/12"));
    network.proxy.ip(&format!("route add {} via {CLIENT}", clients.replace(".0.1/", ".0.0/")));
    network.proxy.ip(&format!("route add {} via {}", servers.replace(".0.1/", ".0.0/"), SERVERS[0]));
    network.proxy.set("net/ipv4/ip_local_port_range", &format!("{} 65535", PORTS.1 + 1));
    let endpoints: Vec<_> = (0..endpoints).map(|number| format!("{}:{SERVICE}", endpoint(number))).collect();
    let more = format!(
        "[wire]\nmax_flows = {}\nports = \"{}-{}\"\n[limits]\nexempt = [\"10.96.0.0/12\"]\n[timeouts]\nidle = \"10h\"\ndrain = \"1s\"\n",
        flows + flows / 16 + 64,
        PORTS.0,
        PORTS.1
    );
    let config = network.config(Path::Wire, &endpoints, &more);
    let config = config.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]");
    network.start_with_pins(&config, "info", &[])
}

fn endpoint(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(ENDPOINTS.to_bits() + number)
}

/// Waits until setu has no socket of a flow any more.
fn settle(network: &Network, setu: &mut Setu, all: &mut All) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    let flows = all.clients.len() as u64;
    loop {
        all.rest(Duration::from_millis(500))?;
        let (spliced, sockets) = (on_the_wire(network, setu)?, sockets(network, setu)?);
        if spliced == flows && sockets == 0 {
            return Ok(());
        }
        let late = || {
            anyhow!("of {flows} flows {spliced} are on the wire, and {sockets} sockets left: {}", setu.tail())
        };
        ensure!(Instant::now() < deadline, late());
    }
}

/// Sockets of setu's that flows have; what it asks servers by itself comes from other ports.
fn sockets(network: &Network, setu: &Setu) -> Result<usize> {
    let which = format!(
        "( sport = :{} or ( sport >= :{} and sport <= :{} ) )",
        setu.address("chat").port(),
        PORTS.0,
        PORTS.1
    );
    let mut ss = network.proxy.command("ss");
    let output = ss.args(["-Htan", "state", "connected", "exclude", "time-wait", &which]).output()?;
    ensure!(output.status.success(), "ss is needed: cargo xtask setup");
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

/// What setu counts of connections that ended or were not let in, and what it said.
fn reasons(network: &Network, setu: &Setu) -> String {
    let metrics = network.proxy.within(|| admin::metrics(setu.admin()));
    let all = metrics.iter().filter(|(name, count)| {
        ["closed", "refused", "errors"].iter().any(|word| name.contains(word)) && **count > 0.0
    });
    let all: Vec<_> = all.map(|(name, count)| format!("{name} {count}")).collect();
    format!("{}; {}", all.join(", "), setu.tail())
}

fn on_the_wire(network: &Network, setu: &Setu) -> Result<u64> {
    let metrics = network.proxy.within(|| admin::metrics(setu.admin()));
    metrics.get("setu_wire_flows").map(|flows| *flows as u64).context("setu counts no flows on the wire")
}

/// Both ends of all flows.
struct All {
    /// At the clients' and at the servers' device.
    sockets: [PacketSocket; 2],
    frames: [Frame; 2],
    proxy: SocketAddrV4,
    clients: Vec<End>,
    /// By endpoint and port, in that order.
    servers: Vec<End>,
    /// Ends that have said something: when, which, and how often.
    waiting: [VecDeque<(Instant, usize, u32)>; 2],
}

/// Sides, as places in arrays.
const CLIENT_SIDE: usize = 0;
const SERVER_SIDE: usize = 1;

impl All {
    fn new(network: &Network, setu: &Setu, flows: u32, endpoints: u32) -> Result<Self> {
        let std::net::SocketAddr::V4(proxy) = setu.address("chat") else { bail!("{PROXY} is of IPv4") };
        let socket = |host: &Netns| host.within(|| PacketSocket::open("proxy"));
        let frame = |host: &Netns, device| -> Result<Frame> {
            Ok(Frame::new(hardware_address(host, "proxy")?, hardware_address(&network.proxy, device)?))
        };
        Ok(Self {
            sockets: [socket(&network.clients)?, socket(&network.servers)?],
            frames: [frame(&network.clients, TO_CLIENTS)?, frame(&network.servers, TO_SERVERS)?],
            proxy,
            clients: vec![End::NONE; flows as usize],
            servers: vec![End::NONE; endpoints as usize * usize::from(PORTS.1 - PORTS.0 + 1)],
            waiting: Default::default(),
        })
    }

    /// Has every client say something, opening its connection before if there is none, and waits for each answer; in between
    /// it waits until `has_room` for more than were answered.
    fn round(&mut self, round: u8, has_room: &dyn Fn(usize) -> Result<bool>) -> Result<()> {
        let (mut begun, mut done, mut looked) = (0, 0, 0);
        while done < self.clients.len() {
            if begun >= looked + LOOK {
                while !has_room(begun)? {
                    self.wait(Duration::from_millis(20), round, &mut done)?;
                }
                looked = begun;
            }
            while begun < self.clients.len() && begun - done < TOGETHER {
                if self.clients[begun].stage == Stage::Closed {
                    self.clients[begun] = End::call();
                    self.send(CLIENT_SIDE, begun)?;
                } else {
                    self.speak(begun, round)?;
                }
                begun += 1;
            }
            self.take(round, &mut done)?;
            self.send_again()?;
        }
        Ok(())
    }

    /// Answers what comes for a while, without a word of its own.
    fn rest(&mut self, time: Duration) -> Result<()> {
        self.wait(time, 0, &mut 0)
    }

    fn wait(&mut self, time: Duration, round: u8, done: &mut usize) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.take(round, done)?;
            self.send_again()?;
        }
        Ok(())
    }

    /// Takes what has come, or waits a moment for it.
    fn take(&mut self, round: u8, done: &mut usize) -> Result<()> {
        let mut buffer = [0; FRAME];
        let mut is_quiet = true;
        for side in [CLIENT_SIDE, SERVER_SIDE] {
            for _ in 0..TOGETHER {
                let len = match self.sockets[side].receive(&mut buffer) {
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                };
                is_quiet = false;
                let Some(segment) = Segment::parse(&buffer[..len]) else { continue };
                match side {
                    CLIENT_SIDE => self.client_hears(&segment, round, done)?,
                    _ => self.server_hears(&segment)?,
                }
            }
        }
        if is_quiet {
            PacketSocket::wait(&self.sockets, Duration::from_millis(20));
            crate::interrupt::check()?;
        }
        Ok(())
    }

    fn client_hears(&mut self, segment: &Segment, round: u8, done: &mut usize) -> Result<()> {
        let number = segment.to.ip().to_bits().wrapping_sub(CLIENTS.to_bits());
        let number = u64::from(number) * u64::from(EACH) + u64::from(segment.to.port().wrapping_sub(PORT));
        let Some(client) = usize::try_from(number).ok().filter(|number| *number < self.clients.len()) else {
            return Ok(());
        };
        let (news, is_asked) = self.clients[client].hear(segment);
        ensure!(self.clients[client].stage != Stage::Over, "flow {client} was ended: {segment:?}");
        match news {
            News::Opened => return self.speak(client, round),
            News::Message(message) => {
                ensure!(
                    message == said(client, round),
                    "flow {client} was answered {message:?} in round {round}"
                );
                *done += 1;
            }
            News::Nothing => {}
        }
        if is_asked { self.acknowledge(CLIENT_SIDE, client) } else { Ok(()) }
    }

    fn server_hears(&mut self, segment: &Segment) -> Result<()> {
        let ports = usize::from(PORTS.1 - PORTS.0 + 1);
        let number = segment.to.ip().to_bits().wrapping_sub(ENDPOINTS.to_bits()) as usize;
        let (number, port) =
            (number.saturating_mul(ports), usize::from(segment.from.port().wrapping_sub(PORTS.0)));
        if port >= ports || number.saturating_add(port) >= self.servers.len() {
            return Ok(());
        }
        let server = number + port;
        let end = &mut self.servers[server];
        if segment.begins() {
            // Setu closes no connection of its own accord: a port that is used again is one whose flow has ended.
            ensure!(
                matches!(end.stage, Stage::Closed | Stage::Opens),
                "a server's port was used again: {segment:?}"
            );
            if end.stage == Stage::Closed {
                *end = End::answer(segment);
            }
            return self.send(SERVER_SIDE, server);
        }
        let (news, is_asked) = end.hear(segment);
        ensure!(end.stage != Stage::Over, "setu ended a connection to a server: {segment:?}");
        match news {
            News::Message(message) => {
                end.say(message);
                self.send(SERVER_SIDE, server)
            }
            _ if is_asked => self.acknowledge(SERVER_SIDE, server),
            _ => Ok(()),
        }
    }

    fn speak(&mut self, client: usize, round: u8) -> Result<()> {
        self.clients[client].say(said(client, round));
        self.send(CLIENT_SIDE, client)
    }

    /// Sends what an end has said, and notes that it is to arrive.
    fn send(&mut self, side: usize, number: usize) -> Result<()> {
        self.waiting[side].push_back((Instant::now() + AGAIN, number, 1));
        self.transmit(side, number, true)
    }

    fn acknowledge(&mut self, side: usize, number: usize) -> Result<()> {
        self.transmit(side, number, false)
    }

    fn send_again(&mut self) -> Result<()> {
        let now = Instant::now();
        for side in [CLIENT_SIDE, SERVER_SIDE] {
            while let Some((due, number, times)) = self.waiting[side].front().copied() {
                let is_waiting = self.end(side, number).is_waiting();
                if is_waiting && due > now {
                    break;
                }
                self.waiting[side].pop_front();
                if is_waiting {
                    ensure!(
                        times < TIMES,
                        "{} {number} is not heard: {:?}",
                        ["client", "server"][side],
                        self.end(side, number)
                    );
                    self.waiting[side].push_back((now + AGAIN, number, times + 1));
                    self.transmit(side, number, true)?;
                }
            }
        }
        Ok(())
    }

    fn end(&self, side: usize, number: usize) -> &End {
        if side == CLIENT_SIDE { &self.clients[number] } else { &self.servers[number] }
    }

    fn transmit(&mut self, side: usize, number: usize, again: bool) -> Result<()> {
        let (from, to) = if side == CLIENT_SIDE {
            let (client, port) = (number as u32 / EACH, number as u32 % EACH);
            (
                SocketAddrV4::new(Ipv4Addr::from_bits(CLIENTS.to_bits() + client), PORT + port as u16),
                self.proxy,
            )
        } else {
            let ports = usize::from(PORTS.1 - PORTS.0 + 1);
            let server = SocketAddrV4::new(endpoint((number / ports) as u32), SERVICE);
            (server, SocketAddrV4::new(PROXY_TO_SERVERS.parse()?, PORTS.0 + (number % ports) as u16))
        };
        let end = *self.end(side, number);
        end.segment(from, to, again, &mut self.frames[side])?;
        match self.sockets[side].send(self.frames[side].bytes()) {
            // It is sent again.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

/// What a client says in a round, as nobody else does, and as it does in no other.
fn said(client: usize, round: u8) -> [u8; ends::MESSAGE] {
    ((client as u64) << 8 | u64::from(round)).to_be_bytes()
}

fn hardware_address(host: &Netns, device: &str) -> Result<[u8; 6]> {
    let output = host.command("ip").args(["-brief", "link", "show", "dev", device]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let address = text.split_whitespace().nth(2).context("ip shows no hardware address")?;
    let bytes: Vec<_> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow!("{address} is no hardware address"))
}

/// What is held, bytes.
struct Memory {
    setu: i64,
    keeper: i64,
    /// Of the whole machine, the ends of the flows with it.
    unavailable: i64,
}

impl Memory {
    fn read(setu: &Setu) -> Result<Self> {
        let keeper = keeper(setu.pid())?;
        Ok(Self {
            setu: resident(setu.pid() as i32)?,
            keeper: resident(keeper)?,
            unavailable: unavailable(&Meminfo::current()?),
        })
    }

    fn table(before: &Meminfo, at_rest: &Self, with_all: &Self, flows: u32) -> String {
        let row = |what: &str, at_rest: i64, with_all: i64| {
            let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
            let each = (with_all - at_rest) as f64 / f64::from(flows);
            format!("| {what} | {:.1} | {:.1} | {each:.0} |\n", mib(at_rest), mib(with_all))
        };
        let before = unavailable(before);
        [
            "| memory | without flows, MiB | with them, MiB | each, bytes |\n| --- | ---: | ---: | ---: |\n"
                .to_owned(),
            row("setu, resident", at_rest.setu, with_all.setu),
            row("its keeper, resident", at_rest.keeper, with_all.keeper),
            row(
                "the machine, beyond what it had before setu",
                at_rest.unavailable - before,
                with_all.unavailable - before,
            ),
        ]
        .concat()
    }
}

fn unavailable(info: &Meminfo) -> i64 {
    info.mem_total as i64 - info.mem_available.unwrap_or(info.mem_free) as i64
}

fn keeper(setu: u32) -> Result<i32> {
    let children = fs::read_to_string(format!("/proc/{setu}/task/{setu}/children"))?;
    let mut all = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    let is_keeper = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "setu-keeper")
    };
    all.find(is_keeper).context("setu has no keeper")
}

fn resident(pid: i32) -> Result<i64> {
    let pages = Process::new(pid)?.statm()?.resident;
    Ok((pages * procfs::page_size()) as i64)
}
