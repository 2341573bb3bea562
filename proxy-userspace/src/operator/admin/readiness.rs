//! Whether clients get what they come for, chat and media, by what is known of WhatsApp's servers; in words.
//!
//! A purpose is served as long as one of the ways to it may work: the others are told of, and keep nobody from what does.

use super::status::{Endpoint, Standing};
use crate::config::{Config, Listener, Purpose};

/// Servers that are named one by one; of more it is told how many they are.
const NAMED: usize = 3;

/// What there is to say of the listeners' purposes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Readiness {
    /// Of those for which no server has answered yet, or does any more.
    pub(super) unanswered: Vec<String>,
    /// Of those that nobody is served for.
    pub(super) problems: Vec<String>,
    /// Of those that are served on some listeners alone.
    pub(super) degraded: Vec<String>,
}

impl Readiness {
    /// Judges the listeners of a configuration by the endpoints of its upstreams.
    pub(super) fn new(config: &Config, endpoints: &[Endpoint]) -> Self {
        let mut readiness = Self::default();
        for purpose in Purpose::ALL {
            readiness.judge(config, endpoints, purpose);
        }
        readiness
    }

    fn judge(&mut self, config: &Config, endpoints: &[Endpoint], purpose: Purpose) {
        let ways: Vec<Way<'_>> = config
            .ways(purpose)
            .map(|(listener, upstream)| {
                let is_its = |endpoint: &&Endpoint| endpoint.upstream == config.upstream(upstream).name;
                Way { listener, servers: endpoints.iter().filter(is_its).collect() }
            })
            .collect();
        let name = purpose.name();
        if !ways.is_empty() && !ways.iter().any(Way::answers) {
            let names = list(&names(&ways), "or");
            self.unanswered.push(format!("{name} waits for an answer of {names}{}", error(&ways)));
        }
        let (down, others): (Vec<_>, Vec<_>) = ways.into_iter().partition(Way::is_down);
        if down.is_empty() {
            return;
        }
        let cause = cause(&down);
        if others.is_empty() {
            self.problems.push(format!("{name} does not work: {cause}"));
        } else {
            let place = place(&down);
            self.degraded.push(format!("{name} on {place} does not work: {cause}; on the others it does"));
        }
    }
}

/// A listener and the servers that it leads to.
struct Way<'a> {
    listener: &'a Listener,
    servers: Vec<&'a Endpoint>,
}

impl Way<'_> {
    fn is_down(&self) -> bool {
        self.servers.iter().all(|server| server.standing == Standing::Down)
    }

    fn answers(&self) -> bool {
        self.servers.iter().any(|server| server.standing == Standing::Up)
    }
}

/// Why these ways lead nowhere.
fn cause(ways: &[Way<'_>]) -> String {
    let (names, error) = (names(ways), error(ways));
    match names.as_slice() {
        [one] => format!("{one} does not answer{error}"),
        several if several.len() <= NAMED => format!("{} do not answer{error}", list(several, "and")),
        many => format!("none of {} servers answers{error}", many.len()),
    }
}

/// Each server once: several listeners may lead to the same.
fn names(ways: &[Way<'_>]) -> Vec<String> {
    once(ways.iter().flat_map(|way| &way.servers).map(|server| server.endpoint.clone()))
}

/// How the first attempt failed that did.
fn error(ways: &[Way<'_>]) -> String {
    let mut errors =
        ways.iter().flat_map(|way| &way.servers).filter_map(|server| server.last_error.as_deref());
    errors.next().map_or(String::new(), |error| format!(" ({error})"))
}

/// Where clients come in, by ports; by names where the system chooses the ports.
fn place(ways: &[Way<'_>]) -> String {
    let binds = ways.iter().flat_map(|way| &way.listener.bind);
    let ports = once(binds.map(|bind| bind.port()).filter(|port| *port != 0).map(|port| port.to_string()));
    match ports.as_slice() {
        [] => {
            let names = once(ways.iter().map(|way| format!("\"{}\"", way.listener.name)));
            format!("listener {}", list(&names, "and"))
        }
        [one] => format!("port {one}"),
        several => format!("ports {}", list(several, "and")),
    }
}

fn once(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut all = Vec::new();
    for item in items {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all
}

/// `a, b and c`.
fn list(items: &[String], word: &str) -> String {
    match items {
        [first @ .., last] if !first.is_empty() => format!("{} {word} {last}", first.join(", ")),
        few => few.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a configuration when these of its servers are down and the others are as `others`.
    fn told(config: &str, down: &[&str], others: Standing) -> Readiness {
        let config = Config::parse("test", config).unwrap();
        let endpoints: Vec<_> = config
            .upstreams
            .iter()
            .flat_map(|upstream| {
                upstream.endpoints.iter().map(|endpoint| (&upstream.name, endpoint.to_string()))
            })
            .map(|(upstream, endpoint)| {
                let standing = if down.contains(&endpoint.as_str()) { Standing::Down } else { others };
                let last_error = (standing == Standing::Down).then(|| "connect_timeout".into());
                let upstream = upstream.clone();
                Endpoint { upstream, endpoint, standing, seconds: 0, last_error, connections: 0 }
            })
            .collect();
        Readiness::new(&config, &endpoints)
    }

    const CHAT: &str = "g.whatsapp.net:5222";
    const CHAT_HTTP: &str = "g.whatsapp.net:80";
    const MEDIA: &str = "whatsapp.net:443";

    #[test]
    fn a_way_that_is_left_is_enough() {
        use Standing::{Untried, Up};
        let cases: [(&[&str], &[&str], &[&str]); 5] = [
            (&[], &[], &[]),
            (
                &[CHAT_HTTP],
                &[],
                &[
                    "chat on ports 80 and 8080 does not work: g.whatsapp.net:80 does not answer (connect_timeout); on the \
                    others it does",
                ],
            ),
            (
                &[CHAT],
                &[],
                &[
                    "chat on ports 443, 8443, 5222 and 8222 does not work: g.whatsapp.net:5222 does not answer \
                    (connect_timeout); on the others it does",
                ],
            ),
            (&[MEDIA], &["media does not work: whatsapp.net:443 does not answer (connect_timeout)"], &[]),
            (
                &[CHAT, CHAT_HTTP],
                &[
                    "chat does not work: g.whatsapp.net:5222 and g.whatsapp.net:80 do not answer (connect_timeout)",
                ],
                &[],
            ),
        ];
        for (down, problems, degraded) in cases {
            for others in [Up, Untried] {
                let told = told("", down, others);
                assert_eq!((told.problems, told.degraded), (texts(problems), texts(degraded)), "{down:?}");
            }
        }
    }

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().copied().map(str::to_owned).collect()
    }

    #[test]
    fn what_no_listener_serves_is_missed_by_nobody() {
        let chat =
            "[[listener]]\nname = \"a\"\nbind = [\"0.0.0.0:1\"]\nmode = \"chat\"\nupstream = \"chat\"\n";
        let media = chat.replace("chat", "media");
        let auto = "[[listener]]\nname = \"a\"\nbind = [\"0.0.0.0:0\"]\nmode = \"auto\"\nchat = \"chat\"\nmedia = \"media\"";
        for (config, down, problem) in [
            (chat, MEDIA, None),
            (chat, CHAT_HTTP, None),
            (chat, CHAT, Some("chat")),
            (&media, CHAT, None),
            (&media, MEDIA, Some("media")),
            (auto, CHAT, Some("chat")),
            (auto, MEDIA, Some("media")),
            (auto, CHAT_HTTP, None),
        ] {
            let told = told(config, &[down], Standing::Up);
            let problem =
                problem.map(|name| format!("{name} does not work: {down} does not answer (connect_timeout)"));
            assert_eq!(
                (told.problems, told.degraded),
                (problem.into_iter().collect(), Vec::new()),
                "{config} {down}"
            );
        }
    }

    #[test]
    fn one_endpoint_that_may_answer_serves_its_upstream() {
        let several = |endpoints: &str| {
            format!(
                "[[listener]]\nname = \"a\"\nbind = [\"0.0.0.0:0\"]\nmode = \"chat\"\nupstream = \"one\"\n\
                 [[listener]]\nname = \"b\"\nbind = [\"0.0.0.0:0\"]\nmode = \"chat\"\nupstream = \"chat\"\n\
                 [upstream.one]\nendpoints = [{endpoints}]"
            )
        };
        let two = several("\"a.example:1\", \"b.example:1\"");
        assert_eq!(told(&two, &["a.example:1"], Standing::Untried).degraded, texts(&[]));
        assert_eq!(
            told(&two, &["a.example:1", "b.example:1"], Standing::Up).degraded,
            texts(&[
                "chat on listener \"a\" does not work: a.example:1 and b.example:1 do not answer (connect_timeout); on the \
                 others it does"
            ])
        );
        let names = ["a.example:1", "b.example:1", "c.example:1", "d.example:1"];
        let four = several(&names.map(|name| format!("\"{name}\"")).join(", "));
        assert!(
            told(&four, &names, Standing::Up).degraded[0]
                .contains(": none of 4 servers answers (connect_timeout)")
        );
    }

    #[test]
    fn an_answer_for_each_purpose_is_waited_for() {
        let waits = |down: &[&str], others| told("", down, others).unanswered;
        assert_eq!(
            waits(&[MEDIA], Standing::Untried),
            [
                "chat waits for an answer of g.whatsapp.net:5222 or g.whatsapp.net:80",
                "media waits for an answer of whatsapp.net:443 (connect_timeout)"
            ]
        );
        assert!(waits(&[CHAT_HTTP], Standing::Up).is_empty());
        assert_eq!(waits(&[MEDIA], Standing::Up).len(), 1);
    }
}
