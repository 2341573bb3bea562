//! Whether what the two ends of a flow saw may be.
//!
//! | | |
//! | --- | --- |
//! | wrong | a byte is not the one that is due at its place |
//! | short | a clean end before all bytes, however the flow's other end fared: a client would take half a file for a whole one |
//! | reset | an error or a refusal that neither a peer nor a drain caused |
//! | hang | no end, long after the conditions have become fair |

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{pattern::Wrong, plan::Role};

/// How an end's reading went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// The other side finished.
    End,
    /// It broke.
    Broken(String),
    /// This end left before.
    Left,
    /// It was still to end when the round did.
    Hanging,
}

impl fmt::Display for Read {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => formatter.write_str("read a clean end"),
            Self::Broken(error) => formatter.write_str(error),
            Self::Left => formatter.write_str("reset it"),
            Self::Hanging => formatter.write_str("was there to the last"),
        }
    }
}

/// What one end saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Right bytes.
    pub(crate) received: u64,
    /// Bytes that the kernel took.
    pub(crate) sent: u64,
    pub(crate) wrong: Option<Wrong>,
    pub(crate) read: Read,
    /// The error that ended its writing.
    pub(crate) write_error: Option<String>,
    /// When it ended, from the round's beginning.
    pub(crate) at: Duration,
}

/// What is known of a flow when the round is over.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) flow: u32,
    /// What each end was to send.
    pub(crate) planned: BySide<u64>,
    /// `None`: it was never there.
    pub(crate) outcomes: BySide<Option<Outcome>>,
    /// When one of the peers reset it.
    pub(crate) reset: Option<Duration>,
    /// When an endpoint died, for flows that had none yet.
    pub(crate) death: Option<Duration>,
    /// When setu was told to stop, and from when on it may cut what is open.
    pub(crate) drain: Option<(Duration, Duration)>,
}

/// One for the client, one for the server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BySide<T> {
    pub(crate) client: T,
    pub(crate) server: T,
}

impl<T> BySide<T> {
    pub(crate) fn of(&self, role: Role) -> &T {
        match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }
}

/// Kinds of what must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Wrong,
    Short,
    Reset,
    Hang,
    Leak,
    /// setu's own words: an error in its log, a reason of which no peer knows, a status.
    Said,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Wrong, Self::Short, Self::Reset, Self::Hang, Self::Leak, Self::Said];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wrong => "wrong bytes",
            Self::Short => "short streams that ended cleanly",
            Self::Reset => "resets that no peer caused",
            Self::Hang => "hangs",
            Self::Leak => "leaks",
            Self::Said => "errors in setu's own words",
        }
    }
}

/// One thing that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// Judges a flow; the findings are in the order of what says most.
pub(crate) fn flow(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for role in Role::BOTH {
        let mut find = |kind: Kind, text: String| {
            let text = format!("flow {}, {}: {text}", evidence.flow, role.name());
            findings.push(Finding { kind, text });
        };
        let planned = *evidence.planned.of(role.other());
        let Some(outcome) = evidence.outcomes.of(role) else {
            if !never_there(evidence) {
                find(Kind::Reset, "never reached".into());
            }
            continue;
        };
        let Outcome { received, sent, wrong, read, write_error, at } = outcome;
        let other = evidence.outcomes.of(role.other()).as_ref().map_or_else(
            || format!("no {}", role.other().name()),
            |other| {
                let Outcome { sent, read, at, .. } = other;
                format!("the {} had sent {sent}, {read}, {:.1} s", role.other().name(), at.as_secs_f64())
            },
        );
        let progress = format!(
            "after {received} of {planned} bytes and {sent} of {} sent, at {:.1} s; {other}",
            evidence.planned.of(role),
            at.as_secs_f64()
        );
        if let Some(wrong) = wrong {
            find(Kind::Wrong, format!("{wrong} ({progress})"));
            continue;
        }
        let excused = excused(evidence, *at);
        match read {
            Read::End if received < &planned && !never_dialed(evidence, role, *received) => {
                find(Kind::Short, format!("a clean end {progress}"));
            }
            Read::Broken(error) if !excused => find(Kind::Reset, format!("{error} {progress}")),
            Read::Hanging => find(Kind::Hang, format!("no end {progress}")),
            _ => {}
        }
        if let Some(error) = write_error
            && !excused
            && !matches!(read, Read::Broken(_))
        {
            find(Kind::Reset, format!("writing failed: {error} {progress}"));
        }
    }
    // What says that bytes are lost comes before the resets that follow from it.
    findings.sort_by_key(|finding| finding.kind);
    findings
}

/// Whether an error at this time has a cause outside of setu.
fn excused(evidence: &Evidence, at: Duration) -> bool {
    let served = evidence.outcomes.server.is_some();
    // A flow that is served may use all of the drain's time; one that is not may be refused at once.
    let drained = evidence.drain.is_some_and(|(told, cut)| at >= if served { cut } else { told });
    drained
        || evidence.reset.is_some_and(|reset| at >= reset)
        || !served && evidence.death.is_some_and(|death| at >= death)
}

/// Whether a flow may be without a server.
fn never_there(evidence: &Evidence) -> bool {
    // A reset overtakes what the server has not read, the flow's number among it.
    let left = |client: &Outcome| client.read == Read::Left || excused(evidence, client.at);
    evidence.outcomes.client.as_ref().is_none_or(left)
}

/// Whether setu closed a client for which it had no server, which had not sent a byte then.
fn never_dialed(evidence: &Evidence, role: Role, received: u64) -> bool {
    role == Role::Client && received == 0 && evidence.outcomes.server.is_none() && never_there(evidence)
}

/// Judges how connections ended in setu's words; `peers` are the reasons that peers gave cause for.
pub(crate) fn reasons(reasons: &BTreeMap<String, u64>, allowed: &[&str]) -> Vec<Finding> {
    reasons
        .iter()
        .filter(|(reason, count)| **count > 0 && !allowed.contains(&reason.as_str()))
        .map(|(reason, count)| Finding {
            kind: Kind::Said,
            text: format!("{count} connections ended for {reason}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn outcome(received: u64, sent: u64) -> Outcome {
        Outcome { received, sent, wrong: None, read: Read::End, write_error: None, at: SECOND * 5 }
    }

    /// A flow in which all went well.
    fn well() -> Evidence {
        Evidence {
            flow: 3,
            planned: BySide { client: 100, server: 1000 },
            outcomes: BySide { client: Some(outcome(1000, 100)), server: Some(outcome(100, 1000)) },
            reset: None,
            death: None,
            drain: None,
        }
    }

    fn kinds(evidence: &Evidence) -> Vec<Kind> {
        flow(evidence).iter().map(|finding| finding.kind).collect()
    }

    fn client(evidence: &mut Evidence, edit: impl FnOnce(&mut Outcome)) {
        edit(evidence.outcomes.client.as_mut().unwrap());
    }

    #[test]
    fn a_flow_that_went_well_is_no_finding() {
        assert_eq!(kinds(&well()), []);
    }

    #[test]
    fn a_wrong_byte_is_one_whatever_else_there_was() {
        let mut evidence = well();
        client(&mut evidence, |client| client.wrong = Some(Wrong { at: 500, instead: Some(510) }));
        evidence.reset = Some(SECOND);
        evidence.drain = Some((SECOND, SECOND));
        assert_eq!(kinds(&evidence), [Kind::Wrong]);
        let text = &flow(&evidence)[0].text;
        assert!(
            text.contains("flow 3, client") && text.contains("500") && text.contains("10 bytes"),
            "{text}"
        );
    }

    #[test]
    fn a_clean_end_of_a_short_stream_is_one_whatever_else_there_was() {
        let mut evidence = well();
        client(&mut evidence, |client| client.received = 999);
        assert_eq!(kinds(&evidence), [Kind::Short]);
        evidence.reset = Some(SECOND);
        evidence.drain = Some((SECOND, SECOND));
        evidence.death = Some(SECOND);
        assert_eq!(kinds(&evidence), [Kind::Short]);
    }

    #[test]
    fn a_reset_is_one_unless_it_has_a_cause() {
        let mut evidence = well();
        client(&mut evidence, |client| {
            client.read = Read::Broken("reset by peer".into());
            client.received = 10;
        });
        assert_eq!(kinds(&evidence), [Kind::Reset]);
        evidence.reset = Some(SECOND * 5);
        assert_eq!(kinds(&evidence), []);
        // A cause that came later is none.
        evidence.reset = Some(SECOND * 6);
        assert_eq!(kinds(&evidence), [Kind::Reset]);
    }

    #[test]
    fn a_drain_gives_flows_their_time() {
        let mut evidence = well();
        client(&mut evidence, |client| client.read = Read::Broken("reset by peer".into()));
        evidence.drain = Some((SECOND, SECOND * 6));
        assert_eq!(kinds(&evidence), [Kind::Reset]);
        evidence.drain = Some((SECOND, SECOND * 4));
        assert_eq!(kinds(&evidence), []);
    }

    #[test]
    fn a_failed_write_is_one_even_when_all_was_read() {
        let mut evidence = well();
        client(&mut evidence, |client| client.write_error = Some("broken pipe".into()));
        assert_eq!(kinds(&evidence), [Kind::Reset]);
    }

    #[test]
    fn a_hang_is_one_even_after_a_reset() {
        let mut evidence = well();
        client(&mut evidence, |client| client.read = Read::Hanging);
        evidence.reset = Some(SECOND);
        assert_eq!(kinds(&evidence), [Kind::Hang]);
    }

    #[test]
    fn a_server_that_is_never_reached_is_one_unless_an_endpoint_died() {
        let mut evidence = well();
        evidence.outcomes.server = None;
        client(&mut evidence, |client| {
            client.read = Read::Broken("reset by peer".into());
            client.received = 0;
        });
        assert_eq!(kinds(&evidence), [Kind::Reset, Kind::Reset]);
        evidence.death = Some(SECOND);
        assert_eq!(kinds(&evidence), []);
        // Closed by FIN: no stream was cut.
        client(&mut evidence, |client| client.read = Read::End);
        assert_eq!(kinds(&evidence), []);
    }

    #[test]
    fn a_client_that_resets_may_be_without_a_server() {
        let mut evidence = well();
        evidence.outcomes.server = None;
        client(&mut evidence, |client| client.read = Read::Left);
        // Noted a moment after the client had left.
        evidence.reset = Some(SECOND * 6);
        assert_eq!(kinds(&evidence), []);
    }

    #[test]
    fn reasons_that_no_peer_gave_cause_for_are_some() {
        let said = BTreeMap::from([("client_closed".to_owned(), 5), ("internal_error".to_owned(), 1)]);
        let found = reasons(&said, &["client_closed"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("internal_error") && found[0].kind == Kind::Said);
    }
}
