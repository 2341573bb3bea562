//! Flow control of one direction: how much the program may redirect ahead of the destination.
//!
//! sockmap has no backpressure of its own: `sk_psock_skb_redirect` (net/core/skmsg.c) queues without limit, charged
//! to nobody. So the program redirects only what the destination's send buffer can take at once. That keeps three
//! promises:
//!
//! - memory: what is queued is charged to a socket and bounded by its `sk_sndbuf`, and the sum over all directions by
//!   a budget;
//! - liveness: a destination's backlog drains by itself, so bytes that are *passed* on the same socket, which queue
//!   behind it (`sk_psock_verdict_apply`), never wait for the peer, and a flow can always leave the kernel;
//! - order: once bytes were passed the caller passes all that follow, until the flow has left the kernel.
//!
//! The arithmetic is here, apart from the program, so that property tests reach it.

/// Bytes charged for each redirected segment on top of its length: the memory of its `sk_buff` that a count of bytes
/// cannot see. Without it a peer that sends single bytes would cost hundreds of times its window.
pub const SEGMENT_COST: u64 = 256;

/// A direction may reserve one part in so many of what the others left of the budget. Dynamic thresholds (Choudhury
/// and Hahne, 1998): the pool is never exhausted, however many directions stall, and a new one always finds a share.
pub const SHARE: u64 = 4;

/// Of the destination's send buffer one part in so many stays free. The kernel charges a socket for the `sk_buff`s that
/// it builds (`sk_wmem_queued`; about 1.3 KiB for up to 64 KiB or 17 pieces), which [`SEGMENT_COST`] does not cover for
/// segments above 5 KiB. Without headroom the last redirected bytes may not fit: they then wait in the destination's
/// backlog for its peer to read, and what is *passed* on the same socket waits behind them, so that one direction's
/// stall stops the other.
pub const HEADROOM: u64 = 8;

/// The program's account of one direction. Plain numbers: only the program writes them.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Bytes redirected since insertion.
    pub redirected: u64,
    /// Cost that may still be redirected before the destination is looked at again.
    pub credit: u64,
    /// `sent` at the time of [`Self::mark_segments`].
    pub mark_sent: u64,
    /// Segments redirected since insertion, wrapping.
    pub segments: u32,
    /// Segments of which it is known that the destination has acknowledged them, wrapping.
    pub gone_segments: u32,
    /// Segments redirected when `mark_sent` was taken, wrapping.
    pub mark_segments: u32,
    /// Always 0.
    pub padding: u32,
}

/// What the program sees of the destination and of the others when it refreshes its credit.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Bytes that the destination's peer acknowledged, of all that were ever written to it.
    pub acked: u64,
    /// Bytes that were written to it before insertion: those that are not acknowledged take room from the others.
    pub base: u64,
    /// The destination's `sk_sndbuf`, bytes.
    pub sndbuf: u64,
    /// What one direction may have on its way at most, whatever the send buffer takes, bytes.
    pub most: u64,
    /// What the other directions left of the budget, bytes.
    pub free: u64,
}

/// The answer to a segment that the credit does not cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refreshed {
    /// Whether the segment may be redirected.
    pub admit: bool,
    /// What the direction must have reserved of the budget from now on, bytes.
    pub reserve: u64,
}

/// Cost of a segment of `len` bytes.
#[inline(always)]
#[must_use]
pub const fn cost(len: u64) -> u64 {
    len + SEGMENT_COST
}

impl Window {
    /// Takes a segment of `len` bytes out of the credit, if it covers it.
    #[inline(always)]
    pub fn spend(&mut self, len: u64) -> bool {
        let cost = cost(len);
        if self.credit < cost {
            return false;
        }
        self.credit -= cost;
        true
    }

    /// Counts a redirected segment of `len` bytes.
    #[inline(always)]
    pub fn count(&mut self, len: u64) {
        self.redirected += len;
        self.segments = self.segments.wrapping_add(1);
    }

    /// Cost of what the destination has not acknowledged; of [`View`].
    #[inline(always)]
    #[must_use]
    pub fn outstanding(&mut self, acked: u64, base: u64) -> u64 {
        if acked < base {
            // Before the first of what was redirected.
            let segments = self.segments.wrapping_sub(self.gone_segments);
            return base - acked + self.redirected + segments as u64 * SEGMENT_COST;
        }
        let acked = acked - base;
        let sent = self.redirected;
        if acked >= sent {
            self.gone_segments = self.segments;
            self.mark_segments = self.segments;
            self.mark_sent = sent;
            return 0;
        }
        // Bytes tell exactly how far the destination is, segments do not: all that were counted before the mark are
        // gone once the mark is acknowledged, then the mark moves up. At most two windows of segments are held.
        if acked >= self.mark_sent {
            self.gone_segments = self.mark_segments;
            self.mark_segments = self.segments;
            self.mark_sent = sent;
        }
        let segments = self.segments.wrapping_sub(self.gone_segments);
        sent - acked + segments as u64 * SEGMENT_COST
    }

    /// Decides over a segment of `len` bytes that the credit does not cover, and sets the credit for those to come.
    #[inline(always)]
    #[must_use]
    pub fn refresh(&mut self, len: u64, view: View) -> Refreshed {
        let outstanding = self.outstanding(view.acked, view.base);
        let share = view.free / SHARE;
        let room = view.sndbuf - view.sndbuf / HEADROOM;
        let room = if room < view.most { room } else { view.most };
        let window = if room < share { room } else { share };
        let after = outstanding + cost(len);
        if after <= window {
            // Ahead as much again as is on its way: a direction reserves what it queues, not what it could, and a stream
            // is looked at a few times for each window.
            self.credit = if window - after < after { window - after } else { after };
            Refreshed { admit: true, reserve: after + self.credit }
        } else if outstanding == 0 {
            // Nothing is on its way: a segment larger than the window must pass all the same, or never would.
            self.credit = 0;
            Refreshed { admit: true, reserve: after }
        } else {
            self.credit = 0;
            Refreshed { admit: false, reserve: outstanding }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A direction with its destination, moved by random steps.
    #[derive(Default)]
    struct Model {
        window: Window,
        /// Lengths of redirected segments that the destination has not acknowledged.
        queue: VecDeque<u64>,
        acked: u64,
        /// Written before.
        base: u64,
        reserved: u64,
    }

    impl Model {
        fn offer(&mut self, len: u64, sndbuf: u64, free: u64) -> bool {
            let admit = self.window.spend(len) || {
                let view = View { acked: self.acked, base: self.base, sndbuf, most: u64::MAX, free };
                let answer = self.window.refresh(len, view);
                self.reserved = answer.reserve;
                answer.admit
            };
            if admit {
                self.window.count(len);
                self.queue.push_back(len);
            }
            admit
        }

        fn acknowledge(&mut self, segments: usize) {
            for _ in 0..segments.min(self.queue.len()) {
                self.acked += self.queue.pop_front().unwrap();
            }
        }

        fn held(&self) -> u64 {
            self.queue.iter().map(|len| cost(*len)).sum()
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Offer { direction: usize, len: u64 },
        Acknowledge { direction: usize, segments: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..6usize, prop_oneof![Just(1), 1..2_000u64, Just(65_483)])
                .prop_map(|(direction, len)| Step::Offer { direction, len }),
            2 => (0..6usize, 0..200usize)
                .prop_map(|(direction, segments)| Step::Acknowledge { direction, segments }),
        ]
    }

    proptest! {
        /// What the destination holds leaves the headroom of its send buffer free, save one segment in an empty
        /// direction, and what is held is always reserved.
        #[test]
        fn held_is_bounded_and_reserved(
            steps in proptest::collection::vec(step(), 1..800), sndbuf in 4_096..4_000_000u64,
        ) {
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Offer { len, .. } => { model.offer(len, sndbuf, u64::MAX); }
                    Step::Acknowledge { segments, .. } => model.acknowledge(segments),
                }
                prop_assert!(model.held() <= sndbuf - sndbuf / HEADROOM || model.queue.len() == 1);
                prop_assert!(model.held() <= model.reserved);
            }
        }

        /// The sum over directions stays within the budget, save one segment for each direction.
        #[test]
        fn budget_holds(
            steps in proptest::collection::vec(step(), 1..2_000), budget in 10_000..2_000_000u64,
        ) {
            let mut models: [Model; 6] = Default::default();
            for step in steps {
                match step {
                    Step::Offer { direction, len } => {
                        let others: u64 = (0..6).filter(|i| *i != direction).map(|i| models[i].reserved).sum();
                        models[direction].offer(len, 4_000_000, budget.saturating_sub(others));
                    }
                    Step::Acknowledge { direction, segments } => models[direction].acknowledge(segments),
                }
                let held: u64 = models.iter().map(Model::held).sum();
                prop_assert!(held <= budget + 6 * cost(65_483), "held {held}");
            }
        }

        /// A drained direction takes any segment: nothing gets stuck.
        #[test]
        fn drained_takes_any_segment(
            steps in proptest::collection::vec(step(), 1..300), len in 1..1_000_000u64, free in 0..u64::MAX,
        ) {
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Offer { len, .. } => { model.offer(len, 100_000, free); }
                    Step::Acknowledge { segments, .. } => model.acknowledge(segments),
                }
            }
            model.acknowledge(usize::MAX);
            prop_assert!(model.offer(len, 100_000, free));
        }
    }

    #[test]
    fn single_bytes_are_charged_for_their_segments() {
        let mut model = Model::default();
        let admitted = (0..100_000).filter(|_| model.offer(1, 87_380, u64::MAX)).count();
        assert_eq!(admitted as u64, (87_380 - 87_380 / HEADROOM) / cost(1));
    }

    #[test]
    fn no_more_is_on_its_way_than_is_reserved_and_allowed() {
        let mut window = Window::default();
        let view = View { acked: 0, base: 0, sndbuf: 4_000_000, most: 100_000, free: u64::MAX };
        let mut admitted = 0;
        loop {
            if !window.spend(1_000) {
                let answer = window.refresh(1_000, view);
                // What it queues, and as much again: not all that it could.
                assert!(answer.reserve <= 2 * (admitted + cost(1_000)));
                if !answer.admit {
                    break;
                }
            }
            window.count(1_000);
            admitted += cost(1_000);
        }
        assert!(admitted <= 100_000 && admitted + cost(1_000) > 100_000, "{admitted}");
    }

    #[test]
    fn segments_wrap() {
        let at = u32::MAX - 1;
        let mut model = Model {
            window: Window { segments: at, gone_segments: at, mark_segments: at, ..Window::default() },
            ..Model::default()
        };
        for _ in 0..10 {
            assert!(model.offer(1_000, 20_000, u64::MAX));
        }
        assert_eq!(model.window.outstanding(0, 0), 10 * cost(1_000));
    }

    /// A flow may come into the kernel while its destination has much to read.
    #[test]
    fn what_was_written_before_takes_room() {
        let mut model = Model { base: 150_000, acked: 60_000, ..Model::default() };
        assert!(!model.offer(1_000, 100_000, u64::MAX), "90,000 of 100,000 are taken");
        assert_eq!(model.reserved, 90_000);
        model.acked = 80_000;
        assert!(model.offer(1_000, 100_000, u64::MAX));
        assert!(!model.offer(20_000, 100_000, u64::MAX));
        model.acked = 150_000;
        assert!(model.offer(20_000, 100_000, u64::MAX));
        assert_eq!(model.window.outstanding(150_000, 150_000), cost(1_000) + cost(20_000));
    }
}
