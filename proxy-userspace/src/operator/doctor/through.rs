//! Goes through the ports of this machine's setu as its clients do.

use std::thread;

use super::{
    finding::{Finding, Group},
    trial,
    way::{Outcome, Service, Trial, Way},
};
use crate::{
    config::{Config, Listener, Mode},
    operator::admin,
};

/// What came of all ports.
#[derive(Default)]
pub(super) struct Through {
    pub(super) ways: Vec<Way>,
    /// Of each way, in their order.
    pub(super) seen: Vec<Vec<Finding>>,
    pub(super) is_any_untried: bool,
    /// Of what is no way.
    pub(super) findings: Vec<Finding>,
}

/// Tries each port, all at the same time.
pub(super) fn listeners(config: &Config) -> Through {
    let mut through = Through::default();
    thread::scope(|scope| {
        let mut running = Vec::new();
        for listener in &config.listeners {
            for bound in &listener.bind {
                let target = admin::reachable(*bound);
                let place = format!("{} {target}", listener.name);
                // This machine reaches an address of its own from the same.
                if listener.accept_proxy_protocol && !config.trusted.contains(target.ip()) {
                    let what = "not tried: proxy_protocol.trusted lets only others use it";
                    through.findings.push(Finding::note(Group::Ports, what).at(place));
                    through.is_any_untried |= is_needed(config, listener);
                    continue;
                }
                for (what, upstream) in trials(listener.mode) {
                    let run = move || trial::run(what, &[target], listener.accept_proxy_protocol);
                    let way = Way {
                        service: what.service(),
                        port: target.port(),
                        outcome: Outcome::Unanswered,
                        is_needed: is_needed(config, listener),
                        upstream: Some(upstream),
                    };
                    running.push((way, place.clone(), scope.spawn(run)));
                }
            }
        }
        for (way, place, handle) in running {
            // A panic is a defect, and no answer.
            let (outcome, findings) = handle.join().unwrap_or_default();
            let findings: Vec<_> = findings.into_iter().map(|finding| finding.at(place.clone())).collect();
            match outcome {
                Some(outcome) => {
                    through.ways.push(Way { outcome, ..way });
                    through.seen.push(findings);
                }
                None => through.findings.extend(findings),
            }
        }
    });
    through
}

/// What is tried at a listener, and which upstream it leads to.
fn trials(mode: Mode) -> Vec<(Trial, usize)> {
    match mode {
        Mode::Chat { upstream, .. } => vec![(Trial::Chat, upstream.0)],
        Mode::ChatTls { upstream, .. } => vec![(Trial::ChatTls, upstream.0)],
        Mode::Media { upstream } => vec![(Trial::Media, upstream.0)],
        Mode::Auto { chat, media, .. } => {
            vec![(Trial::Chat, chat.0), (Trial::ChatTls, chat.0), (Trial::Media, media.0)]
        }
    }
}

/// Whether phones depend on a listener: on those that they use themselves, and on those for proxies where there is nothing
/// else for one of its services.
fn is_needed(config: &Config, listener: &Listener) -> bool {
    let takes = |listener: &Listener, service: Service| {
        trials(listener.mode).iter().any(|(trial, _)| trial.service() == service)
    };
    let has_open =
        |service| config.listeners.iter().any(|other| !other.accept_proxy_protocol && takes(other, service));
    !listener.accept_proxy_protocol
        || [Service::Chat, Service::Media]
            .into_iter()
            .any(|service| takes(listener, service) && !has_open(service))
}
