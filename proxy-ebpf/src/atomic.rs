//! Access to what the program and the controller share.
//!
//! Rust's BPF target declares no read-modify-write, and LLVM selects no instruction for an atomic load, although the
//! instruction set has had exchange and add since Linux 5.12 (`BPF_ATOMIC`, Documentation/bpf/standardization) and
//! any aligned access of 8 bytes is one access.

use core::{arch::asm, sync::atomic::AtomicU64};

/// Reads.
#[inline(always)]
pub(crate) fn load(from: &AtomicU64) -> u64 {
    // SAFETY: a valid, aligned address, which AtomicU64 allows to be written meanwhile.
    unsafe { from.as_ptr().read_volatile() }
}

/// Writes.
#[inline(always)]
pub(crate) fn store(to: &AtomicU64, value: u64) {
    // SAFETY: as in `load`.
    unsafe { to.as_ptr().write_volatile(value) };
}

/// Adds, wrapping.
#[inline(always)]
pub(crate) fn add(to: &AtomicU64, value: u64) {
    // SAFETY: the instruction writes 8 bytes at a valid, aligned address, which AtomicU64 allows to be shared.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to.as_ptr(), value = in(reg) value) };
}

/// Stores, and returns what was there.
#[inline(always)]
pub(crate) fn exchange(at: &AtomicU64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: as in `add`; the register receives the value that was there.
    unsafe {
        asm!("{value} = xchg_64({at} + 0, {value})", at = in(reg) at.as_ptr(), value = inout(reg) value)
    };
    value
}
