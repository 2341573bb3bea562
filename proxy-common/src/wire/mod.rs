//! The wire path: what its program and its keeper share, and how a packet of one connection becomes one of the other.
//!
//! A flow on the wire is two TCP connections whose ends talk to each other through a program at tc ingress, which
//! rewrites each packet. Words that all of this uses: *X* is the side that a packet comes from, *Y* the other one; *own
//! bytes* are bytes that setu's own socket sent to a side. Sequence numbers are reckoned modulo 2^32.

pub mod checksum;
pub mod layout;
pub mod options;
pub mod over;
pub mod segment;
pub mod sequence;

#[cfg(test)]
mod tests;
