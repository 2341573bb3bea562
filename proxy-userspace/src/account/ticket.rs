//! One connection's account, from accept to its end.

use std::{fmt, sync::Arc};

use super::{CloseReason, Counters, ListenerCounts, Path, Purpose, ShownClient, Side, Usage};

/// What a connection occupies until its end: its places among those that are limited.
pub(crate) trait Occupied: fmt::Debug + Send + Sync {
    /// The connection goes on without sockets of setu's.
    fn without_sockets(&mut self);
}

/// A connection's account. It is closed exactly once: [`Self::close`] consumes it, and losing it counts as a defect
/// unless setu stops.
#[derive(Debug)]
pub(crate) struct Ticket {
    counters: Arc<Counters>,
    listener: Arc<ListenerCounts>,
    /// How the connection's bytes move, or moved last.
    path: Path,
    /// Whether it is of use to somebody.
    usage: Usage,
    /// Whose it is, as far as logs may tell.
    pub(crate) client: ShownClient,
    /// What the connection occupies until its end.
    held: Option<Box<dyn Occupied>>,
    closed: bool,
}

impl Ticket {
    /// The account of a connection that `listener` accepted.
    pub(crate) fn new(counters: Arc<Counters>, listener: Arc<ListenerCounts>) -> Self {
        listener.enter();
        Self::of(counters, listener)
    }

    /// The account of a connection that a predecessor's `listener` accepted.
    pub(crate) fn adopted(counters: Arc<Counters>, listener: Arc<ListenerCounts>) -> Self {
        listener.go_on();
        Self::of(counters, listener)
    }

    fn of(counters: Arc<Counters>, listener: Arc<ListenerCounts>) -> Self {
        let client = ShownClient::default();
        let usage = Usage::of(None);
        Self { counters, listener, path: Path::None, usage, client, held: None, closed: false }
    }

    /// What is counted for all connections.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is counted for the listener.
    pub(crate) fn listener(&self) -> &ListenerCounts {
        &self.listener
    }

    /// Keeps what is to be dropped when the connection is over.
    pub(crate) fn hold(&mut self, held: impl Occupied + 'static) {
        self.held = Some(Box::new(held));
    }

    /// The connection's bytes move so from now on.
    pub(crate) fn set_path(&mut self, path: Path) {
        self.listener.change(self.path, path);
        self.path = path;
    }

    /// The connection goes on without sockets of setu's.
    pub(crate) fn without_sockets(&mut self) {
        if let Some(held) = &mut self.held {
            held.without_sockets();
        }
    }

    /// It is known what the connection is for; `None` where it serves none of WhatsApp's clients.
    pub(crate) fn set_purpose(&mut self, purpose: Option<Purpose>) {
        self.usage = Usage::of(purpose);
    }

    /// Bytes from this side were handed to the other, after all of which this was told before.
    pub(crate) fn moved(&mut self, from: Side, bytes: u64) {
        if let Some(purpose) = self.usage.moved(from, bytes) {
            self.listener.count_useful(purpose);
        }
    }

    /// As [`Self::moved`], for bytes that no path has counted.
    pub(crate) fn count_moved(&mut self, from: Side, bytes: u64) {
        self.counters.count_bytes(from, bytes);
        self.moved(from, bytes);
    }

    /// The end.
    pub(crate) fn close(mut self, reason: CloseReason) {
        self.count(reason);
    }

    /// The connection is a successor's from now on.
    pub(crate) fn hand_on(mut self) {
        self.closed = true;
        self.counters.count_handed_on();
        self.listener.leave(self.path);
    }

    fn count(&mut self, reason: CloseReason) {
        self.closed = true;
        self.counters.count_closed(reason);
        self.listener.leave(self.path);
        let client = self.client.text();
        tracing::debug!(%reason, path = %self.path, listener = %self.listener.name, client, "closed");
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.closed {
            let stopping = self.counters.is_stopping();
            self.count(if stopping { CloseReason::Shutdown } else { CloseReason::InternalError });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ticket_is_counted_once() {
        let counters = Arc::new(Counters::default());
        let listener = counters.listener("chat");
        let ticket = || Ticket::new(counters.clone(), listener.clone());
        ticket().close(CloseReason::Idle);
        drop(ticket());
        let mut moved = ticket();
        moved.set_path(Path::Sockmap);
        assert_eq!((listener.active(Path::None), listener.active(Path::Sockmap)), (0, 1));
        moved.close(CloseReason::Idle);
        assert_eq!(Path::ALL.map(|path| listener.active(path)), [0; 4]);
        assert_eq!(counters.closed(CloseReason::Idle), 2);
        assert_eq!(counters.closed(CloseReason::InternalError), 1);
        let total: u64 = CloseReason::ALL.iter().map(|reason| counters.closed(*reason)).sum();
        assert_eq!((total, listener.accepted()), (3, 3));
    }
}
