//! Ends of TCP connections of which nothing is kept but their next sequence numbers and the last message, so that a
//! machine has room for a million of them.
//!
//! An end sends one message at a time, and sends it again until it is acknowledged. It takes what comes in order, and
//! answers whatever else occupies sequence numbers, or asks for a sign of life, by what it knows (RFC 9293, 3.10.7.4).

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use etherparse::{
    Ethernet2Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice,
};

/// Bytes of a message.
pub(super) const MESSAGE: usize = 8;
/// What every end starts from.
const FIRST: u32 = 0x5e70_0000;
/// What an end takes at once; it is all the same to who sends eight bytes.
const WINDOW: u16 = 32_768;
/// The longest segment that it takes: a device's usual one.
const LONGEST: u16 = 1460;
/// Frames are no longer: headers, options, a message.
pub(super) const FRAME: usize = 128;

/// A segment that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    sequence: u32,
    acknowledges: Option<u32>,
    begins: bool,
    finishes: bool,
    resets: bool,
    message: Option<[u8; MESSAGE]>,
    /// Bytes of it.
    len: u32,
}

impl Segment {
    /// What is none of TCP is none of ours.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { return None };
        let (ip, payload) = (ip.header(), tcp.payload());
        Some(Self {
            from: SocketAddrV4::new(ip.source_addr(), tcp.source_port()),
            to: SocketAddrV4::new(ip.destination_addr(), tcp.destination_port()),
            sequence: tcp.sequence_number(),
            acknowledges: tcp.ack().then(|| tcp.acknowledgment_number()),
            begins: tcp.syn(),
            finishes: tcp.fin(),
            resets: tcp.rst(),
            message: payload.try_into().ok(),
            len: payload.len() as u32,
        })
    }

    pub(super) fn begins(&self) -> bool {
        self.begins && self.acknowledges.is_none()
    }
}

/// How far an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Closed,
    /// A client's SYN, or a server's with its acknowledgement, is on its way.
    Opens,
    Open,
    /// The other side has ended it.
    Over,
}

/// What came with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// It is open.
    Opened,
    Message([u8; MESSAGE]),
}

/// One end.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) stage: Stage,
    /// What it will send next, and what of it is acknowledged.
    next: u32,
    acknowledged: u32,
    expected: u32,
    message: [u8; MESSAGE],
}

impl End {
    pub(super) const NONE: Self =
        Self { stage: Stage::Closed, next: FIRST, acknowledged: FIRST, expected: 0, message: [0; MESSAGE] };

    /// A client's, whose SYN is to be sent.
    pub(super) fn call() -> Self {
        Self { stage: Stage::Opens, next: FIRST.wrapping_add(1), ..Self::NONE }
    }

    /// A server's, that answers a SYN.
    pub(super) fn answer(segment: &Segment) -> Self {
        Self { expected: segment.sequence.wrapping_add(1), ..Self::call() }
    }

    /// Says something: all before is acknowledged.
    pub(super) fn say(&mut self, message: [u8; MESSAGE]) {
        self.message = message;
        self.next = self.next.wrapping_add(MESSAGE as u32);
    }

    /// Whether what it said last has not arrived yet, as far as it knows.
    pub(super) fn is_waiting(&self) -> bool {
        self.acknowledged != self.next
    }

    /// Takes a segment. `true`: it is to be answered.
    pub(super) fn hear(&mut self, segment: &Segment) -> (News, bool) {
        if segment.resets {
            self.stage = Stage::Over;
            return (News::Nothing, false);
        }
        let mut news = News::Nothing;
        if self.stage == Stage::Opens {
            if segment.acknowledges != Some(self.next) {
                // Of a server's the SYN again.
                return (News::Nothing, false);
            }
            if segment.begins {
                self.expected = segment.sequence.wrapping_add(1);
            }
            (self.stage, self.acknowledged) = (Stage::Open, self.next);
            news = News::Opened;
        } else if let Some(number) = segment.acknowledges
            && number.wrapping_sub(self.acknowledged) <= self.next.wrapping_sub(self.acknowledged)
        {
            self.acknowledged = number;
        }
        if segment.begins {
            return (news, true);
        }
        let is_next = segment.sequence == self.expected;
        if segment.len == 0 && !segment.finishes {
            // A keepalive, or a window's, whose sequence number lies back.
            return (news, !is_next);
        }
        if is_next && let Some(message) = segment.message {
            self.expected = self.expected.wrapping_add(segment.len);
            news = News::Message(message);
        }
        if is_next && segment.finishes {
            self.stage = Stage::Over;
        }
        (news, true)
    }

    /// The segment that says all that it has to say: whatever is not acknowledged, and what it expects. `false` of
    /// `again`: an acknowledgement alone.
    pub(super) fn segment(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        again: bool,
        frame: &mut Frame,
    ) -> Result<()> {
        let mut tcp = TcpHeader::new(from.port(), to.port(), self.next, WINDOW);
        let mut payload: &[u8] = &[];
        if again && self.is_waiting() {
            tcp.sequence_number = self.acknowledged;
            match self.stage {
                Stage::Opens => {
                    tcp.syn = true;
                    tcp.set_options(&[TcpOptionElement::MaximumSegmentSize(LONGEST)])?;
                }
                _ => {
                    tcp.psh = true;
                    payload = &self.message;
                }
            }
        }
        tcp.ack = self.expected != 0;
        tcp.acknowledgment_number = self.expected;
        frame.write(from, to, tcp, payload)
    }
}

/// Where a frame is made.
#[derive(Debug)]
pub(super) struct Frame {
    ethernet: Ethernet2Header,
    bytes: Vec<u8>,
}

impl Frame {
    pub(super) fn new(source: [u8; 6], destination: [u8; 6]) -> Self {
        let ethernet = Ethernet2Header { source, destination, ..Default::default() };
        Self { ethernet, bytes: Vec::with_capacity(FRAME) }
    }

    fn write(&mut self, from: SocketAddrV4, to: SocketAddrV4, tcp: TcpHeader, payload: &[u8]) -> Result<()> {
        let Ethernet2Header { source, destination, .. } = self.ethernet;
        let builder = PacketBuilder::ethernet2(source, destination)
            .ipv4(from.ip().octets(), to.ip().octets(), 64)
            .tcp_header(tcp);
        self.bytes.clear();
        builder.write(&mut self.bytes, payload)?;
        ensure!(self.bytes.len() <= FRAME, "a frame of {} bytes", self.bytes.len());
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 1), 1000);
    const B: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 2), 2000);

    fn sent(end: &End, again: bool) -> Segment {
        let mut frame = Frame::new([2; 6], [4; 6]);
        end.segment(A, B, again, &mut frame).unwrap();
        Segment::parse(frame.bytes()).unwrap()
    }

    /// A client and a server that have shaken hands.
    fn open() -> [End; 2] {
        let mut client = End::call();
        let mut server = End::answer(&sent(&client, true));
        assert_eq!(client.hear(&sent(&server, true)), (News::Opened, true));
        assert_eq!(server.hear(&sent(&client, false)), (News::Opened, false));
        [client, server]
    }

    #[test]
    fn a_message_is_said_until_it_has_arrived_and_taken_once() {
        let [mut client, mut server] = open();
        client.say(*b"message!");
        assert!(client.is_waiting());
        assert_eq!(server.hear(&sent(&client, true)), (News::Message(*b"message!"), true));
        assert_eq!(server.hear(&sent(&client, true)), (News::Nothing, true), "again");
        assert_eq!(client.hear(&sent(&server, false)), (News::Nothing, false));
        assert!(!client.is_waiting());
    }

    #[test]
    fn who_asks_for_a_sign_of_life_is_answered() {
        let [client, mut server] = open();
        let mut asks = sent(&client, false);
        asks.sequence = asks.sequence.wrapping_sub(1);
        assert_eq!(server.hear(&asks), (News::Nothing, true));
        assert_eq!(server.hear(&sent(&client, false)), (News::Nothing, false), "an acknowledgement");
    }

    #[test]
    fn it_is_over_when_the_other_side_ends_it() {
        let [client, server] = open();
        for (finishes, resets) in [(true, false), (false, true)] {
            let mut server = server;
            server.hear(&Segment { finishes, resets, ..sent(&client, false) });
            assert_eq!(server.stage, Stage::Over);
        }
    }
}
