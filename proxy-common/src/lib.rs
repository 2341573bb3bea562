//! What the eBPF program and the controller must agree on.
//!
//! The crate is `no_std` so that the verdict program can use it; the controller adds the feature `user` for
//! `aya::Pod`. Nothing here does I/O: the arithmetic of [`credit`] is tested on the host, where property tests can
//! reach every interleaving that the kernel shows only under load.
#![cfg_attr(not(test), no_std)]

pub mod credit;
pub mod direction;
pub mod names;
pub mod wire;
