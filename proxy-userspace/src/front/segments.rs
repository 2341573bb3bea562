//! How long the segments are that clients are told to send (MSS).
//!
//! On the wire a client's segments go to its upstream as they are, and the client was told before it was known which
//! upstream that is. So listeners begin with `wire.mss`, and from the first upstream on that takes less they ask for no
//! more than that.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::SockRef;

use crate::config::Config;

/// Less is asked of no client, whatever an upstream takes: it is what every host takes (RFC 9293, section 3.7.1).
const LEAST: u32 = 536;

/// By listener of a configuration, bytes with options; 0 is whatever the way allows.
#[derive(Debug)]
pub(crate) struct Segments(Vec<AtomicU32>);

impl Segments {
    /// As the listeners of a configuration begin.
    pub(crate) fn new(config: &Config) -> Self {
        let first = if config.wire.is_on() { config.wire.mss.into() } else { 0 };
        Self(config.listeners.iter().map(|_| AtomicU32::new(first)).collect())
    }

    /// What clients of a listener are to be told.
    pub(crate) fn of(&self, listener: usize) -> u32 {
        self.0.get(listener).map_or(0, |segment| segment.load(Ordering::Relaxed))
    }

    /// An upstream of a listener's clients takes no more than this.
    pub(crate) fn lower(&self, listener: usize, taken: u32) {
        let Some(segment) = self.0.get(listener) else { return };
        let before = segment.fetch_min(taken.max(LEAST), Ordering::Relaxed);
        if taken < before {
            tracing::debug!(
                taken,
                before,
                "an upstream takes shorter segments, new clients are asked for no others"
            );
        }
    }
}

/// Tells those who connect to a socket from now on.
pub(crate) fn announce(socket: &impl AsFd, segment: u32) {
    if let Err(error) = SockRef::from(socket).set_tcp_mss(segment) {
        tracing::warn!(%error, segment, "clients cannot be told how long their segments may be");
    }
}
