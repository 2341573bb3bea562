//! From a packet's arrival to its verdict.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_vlan_pop},
    programs::TcContext,
};
use proxy_common::wire::{
    checksum::Difference,
    layout::{
        ACTIVE, CLEAR_ECN, Conn, DEAD, Direction, Event, FIN_FIRST, FIN_SEEN, IPV4, IPV6, Names, ODD_OPTIONS,
        OWN_ACKNOWLEDGED, RST_SEEN, TIMESTAMP_SEEN,
    },
    options::Additions,
    over,
    segment::{self, ACK, Clock, ECN, FIN, Fate, Known, RST, SYN, Segment},
};

use crate::{
    atomic, flow,
    maps::WIRE_EVENTS,
    options,
    packet::{self, AFTER_V4, AFTER_V6, ETHERNET, TCP},
    synack,
};

/// The packet is not setu's, or its own sockets'.
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

const ETH_P_IP: u32 = 0x0800;
const ETH_P_IPV6: u32 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
/// IPv4, with a header of five words.
const VERSION_AND_LENGTH: u8 = 0x45;
/// More fragments, or an offset.
const FRAGMENT: u16 = 0x3fff;

/// Of `bpf_l4_csum_replace` (include/uapi/linux/bpf.h).
const BPF_F_PSEUDO_HDR: u64 = 1 << 4;

/// A TCP segment of a connection.
struct Arrived {
    names: Names,
    segment: Segment,
    /// The TCP header's length, bytes.
    header: u32,
    /// The word of the header that has its length, flags and window, as it stands in memory.
    control: u32,
}

/// The verdict. `None`: the packet cannot be read, and passes.
#[inline(always)]
pub(crate) fn verdict(context: &TcContext) -> Option<i32> {
    untag(context)?;
    // SAFETY: the context is the kernel's, and valid.
    let protocol = unsafe { (*context.skb.skb).protocol };
    if protocol == ETH_P_IP.swap_bytes() >> 16 {
        one::<AFTER_V4>(context)
    } else if protocol == ETH_P_IPV6.swap_bytes() >> 16 {
        one::<AFTER_V6>(context)
    } else {
        None
    }
}

/// Lets pass what belongs to a VLAN: it comes again, without its tag, at that network's device. A tag that has a priority alone
/// is taken off: with it the packet would leave by the other leg.
#[inline(always)]
fn untag(context: &TcContext) -> Option<()> {
    /// Of a tag: the VLAN (IEEE 802.1Q), 0 for none.
    const VLAN: u32 = 0xfff;
    let skb = context.skb.skb;
    // SAFETY: the context is the kernel's, and valid.
    let (is_tagged, tag) = unsafe { ((*skb).vlan_present != 0, (*skb).vlan_tci) };
    if !is_tagged {
        return Some(());
    }
    // SAFETY: the context is valid; the tag is beside the packet, whose bytes stay where they are or are read anew.
    let is_off = tag & VLAN == 0 && unsafe { bpf_skb_vlan_pop(skb) } == 0;
    if is_off { Some(()) } else { None }
}

/// The verdict over a packet whose TCP header begins at `TCP_AT`.
#[inline(always)]
fn one<const TCP_AT: usize>(context: &TcContext) -> Option<i32> {
    let arrived = read::<TCP_AT>(context)?;
    let Some((conn, index, side)) = flow::find(&arrived.names) else {
        if arrived.segment.flags & (SYN | ACK) == SYN | ACK {
            let ports = [arrived.names.source_port, arrived.names.destination_port];
            synack::note(context, TCP_AT, arrived.names.source, ports, arrived.header);
        }
        return None;
    };
    let gate = atomic::load(&conn.gate);
    if gate & DEAD != 0 {
        return None;
    }
    // Constant indices: the verifier knows nothing of `1 - side`.
    let (x, y) = if side == 0 {
        (&conn.directions[0], &conn.directions[1])
    } else {
        (&conn.directions[1], &conn.directions[0])
    };
    if gate & ACTIVE == 0 {
        note::<TCP_AT>(context, &arrived, x);
        // The keeper may have armed the flow since.
        if flow::count(&conn.gate) & ACTIVE == 0 {
            return None;
        }
    }
    if arrived.segment.flags & (SYN | ACK) == SYN
        && let Some(verdict) = again::<TCP_AT>(context, &arrived, conn, x, y)
    {
        return Some(verdict);
    }
    act::<TCP_AT>(context, &arrived, x, y, index)
}

/// Reads what there is to decide by. `None`: no TCP segment, or one that is not taken.
#[inline(always)]
fn read<const TCP_AT: usize>(context: &TcContext) -> Option<Arrived> {
    packet::has(context, TCP_AT + TCP)?;
    let mut names = Names::default();
    let total = if TCP_AT == AFTER_V4 {
        let fragment = u16::from_be(packet::read(context, ETHERNET + 6)?);
        if packet::read::<u8>(context, ETHERNET)? != VERSION_AND_LENGTH
            || packet::read::<u8>(context, ETHERNET + 9)? != IPPROTO_TCP
            || fragment & FRAGMENT != 0
        {
            return None;
        }
        names.source[0] = packet::read(context, ETHERNET + 12)?;
        names.destination[0] = packet::read(context, ETHERNET + 16)?;
        names.family = IPV4;
        match u16::from_be(packet::read(context, ETHERNET + 2)?) {
            // BIG TCP.
            0 => context.len() - ETHERNET as u32,
            total => total.into(),
        }
    } else {
        if packet::read::<u8>(context, ETHERNET + 6)? != IPPROTO_TCP {
            return None;
        }
        names.source = packet::read(context, ETHERNET + 8)?;
        names.destination = packet::read(context, ETHERNET + 24)?;
        names.family = IPV6;
        match u16::from_be(packet::read(context, ETHERNET + 4)?) {
            0 => context.len() - ETHERNET as u32,
            payload => u32::from(payload) + 40,
        }
    };
    names.source_port = packet::read(context, TCP_AT)?;
    names.destination_port = packet::read(context, TCP_AT + 2)?;
    let sequence = u32::from_be(packet::read(context, TCP_AT + 4)?);
    let acknowledgement = u32::from_be(packet::read(context, TCP_AT + 8)?);
    let control: u32 = packet::read(context, TCP_AT + 12)?;
    let word = u32::from_be(control);
    let header = (word >> 28) * 4;
    let headers = (TCP_AT - ETHERNET) as u32 + header;
    if header < TCP as u32 || total < headers {
        return None;
    }
    let segment = Segment {
        sequence,
        acknowledgement,
        flags: (word >> 16) as u8,
        window: word as u16,
        len: total - headers,
    };
    Some(Arrived { names, segment, header, control })
}

/// Notes what the keeper asks for before it arms a flow.
#[inline(always)]
fn note<const TCP_AT: usize>(context: &TcContext, arrived: &Arrived, x: &Direction) -> Option<()> {
    let Segment { flags, .. } = arrived.segment;
    flow::note_end(&x.passed_end, arrived.segment.end());
    let mut noted = 0;
    if flags & FIN != 0 {
        noted |= FIN_SEEN;
    }
    if flags & RST != 0 {
        noted |= RST_SEEN;
    }
    match packet::has(context, TCP_AT + arrived.header as usize) {
        Some(()) => {
            let (clock, is_odd) = options::clock(context, TCP_AT, arrived.header);
            if clock.known {
                flow::store(&x.timestamp, clock.value);
                flow::store(&x.timestamp_at, flow::now());
                noted |= TIMESTAMP_SEEN;
            }
            if is_odd {
                noted |= ODD_OPTIONS;
            }
        }
        None => noted |= ODD_OPTIONS,
    }
    flow::set(&x.flags, noted);
    Some(())
}

/// A SYN with the names of a flow. Once the flow is over it may be a new connection's, which is none of the program's; or the
/// flow's own first one, late, which nobody must answer.
#[inline(always)]
fn again<const TCP_AT: usize>(
    context: &TcContext,
    arrived: &Arrived,
    conn: &Conn,
    x: &Direction,
    y: &Direction,
) -> Option<i32> {
    let sides = [flow::side(x, y), flow::side(y, x)];
    if !over::is_over(&sides) {
        return None;
    }
    let flags = sides[0].flags;
    let clock = match packet::has(context, TCP_AT + arrived.header as usize) {
        Some(()) => options::clock(context, TCP_AT, arrived.header).0,
        None => Clock::default(),
    };
    let both = TIMESTAMP_SEEN | FIN_SEEN;
    let finished = Clock { known: flags & both == both, value: flow::load(&x.timestamp) };
    if segment::is_new(arrived.segment.sequence, clock, flow::load(&x.end), finished) {
        flow::close(&conn.gate, DEAD);
        return Some(PASS);
    }
    Some(DROP)
}

/// Decides over a segment of a flow that is on the wire, and does it.
#[inline(always)]
fn act<const TCP_AT: usize>(
    context: &TcContext,
    arrived: &Arrived,
    x: &Direction,
    y: &Direction,
    index: u32,
) -> Option<i32> {
    let segment = &arrived.segment;
    let (flags, other) = (flow::load(&x.flags), flow::load(&y.flags));
    let known = Known {
        own_acknowledged: x.own_acknowledged,
        own_received: x.own_received,
        other_end: flow::load(&y.end).wrapping_add(y.add_sequence),
        other_acknowledged: flow::load(&y.acknowledged).wrapping_add(y.add_acknowledgement),
        acknowledged: flags & OWN_ACKNOWLEDGED != 0,
        other_has: other & OWN_ACKNOWLEDGED != 0,
        shift_in: (x.window_shift_in & 15) as u32,
        shift_out: (x.window_shift_out & 15) as u32,
    };
    let outcome = segment::fate(segment, &known);
    if outcome.acknowledged && !known.acknowledged {
        flow::set(&x.flags, OWN_ACKNOWLEDGED);
        // Read after it was set: of two that do this at once, one at least sees both.
        if flow::load(&y.flags) & OWN_ACKNOWLEDGED != 0 {
            // An error means that it is full.
            let _ = WIRE_EVENTS.output::<Event>(&Event { index, padding: 0 }, 0);
        }
    }
    let (acknowledgement, window) = match outcome.fate {
        Fate::Drop => return Some(DROP),
        Fate::Pass { sequence } => return pass::<TCP_AT>(context, segment.sequence, sequence),
        Fate::Translate { acknowledgement, window } => (acknowledgement, window),
    };
    // It goes round and round between two of the kind.
    let hops_at = if TCP_AT == AFTER_V4 { ETHERNET + 8 } else { ETHERNET + 7 };
    if packet::read::<u8>(context, hops_at)? <= 1 {
        return Some(DROP);
    }
    let ends = book(segment, &known, x, y);
    rewrite::<TCP_AT>(context, arrived, x, acknowledgement, window, ends)
}

/// Lets setu's socket have a segment, with a sequence number that it takes.
#[inline(always)]
fn pass<const TCP_AT: usize>(context: &TcContext, old: u32, new: u32) -> Option<i32> {
    let (old, new) = (old.to_be(), new.to_be());
    packet::write(context, TCP_AT + 4, new)?;
    let mut difference = Difference::default();
    difference.replace(old, new);
    replace_checksum::<TCP_AT>(context, difference.sum(), 0);
    Some(PASS)
}

/// Keeps account of what X sends. Returns whether its stream ends with this segment.
#[inline(always)]
fn book(segment: &Segment, known: &Known, x: &Direction, y: &Direction) -> bool {
    let (acknowledged, end) = (flow::load(&x.acknowledged), flow::load(&x.end));
    let progress = segment::progress(segment, known, acknowledged, end);
    if progress.acknowledged != acknowledged {
        flow::advance(&x.acknowledged, progress.acknowledged);
        flow::store(&x.moved, flow::now());
    }
    if progress.end != end {
        flow::advance(&x.end, progress.end);
    }
    let is_reset_anew = progress.reset && flow::load(&x.flags) & RST_SEEN == 0;
    if progress.is_believed && segment.flags & RST == 0 {
        flow::unset(&x.flags, RST_SEEN);
    }
    let mut seen = 0;
    // One that Y has acknowledged is X's own.
    if progress.finished && !flow::side(x, y).has_finished() {
        flow::store(&x.finish, segment.end());
        seen |= FIN_SEEN;
        if flow::load(&y.flags) & FIN_SEEN == 0 {
            seen |= FIN_FIRST;
        }
    }
    if progress.reset {
        seen |= RST_SEEN;
    }
    if seen != 0 {
        flow::set(&x.flags, seen);
    }
    if progress.is_believed || is_reset_anew {
        flow::store(&x.last, flow::now());
    }
    atomic::add(&x.bytes, segment.len.into());
    progress.finished
}

/// Makes the segment one of leg y, and sends it to Y.
#[inline(always)]
fn rewrite<const TCP_AT: usize>(
    context: &TcContext,
    arrived: &Arrived,
    x: &Direction,
    acknowledgement: u32,
    window: u16,
    ends: bool,
) -> Option<i32> {
    let Arrived { names, segment, header, control } = arrived;
    // The stack would answer what it has no socket for with a reset.
    if packet::has(context, TCP_AT + *header as usize).is_none() {
        return Some(DROP);
    }
    let is_clearing = x.options & CLEAR_ECN != 0;
    let additions =
        Additions { timestamp: x.add_timestamp, echo: x.add_echo, acknowledgement: x.add_acknowledgement };
    if ends {
        let (clock, _) = options::clock(context, TCP_AT, *header);
        if clock.known {
            flow::store(&x.timestamp, clock.value);
            flow::set(&x.flags, TIMESTAMP_SEEN);
        }
    }
    let mut difference = options::rewrite(context, TCP_AT, *header, additions)?;

    let sequence = segment.sequence.wrapping_add(x.add_sequence).to_be();
    difference.replace(segment.sequence.to_be(), sequence);
    packet::write(context, TCP_AT + 4, sequence)?;
    if segment.flags & ACK != 0 {
        let acknowledgement = acknowledgement.wrapping_add(x.add_acknowledgement).to_be();
        difference.replace(segment.acknowledgement.to_be(), acknowledgement);
        packet::write(context, TCP_AT + 8, acknowledgement)?;
    }
    let mut word = u32::from_be(*control) & 0xffff_0000 | u32::from(window);
    if is_clearing {
        word &= !(u32::from(ECN) << 16);
    }
    difference.replace(*control, word.to_be());
    packet::write(context, TCP_AT + 12, word.to_be())?;
    difference.replace(names.source_port.into(), x.source_port.into());
    difference.replace(names.destination_port.into(), x.destination_port.into());
    packet::write(context, TCP_AT, x.source_port)?;
    packet::write(context, TCP_AT + 2, x.destination_port)?;

    if TCP_AT == AFTER_V4 {
        address_v4(context, names, x, is_clearing)?;
    } else {
        address_v6(context, x, is_clearing)?;
    }
    replace_checksum::<TCP_AT>(context, difference.sum(), x.address_difference);
    // SAFETY: without parameters the kernel asks its own tables for the next hop.
    let verdict = unsafe { bpf_redirect_neigh(flow::load(&x.out_device), core::ptr::null_mut(), 0, 0) };
    Some(verdict as i32)
}

#[inline(always)]
fn address_v4(context: &TcContext, names: &Names, x: &Direction, is_clearing: bool) -> Option<()> {
    let mut difference = Difference::default();
    let life: u16 = packet::read(context, ETHERNET + 8)?;
    let [left, protocol] = life.to_ne_bytes();
    let new = u16::from_ne_bytes([left.wrapping_sub(1), protocol]);
    difference.replace(life.into(), new.into());
    packet::write(context, ETHERNET + 8, new)?;
    if is_clearing {
        let old: u16 = packet::read(context, ETHERNET)?;
        let [version, service] = old.to_ne_bytes();
        let new = u16::from_ne_bytes([version, service & !3]);
        difference.replace(old.into(), new.into());
        packet::write(context, ETHERNET, new)?;
    }
    difference.replace(names.source[0], x.source[0]);
    difference.replace(names.destination[0], x.destination[0]);
    packet::write(context, ETHERNET + 12, x.source[0])?;
    packet::write(context, ETHERNET + 16, x.destination[0])?;
    let checksum: u16 = packet::read(context, ETHERNET + 10)?;
    packet::write(context, ETHERNET + 10, difference.apply(checksum))
}

#[inline(always)]
fn address_v6(context: &TcContext, x: &Direction, is_clearing: bool) -> Option<()> {
    let left: u8 = packet::read(context, ETHERNET + 7)?;
    packet::write(context, ETHERNET + 7, left.wrapping_sub(1))?;
    if is_clearing {
        // The traffic class lies across two bytes.
        let low: u8 = packet::read(context, ETHERNET + 1)?;
        packet::write(context, ETHERNET + 1, low & !0x30)?;
    }
    packet::write(context, ETHERNET + 8, x.source)?;
    packet::write(context, ETHERNET + 24, x.destination)
}

/// Corrects TCP's checksum, whatever the device made of it: by the words that have changed, and by the addresses, which it
/// covers without holding them.
#[inline(always)]
fn replace_checksum<const TCP_AT: usize>(context: &TcContext, words: u32, addresses: u32) {
    let at = (TCP_AT + 16) as u32;
    // SAFETY: the context is valid; the place is within the packet, or the helper refuses.
    unsafe {
        bpf_l4_csum_replace(context.skb.skb, at, 0, words.into(), 0);
        if addresses != 0 {
            bpf_l4_csum_replace(context.skb.skb, at, 0, addresses.into(), BPF_F_PSEUDO_HDR);
        }
    }
}
