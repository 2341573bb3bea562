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

/// Names of the wire path's object.
pub mod wire {
    /// Hash, [`crate::wire::layout::Names`] to [`crate::wire::layout::Place`]: both sides of each flow.
    pub const FLOWS: &str = "FLOWS";
    /// Memory-mapped array of [`crate::wire::layout::Conn`].
    pub const CONNS: &str = "CONNS";
    /// Memory-mapped array of [`crate::wire::layout::Noted`], an element for each port of `wire.ports`.
    pub const NOTED: &str = "NOTED";
    /// Ring buffer of [`crate::wire::layout::Event`].
    pub const WIRE_EVENTS: &str = "WIRE_EVENTS";

    /// The program at tc ingress.
    pub const TRANSLATE: &str = "translate";

    /// Global `u32`: first port of `wire.ports`, in host order.
    pub const FIRST_PORT: &str = "FIRST_PORT";
    /// Global `u32`: how many ports `wire.ports` are.
    pub const PORTS: &str = "PORTS";

    /// Every map of the object.
    pub const MAPS: [&str; 4] = [FLOWS, CONNS, NOTED, WIRE_EVENTS];
}
