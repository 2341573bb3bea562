//! Goes through setu's ports as clients do.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    thread,
};

use super::{
    Finding,
    probe::{self, Failure},
    tls::{self, MEDIA_NAME, Media},
};
use crate::{
    account::{lacks_a_source, lacks_family},
    config::{Config, Listener, Mode},
    operator::admin,
};

/// What to try at an address.
#[derive(Clone, Copy)]
enum Trial {
    Chat,
    ChatTls,
    Media,
}

/// Tries each port as its clients would, all at the same time.
pub(super) fn listeners(config: &Config, host: Option<&str>) -> Vec<Finding> {
    let mut trials = Vec::new();
    let mut findings = Vec::new();
    for listener in &config.listeners {
        match targets(listener, host) {
            Ok(targets) => {
                for target in targets {
                    trials.extend(trials_of(listener.mode).iter().map(|trial| (listener, target, *trial)));
                }
            }
            Err(error) => findings.push(Finding::fail(
                format!("{}: {} has no address: {error}", listener.name, host.unwrap_or_default()),
                "give --host the name or the address that clients use",
            )),
        }
    }
    thread::scope(|scope| {
        let running: Vec<_> = trials
            .iter()
            .map(|(listener, target, trial)| {
                let whose = format!("{} {target}", listener.name);
                let handle = scope.spawn(move || try_it(listener, *target, *trial));
                (whose, handle)
            })
            .collect();
        for (whose, handle) in running {
            let found = handle.join().unwrap_or_else(|_| vec![Finding::fail("the test itself broke", "")]);
            findings.extend(
                found
                    .into_iter()
                    .map(|finding| Finding { what: format!("{whose}: {}", finding.what), ..finding }),
            );
        }
    });
    findings
}

fn trials_of(mode: Mode) -> &'static [Trial] {
    match mode {
        Mode::Chat { .. } => &[Trial::Chat],
        Mode::ChatTls { .. } => &[Trial::ChatTls],
        Mode::Media { .. } => &[Trial::Media],
        Mode::Auto { .. } => &[Trial::Chat, Trial::ChatTls, Trial::Media],
    }
}

/// Where to reach a listener: each of its addresses, or its ports at `host`.
fn targets(listener: &Listener, host: Option<&str>) -> io::Result<Vec<SocketAddr>> {
    let Some(host) = host else {
        return Ok(listener.bind.iter().map(|bound| admin::reachable(*bound)).collect());
    };
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let mut ports: Vec<_> = listener.bind.iter().map(SocketAddr::port).collect();
    ports.dedup();
    let mut all = Vec::new();
    for port in ports {
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => Some((ip, port).into()),
            // A client takes the first that answers; the resolver puts that first.
            Err(_) => (host, port).to_socket_addrs()?.next(),
        };
        all.extend(found);
    }
    Ok(all)
}

fn try_it(listener: &Listener, target: SocketAddr, trial: Trial) -> Vec<Finding> {
    let stream = match probe::connect(target, listener.accept_proxy_protocol) {
        Ok(stream) => stream,
        Err(error) if target.is_ipv6() && (lacks_a_source(&error) || lacks_family(&error)) => {
            return vec![Finding::warn("this machine has no IPv6", "clients reach it by IPv4 only")];
        }
        Err(error) => {
            let remedy = "see that setu runs with this configuration, and that no firewall is in the way: here, at the \
                          provider, or on the way to --host";
            return vec![Finding::fail(format!("not reachable: {error}"), remedy)];
        }
    };
    match trial {
        Trial::Chat => vec![chat("chat", probe::chat(stream))],
        Trial::ChatTls => match tls::chat(stream) {
            Ok((dates, answer)) => vec![dates, chat("chat inside TLS", answer)],
            Err(failure) => vec![Finding::fail(
                format!("no TLS: {failure}"),
                "see that mode is \"chat-tls\" there, and that nothing else answers on this port",
            )],
        },
        Trial::Media => vec![media(tls::media(stream))],
    }
}

fn chat(what: &str, answer: Result<usize, Failure>) -> Finding {
    match answer {
        Ok(bytes) => Finding::ok(format!("{what}: WhatsApp's server answered with {bytes} bytes")),
        Err(failure) => Finding::fail(
            format!("{what}: no answer to a client's hello: {failure}"),
            "see what is said of WhatsApp's servers above; SETU_LOG=debug tells why setu closes a connection; behind a \
             load balancer, whether accept_proxy_protocol is set right",
        ),
    }
}

fn media(result: Result<Media, Failure>) -> Finding {
    match result {
        Ok(Media::Genuine { roots }) => Finding::ok(format!(
            "media: TLS with {MEDIA_NAME}, whose certificate is genuine, judged by this machine's certification \
             authorities ({roots})"
        )),
        Ok(Media::NameOnly) => Finding::warn(
            format!(
                "media: TLS with {MEDIA_NAME}; this machine knows no certification authorities to judge by"
            ),
            "apt-get install ca-certificates",
        ),
        Ok(Media::OtherName) => Finding::fail(
            format!("media: who answers has no certificate for {MEDIA_NAME}"),
            "the upstream is not WhatsApp, or something between here and there answers in its place; see the media \
             upstream's endpoints, and DNS",
        ),
        Ok(Media::NotTrusted(error)) => Finding::fail(
            format!("media: the certificate for {MEDIA_NAME} is not genuine: {error}"),
            "something between here and WhatsApp answers in its place; or the clock is wrong",
        ),
        Err(failure) => Finding::fail(
            format!("media: no TLS with {MEDIA_NAME}: {failure}"),
            "see what is said of WhatsApp's servers above, and whether allow.sni allows the name",
        ),
    }
}
