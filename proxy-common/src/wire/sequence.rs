//! Arithmetic modulo 2^32: differences are signed.

/// How far `a` is after `b`; negative if it is before.
#[inline(always)]
#[must_use]
pub const fn after(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// The later of two.
#[inline(always)]
#[must_use]
pub const fn later(a: u32, b: u32) -> u32 {
    if after(a, b) > 0 { a } else { b }
}
