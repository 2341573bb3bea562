//! How a flow leaves the kernel: rules without I/O.
//!
//! ```text
//!  InKernel ── a FIN, or a leg that cannot keep up ──▶ Leaving: the program redirects nothing more
//!                                                         │  what was redirected is written to the other leg: `Flushed`
//!                                                         ▼
//!                                                      what was passed is taken out: `Collected`
//!                                                         │  one leg leaves the map, then the other
//!                                                         ▼
//!                                                      Returned: two plain sockets, and the bytes taken out
//! ```
//!
//! None of this waits for a peer to read: what is redirected fits into the other leg's send buffer
//! (`proxy_common::credit`), and what was passed goes into memory, bounded by the receive buffer. So one direction's
//! stall cannot keep a flow, or the FIN of the other direction, in the kernel; where the send buffer is less than it was taken
//! for, it does, and the leg takes no more bytes until the backlog is written (`Departure::bound`).
//!
//! A flow leaves before its first FIN is forwarded, because a socket that has sent and received a FIN goes to
//! TIME_WAIT, where the kernel takes it out of the map with all that was passed on it and not yet read
//! (`tcp_time_wait` → `tcp_done` → `sock_map_unhash` → `sk_psock_drop`). After that, half-close and the second FIN
//! are ordinary TCP, with one implementation for all paths.

/// What came in on a leg of a leaving flow and was left to userspace, bytes since insertion.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inbound {
    /// Passed by the program.
    pub(super) passed: u64,
    /// Of these, taken out by userspace.
    pub(super) collected: u64,
}

/// What goes out on a leg of a leaving flow, bytes since insertion.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outbound {
    /// Redirected to it by the program, which redirects no more.
    pub(super) redirected: u64,
    /// Written to it: not in its backlog any more.
    pub(super) written: u64,
}

impl Outbound {
    /// Whether the backlog is empty.
    pub(super) fn is_flushed(&self) -> bool {
        self.written >= self.redirected
    }
}

/// Whether a leg may leave the map: its backlog, and what was passed on it, die with its place there.
pub(super) fn may_detach(inbound: &Inbound, outbound: &Outbound) -> bool {
    outbound.is_flushed() && inbound.collected == inbound.passed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One direction as the kernel keeps it, with its source's `inbound` and its destination's `outbound`. Each queue holds a count of bytes, and order is implied by the rule that
    /// nothing is redirected once something was passed.
    #[derive(Debug, Default)]
    struct Line {
        detached: bool,
        withdrawing: bool,
        sent: u64,
        unseen: u64,
        passed_queue: u64,
        backlog: u64,
        plain: u64,
        inbound: Inbound,
        outbound: Outbound,
    }

    impl Line {
        fn arrive(&mut self, bytes: u64) {
            self.sent += bytes;
            if self.detached { self.plain += bytes } else { self.unseen += bytes }
        }

        fn verdict(&mut self, congested: bool) {
            let bytes = std::mem::take(&mut self.unseen);
            if bytes == 0 {
                return;
            }
            if self.inbound.passed > 0 || self.withdrawing || congested {
                self.inbound.passed += bytes;
                self.passed_queue += bytes;
            } else {
                self.outbound.redirected += bytes;
                self.backlog += bytes;
            }
        }

        fn write_backlog(&mut self, bytes: u64) {
            let bytes = bytes.min(self.backlog);
            self.backlog -= bytes;
            self.outbound.written += bytes;
        }

        fn collect(&mut self) {
            self.inbound.collected += std::mem::take(&mut self.passed_queue);
        }

        fn detach(&mut self) {
            assert_eq!(self.passed_queue, 0, "passed bytes die with the place in the map");
            self.detached = true;
            self.plain += std::mem::take(&mut self.unseen);
        }
    }

    #[derive(Debug, Clone)]
    enum Action {
        Arrive(usize, u64),
        Verdict(usize, bool),
        Write(usize, u64),
        Collect(usize),
        Withdraw,
        Control,
    }

    fn action() -> impl Strategy<Value = Action> {
        let bytes = 1..10_000u64;
        let line = 0..2usize;
        prop_oneof![
            3 => (line.clone(), bytes.clone()).prop_map(|(line, bytes)| Action::Arrive(line, bytes)),
            3 => (line.clone(), any::<bool>()).prop_map(|(line, congested)| Action::Verdict(line, congested)),
            2 => (line.clone(), bytes).prop_map(|(line, bytes)| Action::Write(line, bytes)),
            2 => line.prop_map(Action::Collect),
            1 => Just(Action::Withdraw),
            3 => Just(Action::Control),
        ]
    }

    fn apply(lines: &mut [Line; 2], action: &Action) {
        match *action {
            Action::Arrive(line, bytes) => lines[line].arrive(bytes),
            Action::Verdict(line, congested) => lines[line].verdict(congested),
            Action::Write(line, bytes) => lines[line].write_backlog(bytes),
            Action::Collect(line) => lines[line].collect(),
            Action::Withdraw => lines.iter_mut().for_each(|line| line.withdrawing = true),
            Action::Control => control(lines),
        }
    }

    fn control(lines: &mut [Line; 2]) {
        for side in 0..2 {
            let (inbound, outbound) = (lines[side].inbound, lines[1 - side].outbound);
            if lines[side].withdrawing && !lines[side].detached && may_detach(&inbound, &outbound) {
                assert_eq!(lines[1 - side].backlog, 0, "a backlog dies with the place in the map");
                lines[side].detach();
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_every_flow_returns(actions in proptest::collection::vec(action(), 0..200)) {
            let mut lines = <[Line; 2]>::default();
            for action in &actions {
                apply(&mut lines, action);
            }
            // From here on bytes arrive without end and no peer reads; only the backlog, which fits, is written.
            apply(&mut lines, &Action::Withdraw);
            for line in 0..2 {
                apply(&mut lines, &Action::Arrive(line, 1));
                apply(&mut lines, &Action::Verdict(line, true));
                apply(&mut lines, &Action::Write(line, u64::MAX));
                apply(&mut lines, &Action::Collect(line));
            }
            control(&mut lines);
            for line in &lines {
                prop_assert!(line.detached);
                let arrived = line.outbound.written + line.inbound.collected + line.plain;
                prop_assert_eq!(arrived, line.sent);
            }
        }
    }
}
