//! Finds out at start whether this kernel's sockmap keeps its promises.
//!
//! Distributions carry fixes back, so that a version tells little; a few flows on loopback tell it all. Each check
//! stands for a way in which some kernel loses bytes or memory.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::unbounded_channel;

use super::{
    command::{Legs, Returned},
    handle::{Loaded, Running},
    limits::Limits,
    loader::StartError,
};
use crate::{
    account::{Counters, Side, Ticket},
    relay::{check::Check, reason::Why},
};

/// Every wait of a check ends after this.
const PATIENCE: Duration = Duration::from_secs(3);
const MIB: usize = 1024 * 1024;
/// How long a stalled flow is waited for to leave the kernel.
const TOLD: Duration = Duration::from_millis(200);
/// What a sender may get rid of while the reader stalls, bytes: its own send buffer, setu's receive buffer, what is
/// redirected, and the reader's receive buffer; far less than a kernel without flow control takes.
const STALLED_BOUND: usize = 64 * MIB;

/// Loads the program and tries it. An error means that it could not be loaded at all.
///
/// # Errors
/// What the kernel refused.
pub fn probe() -> Result<Vec<Check>, String> {
    let limits = Limits::new(8, 64 << 20, PATIENCE * 4);
    let running =
        Loaded::new(limits).and_then(Loaded::start).map_err(|error: StartError| error.to_string())?;
    let checks: [(&'static str, Attempt); 5] = [
        ("a FIN without data is forwarded and breaks nothing", fin_only),
        ("bytes queued before the hand-over arrive", early_bytes),
        ("1 MiB each way arrives unchanged", integrity),
        ("a stalled reader holds a bounded amount", stalled_reader),
        ("all bytes arrive before the FIN", drain_before_fin),
    ];
    Ok(checks
        .into_iter()
        .map(|(name, check)| Check { name, result: check(&running).map_err(|Failure(text)| text) })
        .collect())
}

/// Tries one promise.
type Attempt = fn(&Running) -> Result<(), Failure>;

struct Failure(String);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

fn expect(condition: bool, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure(text())) }
}

/// A flow with both peers. What the kernel returns is relayed by a thread of its own.
struct Rig {
    client: TcpStream,
    server: TcpStream,
    legs: Option<Legs>,
    /// Why the flow left the kernel, once it did.
    left: mpsc::Receiver<Why>,
    leaves: Option<mpsc::Sender<Why>>,
}

impl Rig {
    fn new() -> io::Result<Self> {
        let (client, client_leg) = pair()?;
        let (server, upstream_leg) = pair()?;
        client_leg.set_nonblocking(true)?;
        upstream_leg.set_nonblocking(true)?;
        let legs = Legs { client: client_leg.into(), upstream: upstream_leg.into(), left: 0 };
        let (leaves, left) = mpsc::channel();
        Ok(Self { client, server, legs: Some(legs), left, leaves: Some(leaves) })
    }

    /// A flow that is in the kernel.
    fn in_kernel(running: &Running) -> Result<Self, Failure> {
        let mut rig = Self::new()?;
        rig.hand_over(running);
        rig.client.write_all(b"?")?;
        rig.server.read_exact(&mut [0])?;
        match rig.left.try_recv() {
            Ok(why) => Err(Failure(format!("not in the kernel: {why:?}"))),
            Err(_) => Ok(rig),
        }
    }

    fn hand_over(&mut self, running: &Running) {
        let (Some(legs), Some(leaves)) = (self.legs.take(), self.leaves.take()) else { return };
        let counters = std::sync::Arc::<Counters>::default();
        let listener = counters.listener("self-test");
        let ticket = Ticket::new(counters, listener);
        let (returns, mut returned) = unbounded_channel();
        // When the controller is gone the check fails by what does not arrive.
        let _ = running.handle().adopt(legs, ticket, returns);
        // Ends with the flow: when nothing can come back any more, or when it came and was relayed to its end.
        thread::spawn(move || {
            if let Some(flow) = returned.blocking_recv() {
                // An error means that the check is over.
                let _ = leaves.send(flow.why);
                // What this breaks the peers find out.
                let _ = carry_on(flow);
            }
        });
    }

    fn expect_left(&self, wanted: Why) -> Result<(), Failure> {
        match self.left.recv_timeout(PATIENCE) {
            Ok(why) if why == wanted => Ok(()),
            Ok(why) => Err(Failure(format!("the flow left the kernel because of {why:?}, not {wanted:?}"))),
            Err(_) => Err(Failure(format!("the kernel did not tell: {wanted:?}"))),
        }
    }
}

/// Relays a flow that left the kernel, to its end.
fn carry_on(flow: Returned) -> io::Result<()> {
    let Returned { legs, ticket, collected: [out, back], .. } = flow;
    let (client, upstream) = (TcpStream::from(legs.client), TcpStream::from(legs.upstream));
    for leg in [&client, &upstream] {
        leg.set_nonblocking(false)?;
        leg.set_read_timeout(Some(PATIENCE))?;
        leg.set_write_timeout(Some(PATIENCE))?;
    }
    let pump = |mut from: &TcpStream, mut to: &TcpStream, first: &[u8]| -> io::Result<()> {
        to.write_all(first)?;
        io::copy(&mut from, &mut to)?;
        to.shutdown(Shutdown::Write)
    };
    thread::scope(|scope| {
        scope.spawn(|| pump(&upstream, &client, &back));
        let _ = pump(&client, &upstream, &out);
    });
    ticket.close(crate::account::CloseReason::Shutdown);
    Ok(())
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE).map_err(|error| match error
        .kind()
    {
        io::ErrorKind::TimedOut => {
            io::Error::other("loopback takes no connection: a firewall of this machine is in the way")
        }
        _ => error,
    })?;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((near, far))
}

/// Bytes that repeat only after a prime number of them, so that a lost or doubled piece shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| ((index % 65_521) * 31 % 251) as u8).collect()
}

fn fin_only(running: &Running) -> Result<(), Failure> {
    let mut rig = Rig::in_kernel(running)?;
    rig.client.shutdown(Shutdown::Write)?;
    rig.expect_left(Why::Finished(Side::Client))?;
    let count = rig.server.read(&mut [0; 16])?;
    expect(count == 0, || format!("{count} bytes arrived instead of an end"))?;
    rig.server.write_all(b"still open")?;
    Ok(rig.client.read_exact(&mut [0; 10])?)
}

fn early_bytes(running: &Running) -> Result<(), Failure> {
    let mut rig = Rig::new()?;
    rig.client.write_all(b"from the client")?;
    rig.server.write_all(b"from the server")?;
    thread::sleep(Duration::from_millis(5));
    rig.hand_over(running);
    let mut bytes = [0; 15];
    rig.server.read_exact(&mut bytes)?;
    expect(&bytes == b"from the client", || "other bytes reached the server".into())?;
    rig.client.read_exact(&mut bytes)?;
    expect(&bytes == b"from the server", || "other bytes reached the client".into())
}

fn integrity(running: &Running) -> Result<(), Failure> {
    let rig = Rig::in_kernel(running)?;
    let sent = pattern(MIB);
    let expected = Sha256::digest(&sent);
    thread::scope(|scope| {
        let ends = [&rig.client, &rig.server];
        let writers = ends.map(|mut end| {
            scope.spawn({
                let sent = &sent;
                move || end.write_all(sent)
            })
        });
        let readers = ends.map(|mut end| {
            scope.spawn(move || -> io::Result<_> {
                let mut bytes = vec![0; MIB];
                end.read_exact(&mut bytes)?;
                Ok(Sha256::digest(&bytes))
            })
        });
        for writer in writers {
            writer.join().map_err(|_| Failure("a writer panicked".into()))??;
        }
        for reader in readers {
            let digest = reader.join().map_err(|_| Failure("a reader panicked".into()))??;
            expect(digest == expected, || "the bytes that arrived have another SHA-256".into())?;
        }
        Ok(())
    })
}

fn stalled_reader(running: &Running) -> Result<(), Failure> {
    let mut rig = Rig::in_kernel(running)?;
    let sent = pattern(65_521);
    rig.client.set_nonblocking(true)?;
    let (mut total, mut blocked_at) = (0, None);
    loop {
        match rig.client.write(&sent[total % sent.len()..]) {
            Ok(count) => {
                total += count;
                blocked_at = None;
                expect(total < STALLED_BOUND, || format!("{total} bytes were taken while nobody read"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let since = *blocked_at.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(40) {
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
    // On a machine short of TCP memory the sender may have to wait before the program tells of congestion, or the word may
    // come late: that bounds it as well. Another reason to leave would be a defect.
    if let Ok(why) = rig.left.recv_timeout(TOLD)
        && why != Why::Congested
    {
        return Err(Failure(format!("the flow left the kernel because of {why:?}")));
    }
    let (mut read, mut buffer) = (0, vec![0; 65_521]);
    while read < total {
        let count = rig.server.read(&mut buffer)?;
        expect(count > 0, || format!("an end after {read} of {total} bytes"))?;
        let right =
            buffer[..count].iter().enumerate().all(|(at, byte)| *byte == sent[(read + at) % sent.len()]);
        expect(right, || format!("wrong bytes after {read} of {total}"))?;
        read += count;
    }
    Ok(())
}

fn drain_before_fin(running: &Running) -> Result<(), Failure> {
    let rig = Rig::in_kernel(running)?;
    let sent = pattern(MIB);
    let mut bytes = Vec::with_capacity(sent.len());
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            (&rig.client).write_all(&sent)?;
            rig.client.shutdown(Shutdown::Write)
        });
        // The FIN finds bytes under way.
        thread::sleep(Duration::from_millis(20));
        (&rig.server).read_to_end(&mut bytes)?;
        writing.join().map_err(|_| Failure("the writer panicked".into()))?.map_err(Failure::from)
    })?;
    expect(bytes.len() == sent.len(), || format!("{} of {} bytes arrived", bytes.len(), sent.len()))?;
    expect(bytes == sent, || "the bytes that arrived are others".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes() {
        match probe() {
            Ok(checks) => {
                for check in checks {
                    assert_eq!(check.result, Ok(()), "{}", check.name);
                }
            }
            Err(error) if !privileged() => println!("skipped, not privileged: {error}"),
            Err(error) => panic!("{error}"),
        }
    }

    fn privileged() -> bool {
        procfs::process::Process::myself().unwrap().status().unwrap().euid == 0
    }
}
