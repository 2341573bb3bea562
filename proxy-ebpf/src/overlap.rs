//! Trims what a segment repeats.
//!
//! A retransmitted segment may begin with bytes that have arrived before; TCP queues it whole (`tcp_data_queue`,
//! net/ipv4/tcp_input.c), and recv(2) skips what it has by the sequence number. `tcp_read_skb` (net/ipv4/tcp.c), which
//! feeds this program, does not: redirected as they are, such bytes arrive twice. Seen on Linux 6.18 about once in
//! 10 GB on loopback; on a network that loses acknowledgements it is common.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, bpf_skb_adjust_room, bpf_skc_to_tcp_sock},
    programs::SkBuffContext,
};
use proxy_common::direction::{Direction, SEQUENCE_KNOWN};

use crate::maps::{COPIED_OFFSET, SEQUENCE_OFFSET};

/// What the helper removes at once, bytes (`sk_skb_adjust_room`, net/core/filter.c).
const TRIM_MOST: u32 = 0xfff;
/// So many times it removes: more than a segment holds, which TCP merges to up to 17 fragments of 32 KiB
/// (`tcp_try_coalesce`, net/ipv4/tcp_input.c; `MAX_SKB_FRAGS`, `SKB_FRAG_PAGE_ORDER`).
const TRIMS: u32 = 140;

/// Removes from the segment's head what has arrived before, and returns what is left, bytes. It is 0 when only the FIN
/// is new. `None` means that it could not be removed, or that bytes before it are missing.
#[inline(always)]
pub(crate) fn trim(context: &SkBuffContext, direction: &mut Direction, len: u32) -> Option<u32> {
    let sequence = sequence(context)?;
    let next = if direction.next_sequence & SEQUENCE_KNOWN != 0 {
        direction.next_sequence as u32
    } else {
        copied_sequence(context)?
    };
    direction.next_sequence = u64::from(sequence.wrapping_add(len)) | SEQUENCE_KNOWN;
    // A segment beyond the next makes this larger than any segment.
    let repeated = next.wrapping_sub(sequence);
    if repeated == 0 {
        return Some(len);
    }
    // TCP queues one that is repeated wholly only for its FIN (`tcp_data_queue`, net/ipv4/tcp_input.c), which the sender
    // joined to bytes whose acknowledgement was lost (`tcp_collapse_retrans`, net/ipv4/tcp_output.c).
    if repeated > len {
        return None;
    }
    let mut left = repeated;
    for _ in 0..TRIMS {
        if left == 0 {
            break;
        }
        let piece = if left > TRIM_MOST { TRIM_MOST } else { left };
        // SAFETY: the context is the `__sk_buff` that the kernel gave to this program.
        if unsafe { bpf_skb_adjust_room(context.skb.skb, -(piece as i32), 0, 0) } != 0 {
            return None;
        }
        left -= piece;
    }
    if left == 0 { Some(len - repeated) } else { None }
}

/// Sequence number of the segment's first byte.
#[inline(always)]
fn sequence(context: &SkBuffContext) -> Option<u32> {
    let at = (context.skb.skb as u64).wrapping_add(u64::from(SEQUENCE_OFFSET.load()));
    // SAFETY: at run time the context of an SK_SKB program is the `struct sk_buff` itself (`sk_psock_verdict_recv`,
    // net/core/skmsg.c); the helper checks the address.
    unsafe { bpf_probe_read_kernel(at as *const u32) }.ok()
}

/// Sequence number of the first byte that nobody has taken yet.
#[inline(always)]
fn copied_sequence(context: &SkBuffContext) -> Option<u32> {
    // SAFETY: the context is valid; `sk` is the source socket, on which this program runs, so that it needs no
    // reference. Null is checked.
    unsafe {
        let socket = (*context.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let tcp = bpf_skc_to_tcp_sock(socket.cast::<c_void>());
        if tcp.is_null() {
            return None;
        }
        let at = tcp.cast::<u8>().cast_const().add(COPIED_OFFSET.load() as usize);
        bpf_probe_read_kernel(at.cast::<u32>()).ok()
    }
}
