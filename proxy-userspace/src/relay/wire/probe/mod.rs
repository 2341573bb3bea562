//! Finds out at start whether this kernel's packets do on the wire what they should.
//!
//! A flow of each family goes on the wire between hosts that are network namespaces of the test's own, so that it meets no
//! firewall and no address of this machine, and nobody but it can see it. They vanish with the process that made them.

mod hosts;

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    process, thread,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};
use socket2::Socket;

use self::hosts::{Family, Peer, Peers};
use super::{
    keeper::Keeper,
    loader::Program,
    message::{FromKeeper, Limits, MOST, ToKeeper, WireEnd},
    network::Network,
};
use crate::{
    relay::check::Check,
    sys::{self, Forked, seqpacket},
};

/// Every wait of a check ends after this: long, for a start on a machine that is busy with the flows of a setu that was killed
/// must not fail for it.
const PATIENCE: Duration = Duration::from_secs(15);
/// The whole test does, by force.
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: usize = 1024 * 1024;
/// How soon a flow that could not be taken is tried again.
const SOON: Duration = Duration::from_millis(1);
/// Of setu's legs to servers; the host is the test's own.
const PORT: u16 = 20_000;
/// A flow's name.
const ID: u32 = 1;
/// None of these is to come to pass.
const LIMITS: Limits = Limits { idle: DEADLINE, half_close: DEADLINE, vanished: DEADLINE };

/// What the relay has read of each stream before the flow is offered, and what it has sent by itself.
const CLIENTS_FIRST: &[u8] = b"from the client";
const SERVERS_FIRST: &[u8] = b"from the server";
const OWN: &[u8] = b"setu's own bytes, then ";

/// What is tried of one family, in this order.
const STEPS: usize = 4;
/// Every check, by family and step.
const NAMES: [[&str; STEPS]; 2] = [
    [
        "IPv4: a flow goes on when setu's sockets are gone",
        "IPv4: 1 MiB each way arrives unchanged",
        "IPv4: a stream that has ended leaves the other open",
        "IPv4: the end of a flow is told",
    ],
    [
        "IPv6: a flow goes on when setu's sockets are gone",
        "IPv6: 1 MiB each way arrives unchanged",
        "IPv6: a stream that has ended leaves the other open",
        "IPv6: the end of a flow is told",
    ],
];
/// How the wire is called when it cannot even be tried.
const STARTS: &str = "program and keeper start";

/// What came of the test.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    /// Those that were made. After one that failed there is none of its family.
    pub(crate) checks: Vec<Check>,
    /// Why others were not.
    pub(crate) skipped: Option<String>,
}

/// Makes the test in a process of its own, of which nothing is left.
pub(crate) fn probe() -> Probed {
    match in_a_process() {
        Ok(probed) => probed,
        Err(error) => Probed { checks: Vec::new(), skipped: Some(format!("no process for it: {error}")) },
    }
}

fn in_a_process() -> io::Result<Probed> {
    let (ours, theirs) = seqpacket::pair()?;
    match sys::fork()? {
        Forked::Child => {
            drop(ours);
            let Probed { checks, skipped } = try_all();
            let told = checks.iter().map(|check| Told::Check(check.name, check.result.as_ref().err()));
            for told in told.chain(skipped.as_deref().map(Told::Skipped)).chain([Told::Done]) {
                // Nobody listens any more.
                let _ = seqpacket::send(theirs.as_fd(), told.to_string().as_bytes(), &[]);
            }
            process::exit(0)
        }
        Forked::Parent(child) => {
            drop(theirs);
            let probed = hear_all(&ours);
            end(child);
            Ok(probed)
        }
    }
}

/// A message of the process that makes the test.
enum Told<'a> {
    Check(&'static str, Option<&'a String>),
    Skipped(&'a str),
    Done,
}

/// The longest, bytes; a reason is cut.
const TOLD: usize = 1024;

impl fmt::Display for Told<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(name, None) => write!(to, "+{name}"),
            Self::Check(name, Some(error)) => write!(to, "-{name}\n{error:.500}"),
            Self::Skipped(reason) => write!(to, "?{reason:.500}"),
            Self::Done => write!(to, "."),
        }
    }
}

fn hear_all(socket: &OwnedFd) -> Probed {
    let mut probed = Probed::default();
    let deadline = Instant::now() + DEADLINE;
    let mut buffer = [0; TOLD * 4];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let heard = match wait(socket, left).and_then(|()| seqpacket::receive(socket, &mut buffer)) {
            Ok(Some(received)) => String::from_utf8_lossy(buffer.get(..received.len).unwrap_or_default()),
            Ok(None) => break fail(&mut probed, "the process that tried ended early"),
            Err(error) => {
                break fail(&mut probed, &format!("the process that tried does not answer: {error}"));
            }
        };
        let (kind, text) = heard.split_at_checked(1).unwrap_or_default();
        let (name, error) = text.split_once('\n').unwrap_or((text, ""));
        match kind {
            "+" | "-" => {
                let known = NAMES.as_flattened().iter().find(|known| **known == name);
                let result = if kind == "+" { Ok(()) } else { Err(error.to_owned()) };
                probed.checks.push(Check { name: known.copied().unwrap_or(STARTS), result });
            }
            "?" => probed.skipped = Some(text.to_owned()),
            _ => break,
        }
    }
    probed
}

fn fail(probed: &mut Probed, why: &str) {
    probed.checks.push(Check { name: STARTS, result: Err(why.into()) });
}

/// Sees to it that the process is gone.
fn end(child: Pid) {
    // It ends by itself, or has not in time; what it made goes with it.
    let _ = kill_process(child, Signal::KILL);
    let _ = waitpid(Some(child), WaitOptions::empty());
}

struct Failure(String);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Of a socket that waits only for so long.
            io::ErrorKind::WouldBlock => Self(format!("nothing comes any more within {PATIENCE:?}")),
            _ => Self(error.to_string()),
        }
    }
}

fn expect(condition: bool, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure(text())) }
}

/// Makes the test. This thread's network is another one from then on.
fn try_all() -> Probed {
    let mut probed = Probed::default();
    let peers = match Peers::new().and_then(|peers| peers.address(Family::V4).map(|()| peers)) {
        Ok(peers) => peers,
        Err(error) => {
            probed.skipped = Some(format!("network namespaces of its own cannot be had: {error}"));
            return probed;
        }
    };
    // Before the keeper starts, which would hear of the changes while it works.
    let has_v6 = peers.address(Family::V6);
    let wire = match Wire::start() {
        Ok(wire) => wire,
        Err(Failure(text)) => {
            fail(&mut probed, &text);
            return probed;
        }
    };
    for (family, names) in [Family::V4, Family::V6].into_iter().zip(NAMES) {
        if family == Family::V6
            && let Err(error) = &has_v6
        {
            probed.skipped = Some(format!("no IPv6: {error}"));
            continue;
        }
        let mut passed = 0;
        let result = try_flow(&peers, &wire, family, &mut passed);
        probed.checks.extend(names.iter().take(passed).map(|name| Check { name, result: Ok(()) }));
        if let (Err(Failure(text)), Some(name)) = (result, names.get(passed)) {
            probed.checks.push(Check { name, result: Err(text) });
        }
    }
    if let Err(Failure(text)) = wire.stop() {
        fail(&mut probed, &text);
    }
    probed
}

/// Puts a flow on the wire and lets it come to its end. `passed` counts the steps that went well.
fn try_flow(peers: &Peers, wire: &Wire, family: Family, passed: &mut usize) -> Result<(), Failure> {
    let flow = Flow::new(peers, family)?;
    let Flow { mut client, mut legs, mut server } = flow;
    let [near, far] = &mut legs;
    relay(&mut client, CLIENTS_FIRST, near, far, OWN, &mut server)?;
    relay(&mut server, SERVERS_FIRST, far, near, b"", &mut client)?;
    wire.splice(legs)?;
    exchange(&client, &server, b"ping")?;
    exchange(&server, &client, b"pong")?;
    until("setu's sockets are still there", || Ok(family.known()? == 0))?;
    exchange(&client, &server, b"ping")?;
    exchange(&server, &client, b"pong")?;
    *passed += 1;

    let bytes: Vec<u8> = pattern(MIB);
    thread::scope(|scope| {
        let up = scope.spawn(|| exchange(&client, &server, &bytes));
        let down = exchange(&server, &client, &bytes);
        up.join().map_err(|_| Failure("a thread panicked".into()))?.and(down)
    })?;
    *passed += 1;

    client.shutdown(Shutdown::Write)?;
    expect_end(&server)?;
    exchange(&server, &client, b"still open")?;
    *passed += 1;

    server.shutdown(Shutdown::Write)?;
    expect_end(&client)?;
    let mut told = [0; 2];
    let [up, down] = loop {
        let (message, bytes) = match wire.hear()? {
            message @ (FromKeeper::Moved { id: ID, bytes }
            | FromKeeper::Gone { id: ID, end: WireEnd::ClientFinished, bytes }) => (message, bytes),
            message => return Err(Failure(format!("the keeper says {message:?}"))),
        };
        told = [told[0] + bytes[0], told[1] + bytes[1]];
        if let FromKeeper::Gone { .. } = message {
            break told;
        }
    };
    let least = (MIB + 8) as u64;
    expect(up >= least && down >= least, || format!("{up} and {down} bytes are told of, not {least}"))?;
    *passed += 1;
    Ok(())
}

/// Both ends of a flow, and setu's legs between them, the client's first.
struct Flow {
    client: TcpStream,
    legs: [TcpStream; 2],
    server: TcpStream,
}

impl Flow {
    fn new(peers: &Peers, family: Family) -> io::Result<Self> {
        let front = listen(family, SocketAddr::new(family.setu(Peer::Client), 0))?;
        let back = peers.within(|| listen(family, SocketAddr::new(family.peer(Peer::Server), 0)))?;
        let at = front.local_addr()?;
        let client = peers.within(|| {
            let client = family.socket(SocketAddr::new(family.peer(Peer::Client), 0))?;
            client.connect_timeout(&at, PATIENCE)?;
            Ok(client)
        })?;
        let (near, _) = front.accept()?;
        let far = family.socket(SocketAddr::new(family.setu(Peer::Server), PORT))?;
        far.connect_timeout(&back.local_addr()?, PATIENCE)?;
        let (server, _) = back.accept()?;
        for socket in [&client, &near, &far, &server] {
            socket.set_tcp_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client: client.into(), legs: [near.into(), far.into()], server: server.into() })
    }
}

fn listen(family: Family, at: SocketAddr) -> io::Result<Socket> {
    let listener = family.socket(at)?;
    listener.listen(1)?;
    // Nobody is waited for longer than for anything else.
    listener.set_read_timeout(Some(PATIENCE))?;
    Ok(listener)
}

/// Carries a stream's first bytes as the relay does, with some of setu's own before them.
fn relay(
    source: &mut TcpStream,
    bytes: &[u8],
    from: &mut TcpStream,
    to: &mut TcpStream,
    own: &[u8],
    sink: &mut TcpStream,
) -> io::Result<()> {
    source.write_all(bytes)?;
    let mut read = vec![0; bytes.len()];
    from.read_exact(&mut read)?;
    to.write_all(&[own, &read].concat())?;
    sink.read_exact(&mut vec![0; own.len() + bytes.len()])
}

fn exchange(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) -> Result<(), Failure> {
    thread::scope(|scope| {
        let sender = scope.spawn(move || from.write_all(bytes));
        let mut got = vec![0; bytes.len()];
        to.read_exact(&mut got)?;
        sender.join().map_err(|_| Failure("a thread panicked".into()))??;
        expect(got == bytes, || "other bytes arrived than were sent".into())
    })
}

fn expect_end(mut from: &TcpStream) -> Result<(), Failure> {
    let count = from.read(&mut [0; 16])?;
    expect(count == 0, || format!("{count} bytes arrived instead of an end"))
}

/// Bytes that repeat only after a prime number of them, so that a lost or doubled piece shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| ((index % 65_521) * 31 % 251) as u8).collect()
}

/// Waits until something has come to pass.
fn until(text: &str, mut look: impl FnMut() -> io::Result<bool>) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !look()? {
        expect(Instant::now() < deadline, || text.into())?;
        thread::sleep(SOON);
    }
    Ok(())
}

fn wait(socket: &OwnedFd, most: Duration) -> io::Result<()> {
    let most = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() };
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&most))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Program and keeper in setu's host, and the relay's end of the protocol.
struct Wire {
    worker: OwnedFd,
    control: OwnedFd,
    keeper: JoinHandle<io::Result<()>>,
}

impl Wire {
    fn start() -> Result<Self, Failure> {
        let (worker, its_worker) = seqpacket::pair()?;
        let (control, its_control) = seqpacket::pair()?;
        let program = Program::load(4, PORT..=PORT, None).map_err(|error| Failure(error.to_string()))?;
        let keeper = Keeper::new(program, Network::open()?, its_control, vec![its_worker])?;
        Ok(Self { worker, control, keeper: thread::spawn(move || keeper.run()) })
    }

    fn say(&self, message: ToKeeper, legs: &[TcpStream]) -> io::Result<()> {
        let legs: Vec<_> = legs.iter().map(TcpStream::as_fd).collect();
        seqpacket::send(&self.worker, message.encode().as_ref(), &legs)
    }

    /// What the keeper says next, but for when it has closed sockets, of which nothing follows here.
    fn hear(&self) -> Result<FromKeeper, Failure> {
        loop {
            match self.hear_any()? {
                FromKeeper::Settled { .. } => {}
                other => return Ok(other),
            }
        }
    }

    fn hear_any(&self) -> Result<FromKeeper, Failure> {
        wait(&self.worker, PATIENCE).map_err(|error| Failure(format!("the keeper says nothing: {error}")))?;
        let mut buffer = [0; MOST];
        let received = seqpacket::receive(&self.worker, &mut buffer)?
            .ok_or_else(|| Failure("the keeper has ended".into()))?;
        FromKeeper::decode(buffer.get(..received.len).unwrap_or_default())
            .ok_or_else(|| Failure("the keeper says what is no message".into()))
    }

    /// Puts a flow on the wire.
    fn splice(&self, legs: [TcpStream; 2]) -> Result<(), Failure> {
        self.say(ToKeeper::Offer { id: ID, listener: 0, limits: LIMITS }, &legs)?;
        match self.hear()? {
            FromKeeper::Ready { .. } => {}
            other => return Err(Failure(format!("the keeper does not take it: {other:?}"))),
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.say(ToKeeper::Take { id: ID, ahead: [0; 2] }, &[])?;
            match self.hear()? {
                FromKeeper::Armed { .. } => return Ok(()),
                FromKeeper::Busy { .. } if Instant::now() < deadline => thread::sleep(SOON),
                other => return Err(Failure(format!("the keeper does not put it on the wire: {other:?}"))),
            }
        }
    }

    fn stop(self) -> Result<(), Failure> {
        seqpacket::send(&self.control, ToKeeper::Stop.encode().as_ref(), &[])?;
        until("the keeper does not end", || Ok(self.keeper.is_finished()))?;
        self.keeper.join().map_err(|_| Failure("the keeper panicked".into()))??;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes() {
        // A thread's network is its own.
        let Probed { checks, skipped } = thread::spawn(try_all).join().unwrap();
        if !setu_tests::machine::is_root() {
            println!("skipped, not privileged: {skipped:?}");
            return;
        }
        for check in &checks {
            assert_eq!(check.result, Ok(()), "{}", check.name);
        }
        let made: Vec<_> = checks.iter().map(|check| check.name).collect();
        let expected = if skipped.is_some() { &NAMES[..1] } else { &NAMES[..] };
        assert_eq!(made, expected.as_flattened(), "{skipped:?}");
    }
}
