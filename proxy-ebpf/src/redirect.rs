//! The verdict: its order is what keeps bytes in order.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::bpf_get_socket_cookie,
    programs::SkBuffContext,
};
use aya_log_ebpf::info;
use proxy_common::direction::{Direction, Notice};

use crate::{
    atomic, backpressure,
    maps::{DIRECTIONS, EVENTS, SOCKETS, SOURCES},
    overlap,
};

/// Decides over one segment. `None` means that no flow is known for its socket.
#[inline(always)]
pub(crate) fn verdict(context: &SkBuffContext) -> Option<u32> {
    if context.len() == 0 {
        // A segment with nothing but FIN. Redirected, it would set EPIPE on the destination
        // (`sk_psock_handle_skb` sends 0 bytes, net/core/skmsg.c); userspace forwards the FIN.
        return Some(SK_DROP);
    }
    // SAFETY: the context is the `__sk_buff` that the kernel gave to this program.
    let cookie = unsafe { bpf_get_socket_cookie(context.skb.skb.cast()) };
    // SAFETY: entries are removed only after their socket left SOCKETS, and the value is copied.
    let index = unsafe { SOURCES.get(&cookie) }.copied()?;
    let direction = DIRECTIONS.get_ptr_mut(index)?;
    // SAFETY: the pointer comes from a lookup of this run, so it is valid; the program runs under the lock of the
    // source socket, so it is the only writer of `window`, and what others write is atomic.
    let direction = unsafe { &mut *direction };

    if atomic::load(&direction.broken) != 0 {
        // What came before is missing: nothing may follow it.
        return Some(SK_DROP);
    }
    let Some(len) = overlap::trim(context, direction, context.len()) else {
        // Neither redirecting nor passing it would be right: what is passed counts as read (`tcp_bpf_recvmsg_parser`,
        // net/ipv4/tcp_bpf.c), also what it repeats. The controller resets the flow.
        atomic::store(&direction.broken, 1);
        tell(index);
        return Some(SK_DROP);
    };
    if len == 0 {
        // Of a FIN there is nothing to redirect, as above. What is dropped counts as read (`tcp_eat_skb`,
        // net/ipv4/tcp_bpf.c); the segment is empty now.
        return Some(SK_DROP);
    }
    let len = u64::from(len);

    let closed = atomic::load(&direction.passed) != 0 || atomic::load(&direction.withdrawing) != 0;
    if closed || !(direction.window.spend(len) || backpressure::admit(direction, len)) {
        return Some(pass(context, direction, index, len));
    }
    let verdict = SOCKETS.redirect_skb(context, direction.destination, 0) as u32;
    if verdict == SK_PASS {
        direction.window.count(len);
        let stream_at = atomic::load(&direction.stream_at);
        if direction.window.redirected >= stream_at && direction.told_at != stream_at {
            direction.told_at = stream_at;
            tell(index);
        }
        Some(SK_PASS)
    } else {
        // The destination left the map. Nothing was changed yet (`bpf_sk_redirect_hash`, net/core/sock_map.c), so
        // the bytes need not be lost.
        Some(pass(context, direction, index, len))
    }
}

/// Leaves the segment with its socket, whose window closes by it, and calls the controller with the first one.
#[inline(always)]
fn pass(context: &SkBuffContext, direction: &mut Direction, index: u32, len: u64) -> u32 {
    let before = atomic::load(&direction.passed);
    atomic::store(&direction.passed, before + len);
    if before == 0 && atomic::load(&direction.withdrawing) == 0 {
        tell(index);
        info!(context, "direction {} congested", index);
    }
    SK_PASS
}

/// Calls the controller to the direction.
#[inline(always)]
fn tell(index: u32) {
    // Lost when the ring is full: the controller's sweep looks at each direction for that reason.
    let _ = EVENTS.output::<Notice>(Notice { direction: index, padding: 0 }, 0);
}
