//! One connection out of many addresses (RFC 8305): a family or a server that is broken costs a quarter of a second,
//! not the whole timeout; and that once, not each time, for what failed is tried last.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::sleep,
};

use super::{history::History, ports::PortLease, splice::Splice};
use crate::{
    account::{lacks_a_route, lacks_a_source, out_of_resources, rank},
    sys,
};

/// How long an attempt may be alone (RFC 8305, section 5: "Connection Attempt Delay").
const STAGGER: Duration = Duration::from_millis(250);

/// Connections that are tried from a port of the wire's before one from any will do: a port may be in use by another
/// program, or by a connection of before that the kernel knows of.
const TRIES: usize = 4;

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

/// A connection, with the right to its local port where that is one of the wire's.
pub(super) type Connected = (TcpStream, Option<PortLease>);

/// Connects to the first address that answers, beginning with those that did not fail lately. The attempts that lost are
/// closed. With a splice it is as that asks, as far as it can be.
///
/// # Errors
/// The most telling error of all attempts. It waits as long as the kernel does: bound it by a timeout.
pub(super) async fn connect(
    addresses: &[SocketAddr],
    sources: &Sources,
    history: &History,
    splice: Option<&Splice>,
) -> io::Result<Connected> {
    if let [only] = addresses {
        return connect_one(*only, sources.clone(), splice.cloned()).await;
    }
    // The client's family first, where it matters.
    let prefer_ipv6 = splice.is_none_or(|splice| splice.is_ipv6);
    let mut ordered = alternate(addresses, |address| address.is_ipv6() == prefer_ipv6);
    history.put_failed_last(&mut ordered, Instant::now());
    let mut queue = ordered.into_iter();
    let Some(first) = queue.next() else { return Err(io::ErrorKind::HostUnreachable.into()) };
    let mut attempts = JoinSet::new();
    let mut failure: Option<io::Error> = None;
    let (mut start, mut newest) = (Some(first), first);
    loop {
        if let Some(address) = start.take() {
            let (sources, splice) = (sources.clone(), splice.cloned());
            attempts.spawn(async move { (address, connect_one(address, sources, splice).await) });
            newest = address;
        }
        tokio::select! {
            Some(done) = attempts.join_next() => {
                let (address, result) = done.unwrap_or_else(|error| (newest, Err(io::Error::other(error))));
                match result {
                    // Dropping the others' tasks closes their sockets.
                    Ok(connected) => {
                        history.connected(address);
                        return Ok(connected);
                    }
                    Err(error) => {
                        blame(history, address, &error);
                        failure = Some(match failure.take() {
                            Some(before) if rank(&before) > rank(&error) => before,
                            _ => error,
                        });
                        start = queue.next();
                    }
                }
            }
            // At once, not when another has won: that may be after the caller's patience.
            () = sleep(STAGGER), if queue.len() > 0 => {
                history.failed(newest, Instant::now());
                start = queue.next();
            }
            else => return Err(failure.unwrap_or_else(|| io::ErrorKind::HostUnreachable.into())),
        }
    }
}

/// Alternates the families, the preferred first, which is IPv6 (RFC 8305, section 4); within a family the order stays.
pub(super) fn alternate<T: Copy>(addresses: &[T], is_preferred: impl Fn(&T) -> bool) -> Vec<T> {
    let mut preferred = addresses.iter().filter(|address| is_preferred(address));
    let mut others = addresses.iter().filter(|address| !is_preferred(address));
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(preferred.next());
        ordered.extend(others.next());
    }
    ordered
}

/// Remembers that an address failed. What this machine lacks says nothing of it.
fn blame(history: &History, address: SocketAddr, error: &io::Error) {
    if !out_of_resources(error) {
        history.failed(address, Instant::now());
    }
}

async fn connect_one(address: SocketAddr, sources: Sources, splice: Option<Splice>) -> io::Result<Connected> {
    let mut fitting = sources.fitting(address);
    let mut source = fitting.next();
    loop {
        if let Some(splice) = &splice
            && let Some(result) = connect_spliced(splice, address, source).await
        {
            return result.map(|(stream, lease)| (stream, Some(lease)));
        }
        let result = match socket(address, source) {
            Ok(socket) => socket.connect(address).await.map(|stream| (stream, None)),
            Err(error) => Err(error),
        };
        match (result, fitting.next()) {
            // The source has no port left for this destination, or is no address of this machine: another may do.
            (Err(error), Some(next)) if lacks_a_source(&error) => source = Some(next),
            (Err(error), None) if lacks_a_source(&error) && !has_source(address, source) => {
                return Err(io::ErrorKind::NetworkUnreachable.into());
            }
            (result, _) => return result,
        }
    }
}

/// Connects as a splice asks. `None`: there is no port for that, or the address is none for it.
async fn connect_spliced(
    splice: &Splice,
    address: SocketAddr,
    source: Option<IpAddr>,
) -> Option<io::Result<(TcpStream, PortLease)>> {
    if !splice.fits(address) {
        return None;
    }
    for _ in 0..TRIES {
        let lease = splice.ports.lease(source, address, Instant::now())?;
        let socket = match splice.socket(address, source, lease.port()) {
            Ok(socket) => TcpSocket::from_std_stream(socket.into()),
            // Another program has the port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(error) if lacks_a_source(&error) => return None,
            Err(error) => return Some(Err(error)),
        };
        match socket.connect(address).await {
            Ok(stream) => return Some(Ok((stream, lease))),
            // The kernel has a connection of this name.
            Err(error) if lacks_a_source(&error) => {}
            Err(error) => return Some(Err(error)),
        }
    }
    None
}

/// Whether this machine has an address from which to reach another. Where it has none, as for IPv6 that is switched off,
/// connect(2) fails with the same error as when all ports are taken (`tcp_v6_connect`, net/ipv6/tcp_ipv6.c). A datagram
/// socket needs the address as well, and its ports are others.
fn has_source(address: SocketAddr, source: Option<IpAddr>) -> bool {
    let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let tried = UdpSocket::bind((source.unwrap_or(any), 0)).and_then(|socket| socket.connect(address));
    !tried.is_err_and(|error| lacks_a_source(&error) || lacks_a_route(&error))
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
    use std::net::TcpListener;

    use setu_tests::peers::Silent;

    use super::{super::ports::Ports, *};

    fn any() -> Sources {
        Sources::new(&[])
    }

    /// As [`super::connect`], without a history.
    async fn connect(addresses: &[SocketAddr], sources: &Sources) -> io::Result<TcpStream> {
        Ok(super::connect(addresses, sources, &History::default(), None).await?.0)
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
        assert_eq!(alternate(&given, SocketAddr::is_ipv6), wanted);
        assert_eq!(alternate(&[], SocketAddr::is_ipv6), []);
    }

    /// Packets of one family do not become those of another.
    #[tokio::test]
    async fn the_family_of_a_client_whose_packets_may_pass_comes_first() {
        let listeners = [listen("127.0.0.1:0"), listen("[::1]:0")];
        let addresses = listeners.each_ref().map(|(_, address)| *address);
        for is_ipv6 in [false, true] {
            let splice = Splice { ports: Ports::new(20_000..=20_099), segment: 1400, is_ipv6 };
            let (stream, port) =
                super::connect(&addresses, &any(), &History::default(), Some(&splice)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap().is_ipv6(), is_ipv6);
            assert!(port.is_none(), "nothing on loopback is for the wire");
        }
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

    /// This process's sockets that are connecting, or connected, to an address.
    fn dialing(address: SocketAddr) -> usize {
        let sockets = procfs::net::tcp().unwrap();
        let ours = procfs::process::Process::myself().unwrap().fd().unwrap().flatten();
        let inodes: Vec<_> = ours
            .filter_map(|fd| match fd.target {
                procfs::process::FDTarget::Socket(inode) => Some(inode),
                _ => None,
            })
            .collect();
        sockets.iter().filter(|s| s.remote_address == address && inodes.contains(&s.inode)).count()
    }

    #[tokio::test]
    async fn losers_are_closed() {
        let silent = Silent::new("127.0.0.1:0");
        let (_listener, address) = listen("127.0.0.1:0");
        let before = dialing(silent.address());
        drop(connect(&[silent.address(), address], &any()).await.unwrap());
        tokio::task::yield_now().await;
        assert_eq!(dialing(silent.address()), before);
    }

    /// What would be tried first, and second.
    fn next(history: &History, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut ordered = addresses.to_vec();
        history.put_failed_last(&mut ordered, Instant::now());
        ordered
    }

    #[tokio::test]
    async fn what_was_silent_or_refused_is_tried_last_from_then_on() {
        let silent = Silent::new("127.0.0.1:0");
        let (listener, living) = listen("127.0.0.1:0");
        let (all, history) = ([silent.address(), refused(), living], History::default());
        for round in 0..5 {
            let (stream, _) = super::connect(&all, &any(), &history, None).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), living);
            assert_eq!(next(&history, &all), [living, all[0], all[1]], "round {round}");
        }
        // Now it is the living one that refuses, and the refusing one that lives.
        drop(listener);
        let (_listener, _) = listen(&all[1].to_string());
        let (stream, _) = super::connect(&all, &any(), &history, None).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), all[1]);
        assert_eq!(next(&history, &all), [all[1], all[0], living]);
    }

    /// An address that is slow, not dead, may answer after another was tried: then it is as good as before.
    #[tokio::test]
    async fn who_gives_up_leaves_behind_what_was_silent() {
        let silent = Silent::new("127.0.0.1:0");
        let (_listener, living) = listen("127.0.0.1:0");
        let (all, history) = ([silent.address(), living], History::default());
        let (more, patience) = ([silent.address(), silent.address(), living], STAGGER + STAGGER / 2);
        let ended = tokio::time::timeout(patience, super::connect(&more, &any(), &history, None)).await;
        assert!(ended.is_err(), "nobody answers so soon");
        assert_eq!(next(&history, &all), [living, silent.address()]);
        history.connected(silent.address());
        assert_eq!(next(&history, &all), all);
    }

    #[test]
    fn what_this_machine_lacks_is_not_blamed_on_addresses() {
        let (all, history) = ([refused(), refused()], History::default());
        for lack in [libc::EADDRNOTAVAIL, libc::EMFILE, libc::ENOBUFS] {
            blame(&history, all[0], &io::Error::from_raw_os_error(lack));
            assert_eq!(next(&history, &all), all);
        }
        blame(&history, all[0], &io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(next(&history, &all), [all[1], all[0]]);
    }

    #[tokio::test]
    async fn an_address_without_a_source_is_out_of_reach() {
        let (_listener, living) = listen("127.0.0.1:0");
        let foreign = Sources::new(&["203.0.113.7".parse().unwrap()]);
        let (all, history) = ([living, refused()], History::default());
        let error = super::connect(&all[..1], &foreign, &history, None).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable, "not the lack of a port: {error}");
        assert!(has_source(living, None) && has_source(living, Some("127.0.0.2".parse().unwrap())));
    }

    #[tokio::test]
    async fn the_most_telling_error_is_returned() {
        let error = connect(&[refused()], &any()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
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
