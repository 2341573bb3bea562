//! Looks at the destination when a direction's credit is spent.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_probe_read_kernel, bpf_sk_release, bpf_skc_to_tcp_sock};
use proxy_common::{
    credit::View,
    direction::{Budget, Direction},
};

use crate::{
    atomic,
    maps::{ACKED_OFFSET, BUDGET, SNDBUF_OFFSET, SOCKETS},
};

/// Whether a segment of `len` bytes may be redirected now. What cannot be found out counts as no.
#[inline(always)]
pub(crate) fn admit(direction: &mut Direction, len: u64) -> bool {
    let Some((acked, sndbuf)) = destination(direction.destination) else {
        return false;
    };
    let Some(budget) = BUDGET.get(0) else { return false };
    let others = atomic::load(&budget.reserved).saturating_sub(atomic::load(&direction.reserved));
    let view = View {
        acked,
        base: direction.base_acked,
        sndbuf,
        most: atomic::load(&budget.direction),
        free: atomic::load(&budget.total).saturating_sub(others),
    };
    let answer = direction.window.refresh(len, view);
    reserve(budget, direction, answer.reserve);
    answer.admit
}

/// Moves the direction's part of the budget to `bytes`.
#[inline(always)]
fn reserve(budget: &Budget, direction: &Direction, bytes: u64) {
    let before = atomic::exchange(&direction.reserved, bytes);
    atomic::add(&budget.reserved, bytes.wrapping_sub(before));
}

/// The destination's acknowledged bytes and send buffer size.
#[inline(always)]
fn destination(cookie: u64) -> Option<(u64, u64)> {
    // SAFETY: SOCKETS is a map whose key is a u64; a lookup in a sockhash returns a referenced socket or null
    // (`sock_hash_lookup`, net/core/sock_map.c), released below on every way out.
    unsafe {
        let socket = bpf_map_lookup_elem(
            core::ptr::from_ref(&SOCKETS).cast_mut().cast(),
            core::ptr::from_ref(&cookie).cast::<c_void>(),
        );
        if socket.is_null() {
            return None;
        }
        let tcp = bpf_skc_to_tcp_sock(socket);
        let seen = if tcp.is_null() {
            None
        } else {
            let base = tcp.cast::<u8>().cast_const();
            let acked = bpf_probe_read_kernel(base.add(ACKED_OFFSET.load() as usize).cast::<u64>());
            let sndbuf = bpf_probe_read_kernel(base.add(SNDBUF_OFFSET.load() as usize).cast::<u32>());
            match (acked, sndbuf) {
                (Ok(acked), Ok(sndbuf)) => Some((acked, u64::from(sndbuf))),
                _ => None,
            }
        };
        bpf_sk_release(socket);
        seen
    }
}
