//! Every map, with who writes it and how long its entries live. Names are in `proxy_common::names`.
//!
//! All are created at load and die with the controller: nothing is pinned. Entries are inserted and removed by the
//! controller through syscalls; from a program, sockmap updates deadlock on some kernels.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, RingBuf, SockHash},
};
use proxy_common::direction::{Budget, Direction};

/// Both legs of each flow, by their own socket cookie. An entry lives from hand-over to withdrawal, or until the
/// kernel removes it because the socket closed (`sock_map_unhash`, net/core/sock_map.c).
#[map]
pub(crate) static SOCKETS: SockHash<u64> = SockHash::with_max_entries(1, 0);

/// Index into [`DIRECTIONS`] by the cookie of the source socket. Written before the socket enters [`SOCKETS`],
/// removed after it left.
#[map]
pub(crate) static SOURCES: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

/// State of each direction, shared with the controller by mmap.
#[map]
pub(crate) static DIRECTIONS: Array<Direction> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The bound over all directions. `total` is written by the controller at load.
#[map]
pub(crate) static BUDGET: Array<Budget> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Directions in which there is something to see. When it is full an entry is lost; the controller's sweep finds the direction.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Offset of `sk_sndbuf` in `struct sock`, from the running kernel's BTF.
#[unsafe(no_mangle)]
pub(crate) static SNDBUF_OFFSET: Global<u32> = Global::new(0);

/// Offset of `bytes_acked` in `struct tcp_sock`, from the running kernel's BTF.
#[unsafe(no_mangle)]
pub(crate) static ACKED_OFFSET: Global<u32> = Global::new(0);

/// Offset of `copied_seq` in `struct tcp_sock`, from the running kernel's BTF.
#[unsafe(no_mangle)]
pub(crate) static COPIED_OFFSET: Global<u32> = Global::new(0);

/// Offset of `cb` in `struct sk_buff` and of `seq` in `struct tcp_skb_cb` together, from the running kernel's BTF.
#[unsafe(no_mangle)]
pub(crate) static SEQUENCE_OFFSET: Global<u32> = Global::new(0);
