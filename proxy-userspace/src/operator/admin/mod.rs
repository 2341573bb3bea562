//! The operator's window: is setu working, and what does it do? Served over HTTP on an address of its own, which by
//! default only this machine reaches.
//!
//! Everything shown is made of one [`Status`], gathered when it is asked for, so that page, metrics and JSON cannot
//! disagree. None of it can hold a client's address: nothing that is counted knows one.

mod fetch;
mod history;
mod instance;
mod openmetrics;
mod page;
mod readiness;
mod server;
mod share;
mod status;

pub(crate) use fetch::reachable;
pub use fetch::{FetchError, fetch};
pub use history::{Counts, Month, Sample, Span};
pub(crate) use instance::{Instance, fingerprint};
pub use page::{View, page};
pub(crate) use server::Sockets;
pub use status::{
    Bytes, Certificate, Endpoint, Kernel, Limits, Listener, Process, Refused, Reload, Standing, State,
    Status, Wire,
};
