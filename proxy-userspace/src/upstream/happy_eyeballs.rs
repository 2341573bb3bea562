//! One connection out of many addresses (RFC 8305): a family or a server that is broken costs a quarter of a second,
//! not the whole timeout.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::sleep,
};

use crate::{close_reason::out_of_resources, sys};

/// How long an attempt may be alone (RFC 8305, section 5: "Connection Attempt Delay").
const STAGGER: Duration = Duration::from_millis(250);

/// Local addresses from which to connect, used in turn, so that setu is not held to the ports of one.
#[derive(Debug, Clone)]
pub(crate) struct Sources(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    turn: AtomicUsize,
}

impl Sources {
    /// The kernel chooses for a family of which there is none.
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(ip) => v4.push(*ip),
                IpAddr::V6(ip) => v6.push(*ip),
            }
        }
        Self(Arc::new(Inner { v4, v6, turn: AtomicUsize::new(0) }))
    }

    /// Those that fit a destination, the next in turn first.
    fn fitting(&self, destination: SocketAddr) -> impl Iterator<Item = IpAddr> {
        let inner = &self.0;
        let all: Vec<IpAddr> = match destination {
            SocketAddr::V4(_) => inner.v4.iter().copied().map(IpAddr::from).collect(),
            SocketAddr::V6(_) => inner.v6.iter().copied().map(IpAddr::from).collect(),
        };
        let turn = inner.turn.fetch_add(1, Ordering::Relaxed);
        let (count, first) = (all.len(), turn % all.len().max(1));
        all.into_iter().cycle().skip(first).take(count)
    }
}

/// Connects to the first address that answers. The attempts that lost are closed.
///
/// # Errors
/// The most telling error of all attempts. It waits as long as the kernel does: bound it by a timeout.
pub(crate) async fn connect(addresses: &[SocketAddr], sources: &Sources) -> io::Result<TcpStream> {
    let mut queue = order(addresses).into_iter();
    let Some(first) = queue.next() else { return Err(io::ErrorKind::HostUnreachable.into()) };
    if queue.len() == 0 {
        return connect_one(first, sources.clone()).await;
    }
    let mut attempts = JoinSet::new();
    let mut failure: Option<io::Error> = None;
    let mut start = Some(first);
    loop {
        if let Some(address) = start.take() {
            attempts.spawn(connect_one(address, sources.clone()));
        }
        tokio::select! {
            // Dropping the others' tasks closes their sockets.
            Some(done) = attempts.join_next() => match done.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = Some(match failure.take() {
                        Some(before) if rank(&before) > rank(&error) => before,
                        _ => error,
                    });
                    start = queue.next();
                }
            },
            () = sleep(STAGGER), if queue.len() > 0 => start = queue.next(),
            else => return Err(failure.unwrap_or_else(|| io::ErrorKind::HostUnreachable.into())),
        }
    }
}

/// Alternates the families, IPv6 first (RFC 8305, section 4); within a family the order stays.
fn order(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut v6 = addresses.iter().filter(|address| address.is_ipv6());
    let mut v4 = addresses.iter().filter(|address| address.is_ipv4());
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

/// How much an error tells of the upstream: that this machine lacks something outdoes all, that it lacks a route (it
/// may have no IPv6 at all) is outdone by all.
fn rank(error: &io::Error) -> u8 {
    match error.kind() {
        _ if out_of_resources(error) => 2,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => 0,
        _ => 1,
    }
}

async fn connect_one(address: SocketAddr, sources: Sources) -> io::Result<TcpStream> {
    let mut fitting = sources.fitting(address);
    let Some(first) = fitting.next() else { return socket(address, None)?.connect(address).await };
    let mut source = first;
    loop {
        let result = match socket(address, Some(source)) {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        // The source has no port left for this destination, or is no address of this machine: another may do.
        match (result, fitting.next()) {
            (Err(error), Some(next)) if error.kind() == io::ErrorKind::AddrNotAvailable => source = next,
            (result, _) => return result,
        }
    }
}

fn socket(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    if let Some(source) = source {
        // Else the port is taken for all destinations, and 28,000 connections are the end.
        sys::set_bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Instant};

    use setu_tests::peers::Silent;

    use super::*;

    fn any() -> Sources {
        Sources::new(&[])
    }

    fn parse(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn listen(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn refused() -> SocketAddr {
        listen("127.0.0.1:0").1
    }

    #[test]
    fn families_alternate_beginning_with_ipv6() {
        let given = parse(&["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1", "[1::]:1", "[2::]:1"]);
        let wanted = parse(&["[1::]:1", "1.1.1.1:1", "[2::]:1", "2.2.2.2:1", "3.3.3.3:1"]);
        assert_eq!(order(&given), wanted);
        assert_eq!(order(&[]), []);
    }

    #[tokio::test]
    async fn a_refusal_moves_on_at_once() {
        let (_listener, address) = listen("127.0.0.1:0");
        let dead: Vec<_> = (0..40).map(|_| refused()).collect();
        let begun = Instant::now();
        let stream = connect(&[&dead[..], &[address]].concat(), &any()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        // Staggered it would be ten seconds.
        assert!(begun.elapsed() < STAGGER * 20, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_silent_address_costs_one_stagger() {
        let silent = Silent::new("[::1]:0");
        let (_listener, address) = listen("127.0.0.1:0");
        let begun = Instant::now();
        let stream = connect(&[address, silent.address()], &any()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(begun.elapsed() >= STAGGER, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn losers_are_closed() {
        let silent = Silent::new("127.0.0.1:0");
        let (_listener, address) = listen("127.0.0.1:0");
        let to_silent = || {
            let sockets = procfs::net::tcp().unwrap();
            let ours = procfs::process::Process::myself().unwrap().fd().unwrap().flatten();
            let inodes: Vec<_> = ours
                .filter_map(|fd| match fd.target {
                    procfs::process::FDTarget::Socket(inode) => Some(inode),
                    _ => None,
                })
                .collect();
            sockets
                .iter()
                .filter(|s| s.remote_address == silent.address() && inodes.contains(&s.inode))
                .count()
        };
        let before = to_silent();
        drop(connect(&[silent.address(), address], &any()).await.unwrap());
        tokio::task::yield_now().await;
        assert_eq!(to_silent(), before);
    }

    #[tokio::test]
    async fn the_most_telling_error_is_returned() {
        let ranks = [libc::ENETUNREACH, libc::ECONNREFUSED, libc::EADDRNOTAVAIL]
            .map(|code| rank(&io::Error::from_raw_os_error(code)));
        assert_eq!(ranks, [0, 1, 2]);
        let error = connect(&[refused()], &any()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let foreign = Sources::new(&parse(&["203.0.113.7:0"]).iter().map(SocketAddr::ip).collect::<Vec<_>>());
        let error = connect(&[refused()], &foreign).await.unwrap_err();
        assert!(out_of_resources(&error), "{error}");
        assert!(connect(&[], &any()).await.is_err());
    }

    #[tokio::test]
    async fn sources_take_turns_and_stand_in_for_each_other() {
        let (listener, address) = listen("127.0.0.1:0");
        let ips: Vec<IpAddr> =
            ["127.0.0.2", "203.0.113.7", "127.0.0.3", "::1"].map(|ip| ip.parse().unwrap()).into();
        let sources = Sources::new(&ips);
        let mut seen = Vec::new();
        for _ in 0..6 {
            let stream = connect(&[address], &sources).await.unwrap();
            assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
            seen.push(stream.local_addr().unwrap().ip());
        }
        for source in [ips[0], ips[2]] {
            assert!(seen.iter().filter(|ip| **ip == source).count() >= 2, "{seen:?}");
        }
    }
}
