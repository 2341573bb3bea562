//! The log: every line names setu as its source, and levels and parts choose what is told.

use setu_tests::{
    Path, Setu, config,
    peers::{Upstream, call, end_of, exchange},
};

/// What a line of the log begins with after the time: its level and its target.
fn level_and_target(line: &str) -> (&str, &str) {
    let mut words = line.split_whitespace().skip(1);
    let (level, target) = (words.next(), words.next().and_then(|word| word.strip_suffix(':')));
    level.zip(target).unwrap_or_else(|| panic!("no level or no target: {line}"))
}

fn is_of(part: &str, line: &str) -> bool {
    let rest = level_and_target(line).1.strip_prefix(part);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All that setu writes about one flow, from its start to its stop.
fn log_of_a_flow(path: Path, filter: &str) -> Vec<String> {
    let upstream = Upstream::new();
    let setu = Setu::start_logging(&config(path, &upstream.address(), ""), None, filter);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"hello");
    drop((client, server));
    let transcript = setu.transcript();
    let (status, reasons) = setu.stop();
    assert!(status.success(), "{status}");
    assert_eq!(reasons.values().sum::<u64>(), 1, "{reasons:?}");
    let log = transcript.lock().unwrap();
    log.clone()
}

#[test]
fn lines_name_setu_and_no_crate_of_it() {
    let path = if crate::may_use_kernel() { Path::Sockmap } else { Path::Userspace };
    for line in log_of_a_flow(path, "trace") {
        assert!(!line.contains("proxy_userspace") && !line.contains("proxy_ebpf"), "{line}");
    }
    // Without what libraries say, and with all that setu says.
    let log = log_of_a_flow(path, "setu=trace");
    for line in &log {
        assert!(is_of("setu", line), "{line}");
    }
    for said in ["ready path=", "closed reason=", "stopped"] {
        assert!(log.iter().any(|line| line.contains(said)), "{said} is missing: {}", log.join("\n"));
    }
}

#[test]
fn connections_are_told_from_debug_on() {
    for (filter, lines) in [("info", 0), ("setu=debug", 1)] {
        let log = log_of_a_flow(Path::Userspace, filter);
        let told = log.iter().filter(|line| line.contains("closed reason=")).count();
        assert_eq!(told, lines, "{filter}: {}", log.join("\n"));
    }
}

#[test]
fn one_part_can_tell_more_than_the_others() {
    let nobody = Upstream::new().address();
    let setup = config(Path::Userspace, &nobody, "");
    let mut setu = Setu::start_logging(&setup, None, "info,setu::upstream=debug");
    assert_eq!(end_of(&call(setu.address("chat"))).unwrap_or(0), 0);
    setu.wait_count("not connected", 1);
    let transcript = setu.transcript();
    assert!(setu.stop().0.success());
    let log = transcript.lock().unwrap();
    for line in log.iter().filter(|line| level_and_target(line).0 == "DEBUG") {
        assert!(is_of("setu::upstream", line), "{line}");
    }
}
