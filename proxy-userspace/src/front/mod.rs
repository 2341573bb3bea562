//! The front door: who may come in, and what a client wants, found out from its first bytes.

pub(crate) mod http;
pub mod inspect;
pub mod limits;
pub mod listener;
pub(crate) mod opening;
pub mod proxy_protocol;
pub(crate) mod route;
pub(crate) mod segments;
mod source_filter;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
