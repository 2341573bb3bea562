//! What can be known without going through setu: the running process, WhatsApp's servers, and the machine.

use std::{fs, time::SystemTime};

use super::finding::Finding;
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
pub(super) async fn running(config: &Config) -> Vec<Finding> {
    let Some(address) = config.admin.first() else {
        return vec![Finding::ok("admin.bind is empty: setu cannot be asked how it is")];
    };
    let status = match admin::fetch(&admin::reachable(*address).to_string()).await {
        Ok(status) => status,
        Err(error) => {
            let remedy =
                "start it: `systemctl start setu`, or `setu run`; its log says what keeps it from starting";
            return vec![Finding::fail(format!("setu is not running here: {error}"), remedy)];
        }
    };
    let up = text::ago(status.now.saturating_sub(status.started));
    let what =
        format!("setu {} has been running for {up}, {} connections", status.version, status.connections());
    let mut findings = vec![Finding::ok(what)];
    findings.extend(running::difference(config, &status).map(|what| Finding::warn(what, "")));
    if status.stopping {
        findings
            .push(Finding::warn("setu is stopping", "wait until its connections ended, and start it again"));
    }
    for problem in status.problems {
        findings.push(match status.starting {
            true => Finding::warn(format!("setu is starting: {problem}"), "ask again in some seconds"),
            false => Finding::fail(problem, "see what is said of WhatsApp's servers below"),
        });
    }
    for problem in status.degraded {
        findings.push(Finding::warn(problem, "see what is said of WhatsApp's servers below"));
    }
    for note in status.notes {
        findings.push(Finding::warn(note, "clients are served; the log and docs/operations.md say more"));
    }
    findings
}

/// Whether names resolve, and servers answer, without setu between.
pub(super) async fn upstreams(config: &Config) -> Vec<Finding> {
    let (upstreams, background) = Upstreams::new(config, Vec::new(), None);
    let look = async {
        let mut findings = Vec::new();
        for id in (0..config.upstreams.len()).map(UpstreamId).filter(|id| config.is_used(*id)) {
            for examined in upstreams.examine(id).await {
                findings.push(upstream(&config.upstream(id).name, examined));
            }
        }
        findings
    };
    tokio::select! {
        findings = look => findings,
        () = background.run(std::future::pending()) => Vec::new(),
    }
}

fn upstream(name: &str, examined: Examined) -> Finding {
    let Examined { endpoint, addresses, connected } = examined;
    let Ok(addresses) = addresses else {
        let remedy =
            "see that /etc/resolv.conf names a resolver that works (`getent hosts NAME`), or set dns.servers";
        return Finding::fail(format!("{name}: {endpoint} has no address: DNS does not work here"), remedy);
    };
    let count = match addresses.len() {
        1 => "an address".to_owned(),
        count => format!("{count} addresses"),
    };
    match connected {
        Ok(()) => Finding::ok(format!("{name}: {endpoint} has {count}, and answers")),
        Err(CloseReason::DestinationRefused) => Finding::fail(
            format!("{name}: {endpoint} has an address that is not public"),
            "somebody lies in DNS: set dns.servers to resolvers that you trust; or, if the server is yours, \
             security.allow_private_upstreams",
        ),
        Err(reason) => Finding::fail(
            format!("{name}: {endpoint} does not answer: {reason}"),
            "this machine does not reach WhatsApp: look at its firewall and its provider's; in a country that blocks \
             WhatsApp a proxy cannot work",
        ),
    }
}

/// Whether the clock can be right. Certificates are judged by it.
pub(super) fn clock() -> Vec<Finding> {
    let remedy = "set it, and let a time service keep it: apt-get install chrony";
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified());
    if built.is_ok_and(|built| SystemTime::now() < built) {
        return vec![Finding::fail(
            "the clock is behind: setu's own program file is of a later time",
            remedy,
        )];
    }
    vec![match sys::clock_is_kept() {
        Some(true) => Finding::ok("the clock is kept right by a time service"),
        Some(false) => {
            Finding::warn("no time service keeps the clock right, as far as the kernel knows", remedy)
        }
        None => Finding::warn("whether the clock is kept right is not known", remedy),
    }]
}

/// The kernel's settings that hold a busy proxy back.
pub(super) fn settings() -> Vec<Finding> {
    let mut findings = Vec::new();
    match number(SOMAXCONN) {
        Some(most) if most < BACKLOG => findings.push(Finding::warn(
            format!("at most {most} connections wait to be accepted (somaxconn); setu asks for {BACKLOG}"),
            format!("sysctl -w net.core.somaxconn={BACKLOG}"),
        )),
        Some(most) => findings.push(Finding::ok(format!("up to {most} connections may wait to be accepted"))),
        None => {}
    }
    let conntrack = |name: &str| number(&format!("{CONNTRACK}{name}"));
    if let (Some(count), Some(most)) = (conntrack("count"), conntrack("max")) {
        findings.push(connections_tracked(count, most));
    } else {
        findings.push(Finding::ok("the firewall tracks no connections"));
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
        Finding::fail(what, remedy)
    } else if count >= most / 5 * 4 {
        Finding::warn(what, remedy)
    } else {
        Finding::ok(what)
    }
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// What `setu check` finds: privileges, the kernel path with its self-test, files and memory.
pub(super) fn checks(config: &Config) -> Vec<Finding> {
    let finding = |(verdict, what)| match verdict {
        Verdict::Fine => Finding::ok(what),
        Verdict::Note => Finding::warn(what, ""),
        Verdict::Bad => Finding::fail(what, ""),
    };
    check::machine(config).0.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::doctor::Verdict;

    #[test]
    fn a_full_table_of_connections_fails() {
        let verdict = |count| connections_tracked(count, 1000).verdict;
        assert_eq!([10, 799, 800, 949, 950, 1000].map(verdict), {
            use Verdict::{Fail, Ok, Warn};
            [Ok, Ok, Warn, Warn, Fail, Fail]
        });
    }
}
