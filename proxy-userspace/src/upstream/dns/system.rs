//! What this machine says of names and of whom to ask: `/etc/hosts`, `/etc/resolv.conf`, `/etc/nsswitch.conf`. People
//! expect of them what glibc does (hosts(5), resolv.conf(5), nsswitch.conf(5)); what cannot be used is skipped, and the
//! rest is used.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use hickory_resolver::proto::rr::Name;
use tracing::warn;

use crate::sys::sandbox;

/// The port of DNS.
const PORT: u16 = 53;
/// Bounds of `options timeout:` and `attempts:`, as glibc has them.
const TIMEOUT_MAX: u32 = 30;
const ATTEMPTS_MAX: u32 = 5;

/// The files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) hosts: &'a Path,
    pub(super) resolv_conf: &'a Path,
    pub(super) nsswitch: &'a Path,
}

/// Which versions of the files were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Versions([Option<Version>; 3]);

/// Device, inode, size, and when it was written, to the nanosecond.
type Version = (u64, u64, u64, i64, i64);

/// Where names are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// `/etc/hosts`.
    Files,
    /// The name servers.
    Dns,
}

/// One source of several, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) source: Source,
    /// None is asked after it when it knows no such name (`[NOTFOUND=return]`).
    pub(super) denies: bool,
    /// Nor when it does not answer (`[TRYAGAIN=return]`).
    pub(super) blocks: bool,
}

/// The addresses that `/etc/hosts` has, by name in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts(HashMap<String, Vec<IpAddr>>);

/// What `/etc/resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolvers {
    pub(super) servers: Vec<SocketAddr>,
    /// Interfaces that are named there, and the number that each had, if it was there.
    pub(super) zones: Vec<(String, Option<u32>)>,
    pub(super) search: Vec<Name>,
    pub(super) ndots: usize,
    /// For one attempt.
    pub(super) timeout: Duration,
    pub(super) attempts: usize,
    /// Each server in turn, not the first as long as it answers.
    pub(super) rotate: bool,
    /// By TCP alone (`use-vc`).
    pub(super) tcp: bool,
}

impl Files<'static> {
    /// Those of the system.
    pub(super) fn system() -> Self {
        Self {
            hosts: Path::new("/etc/hosts"),
            resolv_conf: Path::new("/etc/resolv.conf"),
            nsswitch: Path::new("/etc/nsswitch.conf"),
        }
    }
}

impl Files<'_> {
    pub(super) fn versions(&self) -> Versions {
        let version = |path: &Path| {
            let file = fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        Versions([self.hosts, self.resolv_conf, self.nsswitch].map(version))
    }

    /// Where to look, in this order. Without a file, or a line for it: as glibc does.
    pub(super) fn order(&self) -> Vec<Step> {
        read(self.nsswitch).map_or_else(|_| order(""), |text| order(&text))
    }

    pub(super) fn hosts(&self) -> Hosts {
        read(self.hosts).map_or_else(|_| Hosts::default(), |text| Hosts::parse(&text))
    }

    /// Whom to ask. Where the file names nobody, or cannot be read, glibc asks this machine.
    pub(super) fn resolvers(&self) -> Resolvers {
        let file = self.resolv_conf.display();
        let instead = "127.0.0.1 is asked, as others on this machine do";
        let text = read(self.resolv_conf);
        let (mut resolvers, skipped) = Resolvers::parse(text.as_deref().unwrap_or_default(), interface);
        if !skipped.is_empty() {
            warn!(skipped = skipped.join(", "), "{file}: what cannot be used is left out");
        }
        // One behind an interface that is not there yet is waited for.
        let is_waited_for = resolvers.zones.iter().any(|(_, number)| number.is_none());
        if resolvers.servers.is_empty() && !is_waited_for {
            match text {
                Ok(_) => warn!("{file} names no resolver: {instead}"),
                Err(error) if sandbox::is_to_blame(self.resolv_conf, &error) => {
                    warn!(%error, "{file} cannot be read: {}; until then {instead}", sandbox::REMEDY);
                }
                Err(error) => warn!(%error, "{file} cannot be read: {instead}"),
            }
            resolvers.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        resolvers
    }
}

/// A comment may be in any encoding; editors of Windows begin with a mark of theirs.
fn read(path: &Path) -> io::Result<String> {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn order(nsswitch: &str) -> Vec<Step> {
    let mut lines = nsswitch.lines().filter_map(|line| line.split('#').next()?.trim().strip_prefix("hosts:"));
    let mut order: Vec<Step> = Vec::new();
    let mut rest = lines.next_back().unwrap_or("files dns").trim_start();
    // Whether what is in brackets is about the last of `order`.
    let mut is_new = false;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (actions, after) = inside.split_once(']').unwrap_or((inside, ""));
            if let Some(step) = order.last_mut().filter(|_| is_new) {
                step.heed(actions);
            }
            rest = after.trim_start();
            continue;
        }
        let end = rest.find(|letter: char| letter.is_whitespace() || letter == '[').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let sources: &[Source] = match word {
            "files" => &[Source::Files],
            "dns" => &[Source::Dns],
            // systemd-resolved reads the hosts file itself, and is asked as the name server that it is.
            "resolve" => &[Source::Files, Source::Dns],
            _ => &[],
        };
        is_new = false;
        for source in sources {
            if order.iter().all(|step| step.source != *source) {
                order.push(Step::new(*source));
                is_new = true;
            }
        }
        rest = after.trim_start();
    }
    // Whoever took both out has something else in mind, which setu does not know.
    if order.is_empty() { [Source::Files, Source::Dns].map(Step::new).into() } else { order }
}

impl Step {
    fn new(source: Source) -> Self {
        Self { source, denies: false, blocks: false }
    }

    /// Takes in what is in brackets after a source: `!UNAVAIL=return`, and perhaps more of the kind.
    fn heed(&mut self, actions: &str) {
        let actions = actions.replace('=', " = ").replace('!', " ! ");
        let mut words = actions.split_whitespace();
        while let Some(word) = words.next() {
            let is_negated = word == "!";
            let status = if is_negated { words.next() } else { Some(word) };
            let (Some(status), Some("="), Some(action)) = (status, words.next(), words.next()) else {
                return;
            };
            for (name, is_last) in [("NOTFOUND", &mut self.denies), ("TRYAGAIN", &mut self.blocks)] {
                if status.eq_ignore_ascii_case(name) != is_negated {
                    *is_last = action.eq_ignore_ascii_case("return");
                }
            }
        }
    }
}

impl Hosts {
    fn parse(text: &str) -> Self {
        let mut hosts: HashMap<_, Vec<IpAddr>> = HashMap::new();
        for line in text.lines().filter_map(|line| line.split('#').next()) {
            let mut words = line.split_whitespace();
            let Some(ip) = words.next().and_then(|word| word.parse().ok()) else { continue };
            for name in words {
                let known = hosts.entry(name.to_ascii_lowercase()).or_default();
                if !known.contains(&ip) {
                    known.push(ip);
                }
            }
        }
        Self(hosts)
    }

    /// The addresses of a name, of both families: what is here is all that there is.
    pub(super) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.0.get(&name).map(Vec::as_slice)
    }
}

impl Resolvers {
    /// Also returns what is skipped. `zone`: the number of an interface.
    fn parse(text: &str, zone: impl Fn(&str) -> Option<u32>) -> (Self, Vec<String>) {
        let mut skipped = Vec::new();
        // Whose own reading of `nameserver` knows no zone like `br-lan`. Of what it does not know most is not for setu.
        let (parsed, _) = resolv_conf::Config::parse_with_errors(text.as_bytes());
        let (mut servers, mut zones) = (Vec::new(), Vec::new());
        let mut zone = |name: &str| {
            let number = zone(name);
            zones.push((name.to_owned(), number));
            number
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("nameserver") {
                continue;
            }
            match words.next().and_then(|word| server(word, &mut zone)) {
                Some(server) => servers.push(server),
                None => skipped.push(line.trim().to_owned()),
            }
        }
        let mut search = Vec::new();
        for domain in parsed.get_last_search_or_domain() {
            match Name::from_str_relaxed(domain) {
                Ok(domain) => search.push(domain),
                Err(_) => skipped.push(format!("search {domain}")),
            }
        }
        let resolvers = Self {
            servers,
            zones,
            search,
            ndots: parsed.ndots as usize,
            timeout: Duration::from_secs(parsed.timeout.clamp(1, TIMEOUT_MAX).into()),
            attempts: parsed.attempts.clamp(1, ATTEMPTS_MAX) as usize,
            rotate: parsed.rotate,
            tcp: parsed.use_vc,
        };
        (resolvers, skipped)
    }
}

/// An address, in IPv6 perhaps with a zone. The unspecified one is this machine.
fn server(word: &str, zone: impl FnOnce(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (ip, zone) = match word.split_once('%') {
        Some((ip, name)) => (ip, name.parse().ok().or_else(|| zone(name))?),
        None => (word, 0),
    };
    match parse_v4(ip).map_or_else(|| ip.parse().ok(), |ip| Some(IpAddr::V4(ip)))? {
        IpAddr::V4(_) if zone != 0 => None,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some((Ipv4Addr::LOCALHOST, PORT).into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some((Ipv6Addr::LOCALHOST, PORT).into()),
        IpAddr::V4(ip) => Some((ip, PORT).into()),
        IpAddr::V6(ip) => Some(SocketAddrV6::new(ip, PORT, 0, zone).into()),
    }
}

/// As inet_aton(3) does, which knows shorter forms: the last of fewer than four numbers fills what is left, and any may be
/// octal or hexadecimal.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| {
        let lower = part.to_ascii_lowercase();
        let (digits, radix) = match lower.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (lower.as_str(), if lower.starts_with('0') { 8 } else { 10 }),
        };
        let is_plain = digits.chars().all(|digit| digit.is_digit(radix));
        if is_plain { u32::from_str_radix(digits, radix).ok() } else { None }
    };
    let parts = text.split('.').map(number).collect::<Option<Vec<_>>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 0xff) {
        return None;
    }
    let room = 32 - 8 * first.len() as u32;
    if room < 32 && last >> room != 0 {
        return None;
    }
    let high = first.iter().enumerate().fold(0, |high, (at, part)| high | part << (24 - 8 * at));
    Some((high | last).into())
}

/// The number of an interface that has an address. To ask the kernel for it takes ioctl(2), which the sandbox forbids.
pub(super) fn interface(name: &str) -> Option<u32> {
    numbered(&fs::read_to_string("/proc/self/net/if_inet6").ok()?, name)
}

/// A line of it has an address, the interface's number, the length of the prefix, scope, flags, and the interface's name.
fn numbered(if_inet6: &str, name: &str) -> Option<u32> {
    let mut lines = if_inet6.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find_map(|words| match words[..] {
        [_, number, _, _, _, found] if found == name => u32::from_str_radix(number, 16).ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Resolvers, Vec<String>) {
        Resolvers::parse(text, |name| (name == "br-lan").then_some(7))
    }

    #[test]
    fn a_line_that_cannot_be_used_costs_no_other() {
        for odd in [
            r"search a.example\032b.example",
            "search \"example.org\"",
            "domain (none)",
            "search a..b",
            "search -x",
            "search",
            "domain",
            "nameserver",
            "nameserver 300.1.1.1",
            "nameserver 192.0.2.9%eth0",
            "nameserver fe80::1%nowhere",
            "options timeout:never attempts: ndots",
            "nonsense of any kind",
            "\u{fffd}\u{fffd}",
            ";comment",
            "sortlist x",
        ] {
            let (resolvers, _) = parse(&format!("nameserver 192.0.2.1\n{odd}\nnameserver 192.0.2.2\n"));
            let wanted: Vec<SocketAddr> =
                ["192.0.2.1:53", "192.0.2.2:53"].map(|at| at.parse().unwrap()).into();
            assert_eq!(resolvers.servers, wanted, "{odd}");
        }
        let (resolvers, skipped) = parse("search good.example a..b\nnameserver x\nnameserver 192.0.2.1");
        assert_eq!(resolvers.search, [Name::from_str_relaxed("good.example").unwrap()]);
        assert_eq!(skipped, ["nameserver x", "search a..b"]);
    }

    #[test]
    fn zones_and_the_unspecified_address_are_understood() {
        let (resolvers, skipped) =
            parse("nameserver fe80::1%br-lan\nnameserver fe80::2%3\nnameserver 0.0.0.0\nnameserver ::\n");
        assert!(skipped.is_empty(), "{skipped:?}");
        let zoned = |ip: &str, zone| SocketAddr::from(SocketAddrV6::new(ip.parse().unwrap(), 53, 0, zone));
        let local: Vec<SocketAddr> = ["127.0.0.1:53", "[::1]:53"].map(|at| at.parse().unwrap()).into();
        assert_eq!(resolvers.servers, [vec![zoned("fe80::1", 7), zoned("fe80::2", 3)], local].concat());
    }

    #[test]
    fn options_are_heeded_within_bounds() {
        let (plain, _) = parse("");
        assert_eq!((plain.timeout, plain.attempts, plain.ndots), (Duration::from_secs(5), 2, 1));
        assert!(!plain.tcp && !plain.rotate);
        let (set, _) = parse("options timeout:1 attempts:4\noptions use-vc rotate ndots:5\n");
        assert_eq!((set.timeout, set.attempts, set.ndots), (Duration::from_secs(1), 4, 5));
        assert!(set.tcp && set.rotate);
        let (wild, _) = parse("options timeout:4000000000 attempts:0");
        assert_eq!((wild.timeout, wild.attempts), (Duration::from_secs(30), 1));
    }

    #[test]
    fn hosts_has_both_families_and_any_case() {
        let hosts = Hosts::parse(
            "# c\n127.0.0.1 localhost # d\n::1 LocalHost\n\nnonsense a\n192.0.2.1\ta.Test b.test\n",
        );
        assert_eq!(hosts.addresses("LOCALHOST").unwrap().len(), 2);
        assert_eq!(hosts.addresses("b.test.").unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(hosts.addresses("a"), None);
    }

    #[test]
    fn the_order_is_that_of_nsswitch() {
        use Source::{Dns, Files};
        for (text, wanted) in [
            ("", vec![Files, Dns]),
            ("passwd: files\n", vec![Files, Dns]),
            ("hosts: files mdns4_minimal [NOTFOUND=return] dns\n", vec![Files, Dns]),
            ("hosts:\tdns files # hosts: files\n", vec![Dns, Files]),
            ("hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns", vec![Files, Dns]),
            ("hosts: dns", vec![Dns]),
            ("hosts: ldap", vec![Files, Dns]),
        ] {
            let sources: Vec<_> = order(text).iter().map(|step| step.source).collect();
            assert_eq!(sources, wanted, "{text}");
        }
    }

    #[test]
    fn actions_are_about_the_source_before_them() {
        for (text, wanted) in [
            ("files dns", [(false, false), (false, false)]),
            ("files [NOTFOUND=return] dns", [(true, false), (false, false)]),
            ("files[notfound = RETURN]dns [ TRYAGAIN=continue ]", [(true, false), (false, false)]),
            ("files mdns4_minimal [NOTFOUND=return] dns", [(false, false), (false, false)]),
            ("files dns [!UNAVAIL=return] files", [(false, false), (true, true)]),
            ("files dns files [NOTFOUND=return]", [(false, false), (false, false)]),
            (
                "files [TRYAGAIN=return NOTFOUND=return NOTFOUND=continue] dns",
                [(false, true), (false, false)],
            ),
            ("files [SUCCESS=return UNAVAIL=return] dns", [(false, false), (false, false)]),
            ("files [NOTFOUND=return", [(true, false), (false, false)]),
            ("files [NOTFOUND] dns [=]", [(false, false), (false, false)]),
        ] {
            let steps = order(&format!("hosts: {text}"));
            let actions: Vec<_> = steps.iter().map(|step| (step.denies, step.blocks)).collect();
            assert_eq!(actions, wanted[..steps.len()], "{text}");
        }
    }

    #[test]
    fn addresses_may_be_short() {
        for (text, wanted) in [
            ("127.1", Some([127, 0, 0, 1])),
            ("127.0.1", Some([127, 0, 0, 1])),
            ("10.1.258", Some([10, 1, 1, 2])),
            ("2130706433", Some([127, 0, 0, 1])),
            ("0x7f.010.1.1", Some([127, 8, 1, 1])),
            ("192.0.2.255", Some([192, 0, 2, 255])),
            ("192.0.2.256", None),
            ("192.0.65536", None),
            ("256.1", None),
            ("4294967296", None),
            ("1.2.3.4.5", None),
            ("1..2", None),
            ("+1.2", None),
            ("08.1", None),
            ("0x.1", None),
            ("", None),
        ] {
            assert_eq!(parse_v4(text), wanted.map(Ipv4Addr::from), "{text}");
        }
        let (resolvers, _) = parse("nameserver 127.1\n");
        assert_eq!(resolvers.servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn interfaces_have_the_numbers_that_the_kernel_tells() {
        let told = "fe80000000000000bc1f8dfffe000001 1a 40 20 80     eth0\n\
                    00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(numbered(told, "eth0"), Some(26));
        assert_eq!(numbered(told, "eth"), None);
        let (resolvers, skipped) = parse("nameserver fe80::1%nowhere\nnameserver fe80::1%br-lan\n");
        assert_eq!(resolvers.zones, [("nowhere".into(), None), ("br-lan".into(), Some(7))]);
        assert_eq!(skipped, ["nameserver fe80::1%nowhere"]);
    }
}
