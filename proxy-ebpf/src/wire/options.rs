//! A segment's options. The verifier goes through these functions by themselves, once, and knows of their callers nothing but
//! that they pass numbers: within the program it would go through each word anew for every way that leads there.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use proxy_common::wire::{
    checksum::Difference,
    options::{Additions, Options, Word},
    segment::Clock,
};

use crate::packet::{self, OPTION_WORDS, TCP};

/// What [`scan`] found, above a TSval.
const KNOWN: u64 = 1 << 32;
/// See [`KNOWN`].
const ODD: u64 = 1 << 33;
/// What [`translate_options`] answers where the packet cannot be read; no sum is as high.
const UNREADABLE: u64 = 1 << 63;
/// Headers end before this: what the verifier is to know of a word's place.
const WITHIN: u32 = 127;

/// Goes through the options of a segment.
macro_rules! each_option {
    ($context:ident, $tcp:ident, $header:ident, $unreadable:ident, |$offset:ident, $raw:ident, $word:ident| $body:block) => {
        let mut options = Options::default();
        for index in 0..OPTION_WORDS {
            let $offset = ($tcp.wrapping_add((TCP + index * 4) as u32) & WITHIN) as usize;
            if (TCP + index * 4) as u32 >= $header {
                break;
            }
            let Some($raw) = packet::read::<u32>(&$context, $offset) else { return $unreadable };
            let $word = options.next(u32::from_be($raw));
            $body
        }
    };
}

/// X's clock, as the options of a segment have it, and whether they are laid out as they can be rewritten. They can be read in
/// place.
#[inline(always)]
pub(crate) fn clock(context: &TcContext, tcp: usize, header: u32) -> (Clock, bool) {
    let found = scan(context.skb.skb, tcp as u32, header);
    (Clock { known: found & KNOWN != 0, value: found as u32 }, found & ODD != 0)
}

/// Rewrites the options of a segment in place, and returns by what the checksum differs. `None`: they cannot be read.
#[inline(always)]
pub(crate) fn rewrite(
    context: &TcContext,
    tcp: usize,
    header: u32,
    additions: Additions,
) -> Option<Difference> {
    let Additions { timestamp, echo, acknowledgement } = additions;
    let place = tcp as u32 | header << 8;
    let sum = translate_options(context.skb.skb, place, timestamp, echo, acknowledgement);
    if sum & UNREADABLE != 0 { None } else { Some(Difference(sum)) }
}

/// See [`clock`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scan(skb: *mut __sk_buff, tcp: u32, header: u32) -> u64 {
    let context = TcContext::new(skb);
    let mut found = 0;
    each_option!(context, tcp, header, ODD, |_offset, raw, word| {
        match word {
            Word::Value => found |= KNOWN | u64::from(u32::from_be(raw)),
            Word::Odd => found |= ODD,
            _ => {}
        }
    });
    found
}

/// See [`rewrite`]. `place`: where TCP begins, and eight bits higher the length of its header.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate_options(
    skb: *mut __sk_buff,
    place: u32,
    timestamp: u32,
    echo: u32,
    acknowledgement: u32,
) -> u64 {
    let context = TcContext::new(skb);
    let additions = Additions { timestamp, echo, acknowledgement };
    let header = place >> 8;
    let mut difference = Difference::default();
    each_option!(context, place, header, UNREADABLE, |offset, raw, word| {
        let new = word.rewrite(u32::from_be(raw), additions).to_be();
        if new != raw {
            if packet::write(&context, offset, new).is_none() {
                return UNREADABLE;
            }
            difference.replace(raw, new);
        }
    });
    difference.0
}
