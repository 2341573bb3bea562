//! How a flow leaves the kernel: a state machine without I/O.
//!
//! ```text
//!  Open ── FIN from one leg ("first") ──▶ Draining ── all of first's bytes are written to the other leg ("second"),
//!                                            │         and nothing of second's waits in userspace
//!                                            ▼
//!                                         Detached ── second is a plain socket again; wait until what was redirected
//!                                            │         from it is written to first
//!                                            ▼
//!                                         Returned ── both are plain sockets: userspace forwards the FIN
//! ```
//!
//! A flow leaves before its first FIN is forwarded, because a socket that has sent and received a FIN goes to
//! TIME_WAIT, where the kernel takes it out of the map with all that was passed on it and not yet read
//! (`tcp_time_wait` → `tcp_done` → `sock_map_unhash` → `sk_psock_drop`). After that, half-close and the second FIN
//! are ordinary TCP, with one implementation for all paths.

/// How far one direction is. All are bytes since insertion, without the FIN.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Passage {
    /// Received by the source.
    pub(super) received: u64,
    /// Redirected by the program.
    pub(super) redirected: u64,
    /// Left to userspace by the program.
    pub(super) passed: u64,
    /// Sent on by userspace.
    pub(super) relayed: u64,
    /// Written to the destination.
    pub(super) written: u64,
}

impl Passage {
    /// Whether nothing waits in userspace's hands.
    pub(super) fn is_level(&self) -> bool {
        self.passed == self.relayed
    }

    /// Whether the destination has all that was sent towards it.
    pub(super) fn is_flushed(&self) -> bool {
        self.written >= self.redirected + self.relayed
    }

    /// Whether the program has seen all that arrived.
    fn is_seen(&self) -> bool {
        self.received <= self.redirected + self.passed
    }

    fn is_drained(&self) -> bool {
        self.is_seen() && self.is_level() && self.is_flushed()
    }
}

/// Where a flow that leaves the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// `first`'s bytes are on their way.
    Draining,
    /// `second` has left the map.
    Detached,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Look again later.
    Wait,
    /// Take `second` out of the map, if nothing of its bytes waits in userspace once the program may pass no more.
    Detach,
    /// Take `first` out of the map and return both sockets.
    Return,
}

/// Decides over a flow of which `first` has sent its FIN; `forward` is the direction from it, `back` the one to it.
pub(super) fn next(stage: Stage, forward: &Passage, back: &Passage) -> Step {
    match stage {
        Stage::Draining if forward.is_drained() && back.is_level() => Step::Detach,
        // `second` is out of the map: what arrives there now is not the program's, so `received` says nothing.
        Stage::Detached if back.is_level() && back.is_flushed() => Step::Return,
        Stage::Draining | Stage::Detached => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One direction as the kernel keeps it: each queue holds a count of bytes, and order is implied by the rule that
    /// redirected bytes may not enter the backlog while passed ones wait.
    #[derive(Debug, Default)]
    struct Line {
        in_map: bool,
        finished: bool,
        no_pass: bool,
        sent: u64,
        unseen: u64,
        passed_queue: u64,
        userspace: u64,
        backlog: u64,
        plain: u64,
        at: Passage,
    }

    impl Line {
        fn arrive(&mut self, bytes: u64) {
            if self.finished {
                return;
            }
            self.sent += bytes;
            self.at.received += bytes;
            if self.in_map { self.unseen += bytes } else { self.plain += bytes }
        }

        fn verdict(&mut self, congested: bool) {
            let bytes = std::mem::take(&mut self.unseen);
            if bytes == 0 {
                return;
            }
            if !self.at.is_level() || (congested && !self.no_pass) {
                self.at.passed += bytes;
                self.passed_queue += bytes;
            } else {
                assert_eq!(self.passed_queue + self.userspace, 0, "redirected past waiting bytes");
                self.at.redirected += bytes;
                self.backlog += bytes;
            }
        }

        fn write_backlog(&mut self, bytes: u64) {
            let bytes = bytes.min(self.backlog);
            self.backlog -= bytes;
            self.at.written += bytes;
        }

        fn relay(&mut self, bytes: u64) {
            self.userspace += std::mem::take(&mut self.passed_queue);
            if self.at.is_flushed() {
                let bytes = bytes.min(self.userspace);
                self.userspace -= bytes;
                self.at.written += bytes;
                self.at.relayed += bytes;
            }
        }

        /// The source leaves the map: what the program passed and nobody read is gone.
        fn leave(&mut self) {
            assert_eq!(self.passed_queue, 0, "passed bytes lost");
            self.in_map = false;
            self.plain += std::mem::take(&mut self.unseen);
        }
    }

    #[derive(Debug, Clone)]
    enum Action {
        Arrive(bool, u64),
        Finish,
        Verdict(bool, bool),
        Write(bool, u64),
        Relay(bool, u64),
        Controller,
    }

    fn action() -> impl Strategy<Value = Action> {
        let bytes = 1..10_000u64;
        prop_oneof![
            3 => (any::<bool>(), bytes.clone()).prop_map(|(back, bytes)| Action::Arrive(back, bytes)),
            1 => Just(Action::Finish),
            3 => (any::<bool>(), any::<bool>()).prop_map(|(back, congested)| Action::Verdict(back, congested)),
            2 => (any::<bool>(), bytes.clone()).prop_map(|(back, bytes)| Action::Write(back, bytes)),
            2 => (any::<bool>(), bytes).prop_map(|(back, bytes)| Action::Relay(back, bytes)),
            3 => Just(Action::Controller),
        ]
    }

    /// A flow whose `first` is the source of `lines[0]`; the state is `None` before the FIN and after the return.
    struct Flow {
        lines: [Line; 2],
        stage: Option<Stage>,
        returned: bool,
    }

    impl Flow {
        fn apply(&mut self, action: &Action) {
            match *action {
                Action::Arrive(back, bytes) => self.lines[usize::from(back)].arrive(bytes),
                Action::Finish => self.lines[0].finished = true,
                Action::Verdict(back, congested) => self.lines[usize::from(back)].verdict(congested),
                Action::Write(back, bytes) => self.lines[usize::from(back)].write_backlog(bytes),
                Action::Relay(back, bytes) => self.lines[usize::from(back)].relay(bytes),
                Action::Controller => self.control(),
            }
        }

        fn control(&mut self) {
            if self.returned || !self.lines[0].finished {
                return;
            }
            let stage = *self.stage.get_or_insert(Stage::Draining);
            match next(stage, &self.lines[0].at, &self.lines[1].at) {
                Step::Wait => {}
                Step::Detach => {
                    self.lines[1].no_pass = true;
                    if self.lines[1].at.is_level() {
                        assert_eq!(
                            self.lines[0].backlog, 0,
                            "a backlog is lost with its socket's place in the map"
                        );
                        self.lines[1].leave();
                        self.stage = Some(Stage::Detached);
                    }
                }
                Step::Return => {
                    assert_eq!(
                        self.lines[1].backlog, 0,
                        "a backlog is lost with its socket's place in the map"
                    );
                    self.lines[0].leave();
                    self.returned = true;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_every_flow_returns(actions in proptest::collection::vec(action(), 0..200)) {
            let line = || Line { in_map: true, ..Line::default() };
            let mut flow = Flow { lines: [line(), line()], stage: None, returned: false };
            for action in &actions {
                flow.apply(action);
            }
            // From here on the peers read: the flow must get out, in few rounds.
            flow.lines[0].finished = true;
            for _ in 0..8 {
                for back in [false, true] {
                    flow.apply(&Action::Verdict(back, false));
                    flow.apply(&Action::Write(back, u64::MAX));
                    flow.apply(&Action::Relay(back, u64::MAX));
                }
                flow.control();
            }
            prop_assert!(flow.returned);
            for line in &flow.lines {
                prop_assert_eq!(line.at.written + line.plain, line.sent);
            }
        }
    }
}
