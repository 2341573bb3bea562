//! What the two ends of a flow do, drawn from the round's seed: they talk, send bursts, are quiet, stall, and end in one of
//! several ways. Chat, then a burst, then quiet is what makes a flow change its path and come back.

use setu_tests::peers::Random;

use super::{
    conditions::{Conditions, Die},
    pattern::{Pattern, mix},
};

/// An end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

impl Role {
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What a writer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Writes so many bytes in pieces of at most `piece`, with a pause after each, microseconds.
    Write { bytes: u64, piece: u64, pause: u64 },
    /// Is quiet for so many milliseconds.
    Rest(u64),
    /// Waits until its own reader has so many bytes.
    Await(u64),
    /// Waits until its own reader has seen the end.
    AwaitEnd,
    /// Resets the connection.
    Reset,
}

/// A reader that has so many bytes reads none for some milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) at: u64,
    pub(crate) time: u64,
}

/// What one end does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) steps: Vec<Step>,
    /// In order.
    pub(crate) stalls: Vec<Stall>,
    /// Bytes that it reads at once, at most.
    pub(crate) read: u64,
    pub(crate) no_delay: bool,
}

impl Script {
    /// All that it writes. A stream that is reset has no end: as if a byte were still to come.
    pub(crate) fn total(&self) -> u64 {
        let bytes = |step: &Step| match step {
            Step::Write { bytes, .. } => *bytes,
            Step::Reset => 1,
            Step::Rest(_) | Step::Await(_) | Step::AwaitEnd => 0,
        };
        self.steps.iter().map(bytes).sum()
    }
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    seed: u64,
    /// When it begins, milliseconds.
    pub(crate) start: u64,
    client: Script,
    server: Script,
}

impl Plan {
    /// Draws a flow of a round.
    pub(crate) fn draw(conditions: &Conditions, number: u32) -> Self {
        let seed = mix(conditions.seed ^ mix(u64::from(number) + 1));
        let mut random = Random::new(seed);
        let mut die = Die(&mut random);
        // A few flows are much larger than the others.
        let share = if conditions.bulk { die.one_of(&[8, 32]) } else { die.one_of(&[1, 2, 4, 8, 32, 128]) };
        let left = conditions.budgets().map(|budget| {
            (budget * share / 25 / u64::from(conditions.flows)).clamp(2_000, conditions.longest())
        });
        let start = die.below(conditions.spread);
        let mut writing = Writing { left, bulk: conditions.bulk, ..Writing::default() };
        let phases = die.between(1, 6);
        for _ in 0..phases {
            // What is to last at full speed does not talk.
            let kinds = if conditions.forwarded.is_some() { 12 } else { 8 };
            match die.below(kinds).max(if conditions.bulk { 3 } else { 0 }) {
                0..3 => writing.talk(&mut die),
                3..7 => writing.burst(&mut die),
                _ => writing.rest(&mut die),
            }
        }
        writing.end(&mut die);
        if conditions.resets > 0 && die.below(conditions.resets) == 0 {
            let steps = &mut writing.steps[die.below(2) as usize];
            let at = die.below(steps.len() as u64 + 1) as usize;
            steps.truncate(at);
            steps.push(Step::Reset);
        }
        let [to_client, to_server] = writing.sent;
        let stalls = |die: &mut Die<'_>, total: u64| {
            let mut stalls = Vec::new();
            if die.below(3) == 0 {
                let small = die.between(1, 4);
                stalls.extend(
                    (0..small).map(|_| Stall { at: die.below(total.max(1)), time: die.between(1, 300) }),
                );
            }
            if conditions.stalls > 0 && die.below(conditions.stalls) == 0 {
                stalls.push(Stall { at: die.below(total.max(1)), time: die.between(1_000, 4_000) });
            }
            stalls.sort_by_key(|stall| stall.at);
            stalls
        };
        let read = |die: &mut Die<'_>, total: u64| {
            let most = die.any_scale(if conditions.bulk { 64 << 10 } else { 64 }, 256 << 10);
            // Large streams in small reads would take the processors from setu.
            most.max(total / 4_000)
        };
        let [server_steps, client_steps] = writing.steps;
        Self {
            seed,
            start,
            client: Script {
                steps: client_steps,
                stalls: stalls(&mut die, to_client),
                read: read(&mut die, to_client),
                no_delay: die.below(2) == 0,
            },
            server: Script {
                steps: server_steps,
                stalls: stalls(&mut die, to_server),
                read: read(&mut die, to_server),
                no_delay: die.below(2) == 0,
            },
        }
    }

    /// What this end does.
    pub(crate) fn script(&self, role: Role) -> &Script {
        match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }

    /// The bytes that this end sends.
    pub(crate) fn pattern(&self, role: Role) -> Pattern {
        Pattern::new(self.seed ^ if role == Role::Client { 1 } else { 2 })
    }
}

/// Both scripts while they are drawn; of each pair the first is the server's, whose bytes go to the client. They are drawn
/// in one order of time, so that no end waits for what the other sends only after it.
#[derive(Default)]
struct Writing {
    bulk: bool,
    left: [u64; 2],
    sent: [u64; 2],
    steps: [Vec<Step>; 2],
}

impl Writing {
    fn write(&mut self, side: usize, bytes: u64, piece: u64, pause: u64) {
        if bytes > 0 {
            self.left[side] = self.left[side].saturating_sub(bytes);
            self.sent[side] += bytes;
            self.steps[side].push(Step::Write { bytes, piece, pause });
        }
    }

    /// This side waits for all that the other has sent so far.
    fn wait(&mut self, side: usize) {
        self.steps[side].push(Step::Await(self.sent[1 - side]));
    }

    /// Messages to and fro.
    fn talk(&mut self, die: &mut Die<'_>) {
        let gap = die.one_of(&[0, 0, 5, 40]);
        let first = die.below(2) as usize;
        self.wait(first);
        for _ in 0..die.between(1, 25) {
            for side in [first, 1 - first] {
                let bytes = die.any_scale(1, 1_000);
                self.write(side, bytes, 1_000, 0);
                self.wait(1 - side);
            }
            if gap > 0 {
                self.steps[first].push(Step::Rest(gap));
            }
        }
    }

    /// Many bytes, one way or both ways at once.
    fn burst(&mut self, die: &mut Die<'_>) {
        let sides: &[usize] = die.one_of(&[&[0], &[0], &[1], &[0, 1], &[0, 1]]);
        // From quiet, or out of what goes on.
        if die.below(2) == 0 {
            sides.iter().for_each(|side| self.wait(*side));
        }
        for side in sides {
            let piece = die.any_scale(if self.bulk { 64 << 10 } else { 1 }, 256 << 10);
            // Small pieces take long.
            let most = self.left[*side].min(piece * 4_000).max(1);
            let bytes = if self.bulk || die.below(3) == 0 { most } else { die.any_scale(1, most) };
            // As a server that makes its bytes while it sends them.
            let pieces = bytes / piece + 1;
            let pause = if pieces < 400 { die.one_of(&[0, 0, 500, 2_000, 2_000, 8_000]) } else { 0 };
            self.write(*side, bytes, piece, pause);
        }
    }

    /// Nothing, after all has come or while it still comes.
    fn rest(&mut self, die: &mut Die<'_>) {
        let time = die.one_of(&[60, 300, 500, 1_200, 2_500]);
        for side in 0..2 {
            if die.below(2) == 0 {
                self.wait(side);
            }
            self.steps[side].push(Step::Rest(time));
        }
    }

    /// Each ends when it has nothing more, or one goes on after it has seen the other's end.
    fn end(&mut self, die: &mut Die<'_>) {
        let later = match die.below(8) {
            0..2 => 0,
            2..4 => 1,
            _ => return,
        };
        self.steps[later].push(Step::AwaitEnd);
        let bytes = die.any_scale(1, self.left[later].clamp(1, 4 << 20));
        let piece = die.any_scale(1_000, 256 << 10);
        if die.below(2) == 0 {
            let quiet = die.between(1, 400);
            self.steps[later].push(Step::Rest(quiet));
        }
        self.write(later, bytes, piece, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conditions::seed_of, *};

    #[test]
    fn a_seed_draws_the_same_flows() {
        let conditions = Conditions::draw(5);
        for number in 0..conditions.flows {
            assert_eq!(Plan::draw(&conditions, number), Plan::draw(&conditions, number));
        }
        assert_ne!(Plan::draw(&conditions, 0), Plan::draw(&conditions, 1));
    }

    /// Plays scripts without a network, in which all bytes arrive at once.
    fn ends(plan: &Plan) -> bool {
        let mut at = [0; 2];
        let mut sent = [0_u64; 2];
        loop {
            let mut moved = false;
            for (side, role) in Role::BOTH.into_iter().enumerate() {
                let steps = &plan.script(role).steps;
                let Some(step) = steps.get(at[side]) else { continue };
                let other_ended = at[1 - side] == plan.script(role.other()).steps.len();
                let goes_on = match step {
                    Step::Write { bytes, .. } => {
                        sent[side] += bytes;
                        true
                    }
                    Step::Rest(_) => true,
                    Step::Await(bytes) => sent[1 - side] >= *bytes,
                    Step::AwaitEnd => other_ended,
                    Step::Reset => return true,
                };
                at[side] += usize::from(goes_on);
                moved |= goes_on;
            }
            if !moved {
                return Role::BOTH.into_iter().enumerate().all(|(side, role)| {
                    at[side] == plan.script(role).steps.len() && sent[side] == plan.script(role).total()
                });
            }
        }
    }

    #[test]
    fn no_end_waits_for_ever() {
        let mut largest = 0;
        for round in 0..300 {
            let conditions = Conditions::draw(seed_of(3, round));
            let plans = (0..conditions.flows).map(|number| Plan::draw(&conditions, number));
            for (number, plan) in plans.enumerate() {
                assert!(ends(&plan), "{conditions}, flow {number}: {plan:?}");
                largest = largest.max(plan.server.total());
            }
        }
        assert!(largest > 8 << 20, "{largest}");
    }
}
