//! When a flow on the wire is over: a pure function over what was seen of it.
//!
//! | seen | then |
//! | --- | --- |
//! | a FIN each way, acknowledged | over; translated on for late repetitions, until [`QUIET_AFTER_FINS`] without a packet, [`MOST_AFTER`] at most |
//! | a reset | over once nothing else came from its sender for [`QUIET_AFTER_RESET`], and it, asked whether it is there, does not say so within [`ANSWER`] |
//! | one FIN, acknowledged, then nothing acknowledged for `timeouts.half_close` | both are reset |
//! | bytes that a side does not acknowledge, though they are repeated, and nothing from it for `timeouts.vanished` | both are reset |
//! | nothing acknowledged for `timeouts.idle` | both are reset |
//!
//! What a FIN and a reset are is for [`over`] to say. What one side says keeps no flow of which the other is gone: bytes have
//! moved once the other has acknowledged them, and signs of life, such as TCP's own, move none.

use std::time::Duration;

use proxy_common::wire::{
    layout::{FIN_FIRST, TICK_SHIFT},
    over::{self, Side},
    sequence::after,
};

use crate::{
    relay::wire::message::{Limits, WireEnd},
    sys::{Constants, Seen},
};

/// How long a finished flow is kept at least after its last packet: a FIN that was lost three times comes after more than a
/// second.
const QUIET_AFTER_FINS: u32 = ticks(Duration::from_secs(20));
/// A reset is one once nothing came for so long.
const QUIET_AFTER_RESET: u32 = ticks(Duration::from_secs(10));
/// How long an end has to answer that it has reset nothing, and was not reset.
/// The question itself may wait for seconds.
const ANSWER: u32 = ticks(Duration::from_secs(10));
/// How long a flow that is over is kept at most, whatever its ends send: less than its names rest
/// before they are used again.
const MOST_AFTER: u32 = ticks(Duration::from_secs(55));

/// A time in the program's ticks.
const fn ticks(time: Duration) -> u32 {
    let ticks = time.as_nanos() >> TICK_SHIFT;
    if ticks > (u32::MAX >> 1) as u128 { u32::MAX >> 1 } else { ticks as u32 }
}

/// Ticks since the later of two times.
fn ticks_since(now: u32, times: [u32; 2]) -> u32 {
    // A packet may have come after `now` was read.
    let since = |time: u32| if after(now, time) < 0 { 0 } else { now.wrapping_sub(time) };
    times.map(since).into_iter().fold(u32::MAX, u32::min)
}

/// What is known of a flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) seen: [Seen; 2],
    pub(super) constants: [Constants; 2],
    /// Since when a side owes an acknowledgement, as far as the sweeps before have noticed; 0: it does not. In ticks.
    pub(super) owes_since: [u32; 2],
    pub(super) limits: Limits,
    /// When its ends were asked whether a reset was one, if they were, and what it was then: one that is not there answers by a
    /// reset of its own.
    pub(super) asked: Option<(u32, WireEnd)>,
}

/// What is to be done about a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Lives { owes_since: [u32; 2] },
    /// It seems to have been reset: its ends are to be asked.
    Doubtful(WireEnd),
    /// It has ended by itself, in order, and is kept for what comes late.
    Finished(WireEnd),
    /// It has ended by itself, and nothing more comes.
    Reset(WireEnd),
    /// Both sides are to be reset.
    End(WireEnd),
}

impl View {
    /// What is to be done at this time, in ticks.
    pub(super) fn judge(&self, now: u32) -> Verdict {
        let still = ticks_since(now, self.seen.map(|seen| seen.moved));
        let [client, upstream] = self.sides().map(|side| side.has_finished());
        if client && upstream {
            return Verdict::Finished(self.first_to_finish());
        }
        if self.is_over() {
            // An answer that is no reset takes the reset back, and this is not come by again.
            return match self.asked {
                Some((asked, end)) if now.wrapping_sub(asked) >= ANSWER => Verdict::Reset(end),
                None if self.is_quiet_since_reset(now) => Verdict::Doubtful(self.end()),
                Some(_) | None => Verdict::Lives { owes_since: [0; 2] },
            };
        }
        if (client || upstream) && still >= ticks(self.limits.half_close) {
            return Verdict::End(WireEnd::HalfClosed);
        }
        if still >= ticks(self.limits.idle) {
            return Verdict::End(WireEnd::Idle);
        }
        let mut owes_since = [0; 2];
        for (side, end) in [(0, WireEnd::ClientVanished), (1, WireEnd::UpstreamVanished)] {
            // Who was heard of last has answered.
            let asked = self.seen[1 - side].last;
            if !self.owes(side) || after(asked, self.seen[side].last) <= 0 {
                continue;
            }
            let heard = now.wrapping_sub(self.seen[side].last);
            let owed = self.owes_since[side];
            // It was heard of since: what it owes is new.
            let since = if owed == 0 || heard < now.wrapping_sub(owed) { now.max(1) } else { owed };
            // Who misses an answer asks again. A forged segment is not repeated.
            if now.wrapping_sub(since) >= ticks(self.limits.vanished) && after(asked, since) > 0 {
                return Verdict::End(end);
            }
            owes_since[side] = since;
        }
        Verdict::Lives { owes_since }
    }

    /// How a flow ended that has ended by itself.
    pub(super) fn end(&self) -> WireEnd {
        let [client, upstream] = self.sides();
        if client.has_finished() && upstream.has_finished() {
            // What comes after that is of no account: a stack that has forgotten the connection answers what is repeated by a
            // reset.
            self.first_to_finish()
        } else if client.has_reset() {
            WireEnd::ClientReset
        } else if upstream.has_reset() {
            WireEnd::UpstreamReset
        } else {
            self.first_to_finish()
        }
    }

    /// Whether nobody will ask anything of setu's sockets any more, in which own bytes may be left.
    pub(super) fn is_reset(&self, now: u32) -> bool {
        self.is_over() && self.is_quiet_since_reset(now)
    }

    /// Whether who seems to have reset the flow has said nothing else for long.
    fn is_quiet_since_reset(&self, now: u32) -> bool {
        let [client, upstream] = self.sides().map(|side| side.has_reset());
        let last = self.seen.map(|seen| seen.last);
        let last = match (client, upstream) {
            (true, false) => [last[0]; 2],
            (false, true) => [last[1]; 2],
            (true, true) | (false, false) => last,
        };
        ticks_since(now, last) >= QUIET_AFTER_RESET
    }

    /// Whether both sides seem to have finished, or one to have reset it.
    pub(super) fn is_over(&self) -> bool {
        over::is_over(&self.sides())
    }

    fn sides(&self) -> [Side; 2] {
        [0, 1].map(|side| {
            let seen = self.seen[side];
            Side { flags: seen.flags, finish: seen.finish, other_acknowledged: self.acknowledged(1 - side) }
        })
    }

    /// What a side has acknowledged of the other's stream, in the other's numbers.
    fn acknowledged(&self, side: usize) -> u32 {
        self.seen[side].acknowledged.wrapping_add(self.constants[side].add_acknowledgement)
    }

    /// Whether a flow that is over can be forgotten. `since`: when it was.
    pub(super) fn is_forgotten(&self, since: u32, now: u32) -> bool {
        ticks_since(now, self.seen.map(|seen| seen.last)) >= QUIET_AFTER_FINS
            || now.wrapping_sub(since) >= MOST_AFTER
    }

    /// Whether a side has not acknowledged all that the other sent.
    fn owes(&self, side: usize) -> bool {
        after(self.seen[1 - side].end, self.acknowledged(side)) > 0
    }

    /// If both did at once it is the client.
    fn first_to_finish(&self) -> WireEnd {
        let [client, upstream] = self.seen.map(|seen| seen.flags & FIN_FIRST != 0);
        if upstream && !client { WireEnd::UpstreamFinished } else { WireEnd::ClientFinished }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::wire::layout::{FIN_SEEN, RST_SEEN};

    use super::*;

    const NOW: u32 = 5; // Ticks wrap: most times below are before 0.

    fn before(time: Duration) -> u32 {
        NOW.wrapping_sub(ticks(time))
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn view(flags: [u32; 2], last: [u32; 2]) -> View {
        let seen =
            |side: usize| Seen { flags: flags[side], last: last[side], moved: last[side], ..Seen::default() };
        View {
            seen: [seen(0), seen(1)],
            constants: Default::default(),
            owes_since: [0; 2],
            limits: Limits { idle: SECOND * 3600, half_close: SECOND * 60, vanished: SECOND * 90 },
            asked: None,
        }
    }

    const LIVES: Verdict = Verdict::Lives { owes_since: [0; 2] };

    #[test]
    fn each_row_of_the_table() {
        let at = |flags, seconds: u32| view(flags, [before(SECOND * seconds); 2]).judge(NOW);
        assert_eq!(at([0, 0], 3599), LIVES);
        assert_eq!(at([0, 0], 3601), Verdict::End(WireEnd::Idle));
        assert_eq!(at([FIN_SEEN, 0], 59), LIVES);
        assert_eq!(at([FIN_SEEN, 0], 61), Verdict::End(WireEnd::HalfClosed));
        assert_eq!(at([0, FIN_SEEN], 61), Verdict::End(WireEnd::HalfClosed));
        assert_eq!(at([FIN_SEEN, FIN_SEEN], 0), Verdict::Finished(WireEnd::ClientFinished));
        assert_eq!(at([RST_SEEN, 0], 9), LIVES);
        assert_eq!(at([RST_SEEN, 0], 11), Verdict::Doubtful(WireEnd::ClientReset));
        let asked = |flags, seconds: u32| {
            let end = WireEnd::UpstreamReset;
            View {
                asked: Some((before(SECOND * seconds), end)),
                ..view(flags, [before(SECOND * seconds); 2])
            }
            .judge(NOW)
        };
        assert_eq!(asked([RST_SEEN, 0], 2), LIVES);
        assert_eq!(asked([RST_SEEN, RST_SEEN], 11), Verdict::Reset(WireEnd::UpstreamReset));
        assert_eq!(asked([0, 0], 11), LIVES, "it has answered");
        assert_eq!(
            at([FIN_SEEN, FIN_SEEN | RST_SEEN], 0),
            Verdict::Finished(WireEnd::ClientFinished),
            "a late one"
        );
    }

    #[test]
    fn who_finished_first_is_told() {
        let of = |flags| view(flags, [NOW; 2]).judge(NOW);
        let both = FIN_SEEN | FIN_FIRST;
        assert_eq!(of([both, FIN_SEEN]), Verdict::Finished(WireEnd::ClientFinished));
        assert_eq!(of([FIN_SEEN, both]), Verdict::Finished(WireEnd::UpstreamFinished));
        assert_eq!(of([both, both]), Verdict::Finished(WireEnd::ClientFinished), "both at once");
    }

    /// A new connection may have its name before it was looked at.
    #[test]
    fn a_late_reset_makes_no_reset_of_a_flow_that_had_finished() {
        let late = view([FIN_SEEN | RST_SEEN, FIN_SEEN | FIN_FIRST], [NOW; 2]);
        assert_eq!(late.end(), WireEnd::UpstreamFinished);
        assert_eq!(view([FIN_SEEN | RST_SEEN, 0], [NOW; 2]).end(), WireEnd::ClientReset);
    }

    #[test]
    fn a_fin_counts_that_is_acknowledged() {
        let mut forged = view([FIN_SEEN; 2], [NOW; 2]);
        forged.seen[0].finish = 1000;
        for acknowledged in [0, 999, 1001, 2000] {
            forged.seen[1].acknowledged = acknowledged;
            assert!(matches!(forged.judge(NOW), Verdict::Lives { .. }), "{acknowledged}");
        }
        forged.seen[1].acknowledged = 1000;
        assert_eq!(forged.judge(NOW), Verdict::Finished(WireEnd::ClientFinished));
        // Nor does one that is not make the flow half of one.
        let mut quiet = view([FIN_SEEN, 0], [before(SECOND * 61); 2]);
        quiet.seen[0].finish = 1000;
        assert_eq!(quiet.judge(NOW), LIVES);
    }

    #[test]
    fn the_later_of_both_sides_counts() {
        let last = [before(SECOND * 4000), before(SECOND * 10)];
        assert_eq!(view([0, 0], last).judge(NOW), LIVES);
        assert_eq!(view([FIN_SEEN, 0], last).judge(NOW), LIVES);
    }

    /// The other is gone, and this one speaks for ever.
    #[test]
    fn what_one_side_says_alone_keeps_no_flow() {
        let with = |flags, moved: u32| {
            let mut view = view(flags, [NOW, before(SECOND * 4000)]);
            view.seen[0].moved = before(SECOND * moved);
            view.seen[1].moved = view.seen[0].moved;
            view.judge(NOW)
        };
        assert_eq!(with([0, RST_SEEN], 11), Verdict::Doubtful(WireEnd::UpstreamReset));
        assert_eq!(with([0, FIN_SEEN], 61), Verdict::End(WireEnd::HalfClosed));
        assert_eq!(with([0, 0], 3601), Verdict::End(WireEnd::Idle));
        assert_eq!(with([0, 0], 3599), LIVES);
    }

    #[test]
    fn who_owes_an_answer_has_its_time() {
        // The client was silent for ten minutes, and now the upstream has sent something.
        let mut view = view([0, 0], [before(SECOND * 600), before(SECOND)]);
        view.seen[1].end = 100;
        let Verdict::Lives { owes_since: [since, 0] } = view.judge(NOW) else { panic!("it must live") };
        assert_eq!(since, NOW);
        view.owes_since = [since, 0];
        let later = NOW.wrapping_add(ticks(SECOND * 89));
        assert_eq!(view.judge(later), Verdict::Lives { owes_since: [since, 0] });
        let later = NOW.wrapping_add(ticks(SECOND * 91));
        assert_eq!(view.judge(later), Verdict::Lives { owes_since: [since, 0] }, "it was asked but once");
        view.seen[1].last = NOW.wrapping_add(ticks(SECOND * 60));
        assert_eq!(view.judge(later), Verdict::End(WireEnd::ClientVanished));
        // It was heard of meanwhile: it has answered, unless the upstream asks again.
        view.seen[0].last = NOW.wrapping_add(ticks(SECOND * 80));
        assert_eq!(view.judge(later), LIVES);
        view.seen[1].last = NOW.wrapping_add(ticks(SECOND * 81));
        assert_eq!(view.judge(later), Verdict::Lives { owes_since: [later, 0] });
        // It has acknowledged it, in the numbers of its own leg.
        view.constants[0].add_acknowledgement = 40;
        view.seen[0].acknowledged = 60;
        assert_eq!(view.judge(later), LIVES);
    }

    #[test]
    fn what_is_over_is_kept_for_a_while_and_not_for_ever() {
        let finished = |seconds| view([FIN_SEEN; 2], [before(SECOND * seconds); 2]);
        assert!(!finished(19).is_forgotten(before(SECOND * 19), NOW));
        assert!(finished(21).is_forgotten(before(SECOND * 21), NOW));
        assert!(!finished(0).is_forgotten(before(SECOND * 54), NOW));
        assert!(
            finished(0).is_forgotten(before(SECOND * 56), NOW),
            "an end that goes on sending keeps nothing"
        );
    }

    #[test]
    fn a_packet_after_the_look_at_the_clock_is_no_silence() {
        assert_eq!(view([0, 0], [NOW + 3; 2]).judge(NOW), LIVES);
    }
}
