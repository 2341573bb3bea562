//! How a conclusion is said: to people, to programs, and to shells.

use super::conclusion::{Conclusion, Lack, Part, Seen};

/// What `setu doctor` ends with; `docs/operations.md` has the same with what to do.
pub const EXIT_STATUS: &str = "\
Exit status, for the conclusion in the first line:
   0  the server works; if not all of it, the first line says what does not
   1  nothing could be examined
   2  wrong usage
  64  the configuration cannot be used
On the server:
  10  setu is not running
  11  setu is stopping
  12  names do not resolve
  13  WhatsApp cannot be reached
  16  WhatsApp's names lead to addresses that are not public
  18  setu runs, but not at the ports of the configuration
On both:
  14  there are connections, but no answer from WhatsApp
  15  something else answers in WhatsApp's place
  17  a certificate is not valid at this machine's time
With --remote:
  20  the network of this machine is down
  21  the DNS of this machine is down
  22  there is no server of this name
  23  no port of the server can be reached
  24  a port of the link is closed from outside";

impl Conclusion {
    /// Whether phones are served.
    #[must_use]
    pub const fn works(&self) -> bool {
        self.exit_code() == 0
    }

    /// What the process ends with. 1, 2 and 64 have their meaning for all of setu's commands.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Works(_) | Self::WorksInPart(_) => 0,
            Self::NotRunning => 10,
            Self::Stopping => 11,
            Self::NamesDead => 12,
            Self::Unreachable(_) => 13,
            Self::Unanswered(..) => 14,
            Self::Foreign(_) => 15,
            Self::NamesLie => 16,
            Self::Dated => 17,
            Self::PortsAtFault(_) => 18,
            Self::NoNetwork => 20,
            Self::NoNameService => 21,
            Self::UnknownHost => 22,
            Self::HostUnreachable => 23,
            Self::PortsClosed { .. } => 24,
        }
    }

    /// Its name for programs.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Works(_) => "works",
            Self::WorksInPart(_) => "works_in_part",
            Self::NotRunning => "not_running",
            Self::Stopping => "stopping",
            Self::NamesDead => "names_do_not_resolve",
            Self::Unreachable(_) => "whatsapp_unreachable",
            Self::Unanswered(..) => "whatsapp_does_not_answer",
            Self::Foreign(_) => "not_whatsapp",
            Self::NamesLie => "names_lie",
            Self::Dated => "certificate_not_valid_now",
            Self::PortsAtFault(_) => "ports_do_not_serve",
            Self::NoNetwork => "no_network_here",
            Self::NoNameService => "no_dns_here",
            Self::UnknownHost => "no_such_host",
            Self::HostUnreachable => "host_unreachable",
            Self::PortsClosed { .. } => "ports_closed",
        }
    }

    /// One sentence for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Works(Seen::Inside) => "This server works: WhatsApp answers through its ports.".into(),
            Self::Works(Seen::Outside) => "This server works: phones can use it.".into(),
            Self::WorksInPart(lack) => format!("This server works, but {}.", lack.words()),
            Self::NotRunning => "setu is not running here.".into(),
            Self::Stopping => "setu is stopping: it takes no new connections.".into(),
            Self::NamesDead => "Names do not resolve on this server, so WhatsApp cannot be found.".into(),
            Self::Unreachable(part) => format!(
                "{} cannot be reached from this server: its provider or a firewall is in the way.",
                part.words()
            ),
            Self::Unanswered(part, Seen::Inside) => {
                format!("{} can be reached from this server, but no answer comes through setu.", part.words())
            }
            Self::Unanswered(part, Seen::Outside) => {
                format!("This server's ports are open, but {} not answer through them.", match part {
                    Part::All => "WhatsApp does",
                    Part::Chat => "WhatsApp's chat servers do",
                    Part::Media => "WhatsApp's media servers do",
                })
            }
            Self::Foreign(part) => format!("Something else answers in place of {}.", part.words()),
            Self::NamesLie => {
                "WhatsApp's names lead to addresses that are not public: the DNS of this server lies.".into()
            }
            Self::Dated => "A certificate is not valid at this machine's time: the clock is wrong, or the \
                            certificate has ended."
                .into(),
            Self::PortsAtFault(ports) => {
                format!("setu runs, but {} not serve.", self::ports(ports, "does", "do"))
            }
            Self::NoNetwork => {
                "This machine has no way to the server, so nothing can be said of it: the network here is down."
                    .into()
            }
            Self::NoNameService => {
                "Names do not resolve on this machine, so nothing can be said of the server: the network or the \
                 DNS here is down."
                    .into()
            }
            Self::UnknownHost => "There is no server of this name: it has no address.".into(),
            Self::HostUnreachable => "This server cannot be reached from here: none of its ports is open.".into(),
            Self::PortsClosed { ports, rest_works: true } => {
                format!("This server is fine, {} closed from outside.", self::ports(ports, "is", "are"))
            }
            Self::PortsClosed { ports, rest_works: false } => {
                let closed = self::ports(ports, "is", "are");
                format!("This server does not work: {closed} closed from outside, and WhatsApp does not answer \
                         through the rest.")
            }
        }
    }

    /// What to do.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Works(Seen::Inside) => {
                "whether phones reach it, `setu doctor --remote HOST` tells from another machine"
            }
            Self::Works(Seen::Outside) => {
                "from the network of this machine; a network that blocks the server's address or a port shows only \
                 from inside it"
            }
            Self::WorksInPart(Lack::Ports(_)) => {
                "phones that use other ports notice nothing; see below why, and share no link to these"
            }
            Self::WorksInPart(Lack::Names) => {
                "mend DNS before the answers are too old: see that /etc/resolv.conf names a resolver that works, or \
                 set dns.servers"
            }
            Self::WorksInPart(Lack::Media | Lack::Chat) => {
                "a link has one host for both, so phones need both at one address: add a listener, unless a load \
                 balancer puts two servers together"
            }
            Self::WorksInPart(Lack::MediaAt(_)) => {
                "its link must say so, as that of `setu share` on the server does; a phone that is set by hand needs \
                 this media port"
            }
            Self::WorksInPart(Lack::Untried) => {
                "try them from outside, through the load balancer: setu doctor --remote HOST"
            }
            Self::NotRunning => {
                "start it: `systemctl start setu`, the first time after `setu init`; `setu check` and its log say what \
                 keeps it from starting"
            }
            Self::Stopping => "wait until its connections have ended, and start it again",
            Self::NamesDead => {
                "see that /etc/resolv.conf names a resolver that works (`getent hosts NAME`), or set dns.servers"
            }
            Self::Unreachable(_) => {
                "allow outgoing TCP to ports 5222, 80 and 443 here and in the provider's panel; in a country that \
                 blocks WhatsApp a proxy cannot work"
            }
            Self::Unanswered(_, Seen::Inside) => {
                "if the cause was mended just now, look again in half a minute; else something on the way cuts \
                 connections once they speak, or setu closes them: SETU_LOG=debug tells why it does"
            }
            Self::Unanswered(_, Seen::Outside) => {
                "run `setu doctor` on the server; if it is fine there, the network between here and there cuts the \
                 connections: try from another"
            }
            Self::Foreign(_) => {
                "see that the ports and the upstreams are right, and that no gateway, transparent proxy or liar in \
                 DNS is on the way"
            }
            Self::NamesLie => {
                "set dns.servers to resolvers that you trust; or, if the servers are yours, \
                 security.allow_private_upstreams"
            }
            Self::Dated => {
                "set the clock and let a time service keep it (apt-get install chrony); if it is right, renew the \
                 certificate that is named below"
            }
            Self::PortsAtFault(_) => {
                "see that setu runs with this configuration (--config), and that no rule of a firewall is in the way \
                 on this machine"
            }
            Self::NoNetwork => {
                "mend it, or try from another machine; a host with IPv6 alone needs IPv6 here, too"
            }
            Self::NoNameService => "mend it, or give the server's address instead of its name",
            Self::UnknownHost => "see that it is spelled right, and that its A or AAAA record is published",
            Self::HostUnreachable => {
                "see that the server is up and `setu doctor` there is fine, and that its firewall and its provider's \
                 let the ports of the link in; if others reach it, the network here blocks it"
            }
            Self::PortsClosed { .. } => {
                "open them in the server's firewall and in its provider's; if the server serves at others, name them: \
                 the whole link in place of HOST, or --chat-port and --media-port"
            }
        }
    }
}

impl Part {
    const fn words(self) -> &'static str {
        match self {
            Self::All => "WhatsApp",
            Self::Chat => "WhatsApp's chat servers",
            Self::Media => "WhatsApp's media servers",
        }
    }
}

impl Lack {
    fn words(&self) -> String {
        match self {
            Self::Ports(ports) => format!("{} no answer from WhatsApp", self::ports(ports, "gets", "get")),
            Self::Names => "WhatsApp's names do not lead to it any more: it goes by old answers".into(),
            Self::Media => "only for chat: none of its ports takes media".into(),
            Self::Chat => "only for media: none of its ports takes chat".into(),
            Self::MediaAt(port) => {
                format!("media comes in at port {port}, as chat does")
            }
            Self::Untried => "ports that expect PROXY protocol could not be tried from here".into(),
        }
    }
}

/// Ports as the subject of a sentence.
fn ports(ports: &[u16], one: &str, many: &str) -> String {
    let numbers: Vec<_> = ports.iter().map(ToString::to_string).collect();
    match numbers.split_last() {
        Some((last, [])) => format!("port {last} {one}"),
        Some((last, first)) => format!("ports {} and {last} {many}", first.join(", ")),
        None => format!("no port {one}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// One of each kind, and of each kind that is said in several ways all of these.
    fn all() -> Vec<Conclusion> {
        let lacks =
            [Lack::Ports(vec![80]), Lack::Names, Lack::Media, Lack::Chat, Lack::MediaAt(443), Lack::Untried];
        let mut all: Vec<_> = lacks.map(Conclusion::WorksInPart).into();
        for seen in [Seen::Inside, Seen::Outside] {
            all.push(Conclusion::Works(seen));
            all.extend([Part::All, Part::Chat, Part::Media].map(|part| Conclusion::Unanswered(part, seen)));
        }
        for part in [Part::All, Part::Chat, Part::Media] {
            all.extend([Conclusion::Unreachable(part), Conclusion::Foreign(part)]);
        }
        for rest_works in [true, false] {
            all.push(Conclusion::PortsClosed { ports: vec![443, 587], rest_works });
        }
        all.extend([
            Conclusion::NotRunning,
            Conclusion::Stopping,
            Conclusion::NamesDead,
            Conclusion::NamesLie,
            Conclusion::Dated,
            Conclusion::PortsAtFault(vec![587]),
            Conclusion::NoNetwork,
            Conclusion::NoNameService,
            Conclusion::UnknownHost,
            Conclusion::HostUnreachable,
        ]);
        all
    }

    #[test]
    fn each_kind_has_a_code_of_its_own_which_operators_find_in_their_manual() {
        let manual = include_str!("../../../../docs/operations.md");
        let mut keys = BTreeMap::new();
        for conclusion in all() {
            let (code, key) = (conclusion.exit_code(), conclusion.key());
            assert!(manual.contains(&format!("| {code} | `{key}` |")), "{code} {key}");
            assert!(
                EXIT_STATUS.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))),
                "{code}"
            );
            if code > 0 {
                assert_eq!(*keys.entry(code).or_insert(key), key, "{code}");
                assert!(![1, 2, 64].contains(&code), "{code} has its meaning already");
            }
        }
        assert_eq!(keys.len(), 14);
    }

    #[test]
    fn each_is_one_sentence_with_what_to_do() {
        for conclusion in all() {
            let sentence = conclusion.sentence();
            let is_one = sentence.ends_with('.') && sentence.matches(". ").count() == 0;
            assert!(is_one && !sentence.contains("  ") && sentence.len() < 160, "{sentence}");
            assert!(!conclusion.advice().is_empty(), "{sentence}");
        }
        assert_eq!(ports(&[443, 587, 7777], "is", "are"), "ports 443, 587 and 7777 are");
        assert_eq!(ports(&[587], "is", "are"), "port 587 is");
    }
}
