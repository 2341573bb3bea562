//! A packet's headers, in place.

use aya_ebpf::programs::TcContext;

/// The Ethernet header, bytes.
pub(crate) const ETHERNET: usize = 14;
/// TCP's header without options, bytes.
pub(crate) const TCP: usize = 20;
/// Where TCP begins behind an IPv4 header without options, and behind an IPv6 header.
pub(crate) const AFTER_V4: usize = ETHERNET + 20;
/// See [`AFTER_V4`].
pub(crate) const AFTER_V6: usize = ETHERNET + 40;
/// The longest headers that there can be: IPv6 and 40 bytes of options.
const LONGEST: u32 = (AFTER_V6 + TCP + 40) as u32;

/// Words of options at most.
pub(crate) const OPTION_WORDS: usize = 10;

/// Where the packet begins, and where what can be read in place ends. Read each time anew: kept from one branch to another
/// the compiler takes them for what the context's fields are, numbers of 32 bits, and the verifier does not take such a
/// number for an address.
#[inline(always)]
fn bounds(context: &TcContext) -> (usize, usize) {
    let skb = context.skb.skb;
    // SAFETY: the context is the kernel's, and valid.
    unsafe {
        (
            (&raw const (*skb).data).read_volatile() as usize,
            (&raw const (*skb).data_end).read_volatile() as usize,
        )
    }
}

/// Whether so many bytes can be read in place.
#[inline(always)]
fn holds(context: &TcContext, len: usize) -> bool {
    let (start, end) = bounds(context);
    start + len <= end
}

/// Where a field of the packet is, if the packet is that long.
#[inline(always)]
fn at<T>(context: &TcContext, offset: usize) -> Option<*mut T> {
    let (start, end) = bounds(context);
    let start = start + offset;
    if start + size_of::<T>() > end { None } else { Some(start as *mut T) }
}

/// Reads a field.
#[inline(always)]
pub(crate) fn read<T: Copy>(context: &TcContext, offset: usize) -> Option<T> {
    // SAFETY: within the packet, as `at` has compared; any bits are a value of the integers that this is used for.
    Some(unsafe { at::<T>(context, offset)?.read_unaligned() })
}

/// Writes a field.
#[inline(always)]
pub(crate) fn write<T>(context: &TcContext, offset: usize, value: T) -> Option<()> {
    // SAFETY: within the packet, as `at` has compared.
    unsafe { at::<T>(context, offset)?.write_unaligned(value) };
    Some(())
}

/// Makes so many bytes readable in place, if the packet has them.
#[inline(always)]
pub(crate) fn has(context: &TcContext, len: usize) -> Option<()> {
    if !holds(context, len) {
        let whole = context.len();
        context.pull_data(if whole < LONGEST { whole } else { LONGEST }).ok()?;
        if !holds(context, len) {
            return None;
        }
    }
    Some(())
}
