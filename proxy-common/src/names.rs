//! The names by which the controller finds maps, programs and globals in the eBPF object.
//!
//! A kernel map name holds 15 bytes (`BPF_OBJ_NAME_LEN`, include/uapi/linux/bpf.h). A test of the controller loads
//! the committed object and checks that each of these exists.

/// Sockhash, socket cookie to socket: both legs of each flow in the kernel.
pub const SOCKETS: &str = "SOCKETS";
/// Hash, cookie of a source socket to its index in [`DIRECTIONS`].
pub const SOURCES: &str = "SOURCES";
/// Memory-mapped array of [`crate::direction::Direction`].
pub const DIRECTIONS: &str = "DIRECTIONS";
/// Memory-mapped array of one [`crate::direction::Budget`].
pub const BUDGET: &str = "BUDGET";
/// Ring buffer of [`crate::direction::Notice`].
pub const EVENTS: &str = "EVENTS";

/// The stream verdict program.
pub const FORWARD: &str = "forward";
/// The socket filter that lets nothing through.
pub const DEAFEN: &str = "deafen";

/// Global `u32`: offset of `sk_sndbuf` in the kernel's `struct sock`, bytes.
pub const SNDBUF_OFFSET: &str = "SNDBUF_OFFSET";
/// Global `u32`: offset of `bytes_acked` in the kernel's `struct tcp_sock`, bytes.
pub const ACKED_OFFSET: &str = "ACKED_OFFSET";
/// Global `u32`: offset of `copied_seq` in the kernel's `struct tcp_sock`, bytes.
pub const COPIED_OFFSET: &str = "COPIED_OFFSET";
/// Global `u32`: offset of a TCP segment's sequence number in the kernel's `struct sk_buff`, bytes.
pub const SEQUENCE_OFFSET: &str = "SEQUENCE_OFFSET";

/// Every map of the object.
pub const MAPS: [&str; 5] = [SOCKETS, SOURCES, DIRECTIONS, BUDGET, EVENTS];
