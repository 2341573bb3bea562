//! The one sentence that a doctor ends in, made of what was seen, by its kind and not by its words.

use super::way::{Outcome, Service, Way};

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// All that is needed works.
    Works(Seen),
    /// Phones are served, and something is to be said.
    WorksInPart(Lack),
    /// Nobody serves on this machine.
    NotRunning,
    /// It has been told to stop.
    Stopping,
    /// The server's DNS is dead.
    NamesDead,
    /// No connection to WhatsApp comes about.
    Unreachable(Part),
    /// WhatsApp takes connections and says nothing.
    Unanswered(Part, Seen),
    /// Somebody else answers.
    Foreign(Part),
    /// DNS gives addresses at which WhatsApp cannot be.
    NamesLie,
    /// A certificate is not valid now.
    Dated,
    /// setu runs, but not at these ports.
    PortsAtFault(Vec<u16>),
    /// The machine that the doctor runs on has no network.
    NoNetwork,
    /// The machine that the doctor runs on has no DNS.
    NoNameService,
    /// The server's name does not exist.
    UnknownHost,
    /// Not one port of the server can be reached.
    HostUnreachable,
    /// Ports of the link cannot be reached.
    PortsClosed {
        /// Which.
        ports: Vec<u16>,
        /// Whether the others work.
        rest_works: bool,
    },
}

/// Where the doctor looked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The server itself.
    Inside,
    /// Another machine, where phones are.
    Outside,
}

/// What of WhatsApp is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The chat servers.
    Chat,
    /// The media servers.
    Media,
    /// All of it.
    All,
}

/// What phones can do without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// These ports get no answer; others do.
    Ports(Vec<u16>),
    /// Names do not resolve any more, or lead elsewhere, and setu goes by old answers.
    Names,
    /// No port takes media.
    Media,
    /// No port takes chat.
    Chat,
    /// Media comes in at this port, and not where phones look for it that are told nothing else.
    MediaAt(u16),
    /// Ports that only proxies may use, which this machine is not.
    Untried,
}

/// What the setu of this machine says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Running {
    Serves,
    Stops,
    /// Its admin endpoint does not answer.
    Not,
    /// It has no admin endpoint.
    Unknown,
}

/// What came of connecting to one of WhatsApp's servers, without setu between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Connected,
    NoAddress,
    NotPublic,
    Unreachable,
}

/// What was seen on the server.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) running: Running,
    /// Each endpoint, by the number of its upstream.
    pub(super) reached: Vec<(usize, Reach)>,
    pub(super) ways: Vec<Way>,
    /// Whether there are ways that could not be tried.
    pub(super) is_any_untried: bool,
}

/// What became of the server's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    Found,
    NoSuchName,
    NoNameService,
}

/// What was seen from where phones are.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) lookup: Lookup,
    pub(super) ways: Vec<Way>,
}

/// Why a service does not work, the cause that explains most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    NamesDead,
    Unreachable,
    NamesLie,
    Foreign,
    Unanswered,
    Closed,
}

impl Inside {
    /// What it comes to.
    pub(super) fn conclusion(&self) -> Conclusion {
        let needed: Vec<_> = self.ways.iter().filter(|way| way.is_needed).collect();
        let works = |service| needed.iter().any(|way| way.service == service && way.works());
        let failed = || needed.iter().copied().filter(|way| !way.works());
        if self.running == Running::Not && (needed.is_empty() || failed().next().is_some()) {
            return Conclusion::NotRunning;
        }
        if self.running == Running::Stops {
            return Conclusion::Stopping;
        }
        if failed().any(|way| way.outcome == Outcome::Dated) {
            return Conclusion::Dated;
        }
        let dead =
            failed().filter(|way| !works(way.service)).map(|way| (self.cause(way.service), way.service));
        if let Some(worst) = dead.clone().map(|(cause, _)| cause).min() {
            let services: Vec<_> =
                dead.filter(|(cause, _)| *cause == worst).map(|(_, service)| service).collect();
            let part = part(&services);
            return match worst {
                Cause::NamesDead => Conclusion::NamesDead,
                Cause::Unreachable => Conclusion::Unreachable(part),
                Cause::NamesLie => Conclusion::NamesLie,
                Cause::Foreign => Conclusion::Foreign(part),
                Cause::Unanswered => Conclusion::Unanswered(part, Seen::Inside),
                Cause::Closed => Conclusion::PortsAtFault(ports(failed().filter(|way| !way.is_reached()))),
            };
        }
        // Where others get an answer of the same servers, the port is at fault.
        let has_working_twin = |way: &Way| {
            needed
                .iter()
                .any(|other| other.works() && other.service == way.service && other.upstream == way.upstream)
        };
        let is_at_fault = |way: &Way| !way.is_reached() || has_working_twin(way);
        let at_fault = ports(failed().filter(|way| is_at_fault(way)));
        if !at_fault.is_empty() {
            return Conclusion::PortsAtFault(at_fault);
        }
        let unanswered = ports(failed());
        let is_taken = |service| self.ways.iter().any(|way| way.service == service);
        let lack = if !unanswered.is_empty() {
            Lack::Ports(unanswered)
        } else if self.reached.iter().any(|(_, reach)| matches!(reach, Reach::NoAddress | Reach::NotPublic)) {
            Lack::Names
        } else if self.is_any_untried {
            Lack::Untried
        } else if !is_taken(Service::Media) {
            Lack::Media
        } else if !is_taken(Service::Chat) {
            Lack::Chat
        } else {
            return Conclusion::Works(Seen::Inside);
        };
        Conclusion::WorksInPart(lack)
    }

    /// Whether it is clear already why a way does not work: setu is not there, or the servers that it leads to are not.
    pub(super) fn is_explained(&self, way: &Way) -> bool {
        let is_served = !matches!(self.running, Running::Not | Running::Stops);
        let leads = |(upstream, _): &&(usize, Reach)| way.upstream == Some(*upstream);
        let mut reached = self.reached.iter().filter(leads).map(|(_, reach)| *reach).peekable();
        let is_dead = reached.peek().is_some() && !reached.any(|reach| reach == Reach::Connected);
        !way.is_reached() && !is_served || way.outcome == Outcome::Unanswered && is_dead
    }

    /// Why none of the ways to a service works.
    fn cause(&self, service: Service) -> Cause {
        let ways = || self.ways.iter().filter(|way| way.is_needed && way.service == service);
        if ways().all(|way| !way.is_reached()) {
            return Cause::Closed;
        }
        let leads = |upstream| ways().any(|way| way.upstream == Some(upstream));
        let reached: Vec<_> =
            self.reached.iter().filter(|(upstream, _)| leads(*upstream)).map(|(_, reach)| *reach).collect();
        if reached.is_empty() || reached.contains(&Reach::Connected) {
            let is_foreign = ways().any(|way| way.outcome == Outcome::Foreign);
            return if is_foreign { Cause::Foreign } else { Cause::Unanswered };
        }
        if reached.contains(&Reach::Unreachable) {
            Cause::Unreachable
        } else if reached.contains(&Reach::NotPublic) {
            Cause::NamesLie
        } else {
            Cause::NamesDead
        }
    }
}

impl Outside {
    /// What it comes to.
    pub(super) fn conclusion(&self) -> Conclusion {
        match self.lookup {
            Lookup::NoSuchName => return Conclusion::UnknownHost,
            Lookup::NoNameService => return Conclusion::NoNameService,
            Lookup::Found => {}
        }
        if self.ways.iter().all(|way| way.outcome == Outcome::NoRoute) {
            return Conclusion::NoNetwork;
        }
        if self.ways.iter().all(|way| !way.is_reached()) {
            return Conclusion::HostUnreachable;
        }
        let failed: Vec<_> = self.ways.iter().filter(|way| way.is_needed && !way.works()).collect();
        let closed = ports(failed.iter().copied().filter(|way| !way.is_reached()));
        let takes_all = |chat: &&Way| {
            let is_media = |way: &Way| way.service == Service::Media && way.port == chat.port && way.works();
            chat.is_needed && chat.service == Service::Chat && chat.works() && self.ways.iter().any(is_media)
        };
        if !closed.is_empty()
            && let Some(one) = self.ways.iter().find(takes_all)
        {
            return Conclusion::WorksInPart(Lack::MediaAt(one.port));
        }
        if !closed.is_empty() {
            let rest_works = failed.iter().all(|way| !way.is_reached());
            return Conclusion::PortsClosed { ports: closed, rest_works };
        }
        let with = |outcome| {
            let services = failed.iter().filter(|way| way.outcome == outcome).map(|way| way.service);
            let services: Vec<_> = services.collect();
            (!services.is_empty()).then(|| part(&services))
        };
        if let Some(part) = with(Outcome::Foreign) {
            Conclusion::Foreign(part)
        } else if with(Outcome::Dated).is_some() {
            Conclusion::Dated
        } else if let Some(part) = with(Outcome::Unanswered) {
            Conclusion::Unanswered(part, Seen::Outside)
        } else {
            Conclusion::Works(Seen::Outside)
        }
    }
}

fn part(services: &[Service]) -> Part {
    match (services.contains(&Service::Chat), services.contains(&Service::Media)) {
        (true, false) => Part::Chat,
        (false, true) => Part::Media,
        _ => Part::All,
    }
}

fn ports<'a>(ways: impl Iterator<Item = &'a Way>) -> Vec<u16> {
    let mut ports: Vec<_> = ways.map(|way| way.port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Closed, Dated, Foreign, NoRoute, Unanswered, Works};

    const CHAT: usize = 0;
    const LEGACY: usize = 1;
    const MEDIA: usize = 2;

    fn way(port: u16, upstream: usize, outcome: Outcome) -> Way {
        let service = if upstream == MEDIA { Service::Media } else { Service::Chat };
        Way { service, port, outcome, is_needed: true, upstream: Some(upstream) }
    }

    /// The default server, by what came of its ports for phones; those for proxies fail, which must not matter.
    fn ways(tls: Outcome, chat: Outcome, legacy: Outcome, media: Outcome, media_alt: Outcome) -> Vec<Way> {
        let unneeded = |port, upstream| Way { is_needed: false, ..way(port, upstream, Unanswered) };
        vec![
            way(443, CHAT, tls),
            way(5222, CHAT, chat),
            way(80, LEGACY, legacy),
            way(587, MEDIA, media),
            way(7777, MEDIA, media_alt),
            unneeded(8443, CHAT),
            unneeded(8222, CHAT),
            unneeded(8080, LEGACY),
        ]
    }

    fn inside(running: Running, reached: [Reach; 3], ways: Vec<Way>) -> Inside {
        Inside { running, reached: reached.into_iter().enumerate().collect(), ways, is_any_untried: false }
    }

    #[test]
    fn what_is_seen_on_a_server_comes_to_one_conclusion() {
        use Reach::{Connected, NoAddress, NotPublic, Unreachable};
        use Running::{Not, Serves, Stops, Unknown};
        let well = [Connected; 3];
        let all = |outcome| ways(outcome, outcome, outcome, outcome, outcome);
        let table = [
            ("all is well", Serves, well, all(Works), Conclusion::Works(Seen::Inside)),
            ("it cannot be asked", Unknown, well, all(Works), Conclusion::Works(Seen::Inside)),
            ("its admin endpoint is elsewhere", Not, well, all(Works), Conclusion::Works(Seen::Inside)),
            ("it does not run", Not, well, all(Closed), Conclusion::NotRunning),
            ("it does not run, and DNS is dead", Not, [NoAddress; 3], all(Closed), Conclusion::NotRunning),
            ("a web server runs instead", Not, well, all(Foreign), Conclusion::NotRunning),
            ("it stops", Stops, well, all(Closed), Conclusion::Stopping),
            ("DNS is dead", Serves, [NoAddress; 3], all(Unanswered), Conclusion::NamesDead),
            (
                "DNS died, old answers serve",
                Serves,
                [NoAddress; 3],
                all(Works),
                Conclusion::WorksInPart(Lack::Names),
            ),
            (
                "WhatsApp is blocked",
                Serves,
                [Unreachable; 3],
                all(Unanswered),
                Conclusion::Unreachable(Part::All),
            ),
            ("DNS lies", Serves, [NotPublic; 3], all(Unanswered), Conclusion::NamesLie),
            (
                "chat is blocked",
                Serves,
                [Unreachable, Unreachable, Connected],
                ways(Unanswered, Unanswered, Unanswered, Works, Works),
                Conclusion::Unreachable(Part::Chat),
            ),
            (
                "media is blocked",
                Serves,
                [Connected, Connected, Unreachable],
                ways(Works, Works, Works, Unanswered, Unanswered),
                Conclusion::Unreachable(Part::Media),
            ),
            (
                "chat is blocked, and media has no name: the cause that explains most",
                Serves,
                [Unreachable, Unreachable, NoAddress],
                all(Unanswered),
                Conclusion::NamesDead,
            ),
            (
                "cut once it speaks",
                Serves,
                well,
                all(Unanswered),
                Conclusion::Unanswered(Part::All, Seen::Inside),
            ),
            (
                "the chat servers are silent",
                Serves,
                well,
                ways(Unanswered, Unanswered, Unanswered, Works, Works),
                Conclusion::Unanswered(Part::Chat, Seen::Inside),
            ),
            ("a captive gateway", Serves, well, all(Foreign), Conclusion::Foreign(Part::All)),
            (
                "an impostor",
                Serves,
                well,
                ways(Works, Works, Works, Foreign, Foreign),
                Conclusion::Foreign(Part::Media),
            ),
            (
                "the legacy upstream is dead",
                Serves,
                [Connected, Unreachable, Connected],
                ways(Works, Works, Unanswered, Works, Works),
                Conclusion::WorksInPart(Lack::Ports(vec![80])),
            ),
            (
                "a transparent proxy of the web",
                Serves,
                well,
                ways(Works, Works, Foreign, Works, Works),
                Conclusion::WorksInPart(Lack::Ports(vec![80])),
            ),
            ("the clock is wrong", Serves, well, ways(Works, Works, Works, Dated, Dated), Conclusion::Dated),
            (
                "setu's certificate ended",
                Serves,
                well,
                ways(Dated, Works, Works, Works, Works),
                Conclusion::Dated,
            ),
            (
                "a port is closed",
                Serves,
                well,
                ways(Works, Works, Works, Closed, Works),
                Conclusion::PortsAtFault(vec![587]),
            ),
            (
                "a port of all that lead there is mute",
                Serves,
                well,
                ways(Unanswered, Works, Works, Works, Works),
                Conclusion::PortsAtFault(vec![443]),
            ),
            (
                "another configuration serves",
                Serves,
                well,
                all(Closed),
                Conclusion::PortsAtFault(vec![80, 443, 587, 5222, 7777]),
            ),
            ("chat alone", Serves, well, vec![way(443, CHAT, Works)], Conclusion::WorksInPart(Lack::Media)),
            ("media alone", Serves, well, vec![way(587, MEDIA, Works)], Conclusion::WorksInPart(Lack::Chat)),
        ];
        for (what, running, reached, ways, conclusion) in table {
            assert_eq!(inside(running, reached, ways).conclusion(), conclusion, "{what}");
        }
        let untried = Inside { is_any_untried: true, ..inside(Serves, well, Vec::new()) };
        assert_eq!(untried.conclusion(), Conclusion::WorksInPart(Lack::Untried));
    }

    #[test]
    fn what_is_seen_from_outside_comes_to_one_conclusion() {
        let found = |chat, media, other| Outside {
            lookup: Lookup::Found,
            ways: [(443, CHAT, chat, true), (587, MEDIA, media, true), (5222, CHAT, other, false)]
                .map(|(port, upstream, outcome, is_needed)| Way { is_needed, ..way(port, upstream, outcome) })
                .into(),
        };
        let closed = |ports: &[u16], rest_works| Conclusion::PortsClosed { ports: ports.into(), rest_works };
        let unanswered = |part| Conclusion::Unanswered(part, Seen::Outside);
        let table = [
            ("all is well", found(Works, Works, Works), Conclusion::Works(Seen::Outside)),
            ("other ports are closed", found(Works, Works, Closed), Conclusion::Works(Seen::Outside)),
            (
                "other ports are a web server's",
                found(Works, Works, Foreign),
                Conclusion::Works(Seen::Outside),
            ),
            ("no network here", found(NoRoute, NoRoute, NoRoute), Conclusion::NoNetwork),
            ("all is closed", found(Closed, Closed, Closed), Conclusion::HostUnreachable),
            ("media is closed", found(Works, Closed, Works), closed(&[587], true)),
            ("chat is closed", found(Closed, Works, Closed), closed(&[443], true)),
            ("both are closed, another is not", found(Closed, Closed, Works), closed(&[443, 587], true)),
            ("chat is closed, and media mute", found(Closed, Unanswered, Closed), closed(&[443], false)),
            ("WhatsApp does not answer", found(Unanswered, Unanswered, Closed), unanswered(Part::All)),
            ("media does not answer", found(Works, Unanswered, Works), unanswered(Part::Media)),
            ("a captive gateway", found(Foreign, Foreign, Foreign), Conclusion::Foreign(Part::All)),
            ("an impostor", found(Works, Foreign, Works), Conclusion::Foreign(Part::Media)),
            ("the clock is wrong", found(Works, Dated, Works), Conclusion::Dated),
        ];
        for (what, outside, conclusion) in table {
            assert_eq!(outside.conclusion(), conclusion, "{what}");
        }
        let lost = |lookup| Outside { lookup, ways: Vec::new() }.conclusion();
        assert_eq!(lost(Lookup::NoSuchName), Conclusion::UnknownHost);
        assert_eq!(lost(Lookup::NoNameService), Conclusion::NoNameService);
    }
}
