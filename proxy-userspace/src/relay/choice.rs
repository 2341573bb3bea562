//! Which flow goes where.
//!
//! Every flow begins in userspace. Two facts decide whether the kernel is the better place:
//!
//! - an idle flow costs a task, a timer and their memory here, and nothing there; a message costs about the same;
//! - a stream costs less here, by splice(2): in the kernel every segment goes through a worker thread of it
//!   (`sk_psock_backlog`, net/core/skmsg.c), and there is no backpressure.
//!
//! A third decides before both: on the wire a flow costs nothing here, whatever it does. So it is offered there first, where
//! there is one, and what follows is for flows that the wire refuses.
//!
//! With `relay.path = "auto"` a flow that is *quiet* for a while goes to the kernel, and one that turns out to stream
//! leaves it, before anything is congested. With `"sockmap"` a flow goes as early as is safe, and leaves when a reader
//! cannot keep up. Safe is only a moment of quiet: nothing of either stream is in userspace or in a receive queue, for a
//! segment of which a part was read already would be forwarded whole.
//!
//! Time is passed in, and nothing here does I/O. `docs/architecture.md` has the same rule in prose.

use std::time::Duration;

use super::{
    reason::{Refusal, Why},
    wire::WireRefusal,
};
use crate::config::PathChoice;

/// How long a flow must be quiet: a transfer over a long way, which begins with a few segments a round trip, moves more
/// than [`QUIET_RATE`] in its second round trip.
const QUIET: Duration = Duration::from_millis(500);
/// Each time that a flow leaves the kernel because it was no place for it, it must be quiet for twice as long before it
/// goes back, [`DOUBLINGS`] times at most.
const DOUBLINGS: u32 = 6;
/// A flow that was in the kernel for so long before it left begins anew to be judged.
pub(super) const SETTLED: Duration = Duration::from_secs(60);
/// Bytes a second, both ways together, that are still chat.
const QUIET_RATE: u64 = 32 * 1024;

/// Pieces of this mean size, bytes, are messages, not a stream, however many there are.
const MESSAGE: u64 = 1024;
/// So many messages a second, both ways together, pass only through a flow that has a worker for itself: then each wakes
/// a thread, which the kernel path saves. Flows that share a worker share its wake-ups, and are slower.
const BUSY_MESSAGES: u64 = 10_000;

/// Bytes in one direction since the controller looked last that make a flow in the kernel leave, if they are a stream.
/// More than bursts of messages, less than a destination's send buffer takes before anything is congested.
pub(super) const STREAM: u64 = 128 * 1024;
/// A flow of messages alone is asked about that less often.
pub(super) const STREAM_OF_MESSAGES: u64 = 16 * STREAM;

/// When a flow in userspace may go to the kernel, in a moment of quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandOver {
    /// It stays.
    Never,
    /// In the first such moment.
    AtOnce,
    /// After both legs have kept up with each other for so long.
    KeptUp(Duration),
    /// After so long with no more than chat.
    Quiet(Duration),
}

/// What was moved in a time.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Pace {
    /// Bytes, both ways together.
    pub(super) bytes: u64,
    /// Reads that brought them.
    pub(super) pieces: u64,
    /// A destination did not take all that there was.
    pub(super) fell_behind: bool,
}

impl Pace {
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            pieces: self.pieces + other.pieces,
            fell_behind: self.fell_behind || other.fell_behind,
        }
    }

    fn is_quiet(self, time: Duration) -> bool {
        let at = |rate: u64| rate.saturating_mul(time.as_millis() as u64) / 1000;
        let messages = self.bytes <= self.pieces * MESSAGE;
        self.bytes <= at(QUIET_RATE) || messages && self.pieces >= at(BUSY_MESSAGES)
    }
}

/// Whether bytes in segments are a stream, not messages.
pub(super) fn is_stream(bytes: u64, segments: u64) -> bool {
    bytes > segments * MESSAGE
}

impl HandOver {
    /// For a flow that no path has had before. `forced`: only to test the way in and out.
    pub(super) fn of_new(choice: PathChoice, forced: bool) -> Self {
        match choice {
            PathChoice::Userspace => Self::Never,
            _ if forced => Self::AtOnce,
            PathChoice::Sockmap => Self::AtOnce,
            PathChoice::Auto | PathChoice::Wire => Self::Quiet(QUIET),
        }
    }

    /// For a flow that the wire refuses: where packets cannot be translated bytes can be moved all the same, as they would
    /// be `without` it.
    pub(super) fn after_wire(refusal: WireRefusal, without: Self) -> Self {
        match refusal {
            WireRefusal::Finished => Self::Never,
            _ => without,
        }
    }

    /// For a flow that came back, the `times`-th time that the kernel was no place for it.
    pub(super) fn of_returned(choice: PathChoice, why: Why, times: u32) -> Self {
        let patience = QUIET * (1 << times.saturating_sub(1).min(DOUBLINGS));
        match (why, choice) {
            (Why::Recalled, _) => Self::AtOnce,
            (Why::Congested | Why::Streams, PathChoice::Auto | PathChoice::Wire) => Self::Quiet(patience),
            (Why::Congested | Why::Streams | Why::NotTaken(Refusal::Busy), _) => Self::KeptUp(patience),
            (Why::Finished(_) | Why::NotTaken(_), _) => Self::Never,
        }
    }

    /// How long to watch before it is decided, and how often to look anew.
    pub(super) fn period(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::AtOnce => Some(QUIET),
            Self::KeptUp(period) | Self::Quiet(period) => Some(period),
        }
    }

    /// Whether the next moment of quiet will do after this was moved in `time`.
    pub(super) fn is_due(self, pace: Pace, time: Duration) -> bool {
        match self {
            Self::Never => false,
            Self::AtOnce => true,
            Self::KeptUp(period) => time >= period && !pace.fell_behind,
            Self::Quiet(period) => time >= period && !pace.fell_behind && pace.is_quiet(time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Side;

    const SECOND: Duration = Duration::from_secs(1);
    const LESS: Duration = Duration::from_millis(499);

    fn pace(bytes: u64, pieces: u64) -> Pace {
        Pace { bytes, pieces, fell_behind: false }
    }

    #[test]
    fn auto_takes_what_is_quiet_for_long_enough() {
        let auto = HandOver::of_new(PathChoice::Auto, false);
        assert!(auto.is_due(pace(0, 0), SECOND));
        assert!(!auto.is_due(pace(0, 0), LESS), "not long enough");
        assert!(auto.is_due(pace(QUIET_RATE, 40), SECOND));
        assert!(!auto.is_due(pace(QUIET_RATE + 1, 40), SECOND));
        assert!(auto.is_due(pace(QUIET_RATE * 2, 40), SECOND * 2), "it is a rate");
        assert!(!auto.is_due(Pace { fell_behind: true, ..pace(10, 1) }, SECOND));
    }

    #[test]
    fn a_flow_that_has_a_worker_for_its_messages_is_taken() {
        let auto = HandOver::of_new(PathChoice::Auto, false);
        assert!(auto.is_due(pace(256 * 30_000, 30_000), SECOND));
        assert!(!auto.is_due(pace(256 * 4_000, 4_000), SECOND), "it shares one");
        assert!(!auto.is_due(pace(64 * 1024 * 30_000, 30_000), SECOND), "a stream");
    }

    #[test]
    fn who_left_waits_longer_and_longer() {
        let back = |times| HandOver::of_returned(PathChoice::Auto, Why::Streams, times).period().unwrap();
        assert_eq!((back(1), back(2), back(3)), (QUIET, QUIET * 2, QUIET * 4));
        assert_eq!(back(100), QUIET * 64);
        let sockmap = HandOver::of_returned(PathChoice::Sockmap, Why::Congested, 1);
        assert!(sockmap.is_due(pace(1 << 30, 1 << 14), SECOND), "at any rate, if both keep up");
        assert!(!sockmap.is_due(Pace { fell_behind: true, ..pace(1, 1) }, SECOND));
    }

    #[test]
    fn who_ends_or_is_refused_stays() {
        for why in [Why::Finished(Side::Client), Why::NotTaken(Refusal::MapFull)] {
            assert_eq!(HandOver::of_returned(PathChoice::Sockmap, why, 0), HandOver::Never);
        }
        assert_eq!(HandOver::of_new(PathChoice::Userspace, true), HandOver::Never);
        assert_eq!(HandOver::of_new(PathChoice::Sockmap, false), HandOver::AtOnce);
    }
}
