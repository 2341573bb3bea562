//! What relay and keeper tell each other.
//!
//! Each worker has a pair of `SOCK_SEQPACKET` sockets with the keeper, so that a message is whole or not there. A flow's
//! `id` is the worker's, and is used again only after [`FromKeeper::Refused`], [`FromKeeper::Gone`], or a [`ToKeeper::Drop`]
//! was answered by [`FromKeeper::Dropped`].
//!
//! ```text
//! relay                              keeper
//!   Offer + both sockets ──────────►  checks, installs: the program counts           or Refused
//!                        ◄──────────  Ready: a grace period is over
//!   in a moment of quiet:
//!   Take ──────────────────────────►  (the relay touches the sockets no more)
//!                        ◄──────────  Armed: the relay closes its sockets             or Busy: it relays on
//!                        ◄──────────  Gone: the flow is over
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::config::Timeouts;

/// The longest message, bytes.
pub(crate) const MOST: usize = 64;

/// From relay to keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToKeeper {
    /// A flow that has lasted; both its sockets come with it, the client's first. The relay goes on relaying.
    Offer { id: u32, listener: u16, limits: Limits },
    /// Nothing of the flow is in the relay's hands, and it touches the sockets no more until it is answered. `ahead`: bytes
    /// that were forwarded, and are in the receive queue of the side they came from all the same.
    Take { id: u32, ahead: [u32; 2] },
    /// The flow ends in the relay. Sent before its sockets are closed, which the keeper does then as well.
    Drop { id: u32 },
    /// The flow is on the wire, and is to be reset.
    End { id: u32 },
    /// Every flow on the wire is to be reset, and all of it taken out of the kernel.
    Stop,
    /// A successor takes over what is on the wire: the keeper ends, and leaves everything where it is.
    Yield,
}

/// When a flow on the wire is over by silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) idle: Duration,
    pub(crate) half_close: Duration,
    pub(crate) vanished: Duration,
}

impl From<&Timeouts> for Limits {
    fn from(timeouts: &Timeouts) -> Self {
        let Timeouts { idle, half_close, vanished, .. } = *timeouts;
        Self { idle, half_close, vanished }
    }
}

/// From keeper to relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FromKeeper {
    /// A grace period is over: the flow may be taken. `index` is its place in the map of flows.
    Ready { id: u32, index: u32 },
    /// The flow is on the wire.
    Armed { id: u32 },
    /// The keeper has closed setu's sockets of the flow: both ends have acknowledged what these had sent, or one has reset it.
    Settled { id: u32 },
    /// Not in this moment; the relay goes on, and takes again after a millisecond at the earliest.
    Busy { id: u32 },
    /// Never; the keeper has closed its sockets.
    Refused { id: u32, refusal: WireRefusal },
    /// The answer to [`ToKeeper::Drop`].
    Dropped { id: u32 },
    /// A flow that a predecessor has left on the wire, which is this worker's from now on. What it is called is not one of the
    /// worker's own names ([`ADOPTED`]).
    Adopted { id: u32, listener: u16, names: FlowNames },
    /// A flow on the wire has moved so much more. Bytes are by the side that they came from, here and in [`Self::Gone`].
    Moved { id: u32, bytes: [u64; 2] },
    /// A flow that was on the wire is over, and has moved so much more.
    Gone { id: u32, end: WireEnd, bytes: [u64; 2] },
    /// Another keeper has the connections of this state directory, or has them no more.
    Waits {
        /// Whether it has.
        waits: bool,
    },
}

/// Bit of the names that the keeper gives, where the flow has none from its worker.
pub(crate) const ADOPTED: u32 = 1 << 31;

/// The addresses of a flow: the client's, setu's towards the upstream, and the upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowNames {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) upstream: SocketAddr,
}

/// Declares an enum of one byte, with all its values and the name of each.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[doc = $meaning:literal])+ $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum $type { $($(#[doc = $meaning])+ $variant,)* }

        impl $type {
            /// Each, in the order of declaration.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in logs and metrics.
            #[must_use]
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, for people.
            #[must_use]
            pub(crate) const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($meaning),+),)* }
            }

            fn from_byte(byte: u8) -> Option<Self> {
                Self::ALL.get(usize::from(byte)).copied()
            }
        }
    };
}

named! {
    /// Why a flow does not go on the wire.
    WireRefusal {
        /// The client or the upstream is on this machine.
        Local = "local",
        /// The way to the client or to the upstream is a device without Ethernet headers, such as a tunnel or PPP.
        NoEthernet = "no_ethernet",
        /// One side is IPv4, the other IPv6.
        MixedFamilies = "mixed_families",
        /// The two sides did not agree to the same TCP options: timestamps or SACK are in use on one only.
        Options = "options",
        /// A side may send segments that the other does not take.
        SegmentSize = "segment_size",
        /// The device to one side takes smaller packets (MTU) than that to the other.
        Mtu = "mtu",
        /// The windows of the two sides are scaled so differently that rounding would stall one.
        WindowScale = "window_scale",
        /// The connection to the upstream has no port of `wire.ports`: they ran out.
        NoPort = "no_port",
        /// As many connections as `wire.max_flows` are on the wire.
        Full = "full",
        /// This host tracks connections, and does not let setu take them out of its table, which would fill.
        Conntrack = "conntrack",
        /// A side has ended or reset its stream.
        Finished = "finished",
        /// The connection is none that the wire takes: not established any more, or MPTCP.
        NotTcp = "not_tcp",
        /// The kernel refused a step.
        Kernel = "kernel",
        /// There is no route, or the next hop does not tell its address.
        NoRoute = "no_route",
        /// The keeper, the process that puts connections on the wire, is gone: start another setu with `--replace`, which takes over what is on the wire.
        KeeperGone = "keeper_gone",
    }
}

named! {
    /// How a flow on the wire ended.
    WireEnd {
        /// Both sides sent their FIN, the client first.
        ClientFinished = "client_finished",
        /// Both sides sent their FIN, the upstream first.
        UpstreamFinished = "upstream_finished",
        /// The client sent a reset.
        ClientReset = "client_reset",
        /// The upstream sent a reset.
        UpstreamReset = "upstream_reset",
        /// Nothing moved for `timeouts.idle`.
        Idle = "idle",
        /// One side finished, and nothing moved for `timeouts.half_close`.
        HalfClosed = "half_close",
        /// The client was not heard of for `timeouts.vanished`.
        ClientVanished = "client_vanished",
        /// The upstream was not heard of for `timeouts.vanished`.
        UpstreamVanished = "upstream_vanished",
        /// setu ended it.
        Shutdown = "shutdown",
        /// It could not be shown that every byte had arrived when it went on the wire.
        Torn = "torn",
    }
}

/// A message is its number, then its fields in native order.
struct Writer {
    bytes: [u8; MOST],
    len: usize,
}

impl Writer {
    fn new(kind: u8) -> Self {
        let mut writer = Self { bytes: [0; MOST], len: 0 };
        writer.put(&[kind]);
        writer
    }

    /// One about a flow.
    fn about(kind: u8, id: u32) -> Self {
        let mut writer = Self::new(kind);
        writer.put(&id.to_ne_bytes());
        writer
    }

    fn put(&mut self, field: &[u8]) -> &mut Self {
        let end = self.len + field.len();
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(field);
            self.len = end;
        }
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let (family, octets, port) = (self.byte()?, self.take::<16>()?, self.u16()?);
        let [a, b, c, d, ..] = octets;
        match family {
            4 => Some(SocketAddr::from(([a, b, c, d], port))),
            6 => Some(SocketAddr::from((octets, port))),
            _ => None,
        }
    }

    fn millis(&mut self) -> Option<Duration> {
        self.u32().map(|millis| Duration::from_millis(millis.into()))
    }
}

/// An encoded message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoded {
    bytes: [u8; MOST],
    len: usize,
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl From<Writer> for Encoded {
    fn from(Writer { bytes, len }: Writer) -> Self {
        Self { bytes, len }
    }
}

fn put_address(writer: &mut Writer, address: SocketAddr) {
    let mut octets = [0; 16];
    let family = match address.ip() {
        IpAddr::V4(ip) => {
            octets[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            octets = ip.octets();
            6
        }
    };
    writer.put(&[family]).put(&octets).put(&address.port().to_ne_bytes());
}

fn millis(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).to_ne_bytes()
}

impl ToKeeper {
    pub(crate) fn encode(self) -> Encoded {
        match self {
            Self::Offer { id, listener, limits } => {
                let mut writer = Writer::about(0, id);
                writer.put(&listener.to_ne_bytes());
                for limit in [limits.idle, limits.half_close, limits.vanished] {
                    writer.put(&millis(limit));
                }
                writer
            }
            Self::Take { id, ahead } => {
                let mut writer = Writer::about(1, id);
                writer.put(&ahead[0].to_ne_bytes()).put(&ahead[1].to_ne_bytes());
                writer
            }
            Self::Drop { id } => Writer::about(2, id),
            Self::End { id } => Writer::about(3, id),
            Self::Stop => Writer::new(4),
            Self::Yield => Writer::new(5),
        }
        .into()
    }

    /// `None`: not a message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let message = match from.byte()? {
            0 => Self::Offer {
                id: from.u32()?,
                listener: from.u16()?,
                limits: Limits { idle: from.millis()?, half_close: from.millis()?, vanished: from.millis()? },
            },
            1 => Self::Take { id: from.u32()?, ahead: [from.u32()?, from.u32()?] },
            2 => Self::Drop { id: from.u32()? },
            3 => Self::End { id: from.u32()? },
            4 => Self::Stop,
            5 => Self::Yield,
            _ => return None,
        };
        from.0.is_empty().then_some(message)
    }
}

impl FromKeeper {
    pub(crate) fn encode(self) -> Encoded {
        match self {
            Self::Ready { id, index } => {
                let mut writer = Writer::about(0, id);
                writer.put(&index.to_ne_bytes());
                writer
            }
            Self::Armed { id } => Writer::about(1, id),
            Self::Busy { id } => Writer::about(2, id),
            Self::Refused { id, refusal } => {
                let mut writer = Writer::about(3, id);
                writer.put(&[refusal as u8]);
                writer
            }
            Self::Dropped { id } => Writer::about(4, id),
            Self::Adopted { id, listener, names } => {
                let mut writer = Writer::about(6, id);
                writer.put(&listener.to_ne_bytes());
                for address in [names.client, names.local, names.upstream] {
                    put_address(&mut writer, address);
                }
                writer
            }
            Self::Settled { id } => Writer::about(8, id),
            Self::Moved { id, bytes } => {
                let mut writer = Writer::about(7, id);
                writer.put(&bytes[0].to_ne_bytes()).put(&bytes[1].to_ne_bytes());
                writer
            }
            Self::Gone { id, end, bytes } => {
                let mut writer = Writer::about(5, id);
                writer.put(&[end as u8]).put(&bytes[0].to_ne_bytes()).put(&bytes[1].to_ne_bytes());
                writer
            }
            Self::Waits { waits } => {
                let mut writer = Writer::new(9);
                writer.put(&[u8::from(waits)]);
                writer
            }
        }
        .into()
    }

    /// `None`: not a message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let message = match from.byte()? {
            0 => Self::Ready { id: from.u32()?, index: from.u32()? },
            1 => Self::Armed { id: from.u32()? },
            2 => Self::Busy { id: from.u32()? },
            3 => Self::Refused { id: from.u32()?, refusal: WireRefusal::from_byte(from.byte()?)? },
            4 => Self::Dropped { id: from.u32()? },
            5 => Self::Gone {
                id: from.u32()?,
                end: WireEnd::from_byte(from.byte()?)?,
                bytes: [from.u64()?, from.u64()?],
            },
            9 => Self::Waits { waits: from.byte()? != 0 },
            8 => Self::Settled { id: from.u32()? },
            7 => Self::Moved { id: from.u32()?, bytes: [from.u64()?, from.u64()?] },
            6 => Self::Adopted {
                id: from.u32()?,
                listener: from.u16()?,
                names: FlowNames {
                    client: from.address()?,
                    local: from.address()?,
                    upstream: from.address()?,
                },
            },
            _ => return None,
        };
        from.0.is_empty().then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        idle: Duration::from_secs(7200),
        half_close: Duration::from_secs(60),
        vanished: Duration::from_secs(90),
    };

    #[test]
    fn each_refusal_is_in_the_documents_as_it_is_here() {
        let document = include_str!("../../../../docs/operations.md");
        for refusal in WireRefusal::ALL {
            let row = format!("| `{}` |{} |", refusal.name(), refusal.meaning());
            assert!(document.contains(&row), "{row}");
        }
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        let id = 0x0102_0304;
        let all = [
            ToKeeper::Offer { id, listener: 7, limits: LIMITS },
            ToKeeper::Take { id, ahead: [0, 7] },
            ToKeeper::Drop { id },
            ToKeeper::End { id },
            ToKeeper::Stop,
            ToKeeper::Yield,
        ];
        for message in all {
            let encoded = message.encode();
            let bytes = encoded.as_ref();
            assert_eq!(ToKeeper::decode(bytes), Some(message));
            assert_eq!(ToKeeper::decode(&bytes[..bytes.len() - 1]), None, "{message:?} cut short");
            assert_eq!(ToKeeper::decode(&[bytes, &[0]].concat()), None, "{message:?} with more");
        }
        let refused = WireRefusal::ALL.iter().map(|refusal| FromKeeper::Refused { id, refusal: *refusal });
        let gone = WireEnd::ALL.iter().map(|end| FromKeeper::Gone { id, end: *end, bytes: [1, u64::MAX] });
        let others = [
            FromKeeper::Ready { id, index: 9 },
            FromKeeper::Armed { id },
            FromKeeper::Settled { id },
            FromKeeper::Busy { id },
            FromKeeper::Dropped { id },
            FromKeeper::Waits { waits: true },
            FromKeeper::Waits { waits: false },
            FromKeeper::Moved { id, bytes: [u64::MAX, 1] },
            FromKeeper::Adopted {
                id: 7 | ADOPTED,
                listener: 2,
                names: FlowNames {
                    client: "192.0.2.1:50000".parse().unwrap(),
                    local: "[2001:db8::1]:10000".parse().unwrap(),
                    upstream: "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
                },
            },
        ];
        for message in refused.chain(gone).chain(others) {
            let encoded = message.encode();
            let bytes = encoded.as_ref();
            assert_eq!(FromKeeper::decode(bytes), Some(message));
            assert_eq!(FromKeeper::decode(&bytes[..bytes.len() - 1]), None, "{message:?} cut short");
        }
    }
}
