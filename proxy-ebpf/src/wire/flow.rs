//! Access to a flow, which the keeper may read and write meanwhile.

use core::{arch::asm, sync::atomic::AtomicU64};

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use proxy_common::wire::{
    layout::{Conn, Direction, Names, TICK_SHIFT, Word},
    over::Side,
    sequence::after,
};

use crate::maps::{CONNS, FLOWS};

/// The flow that these names belong to, its index, and the side that a packet with them comes from.
#[inline(always)]
pub(crate) fn find(names: &Names) -> Option<(&'static Conn, u32, usize)> {
    // SAFETY: the value is an integer, which the keeper writes whole and changes never.
    let place = unsafe { *FLOWS.get(names)? };
    let index = place >> 1;
    Some((CONNS.get(index)?, index, (place & 1) as usize))
}

/// Reads.
#[inline(always)]
pub(crate) fn load(from: &Word) -> u32 {
    // SAFETY: a valid, aligned address, which Word allows to be written meanwhile.
    unsafe { from.as_ptr().read_volatile() }
}

/// Writes.
#[inline(always)]
pub(crate) fn store(to: &Word, value: u32) {
    // SAFETY: as in `load`.
    unsafe { to.as_ptr().write_volatile(value) };
}

/// What was noted of X.
#[inline(always)]
pub(crate) fn side(x: &Direction, y: &Direction) -> Side {
    Side {
        flags: load(&x.flags),
        finish: load(&x.finish),
        other_acknowledged: load(&y.acknowledged).wrapping_add(y.add_acknowledgement),
    }
}

/// How often [`advance`] tries before it lets others have their way: packets of one direction on more processors at once
/// are few.
const TRIES: u32 = 16;

/// Stores a sequence number, unless a later one is there: packets of one direction may arrive on two processors at once, and
/// none may take back what another has noted.
#[inline(always)]
pub(crate) fn advance(to: &Word, value: u32) {
    let there = load(to);
    advance_from(to, there, value);
}

/// The same, where 0 stands for none. 0 itself is noted as 1: so the keeper waits for the next packet.
#[inline(always)]
pub(crate) fn note_end(to: &Word, end: u32) {
    let end = if end == 0 { 1 } else { end };
    let there = match compare_exchange(to, 0, end) {
        0 => return,
        there => there,
    };
    advance_from(to, there, end);
}

#[inline(always)]
fn advance_from(to: &Word, mut there: u32, value: u32) {
    for _ in 0..TRIES {
        if after(value, there) <= 0 {
            return;
        }
        let before = compare_exchange(to, there, value);
        if before == there {
            return;
        }
        there = before;
    }
}

/// Stores a number where `expected` is, and returns what was there.
#[inline(always)]
fn compare_exchange(at: &Word, expected: u32, value: u32) -> u32 {
    let mut was = expected;
    // SAFETY: the instruction writes 4 bytes at a valid, aligned address, which Word allows to be shared; it compares with w0,
    // which receives what was there.
    unsafe {
        asm!("w0 = cmpxchg32_32({at} + 0, w0, {value})", at = in(reg) at.as_ptr(), value = in(wreg) value, inout("w0") was)
    };
    was
}

/// Sets bits.
#[inline(always)]
pub(crate) fn set(flags: &Word, bits: u32) {
    if load(flags) & bits == bits {
        return;
    }
    // SAFETY: the instruction writes 4 bytes at a valid, aligned address, which Word allows to be shared.
    unsafe { asm!("lock *(u32 *)({to} + 0) |= {bits}", to = in(reg) flags.as_ptr(), bits = in(wreg) bits) };
}

/// Takes bits back.
#[inline(always)]
pub(crate) fn unset(flags: &Word, bits: u32) {
    if load(flags) & bits == 0 {
        return;
    }
    // SAFETY: as in `set`.
    unsafe { asm!("lock *(u32 *)({to} + 0) &= {rest}", to = in(reg) flags.as_ptr(), rest = in(wreg) !bits) };
}

/// Sets bits of the gate.
#[inline(always)]
pub(crate) fn close(gate: &AtomicU64, bits: u64) {
    // SAFETY: as in `set`, with 8 bytes.
    unsafe { asm!("lock *(u64 *)({to} + 0) |= {bits}", to = in(reg) gate.as_ptr(), bits = in(reg) bits) };
}

/// Counts a packet that passes, and returns what the gate was.
#[inline(always)]
pub(crate) fn count(gate: &AtomicU64) -> u64 {
    let mut value = 1_u64;
    // SAFETY: as in `close`; the register receives what was there.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({at} + 0), {value})", at = in(reg) gate.as_ptr(), value = inout(reg) value)
    };
    value
}

/// Ticks since the machine started, never 0.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper takes nothing.
    let tick = unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT;
    tick as u32 | (tick as u32 == 0) as u32
}
