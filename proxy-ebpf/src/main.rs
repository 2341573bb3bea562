//! setu's data path in the kernel: one `SK_SKB` stream verdict program over a sockhash.
//!
//! [`forward`] decides for each segment that arrives on a socket of a flow: redirect it to the other leg, or pass it
//! to userspace because the other leg cannot take it now. Why and how much is in [`proxy_common::credit`]. [`deafen`] is
//! for the moment in which a socket leaves the sockhash.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod backpressure;
mod maps;
mod overlap;
mod redirect;

use aya_ebpf::{
    bindings::sk_action::SK_PASS,
    macros::{socket_filter, stream_verdict},
    programs::SkBuffContext,
};

/// `bpf_skc_to_tcp_sock` and `bpf_probe_read_kernel` ask for a GPL-compatible licence; `license_is_gpl_compatible`
/// (include/linux/license.h) takes this one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verdict over one segment. `SK_PASS` is the safe answer: the bytes stay with their socket.
#[stream_verdict]
pub fn forward(context: SkBuffContext) -> u32 {
    redirect::verdict(&context).unwrap_or(SK_PASS)
}

/// Flags of the TCP header, and where they are in it.
const FIN: u8 = 0x01;
const FLAGS_AT: usize = 13;

/// Drops the bytes of the stream that arrive on the socket that this filter is attached to, before TCP sees them, as a network
/// would: their sender sends them again. Acknowledgements and resets are heard: the kernel keeps the header of what it cuts
/// (`tcp_filter`, net/ipv4/tcp_ipv4.c; `sk_filter_trim_cap`, net/core/filter.c). A FIN without the bytes before it would be taken
/// for the end.
#[socket_filter]
pub fn deafen(context: SkBuffContext) -> i64 {
    match context.load::<u8>(FLAGS_AT) {
        Ok(flags) if flags & FIN == 0 => 1,
        _ => 0,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
