//! Tries a port as a phone uses it.

use std::{io, net::SocketAddr};

use super::{
    finding::{Finding, Group},
    probe::{self, Connection, Failure},
    tls::{self, Dates, MEDIA_NAME, Media},
    way::{Outcome, Trial},
};
use crate::{
    account::{lacks_a_source, lacks_family},
    operator::text::moment,
};

const GROUP: Group = Group::Ports;

/// Tries it at the first of these addresses that takes a connection. `None` when they are of a family that this machine
/// does not have, so that nothing is known.
pub(super) fn run(trial: Trial, to: &[SocketAddr], proxy_header: bool) -> (Option<Outcome>, Vec<Finding>) {
    match probe::connect(to, proxy_header) {
        Ok(stream) => {
            let (outcome, findings) = speak(trial, stream);
            (Some(outcome), findings)
        }
        Err(error)
            if to.iter().all(SocketAddr::is_ipv6) && (lacks_a_source(&error) || lacks_family(&error)) =>
        {
            (None, vec![Finding::note(GROUP, "not tried: this machine has no IPv6")])
        }
        Err(error) => {
            let is_lost = error.kind() == io::ErrorKind::NetworkUnreachable;
            let outcome = if is_lost { Outcome::NoRoute } else { Outcome::Closed };
            (Some(outcome), vec![Finding::fail(GROUP, format!("not reachable: {error}"), "")])
        }
    }
}

fn speak(trial: Trial, stream: Connection) -> (Outcome, Vec<Finding>) {
    match trial {
        Trial::Chat => {
            let (outcome, finding) = chat("chat", probe::chat(stream));
            (outcome, vec![finding])
        }
        Trial::ChatTls => match tls::chat(stream) {
            Ok((dates, answer)) => {
                let (outcome, finding) = chat("chat inside TLS", answer);
                let (is_valid, certificate) = certificate(dates);
                let outcome = if outcome == Outcome::Works && !is_valid { Outcome::Dated } else { outcome };
                (outcome, vec![finding, certificate])
            }
            Err(failure) => {
                let what = format!("chat inside TLS: no TLS: {failure}");
                (failure.outcome(), vec![Finding::fail(GROUP, what, "")])
            }
        },
        Trial::Media => {
            let (outcome, finding) = media(tls::media(stream));
            (outcome, vec![finding])
        }
    }
}

fn chat(what: &str, answer: Result<(), Failure>) -> (Outcome, Finding) {
    match answer {
        Ok(()) => (Outcome::Works, Finding::ok(GROUP, format!("{what}: WhatsApp's server answered"))),
        Err(failure) => {
            let what = format!("{what}: no answer of WhatsApp's: {failure}");
            (failure.outcome(), Finding::fail(GROUP, what, ""))
        }
    }
}

/// Whether the certificate is valid now, and what is to be said of it.
fn certificate(dates: Dates) -> (bool, Finding) {
    let remedy = "renew it, or remove tls.certificate and tls.key and let setu make one";
    match dates {
        Dates::Unreadable => (
            true,
            Finding::warn(GROUP, "the TLS certificate cannot be read", "see [tls] of the configuration"),
        ),
        Dates::From(from) => {
            let what = format!("the TLS certificate is not valid before {}", moment(from));
            (false, Finding::fail(GROUP, what, "see whether the clock is right; else replace it"))
        }
        Dates::Ended(until) => {
            (false, Finding::fail(GROUP, format!("the TLS certificate ended at {}", moment(until)), remedy))
        }
        Dates::Soon(until) => (
            true,
            Finding::warn(GROUP, format!("the TLS certificate ends soon, at {}", moment(until)), remedy),
        ),
        Dates::Until(until) => {
            (true, Finding::ok(GROUP, format!("the TLS certificate is valid until {}", moment(until))))
        }
    }
}

fn media(result: Result<Media, Failure>) -> (Outcome, Finding) {
    match result {
        Ok(Media::Genuine { roots }) => (
            Outcome::Works,
            Finding::ok(
                GROUP,
                format!(
                    "media: TLS with {MEDIA_NAME}, whose certificate is genuine, judged by this machine's \
                     certification authorities ({roots})"
                ),
            ),
        ),
        Ok(Media::NameOnly) => {
            let what = format!(
                "media: TLS with {MEDIA_NAME}; this machine knows no certification authorities to judge by"
            );
            (Outcome::Works, Finding::warn(GROUP, what, "apt-get install ca-certificates"))
        }
        Ok(Media::OtherName) => {
            let what = format!("media: who answers has no certificate for {MEDIA_NAME}");
            (Outcome::Foreign, Finding::fail(GROUP, what, ""))
        }
        Ok(Media::NotTrusted(error)) => {
            let what = format!("media: the certificate for {MEDIA_NAME} is not genuine: {error}");
            (Outcome::Foreign, Finding::fail(GROUP, what, ""))
        }
        Ok(Media::Dated(error)) => {
            let what = format!("media: the certificate for {MEDIA_NAME} is not valid now: {error}");
            (Outcome::Dated, Finding::fail(GROUP, what, ""))
        }
        Err(failure) => {
            let remedy = match failure {
                Failure::NameRefused => "allow it in allow.sni",
                _ => "",
            };
            let what = format!("media: no TLS with {MEDIA_NAME}: {failure}");
            (failure.outcome(), Finding::fail(GROUP, what, remedy))
        }
    }
}
