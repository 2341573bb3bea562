//! Connects to WhatsApp. Nothing else in setu dials.
//!
//! A client's connection asks for an upstream ([`Upstreams::dial`]) and gets a stream to one of its endpoints: `pool`
//! says which, `dns` knows their addresses, `happy_eyeballs` connects to the first that answers, and `history` has those
//! that did not. What the upstream does wrong until then costs the client time, not the connection, as long as one
//! endpoint is well. Workers only read what is known of names and endpoints;
//! [`Background`] finds it out, on one runtime.

mod background;
mod destinations;
mod dns;
mod happy_eyeballs;
mod health;
mod history;
mod pool;
mod ports;
mod sources;
mod splice;
mod status;
mod upstreams;

pub(crate) use dns::{NameFailure, look_up};
pub(crate) use pool::Lease;
pub(crate) use ports::PortLease;
pub(crate) use sources::useless_sources;
pub(crate) use status::{EndpointStatus, Standing};
pub(crate) use upstreams::{Background, Examined, Upstreams};
