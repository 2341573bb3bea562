//! Ports that the kernel gives nobody by itself (`net.ipv4.ip_local_reserved_ports`, for IPv6 as well): those of the wire
//! must be among them, for the kernel does not know which of them are in use.

use std::{
    fmt, fs,
    io::{self, Read as _, Seek as _, Write as _},
    ops::RangeInclusive,
    path::Path,
};

const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// The kernel reads no more of a text at once (`proc_do_large_bitmap`, kernel/sysctl.c).
const LONGEST: usize = 4095;

/// Ports by their ranges, which are in order and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reserved(Vec<RangeInclusive<u16>>);

/// What setu has added to the reserved ports.
#[derive(Debug)]
pub(crate) struct Reservation {
    file: fs::File,
    before: Reserved,
    after: Reserved,
}

impl Reserved {
    /// Those of this network namespace.
    ///
    /// # Errors
    /// There is no /proc, or a text that is none of ports.
    pub(crate) fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string(FILE)?).ok_or_else(unknown)
    }

    /// Whether this process may change them.
    pub(crate) fn may_be_written() -> bool {
        fs::File::options().write(true).open(FILE).is_ok()
    }

    /// Ports as the kernel lists them: `80,7777-7779`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        let parts = text.trim().split(',').filter(|part| !part.is_empty());
        Some(Self::of(parts.map(range).collect::<Option<_>>()?))
    }

    fn of(mut ranges: Vec<RangeInclusive<u16>>) -> Self {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| *range.start());
        ranges.dedup_by(|next, range| {
            let touches = u32::from(*next.start()) <= u32::from(*range.end()) + 1;
            if touches {
                *range = *range.start()..=*range.end().max(next.end());
            }
            touches
        });
        Self(ranges)
    }

    /// These, and more.
    pub(crate) fn with(&self, more: &RangeInclusive<u16>) -> Self {
        Self::of(self.0.iter().chain([more]).cloned().collect())
    }

    /// Whether all of a range are.
    pub(crate) fn has(&self, range: &RangeInclusive<u16>) -> bool {
        self.count_in(range) == range.len() as u64
    }

    /// How many of a range are.
    pub(crate) fn count_in(&self, range: &RangeInclusive<u16>) -> u64 {
        let common =
            |own: &RangeInclusive<u16>| *own.start().max(range.start())..=*own.end().min(range.end());
        self.0.iter().map(|own| common(own).len() as u64).sum()
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let (first, last) = (range.start(), range.end());
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(formatter, "{comma}{first}")?,
                false => write!(formatter, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Reservation {
    /// Adds ports to those that are reserved. `None`: all of them are.
    ///
    /// # Errors
    /// This process may not, as in most containers.
    pub(crate) fn make(ports: &RangeInclusive<u16>) -> io::Result<Option<Self>> {
        Self::make_in(Path::new(FILE), ports)
    }

    fn make_in(path: &Path, ports: &RangeInclusive<u16>) -> io::Result<Option<Self>> {
        // What may only be read says so before it is to be written.
        let before = read(&mut fs::File::open(path)?)?;
        if before.has(ports) {
            return Ok(None);
        }
        let mut file = fs::File::options().read(true).write(true).open(path)?;
        let after = before.with(ports);
        write(&mut file, &after)?;
        Ok(Some(Self { file, before, after }))
    }

    /// Takes the ports out again, unless somebody has written others since. It opens no file, and needs no more than
    /// CAP_NET_ADMIN (`net_ctl_permissions`, net/sysctl_net.c).
    ///
    /// # Errors
    /// This process may not any more.
    pub(crate) fn give_back(mut self) -> io::Result<()> {
        if read(&mut self.file)? == self.after {
            write(&mut self.file, &self.before)?;
        }
        Ok(())
    }
}

fn read(file: &mut fs::File) -> io::Result<Reserved> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Reserved::parse(&text).ok_or_else(unknown)
}

fn write(file: &mut fs::File, ports: &Reserved) -> io::Result<()> {
    let text = format!("{ports}\n");
    if text.len() > LONGEST {
        return Err(io::Error::other("there are too many ranges"));
    }
    file.rewind()?;
    // At once: a second part would be added to the first, or refused.
    match file.write(text.as_bytes())? {
        len if len == text.len() => Ok(()),
        _ => Err(io::Error::other("the kernel did not take all of it")),
    }
}

fn unknown() -> io::Error {
    io::Error::other("it is no list of ports")
}

#[cfg(test)]
mod tests {
    use setu_tests::netns::Netns;

    use super::*;

    fn parse(text: &str) -> Reserved {
        Reserved::parse(text).unwrap()
    }

    #[test]
    fn ranges_are_merged_and_read_as_they_are_written() {
        for (before, with, after) in [
            ("\n", 10..=20, "10-20"),
            ("80,5222\n", 100..=200, "80,100-200,5222"),
            ("1-9,21-30", 10..=20, "1-30"),
            ("5-15,18-25,40", 10..=20, "5-25,40"),
            ("10-20", 12..=13, "10-20"),
            ("65535", 60_000..=65_534, "60000-65535"),
            ("30,20,20-22", 1..=1, "1,20-22,30"),
        ] {
            let merged = parse(before).with(&with);
            assert_eq!(merged.to_string(), after, "{before:?}");
            assert_eq!(parse(after), merged);
            assert!(merged.has(&with));
        }
        for nonsense in ["a", "1-", "70000", "1;2"] {
            assert_eq!(Reserved::parse(nonsense), None, "{nonsense}");
        }
        assert!(!parse("10-14,16-20").has(&(10..=20)));
        assert_eq!(parse("10-14,16-20").count_in(&(13..=17)), 4);
    }

    /// The kernel's own file, of which each network namespace has one.
    #[test]
    fn ports_are_reserved_and_given_back_unless_others_are_written() {
        if !setu_tests::machine::is_root() {
            println!("skipped: a network namespace needs root, and this is not");
            return;
        }
        let namespace = Netns::alone();
        namespace.set("net/ipv4/ip_local_reserved_ports", "10050,40000-40010");
        namespace.within(|| {
            let ports = 10_000..=31_999;
            let reserved = || fs::read_to_string(FILE).unwrap();
            let reservation = Reservation::make(&ports).unwrap().unwrap();
            assert_eq!(reserved(), "10000-31999,40000-40010\n");
            assert!(Reserved::read().unwrap().has(&ports));
            assert!(Reservation::make(&ports).unwrap().is_none(), "there is nothing to do");
            reservation.give_back().unwrap();
            assert_eq!(reserved(), "10050,40000-40010\n");
            let reservation = Reservation::make(&ports).unwrap().unwrap();
            fs::write(FILE, "10000-31999\n").unwrap();
            reservation.give_back().unwrap();
            assert_eq!(reserved(), "10000-31999\n", "somebody else's");
        });
    }
}
