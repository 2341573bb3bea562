//! The only module that calls libc. What it exports is safe: it takes borrowed descriptors and returns values.
#![expect(unsafe_code, reason = "this module is the fence around libc")]

mod conns;
mod epoll;
mod filter;
mod fork;
mod memory;
mod packet;
mod process;
mod repair;
mod replace_file;
mod result;
pub(crate) mod sandbox;
pub(crate) mod seqpacket;
mod shared;
mod socket;
pub(crate) mod state_dir;
mod tcp_info;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod user;

pub(crate) use conns::{ConnRef, Constants, Seen};
pub(crate) use epoll::{Epoll, Event, EventFd, Interest};
pub(crate) use filter::{Instruction, MOST as FILTER_MOST, attach_filter, detach_filter};
pub(crate) use fork::{close_all_but, ignore_signals};
pub(crate) use memory::available_memory;
pub(crate) use packet::{open_icmp, open_icmpv6, open_packet, send_frame};
pub(crate) use process::{
    Forked, clock_is_kept, fork, inherited, leave_network, membarrier, monotonic_coarse_tick,
    raise_file_limit, random, trim_heap, wipe_stack,
};
pub(crate) use repair::{Numbers, close_silently, numbers, probe_window};
pub(crate) use replace_file::{Readers, replace_file};
pub(crate) use shared::{BudgetRef, DirectionRef, Shared};
pub(crate) use socket::{
    Pipe, acknowledge_now, bound_receive_buffer, cookie, discard, dropped, ends, held, held_received,
    is_clamped, lock_receive_buffer, peek, queued, receive, set_bind_address_no_port, set_receive_low_water,
    set_window_clamp, splice_in, splice_out, unacknowledged, unsent, window_clamp,
};
pub(crate) use tcp_info::{LegInfo, TcpInfo, leg_info, tcp_info};
