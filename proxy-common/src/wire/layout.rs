//! The maps of the wire path.
//!
//! Each field has one writer, or is exchanged atomically: constants are written by the keeper before
//! [`Conn::gate`] is [`ACTIVE`], all else by the program.

use core::{cell::UnsafeCell, sync::atomic::AtomicU64};

/// Raised whenever a map's layout, or what a field means, changes: a successor takes over only flows that it can read.
pub const VERSION: u32 = 3;

/// Bit of [`Conn::gate`]: the program translates.
pub const ACTIVE: u64 = 1 << 63;
/// Bit of [`Conn::gate`]: the names belong to a new connection, the program passes all.
pub const DEAD: u64 = 1 << 61;
/// The part of [`Conn::gate`] that counts packets that were passed.
pub const COUNT: u64 = (1 << 60) - 1;

/// A number that one side writes and the other reads, by whole accesses: an `AtomicU32`, which the program's target lacks.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Word(UnsafeCell<u32>);

impl Word {
    /// Where it is.
    #[inline(always)]
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u32 {
        self.0.get()
    }
}

mod sync {
    #![expect(unsafe_code, reason = "what two sides share is Sync by promise")]

    // SAFETY: it gives away nothing but its place, and who goes there does so by whole accesses.
    unsafe impl Sync for super::Word {}
}

/// The names that a packet carries as it arrives: key of the map `FLOWS`, whose value is a [`Place`].
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Names {
    /// Source address, in network order; an IPv4 address is the first word, and the others are 0.
    pub source: [u32; 4],
    /// Destination address, likewise.
    pub destination: [u32; 4],
    /// Source port, in network order.
    pub source_port: u16,
    /// Destination port, in network order.
    pub destination_port: u16,
    /// [`IPV4`] or [`IPV6`].
    pub family: u32,
}

/// Of [`Names::family`].
pub const IPV4: u32 = 4;
/// Of [`Names::family`].
pub const IPV6: u32 = 6;

/// Where a packet's flow is: index in the map `CONNS`, twice, plus the side that the packet comes from (0 the client's, 1
/// the upstream's).
pub type Place = u32;

/// One flow.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Conn {
    /// [`ACTIVE`], [`DEAD`], and the count of packets that were passed since the flow was installed. Exchanged by both.
    pub gate: AtomicU64,
    /// What a successor needs to know of the flow: written by the keeper, of no concern to the program.
    pub notes: [u64; 7],
    /// By side X: what happens to packets from the client, and to those from the upstream.
    pub directions: [Direction; 2],
}

/// Packets from one side, X, to the other, Y. Legs are *x* and *y*.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Direction {
    // Constants.
    /// New source address: setu's on leg y. As in [`Names`].
    pub source: [u32; 4],
    /// New destination address: Y's. As in [`Names`].
    pub destination: [u32; 4],
    /// New source port, in network order.
    pub source_port: u16,
    /// New destination port, in network order.
    pub destination_port: u16,
    /// Index of the device by which Y is reached. The keeper changes it when routes change.
    pub out_device: Word,
    /// Added to the sequence number.
    pub add_sequence: u32,
    /// Added to the acknowledgement, and to both ends of each SACK block.
    pub add_acknowledgement: u32,
    /// Added to TSval.
    pub add_timestamp: u32,
    /// Added to TSecr, unless that is 0.
    pub add_echo: u32,
    /// What X acknowledges once it has all of setu's own bytes.
    pub own_acknowledged: u32,
    /// What setu has received from X: where X's stream goes on.
    pub own_received: u32,
    /// Added, in one's complement, to the checksum of the pseudo header: the difference of the four address words.
    pub address_difference: u32,
    /// Shift of the windows that X announces.
    pub window_shift_in: u8,
    /// Shift of the windows that Y is told.
    pub window_shift_out: u8,
    /// Of [`CLEAR_ECN`].
    pub options: u16,

    // State, written by the program.
    /// Highest end of a segment that was passed before the flow was active. 0: none was.
    pub passed_end: Word,
    /// Last TSval that was passed, and then the one seen with X's FIN.
    pub timestamp: Word,
    /// When that was noted, in ticks of [`TICK_SHIFT`]. 0: never.
    pub timestamp_at: Word,
    /// Highest acknowledgement from X of what Y sent, in x's numbers.
    pub acknowledged: Word,
    /// Highest end of a segment from X, in x's numbers.
    pub end: Word,
    /// Of [`OWN_ACKNOWLEDGED`], [`FIN_SEEN`], [`RST_SEEN`], [`ODD_OPTIONS`], [`TIMESTAMP_SEEN`],
    /// [`FIN_FIRST`]. Set and taken back atomically, by both.
    pub flags: Word,
    /// When X was heard of last, in ticks: by a segment that could be its own.
    pub last: Word,
    /// When X acknowledged last what it had not before, in ticks: bytes of Y's have moved.
    pub moved: Word,
    /// Where X's stream ends by its last FIN that could be one, in x's numbers. Of use with [`FIN_SEEN`].
    pub finish: Word,
    /// Bytes of the stream translated, a repeated one each time.
    pub bytes: AtomicU64,
}

/// Of [`Direction::options`]: ECN is in use on one leg only.
pub const CLEAR_ECN: u16 = 1 << 0;

/// Of [`Direction::flags`]: X has acknowledged all of setu's own bytes. Set by the program, or by the keeper before
/// the flow is active.
pub const OWN_ACKNOWLEDGED: u32 = 1 << 0;
/// Of [`Direction::flags`]: X has sent its FIN, or who forged one. See [`super::over`].
pub const FIN_SEEN: u32 = 1 << 1;
/// Of [`Direction::flags`]: X has sent a reset, or who forged one, and X nothing else since: who has sent none goes on, and
/// answers when it is asked (RFC 5961, section 3.2). What Y says is of no account: it could say it for ever.
pub const RST_SEEN: u32 = 1 << 2;
/// Of [`Direction::flags`]: X's options are laid out so that the program could not rewrite them.
pub const ODD_OPTIONS: u32 = 1 << 3;
/// Of [`Direction::flags`]: a TSval was noted.
pub const TIMESTAMP_SEEN: u32 = 1 << 4;
/// Of [`Direction::flags`]: X has sent its FIN, and Y none that was seen before.
pub const FIN_FIRST: u32 = 1 << 5;

/// A tick is `bpf_ktime_get_coarse_ns() >> TICK_SHIFT`, which `CLOCK_MONOTONIC_COARSE` is in userspace: about 1.05 ms.
pub const TICK_SHIFT: u32 = 20;

/// What the map `NOTED` keeps for each local port of `wire.ports`, in the order of the ports: the MSS option of the SYN-ACK
/// that came for it last in the low 16 bits (0: none came), and in the 16 bits above them [`sender_mark`].
/// An element is 8 bytes apart from the next, as the kernel lays arrays out.
pub type Noted = u64;

/// 16 bits that tell who sent a SYN-ACK: of its address, and its port in network order.
#[inline(always)]
#[must_use]
pub const fn sender_mark(address: [u32; 4], port: u16) -> u16 {
    let word = (address[0] ^ address[1] ^ address[2] ^ address[3]).wrapping_mul(0x9e37_79b1);
    (word >> 16) as u16 ^ port
}

/// Told to the keeper when there is something to see in a flow: both sides have acknowledged setu's own bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Index in `CONNS`.
    pub index: u32,
    /// Always 0.
    pub padding: u32,
}

const _: () = assert!(size_of::<Names>() == 40 && align_of::<Names>() == 4);
const _: () = assert!(size_of::<Direction>() == 120 && align_of::<Direction>() == 8);
const _: () = assert!(size_of::<Conn>() == 304);
const _: () = assert!(size_of::<Event>() == 8);

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]

    // SAFETY: integers without padding between or after them, any bit pattern is valid.
    unsafe impl aya::Pod for super::Names {}
}
