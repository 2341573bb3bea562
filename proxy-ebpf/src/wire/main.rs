//! The wire's program: at tc ingress it makes of each packet of one connection one of the other, and sends it on.
//!
//! What is not a flow's passes untouched, with `TC_ACT_UNSPEC`, so that other programs see it. What becomes of a packet is
//! decided by [`proxy_common::wire`], which is tested on the host; here it is read from the packet and written into it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[allow(dead_code, reason = "sockmap's program, which shares it, needs more of it")]
#[path = "../atomic.rs"]
mod atomic;
mod flow;
mod maps;
mod options;
mod packet;
mod synack;
mod translate;

use aya_ebpf::{macros::classifier, programs::TcContext};

/// `bpf_redirect_neigh` asks for a GPL-compatible licence; `license_is_gpl_compatible` (include/linux/license.h) takes this
/// one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verdict over one packet. To pass it is the safe answer: the kernel's own TCP has it then.
#[classifier]
pub fn translate(context: TcContext) -> i32 {
    translate::verdict(&context).unwrap_or(translate::PASS)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
