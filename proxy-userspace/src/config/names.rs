//! Names of hosts, and those that clients may ask for in the SNI. Without such a list setu would carry anyone's traffic
//! to anywhere.

use std::{fmt, str::FromStr};

/// Whether a text is the name of a host: labels of letters, digits, `-` and `_`, with or without the root's dot. A name
/// whose last label is a number is an address with a slip (RFC 3696, section 2).
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..64).contains(&label.len()) && label.bytes().all(known);
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() < 254 && name.split('.').all(label) && !numeric
}

/// Names that clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList(Vec<Pattern>);

/// One entry, in lower case and without the root's dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// `x`: this name.
    Exact(String),
    /// `*.x`: every name below `x`, at any depth, but not `x` itself.
    Below(String),
}

impl AllowList {
    /// Allows what any of the patterns allows.
    #[must_use]
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self(patterns)
    }

    /// Whether clients may ask for this name. Case does not matter, nor does one dot at the end (RFC 1034, section 3.1).
    /// What is no name of a host is never allowed.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        if !is_host_name(name) {
            return false;
        }
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(exact) => name.eq_ignore_ascii_case(exact.as_bytes()),
            Pattern::Below(parent) => {
                name.len().checked_sub(parent.len()).and_then(|at| name.split_at_checked(at)).is_some_and(
                    |(labels, end)| labels.ends_with(b".") && end.eq_ignore_ascii_case(parent.as_bytes()),
                )
            }
        })
    }

    /// Each entry.
    pub fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }
}

impl FromStr for Pattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, pattern): (_, fn(String) -> Self) = match text.strip_prefix("*.") {
            Some(parent) => (parent, Self::Below),
            None => (text, Self::Exact),
        };
        if !is_host_name(name) {
            return Err(());
        }
        Ok(pattern(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => formatter.write_str(name),
            Self::Below(parent) => write!(formatter, "*.{parent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(patterns: &[&str]) -> AllowList {
        AllowList::new(patterns.iter().map(|pattern| pattern.parse().unwrap()).collect())
    }

    #[test]
    fn exact_names_and_names_below() {
        let list = list(&["whatsapp.com", "*.WhatsApp.net."]);
        for name in [
            "whatsapp.com",
            "WhatsApp.Com.",
            "mmg.whatsapp.net",
            "media.fxyz1-1.fna.whatsapp.net",
            "MMG.WHATSAPP.NET.",
        ] {
            assert!(list.allows(name), "{name}");
        }
        for name in [
            "",
            ".",
            "whatsapp.net",
            ".whatsapp.net",
            "a..whatsapp.net",
            "a b.whatsapp.net",
            "a\0.whatsapp.net",
            "mmg.whatsapp.com",
            "evilwhatsapp.net",
            "evil.whatsapp.net.example",
            "whatsapp.com..",
            "whatsapp.comm",
            "mmg.whatsapp.net\0",
            "mmg.whatsapp.nét",
            "*",
            "net",
        ] {
            assert!(!list.allows(name), "{name}");
        }
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        assert!(!list(&[]).allows("whatsapp.net"));
        assert!(!list(&[]).allows(""));
    }

    #[test]
    fn patterns_are_names() {
        for text in ["", "*", "*.", "*.*.net", "a.*.net", "*a.net", "1.2.3.4", "[::1]", "a b", "**.net"] {
            assert_eq!(text.parse::<Pattern>(), Err(()), "{text}");
        }
        assert_eq!("*.A.net.".parse::<Pattern>().unwrap().to_string(), "*.a.net");
    }

    proptest::proptest! {
        #[test]
        fn only_what_ends_in_the_parent_is_below_it(name in "[a-zA-Z.]{0,12}(\\.?whatsapp\\.net\\.?)?") {
            let lower = name.to_ascii_lowercase();
            let lower = lower.strip_suffix('.').unwrap_or(&lower);
            let below = lower.strip_suffix(".whatsapp.net");
            let expected = below.is_some_and(|labels| labels.split('.').all(|label| !label.is_empty()));
            proptest::prop_assert_eq!(list(&["*.whatsapp.net"]).allows(&name), expected);
        }
    }

    #[test]
    fn names_of_hosts() {
        for name in ["whatsapp.net", "a.", "x-1.y_2.net", "1.example", &"a".repeat(63)] {
            assert!(is_host_name(name), "{name}");
        }
        for name in ["", ".", "a..b", "a b", "*.net", "10.0.960.1", "a.1", "ü.net", "[::1]", &"a".repeat(64)]
        {
            assert!(!is_host_name(name), "{name}");
        }
        assert!(is_host_name(&format!("{}a", "a.".repeat(126))));
        assert!(!is_host_name(&format!("{}aa", "a.".repeat(126))));
    }
}
