//! The only module that calls libc. What it exports is safe: it takes borrowed descriptors and returns values.
#![expect(unsafe_code, reason = "this module is the fence around libc")]

mod epoll;
mod filter;
mod memory;
mod process;
mod replace_file;
mod result;
pub(crate) mod sandbox;
mod shared;
mod socket;
pub(crate) mod state_dir;
mod tcp_info;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod user;

pub(crate) use epoll::{Epoll, Event, EventFd, Interest};
pub(crate) use filter::{Instruction, MOST as FILTER_MOST, attach_filter, detach_filter};
pub(crate) use memory::available_memory;
pub(crate) use process::{clock_is_kept, inherited, raise_file_limit, random, trim_heap, wipe_stack};
pub(crate) use replace_file::{Readers, replace_file};
pub(crate) use shared::{BudgetRef, DirectionRef, Shared};
pub(crate) use socket::{
    Pipe, bound_receive_buffer, cookie, discard, dropped, held, lock_receive_buffer, peek, queued, receive,
    set_bind_address_no_port, set_receive_low_water, splice_in, splice_out, unacknowledged,
};
pub(crate) use tcp_info::{TcpInfo, tcp_info};
