//! Goes through a server's ports from where phones are: another machine, which needs no configuration and no privilege.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use tokio::time::timeout;

use super::{
    conclusion::{Lookup, Outside},
    finding::{Diagnosis, Finding, Group, Level},
    link::Link,
    trial,
    way::{Outcome, Trial, Way},
};
use crate::{
    config::Host,
    upstream::{NameFailure, look_up},
};

/// For the name, as long as a phone's user would wait.
const PATIENCE: Duration = Duration::from_secs(15);
/// Addresses of a name that are tried; a phone does not try more, either.
const ADDRESSES: usize = 4;
/// Ports that servers have by default, and that the link does not name.
const OTHERS: [(Trial, u16); 3] = [(Trial::Chat, 5222), (Trial::Chat, 80), (Trial::Media, 7777)];

/// Tries what the link says, and beside the link's default ports what else a server has by default.
pub(super) async fn examine(link: &Link) -> Diagnosis {
    let ips = match addresses(&link.host).await {
        Ok(ips) => ips,
        Err((lookup, finding)) => {
            return Diagnosis::new(Outside { lookup, ways: Vec::new() }.conclusion(), vec![finding]);
        }
    };
    let needed = [(link.chat_trial(), link.chat), (Trial::Media, link.media)];
    let others = if link.has_default_ports() { &OTHERS[..] } else { &[] };
    let trials: Vec<_> =
        needed.into_iter().map(|way| (way, true)).chain(others.iter().map(|way| (*way, false))).collect();
    let tried = at_once(trials, &ips);
    let is_closed = |(trial, _, is_needed, (outcome, _)): &Tried| {
        *is_needed && *trial == Trial::Media && *outcome == Some(Outcome::Closed)
    };
    // A server that takes everything on one port has media there.
    let elsewhere = (!link.is_media_known && tried.iter().any(is_closed))
        .then(|| trial::run(Trial::Media, &sockets(&ips, link.chat), false))
        .filter(|(outcome, _)| *outcome == Some(Outcome::Works))
        .map(|seen| (Trial::Media, link.chat, false, seen));
    let is_moved = elsewhere.is_some();
    let (mut ways, mut findings) = (Vec::new(), Vec::new());
    for (trial, port, is_needed, (outcome, seen)) in tried.into_iter().chain(elsewhere) {
        // Of a family that this machine does not have: there is no way to it.
        let outcome = outcome.unwrap_or(Outcome::NoRoute);
        ways.push(Way { service: trial.service(), port, outcome, is_needed, upstream: None });
        let is_missed = is_needed && !(is_moved && port == link.media);
        findings.extend(seen.into_iter().map(|finding| told(finding, is_missed).at(format!("port {port}"))));
    }
    Diagnosis::new(Outside { lookup: Lookup::Found, ways }.conclusion(), findings)
}

/// A trial at a port, whether phones need it, and what came of it.
type Tried = (Trial, u16, bool, (Option<Outcome>, Vec<Finding>));

fn at_once(trials: Vec<((Trial, u16), bool)>, ips: &[IpAddr]) -> Vec<Tried> {
    thread::scope(|scope| {
        let running: Vec<_> = trials
            .into_iter()
            .map(|((trial, port), is_needed)| {
                let to = sockets(ips, port);
                (trial, port, is_needed, scope.spawn(move || trial::run(trial, &to, false)))
            })
            .collect();
        let ended = running.into_iter().map(|(trial, port, is_needed, handle)| {
            // A panic is a defect, and no answer.
            (trial, port, is_needed, handle.join().unwrap_or_default())
        });
        ended.collect()
    })
}

fn sockets(ips: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
}

/// A server need not have all ports that it has by default; closed ones make it harder to find.
fn told(finding: Finding, is_needed: bool) -> Finding {
    match finding.level {
        Level::Fail if !is_needed => {
            Finding::note(Group::Ports, format!("{}; the link does not use it", finding.what))
        }
        _ => finding,
    }
}

async fn addresses(host: &Host) -> Result<Vec<IpAddr>, (Lookup, Finding)> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![*ip]),
        Host::Name(name) => name,
    };
    let found = timeout(PATIENCE, look_up(name)).await.unwrap_or(Err(NameFailure::Unanswered));
    let fail = |what: String| Finding::fail(Group::Ports, what, "");
    match found {
        // As a phone does: IPv4 is what a proxy is sure to have.
        Ok(mut ips) => {
            ips.sort_by_key(IpAddr::is_ipv6);
            ips.truncate(ADDRESSES);
            Ok(ips)
        }
        Err(NameFailure::NoSuchName) => Err((Lookup::NoSuchName, fail(format!("{name} has no address")))),
        Err(NameFailure::Unanswered | NameFailure::Refused | NameFailure::Busy) => {
            Err((Lookup::NoNameService, fail(format!("the resolvers of this machine say nothing of {name}"))))
        }
    }
}
