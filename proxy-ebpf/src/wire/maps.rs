//! Every map, with who writes it. Names are in `proxy_common::names::wire`.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use proxy_common::wire::layout::{Conn, Names, Noted, Place};

/// Both sides of each flow. Written by the keeper. Preallocated: an insertion cannot fail for want of memory. Never one that
/// drops what was not used for long: it would drop live flows.
#[map]
pub(crate) static FLOWS: HashMap<Names, Place> = HashMap::with_max_entries(1, 0);

/// Flows, shared with the keeper by mmap.
#[map]
pub(crate) static CONNS: Array<Conn> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What SYN-ACKs for setu's own ports said. Written by the program.
#[map]
pub(crate) static NOTED: Array<Noted> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Flows in which there is something to see. When it is full an entry is lost; the keeper looks at them by itself, too.
#[map]
pub(crate) static WIRE_EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// First port of `wire.ports`, and how many they are.
#[unsafe(no_mangle)]
pub(crate) static FIRST_PORT: Global<u32> = Global::new(0);

/// See [`FIRST_PORT`].
#[unsafe(no_mangle)]
pub(crate) static PORTS: Global<u32> = Global::new(0);
