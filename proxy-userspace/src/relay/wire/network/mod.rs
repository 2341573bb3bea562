//! What the keeper sees of the network and does to it beside the maps. All of it is opened at once, while there are
//! privileges; from then on it opens nothing, and needs CAP_NET_ADMIN alone.

mod conntrack;
mod links;
pub(super) mod netlink;
mod outbox;
mod packet;
mod routes;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;

pub(crate) use self::{
    conntrack::Conntrack,
    packet::{Question, Reset, TooBig},
    routes::{NoWay, Way},
};
use self::{conntrack::Tracker, links::Links, netlink::Netlink, outbox::Outbox};
use crate::sys;

/// Groups of links, IPv4 routes and rules, IPv6 routes and rules: bits by the numbers of `enum rtnetlink_groups`
/// (include/uapi/linux/rtnetlink.h), less one.
const LINKS_AND_ROUTES: u32 = 1 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 18;

/// How many pieces are read in one go of what a socket has, so that nobody who fills it holds up the keeper.
const AT_ONCE: usize = 64;

/// What came of [`Network::drain`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Devices came, went or changed.
    pub(crate) links: bool,
    /// Ways may be others than before.
    pub(crate) routes: bool,
}

/// An Ethernet device to which the program is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) name: String,
}

/// The network of this host.
#[derive(Debug)]
pub(crate) struct Network {
    route: Netlink<RouteNetlinkMessage>,
    changes: Netlink<RouteNetlinkMessage>,
    links: Links,
    tracker: Tracker,
    outbox: Outbox,
    /// The flows of which somebody was told since a time that a packet was too big.
    hinted: HashSet<u32>,
    hinted_since: Instant,
    icmp: OwnedFd,
    /// None where the kernel has no IPv6.
    icmpv6: Option<OwnedFd>,
}

/// Of packets that were too big so many a second are told of: a tenth of what may be sent.
const HINTS: usize = 100;

impl Network {
    /// Opens all that is needed.
    ///
    /// # Errors
    /// No CAP_NET_RAW; out of descriptors.
    pub(crate) fn open() -> io::Result<Self> {
        // Before the first look, so that nothing that changes after it is missed.
        let changes = Netlink::open(None, LINKS_AND_ROUTES)?;
        let mut route = Netlink::open(None, 0)?;
        let links = links::read(&mut route)?;
        Ok(Self {
            route,
            changes,
            links,
            tracker: Tracker::open(),
            outbox: Outbox::new(sys::open_packet()?),
            hinted: HashSet::new(),
            hinted_since: Instant::now(),
            icmp: sys::open_icmp()?,
            icmpv6: sys::open_icmpv6().ok(),
        })
    }

    /// Descriptors to wait for: when one is readable, [`Self::drain`] and [`Self::too_big`] are to be called.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.changes.as_fd(), self.icmp.as_fd()].into_iter().chain(self.icmpv6.as_ref().map(OwnedFd::as_fd))
    }

    /// Reads what changed, a bounded piece of it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn drain(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        for _ in 0..AT_ONCE {
            match self.changes.hear() {
                Ok(heard) => {
                    for change in heard {
                        match change {
                            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => {
                                changes.links = true
                            }
                            _ => changes.routes = true,
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // There was more than is told.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    changes = Changes { links: true, routes: true };
                }
                Err(error) => return Err(error),
            }
        }
        if changes.links {
            self.links = links::read(&mut self.route)?;
            changes.routes = true;
        }
        Ok(changes)
    }

    /// The way from an address of this host to one of another.
    ///
    /// # Errors
    /// There is none for the wire.
    pub(crate) fn way(&mut self, from: IpAddr, to: IpAddr) -> Result<Way, NoWay> {
        routes::way(&mut self.route, &self.links, from.to_canonical(), to.to_canonical())
    }

    /// As [`Self::devices`], without opening more than that takes: any user may.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn look_for_devices() -> io::Result<Vec<Device>> {
        Ok(usable(&links::read(&mut Netlink::open(None, 0)?)?))
    }

    /// The Ethernet devices that are up and that are no part of another, by index.
    pub(crate) fn devices(&self) -> Vec<Device> {
        usable(&self.links)
    }

    /// Resets one end of a connection. Whether it was taken: it is not when too much waits to be sent, and may be tried
    /// again later.
    pub(crate) fn reset(&mut self, reset: &Reset, now: Instant) -> bool {
        reset.packet().is_none_or(|packet| self.outbox.push(packet, now))
    }

    /// Asks one end of a connection whether it is still there. Whether it was taken, as for a reset.
    pub(crate) fn ask(&mut self, question: &Question, now: Instant) -> bool {
        question.packet().is_none_or(|packet| self.outbox.push(packet, now))
    }

    /// Tells the source of a flow's packet, from its destination, that it was too big: once a second at most, and not those of
    /// many flows. Who is not told sends it again, and so does the router.
    pub(crate) fn send_too_big(&mut self, flow: u32, too_big: &TooBig, now: Instant) {
        if now.saturating_duration_since(self.hinted_since) >= Duration::from_secs(1) {
            self.hinted.clear();
            self.hinted_since = now;
        }
        if self.hinted.len() < HINTS
            && self.hinted.insert(flow)
            && let Some(packet) = too_big.packet()
        {
            self.outbox.push(packet, now);
        }
    }

    /// Sends what waits to be sent, as far as the time allows it; to be called after any of the three above, and
    /// again at [`Self::next_send`].
    pub(crate) fn send(&mut self, now: Instant) {
        self.outbox.send(&mut self.route, &self.links, now);
    }

    /// How many packets wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// When there is something to send next; `None`: nothing waits.
    pub(crate) fn next_send(&self) -> Option<Instant> {
        self.outbox.next()
    }

    /// What routers said about packets of TCP from this host that were too big, a bounded piece of it.
    pub(crate) fn too_big(&mut self) -> Vec<TooBig> {
        // Of the packet quoted only the beginning matters; what is longer is cut off, and its checksum will not be right:
        // no router quotes more (RFC 1812, RFC 4443).
        let mut buffer = [0; 2048];
        let sockets = [
            (Some(&self.icmp), TooBig::from_icmp as fn(&[u8]) -> Option<TooBig>),
            (self.icmpv6.as_ref(), TooBig::from_icmpv6),
        ];
        let mut all = Vec::new();
        for (socket, parse) in sockets {
            let Some(socket) = socket else { continue };
            for _ in 0..AT_ONCE {
                match sys::receive(socket.as_fd(), &mut buffer) {
                    Ok(len) => all.extend(buffer.get(..len).and_then(parse)),
                    Err(_) => break,
                }
            }
        }
        all
    }

    /// Takes a connection of this host out of conntrack; that it is not there is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn forget(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
        let canonical = |name: SocketAddr| SocketAddr::new(name.ip().to_canonical(), name.port());
        self.tracker.forget(canonical(local), canonical(peer))
    }

    /// What conntrack was to this host when this was opened.
    pub(crate) fn conntrack(&self) -> Conntrack {
        self.tracker.conntrack
    }
}

fn usable(links: &Links) -> Vec<Device> {
    let usable = links.iter().filter(|(_, link)| link.up && !link.enslaved);
    let mut devices: Vec<_> =
        usable.map(|(index, link)| Device { index: *index, name: link.name.clone() }).collect();
    devices.sort_by_key(|device| device.index);
    devices
}
