//! Notes what upstreams say of the segments that they take: the kernel does not tell once it has clamped it.

use aya_ebpf::programs::TcContext;
use proxy_common::wire::{
    layout::sender_mark,
    options::{Options, Word},
};

use crate::{
    maps::{FIRST_PORT, NOTED, PORTS},
    packet,
};

/// What is taken where nothing is said (RFC 9293, section 3.7.1).
const DEFAULT: u16 = 536;

/// Notes a SYN with ACK, if it is for a port of setu's. The option is first in every stack's.
#[inline(always)]
pub(crate) fn note(
    context: &TcContext,
    tcp: usize,
    source: [u32; 4],
    ports: [u16; 2],
    header: u32,
) -> Option<()> {
    let index = u32::from(u16::from_be(ports[1])).wrapping_sub(FIRST_PORT.load());
    if index >= PORTS.load() {
        return None;
    }
    let mut size = DEFAULT;
    if header > packet::TCP as u32
        && let Word::SegmentSize(said) =
            Options::default().next(u32::from_be(packet::read(context, tcp + packet::TCP)?))
    {
        size = said;
    }
    let noted = NOTED.get_ptr_mut(index)?;
    let mark = sender_mark(source, ports[0]);
    // SAFETY: an element of the map; 8 aligned bytes are written whole.
    unsafe { noted.write_volatile(u64::from(mark) << 16 | u64::from(size)) };
    Some(())
}
