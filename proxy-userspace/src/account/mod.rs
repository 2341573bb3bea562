//! The account of connections: whose each is, how its bytes move, why it ended, and what is counted.
//!
//! Nothing here knows who keeps an account, or who reads the sums.

mod client;
mod close_reason;
mod counters;
mod errno;
mod leg;
mod ticket;
mod usage;

pub use client::{ClientAddr, ShownClient, forget_copies};
pub use close_reason::{Class, CloseReason};
pub(crate) use counters::Meter;
pub use counters::{Counters, ListenerCounts};
pub(crate) use errno::{lacks_a_route, lacks_a_source, lacks_family, out_of_resources, rank};
pub use leg::Path;
pub(crate) use leg::Side;
pub(crate) use ticket::{Occupied, Ticket};
pub use usage::Purpose;
pub(crate) use usage::Usage;
