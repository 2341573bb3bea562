//! Binds every address once for each worker, and says what is in the way.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
};

use procfs::{net::TcpState, process};
use socket2::{Domain, Socket, Type};
use thiserror::Error;

use super::source_filter;
use crate::{
    account::{lacks_a_source, lacks_family},
    config::{Config, Listener, Mode},
    sys::{Instruction, attach_filter, detach_filter},
};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// An address with its sockets.
#[derive(Debug)]
pub struct Bound {
    /// Index of the listener.
    pub listener: usize,
    /// As the configuration writes it.
    pub wanted: SocketAddr,
    /// With the port that the kernel chose when the configuration says 0.
    pub address: SocketAddr,
    /// Nonblocking, all on the same port: one for each worker (`SO_REUSEPORT`), or as many as were passed to setu.
    pub sockets: Vec<TcpListener>,
}

impl Bound {
    /// The same sockets once more.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn duplicate(&self) -> io::Result<Self> {
        let sockets = self.sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { sockets, ..*self })
    }

    /// Duplicates of those that one of `workers` is to accept from. Each socket has one worker: if several waited for
    /// it, a client would wake all of them, and one could serve many times as many clients as another. `shift` says
    /// which begins, so that sockets on several addresses do not all have the same.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn share(&self, worker: usize, workers: usize, shift: usize) -> io::Result<Vec<TcpListener>> {
        let own = self.sockets.iter().enumerate().filter(|(number, _)| (shift + number) % workers == worker);
        own.map(|(_, socket)| socket.try_clone()).collect()
    }

    /// Whether `workers` do not have the same number of sockets each, so that clients are to be dealt out to all of them
    /// by those who accept. Where each has its own, the kernel deals them out (`SO_REUSEPORT`).
    #[must_use]
    pub fn is_uneven(&self, workers: usize) -> bool {
        !self.sockets.len().is_multiple_of(workers)
    }
}

/// The process that has an address.
#[derive(Debug)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// Its id.
    pub pid: i32,
}

fn by(holder: Option<&Holder>) -> String {
    holder.map(|Holder { name, pid }| format!(" by {name} (pid {pid})")).unwrap_or_default()
}

/// What is in the way.
#[derive(Debug, Error)]
pub enum BindError {
    /// Ports that only the privileged may bind.
    #[error(
        "no right to bind port {ports}. One of three ways out:\n  \
         1. give the right: run as root, `setcap cap_net_bind_service=+ep setu`, or in a systemd unit \
         AmbientCapabilities=CAP_NET_BIND_SERVICE\n  \
         2. let everyone bind them: sysctl net.ipv4.ip_unprivileged_port_start=80\n  \
         3. use high ports: setu run --port-offset 10000, and let the firewall redirect to them"
    )]
    Privileged {
        /// The ports.
        ports: String,
    },
    /// Another process has it.
    #[error("port {} of {} is in use{}; stop that, or give {whose} another port", address.port(), address.ip(), by(holder.as_ref()))]
    InUse {
        /// What was to listen there.
        whose: String,
        /// The address.
        address: SocketAddr,
        /// Who has it, when that is known.
        holder: Option<Holder>,
    },
    /// Anything else.
    #[error("{whose} cannot bind {address}: {error}{remedy}")]
    Other {
        /// What was to listen there.
        whose: String,
        /// The address.
        address: SocketAddr,
        /// The system's words.
        error: io::Error,
        /// What to do, if anything is known.
        remedy: &'static str,
    },
}

/// Binds all addresses of the configuration, `workers` times each. Where one is among those that are `open` already its
/// sockets are duplicated instead, so that no client is refused.
///
/// # Errors
/// The first thing in the way; but all ports for which the right is missing together.
pub fn bind_all(config: &Config, workers: usize, open: &[Bound]) -> Result<Vec<Bound>, BindError> {
    let mut obstacles = Obstacles::default();
    let bound = bind_each(config, workers, open, &mut obstacles);
    obstacles.none_or_first().map(|()| bound)
}

/// Binds what can be bound.
fn bind_each(config: &Config, workers: usize, open: &[Bound], obstacles: &mut Obstacles) -> Vec<Bound> {
    let mut all = Vec::new();
    let mut open: Vec<&Bound> = open.iter().collect();
    for (index, listener) in config.listeners.iter().enumerate() {
        let filter = is_hidden(listener).then(|| source_filter::only(&config.trusted)).flatten();
        for address in &listener.bind {
            let known = open.iter().position(|open| open.wanted == *address);
            let bound = match known.map(|at| open.swap_remove(at)) {
                Some(open) => open.duplicate(),
                None => bind(*address, workers, filter.as_deref()),
            };
            match bound {
                Ok(bound) => all.push(Bound { listener: index, ..bound }),
                Err(error)
                    if has_no_ipv6(&error, *address) && listener.bind.iter().any(SocketAddr::is_ipv4) =>
                {
                    tracing::warn!(listener = %listener.name, %address, "this machine has no IPv6, going on without");
                }
                Err(error) => {
                    obstacles.add(error, || format!("the listener \"{}\"", listener.name), *address)
                }
            }
        }
    }
    all
}

/// Hides the ports at which nothing but PROXY headers is taken from whoever may send none, and shows the others; those
/// that are as they were `before` stay so. What cannot be hidden is open to everyone, who is turned away then.
pub fn guard(config: &Config, bound: &[Bound], before: Option<(&Config, &[Bound])>) {
    for Bound { listener, address, sockets, .. } in bound {
        let listener = &config.listeners[*listener];
        let is_same = before.is_some_and(|(old, bound)| {
            let was = bound.iter().find(|bound| bound.address == *address);
            was.is_some_and(|was| is_hidden(&old.listeners[was.listener]) == is_hidden(listener))
                && old.trusted == config.trusted
        });
        if is_same {
            continue;
        }
        let shown = || sockets.iter().try_for_each(detach_filter);
        if !is_hidden(listener) {
            if let Err(error) = shown() {
                tracing::warn!(%address, %error, "a filter cannot be taken off");
            }
            continue;
        }
        let hidden = match source_filter::only(&config.trusted) {
            Some(filter) => sockets.iter().try_for_each(|socket| attach_filter(socket, &filter)),
            None => Err(io::Error::other("proxy_protocol.trusted has more ranges than a filter takes")),
        };
        if let Err(error) = hidden {
            // One of before would keep out those who are trusted now. That it stays is told as well.
            let error = shown().err().unwrap_or(error);
            tracing::warn!(
                listener = %listener.name, %address, %error,
                "the port cannot be hidden: it shows itself open to everyone. Name fewer ranges, start setu anew as \
                 root, or let a firewall hide it"
            );
        }
    }
}

/// Whether nobody but proxies may see the port.
pub(crate) fn is_hidden(listener: &Listener) -> bool {
    listener.accept_proxy_protocol && !matches!(listener.mode, Mode::Auto { .. })
}

/// All that is in the way of binding what the configuration names, which is left as it was.
#[must_use]
pub fn obstacles(config: &Config) -> Vec<BindError> {
    let mut obstacles = Obstacles::default();
    // Bound until all are, as they would be: two of the same configuration may be in each other's way.
    let _bound = bind_each(config, 1, &[], &mut obstacles);
    let _admin = bind_each_admin(config, false, &mut obstacles);
    obstacles.all()
}

/// Binds the addresses of the admin endpoint, once each. With `beside` a setu that is being replaced may have them still.
///
/// # Errors
/// The first thing in the way.
pub fn bind_admin(config: &Config, beside: bool) -> Result<Vec<TcpListener>, BindError> {
    let mut obstacles = Obstacles::default();
    let bound = bind_each_admin(config, beside, &mut obstacles);
    obstacles.none_or_first().map(|()| bound)
}

fn bind_each_admin(config: &Config, beside: bool, obstacles: &mut Obstacles) -> Vec<TcpListener> {
    let mut all = Vec::new();
    for address in &config.admin {
        match if beside { open(*address, 1, None) } else { bind(*address, 1, None) } {
            Ok(bound) => all.extend(bound.sockets),
            Err(error) => obstacles.add(error, || "admin.bind".into(), *address),
        }
    }
    all
}

/// What is in the way, in the order of the configuration.
#[derive(Default)]
struct Obstacles {
    /// Ports for which the right is missing: one remedy is that of all of them.
    forbidden: Vec<u16>,
    others: Vec<BindError>,
}

impl Obstacles {
    fn add(&mut self, error: io::Error, whose: impl Fn() -> String, address: SocketAddr) {
        match error.kind() {
            io::ErrorKind::PermissionDenied => self.forbidden.push(address.port()),
            _ => self.others.push(explain(error, whose(), address)),
        }
    }

    fn all(self) -> Vec<BindError> {
        let Self { mut forbidden, mut others } = self;
        forbidden.dedup();
        if !forbidden.is_empty() {
            let ports = forbidden.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            others.push(BindError::Privileged { ports });
        }
        others
    }

    fn none_or_first(self) -> Result<(), BindError> {
        self.all().into_iter().next().map_or(Ok(()), Err)
    }
}

fn bind(wanted: SocketAddr, workers: usize, filter: Option<&[Instruction]>) -> io::Result<Bound> {
    // With SO_REUSEPORT two setus would share a port in silence: first see whether it is free without.
    let probe = socket(wanted)?;
    probe.bind(&wanted.into())?;
    drop(probe);
    open(wanted, workers, filter)
}

fn open(wanted: SocketAddr, workers: usize, filter: Option<&[Instruction]>) -> io::Result<Bound> {
    let mut address = wanted;
    let mut sockets = Vec::new();
    for _ in 0..workers {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        if let Some(filter) = filter {
            // Before anybody can connect. What is in the way, `guard` tells.
            let _ = attach_filter(&socket, filter);
        }
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from(socket);
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(Bound { listener: 0, wanted, address, sockets })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections of a setu that just ended may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // The IPv4 address has a socket of its own.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn has_no_ipv6(error: &io::Error, address: SocketAddr) -> bool {
    // No port of its own is asked for, so that none can be lacking.
    let absent = lacks_family(error) || lacks_a_source(error);
    absent && matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified())
}

fn explain(error: io::Error, whose: String, address: SocketAddr) -> BindError {
    if error.kind() == io::ErrorKind::AddrInUse {
        return BindError::InUse { whose, address, holder: holder(address) };
    }
    let remedy = match error.kind() {
        io::ErrorKind::AddrNotAvailable => "; bind an address of this machine (`ip address` lists them)",
        _ => "",
    };
    BindError::Other { whose, address, error, remedy }
}

/// The process whose socket is in the way of binding `wanted`, as far as this one may see.
fn holder(wanted: SocketAddr) -> Option<Holder> {
    holders(wanted).into_iter().next()
}

/// All that have that socket: it may have been passed on.
pub(crate) fn holders(wanted: SocketAddr) -> Vec<Holder> {
    let tables = procfs::net::tcp().into_iter().chain(procfs::net::tcp6());
    let entry = tables
        .flatten()
        // In TIME_WAIT a socket has no process, and so no inode.
        .filter(|entry| entry.inode != 0 && in_the_way(entry.local_address, wanted))
        // A connection can be in the way as well, but what listens is what the operator should hear of.
        .min_by_key(|entry| (entry.state != TcpState::Listen, entry.local_address.ip() != wanted.ip()));
    let (Some(entry), Ok(processes)) = (entry, process::all_processes()) else { return Vec::new() };
    let holds = |target| matches!(target, process::FDTarget::Socket(inode) if inode == entry.inode);
    let holder = |process: process::Process| {
        let found = process.fd().ok()?.flatten().any(|descriptor| holds(descriptor.target));
        found.then_some(Holder { name: process.stat().ok()?.comm, pid: process.pid })
    };
    processes.flatten().filter_map(holder).collect()
}

/// Whether a socket on `held` keeps setu from binding `wanted`. A socket on `::` may hold the IPv4 addresses too
/// (ipv6(7), `IPV6_V6ONLY`); setu's own never do.
pub(crate) fn in_the_way(held: SocketAddr, wanted: SocketAddr) -> bool {
    let same = held.ip().to_canonical() == wanted.ip();
    let wildcard = held.ip().is_unspecified() && (held.is_ipv6() || wanted.is_ipv4());
    let covered = wanted.ip().is_unspecified() && held.ip().to_canonical().is_ipv4() == wanted.is_ipv4();
    held.port() == wanted.port() && (same || wildcard || covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bind: &str) -> Config {
        let text =
            format!("[[listener]]\nname = \"chat\"\nbind = [{bind}]\nmode = \"chat\"\nupstream = \"chat\"");
        Config::parse("test", &text).unwrap()
    }

    #[test]
    fn one_port_for_all_workers() {
        let bound = bind_all(&config("\"127.0.0.1:0\""), 3, &[]).unwrap();
        let ports: Vec<u16> =
            bound[0].sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [bound[0].address.port(); 3]);
    }

    #[test]
    fn open_sockets_stay_and_each_has_one_worker() {
        let before = bind_all(&config("\"127.0.0.1:0\""), 3, &[]).unwrap();
        let after = bind_all(&config("\"127.0.0.2:0\", \"127.0.0.1:0\""), 2, &before).unwrap();
        assert_eq!([after[0].sockets.len(), after[1].sockets.len()], [2, 3]);
        assert_ne!(after[0].address, before[0].address);
        assert_eq!(after[1].address, before[0].address);
        let shares = |bound: &Bound, workers, shift| -> Vec<usize> {
            (0..workers).map(|worker| bound.share(worker, workers, shift).unwrap().len()).collect()
        };
        assert_eq!(shares(&after[0], 2, 0), [1, 1]);
        assert_eq!(shares(&after[0], 2, 1), [1, 1]);
        assert_eq!(shares(&after[1], 2, 0), [2, 1]);
        assert_eq!(shares(&after[1], 2, 1), [1, 2]);
        assert_eq!(shares(&after[1], 5, 4), [1, 1, 0, 0, 1]);
        let uneven = [(0, 2), (1, 2), (1, 3), (1, 5)].map(|(bound, workers)| after[bound].is_uneven(workers));
        assert_eq!(uneven, [false, true, false, true]);
    }

    #[test]
    fn a_port_in_use_names_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind_all(&config(&format!("\"127.0.0.1:{port}\"")), 2, &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} of 127.0.0.1 is in use by ")), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    }

    #[test]
    fn the_admin_endpoint_is_bound_and_refused_alike() {
        let config = |bind: &str| Config::parse("test", &format!("[admin]\nbind = [{bind}]")).unwrap();
        assert_eq!(bind_admin(&config("\"127.0.0.1:0\", \"127.0.0.2:0\""), false).unwrap().len(), 2);
        assert!(bind_admin(&config(""), false).unwrap().is_empty());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind_admin(&config(&format!("\"{}\"", taken.local_addr().unwrap())), false).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("or give admin.bind another port") && text.contains(" in use by "), "{text}");
    }

    #[test]
    fn only_sockets_on_the_same_address_are_in_the_way() {
        let in_the_way =
            |held: &str, wanted: &str| in_the_way(held.parse().unwrap(), wanted.parse().unwrap());
        for (held, wanted) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "0.0.0.0:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("[::1]:1", "[::]:1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
            ("[::ffff:127.0.0.1]:1", "0.0.0.0:1"),
        ] {
            assert!(in_the_way(held, wanted), "{held} {wanted}");
        }
        for (held, wanted) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("127.0.0.1:1", "[::]:1"),
            ("0.0.0.0:1", "[::]:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("[::1]:1", "0.0.0.0:1"),
        ] {
            assert!(!in_the_way(held, wanted), "{held} {wanted}");
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let error = bind_all(&config("\"203.0.113.7:0\""), 1, &[]).unwrap_err().to_string();
        assert!(error.contains("`ip address` lists them"), "{error}");
    }
}
