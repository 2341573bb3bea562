//! What can be known without going through setu: the running process, WhatsApp's servers, and the machine.

use std::{fs, time::SystemTime};

use super::{
    conclusion::{Reach, Running},
    finding::{Finding, Group},
};
use crate::{
    account::CloseReason,
    config::{Config, UpstreamId},
    operator::{
        admin,
        check::{self, Verdict},
        running, text,
    },
    sys,
    upstream::{Examined, Upstreams},
};

/// Connections that setu asks the kernel to keep until they are accepted.
const BACKLOG: u64 = 4096;
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
const CONNTRACK: &str = "/proc/sys/net/netfilter/nf_conntrack_";

/// What the running setu says of itself.
pub(super) async fn running(config: &Config) -> (Running, Vec<Finding>) {
    const GROUP: Group = Group::Setu;
    let Some(address) = config.admin.first() else {
        let what = "admin.bind is empty: setu cannot be asked how it is";
        return (Running::Unknown, vec![Finding::note(GROUP, what)]);
    };
    let status = match admin::fetch(&admin::reachable(*address).to_string()).await {
        Ok(status) => status,
        Err(error) => {
            let remedy = "see that setu runs, and with this configuration";
            return (Running::Not, vec![Finding::fail(GROUP, error.to_string(), remedy)]);
        }
    };
    let up = text::ago(status.now.saturating_sub(status.started));
    let what =
        format!("setu {} has been running for {up}, {} connections", status.version, status.connections());
    let mut findings = vec![Finding::ok(GROUP, what)];
    let difference = running::difference(config, &status);
    let starting = status.starting;
    // What was tried through its ports decides; what it says may be of a minute ago.
    for problem in status.problems {
        let what = if starting { format!("setu is starting: {problem}") } else { problem };
        findings.push(Finding::warn(GROUP, what, ""));
    }
    for what in status.degraded.into_iter().chain(status.notes).chain(difference) {
        findings.push(Finding::warn(GROUP, what, ""));
    }
    (if status.stopping { Running::Stops } else { Running::Serves }, findings)
}

/// Whether names resolve, and servers answer, without setu between: each endpoint by the number of its upstream.
pub(super) async fn upstreams(config: &Config) -> (Vec<(usize, Reach)>, Vec<Finding>) {
    let (upstreams, background) = Upstreams::new(config, Vec::new(), None);
    let look = async {
        let (mut reached, mut findings) = (Vec::new(), Vec::new());
        for id in (0..config.upstreams.len()).map(UpstreamId).filter(|id| config.is_used(*id)) {
            for examined in upstreams.examine(id).await {
                let reach = reach(&examined);
                let place = format!("{} ({})", examined.endpoint, config.upstream(id).name);
                reached.push((id.0, reach));
                findings.push(upstream(reach, &examined).at(place));
            }
        }
        (reached, findings)
    };
    tokio::select! {
        looked = look => looked,
        () = background.run(std::future::pending()) => (Vec::new(), Vec::new()),
    }
}

fn reach(examined: &Examined) -> Reach {
    match (&examined.addresses, examined.connected) {
        (Ok(_), Ok(())) => Reach::Connected,
        (Err(CloseReason::DestinationRefused), _) | (_, Err(CloseReason::DestinationRefused)) => {
            Reach::NotPublic
        }
        (Err(_), _) => Reach::NoAddress,
        (_, Err(_)) => Reach::Unreachable,
    }
}

fn upstream(reach: Reach, examined: &Examined) -> Finding {
    const GROUP: Group = Group::Upstreams;
    match (reach, examined.connected) {
        (Reach::NoAddress, _) => Finding::fail(GROUP, "no address: the name does not resolve", ""),
        (Reach::NotPublic, _) => Finding::fail(GROUP, "an address that is not public", ""),
        (_, Err(reason)) => Finding::fail(GROUP, format!("no connection: {reason}"), ""),
        (_, Ok(())) => Finding::ok(GROUP, "takes connections"),
    }
}

/// Whether the clock can be right. Certificates are judged by it.
pub(super) fn clock() -> Vec<Finding> {
    let remedy = "set it, and let a time service keep it: apt-get install chrony";
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified());
    if built.is_ok_and(|built| SystemTime::now() < built) {
        return vec![Finding::fail(
            Group::Machine,
            "the clock is behind: setu's own program file is of a later time",
            remedy,
        )];
    }
    vec![match sys::clock_is_kept() {
        Some(true) => Finding::ok(Group::Machine, "the clock is kept right by a time service"),
        Some(false) => Finding::warn(
            Group::Machine,
            "no time service keeps the clock right, as far as the kernel knows",
            remedy,
        ),
        None => Finding::warn(Group::Machine, "whether the clock is kept right is not known", remedy),
    }]
}

/// The kernel's settings that hold a busy proxy back.
pub(super) fn settings() -> Vec<Finding> {
    let mut findings = Vec::new();
    match number(SOMAXCONN) {
        Some(most) if most < BACKLOG => findings.push(Finding::warn(
            Group::Machine,
            format!("at most {most} connections wait to be accepted (somaxconn); setu asks for {BACKLOG}"),
            format!("sysctl -w net.core.somaxconn={BACKLOG}"),
        )),
        Some(most) => findings
            .push(Finding::ok(Group::Machine, format!("up to {most} connections may wait to be accepted"))),
        None => {}
    }
    let conntrack = |name: &str| number(&format!("{CONNTRACK}{name}"));
    if let (Some(count), Some(most)) = (conntrack("count"), conntrack("max")) {
        findings.push(connections_tracked(count, most));
    } else {
        findings.push(Finding::ok(Group::Machine, "the firewall tracks no connections"));
    }
    findings
}

fn connections_tracked(count: u64, most: u64) -> Finding {
    let what = format!("the firewall tracks {count} connections of at most {most} (nf_conntrack)");
    let remedy = format!(
        "beyond that new connections are dropped: sysctl -w net.netfilter.nf_conntrack_max={}, or do not track setu's \
         ports (`notrack`)",
        most.saturating_mul(4)
    );
    if count >= most / 20 * 19 {
        Finding::fail(Group::Machine, what, remedy)
    } else if count >= most / 5 * 4 {
        Finding::warn(Group::Machine, what, remedy)
    } else {
        Finding::ok(Group::Machine, what)
    }
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// What `setu check` finds: privileges, the kernel path with its self-test, files and memory.
pub(super) fn checks(config: &Config) -> Vec<Finding> {
    let finding = |(verdict, what)| match verdict {
        Verdict::Fine => Finding::ok(Group::Machine, what),
        Verdict::Note => Finding::warn(Group::Machine, what, ""),
        Verdict::Bad => Finding::fail(Group::Machine, what, ""),
    };
    check::machine(config).0.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::doctor::finding::Level;

    #[test]
    fn a_full_table_of_connections_fails() {
        let level = |count| connections_tracked(count, 1000).level;
        assert_eq!([10, 799, 800, 949, 950, 1000].map(level), {
            use Level::{Fail, Ok, Warn};
            [Ok, Ok, Warn, Warn, Fail, Fail]
        });
    }
}
