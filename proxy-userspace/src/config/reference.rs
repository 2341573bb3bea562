//! All keys for people: `docs/configuration.md` and setu.toml(5) are made of this (`examples/manual`).
//!
//! Nothing is said twice. What keys there are and what they do is in the schema, which lets no other key into a file;
//! what holds where a file says nothing is found out by reading one that says next to nothing.

use super::{
    Config, ConfigError,
    schema::{self, Form, Key, join},
};

/// The smallest file that has a listener of each mode, and an upstream that is none of the defaults. What else is
/// printed of it are defaults.
const SMALLEST: &str = r#"
[[listener]]
name = "1"
bind = ["127.0.0.1:1"]
mode = "chat"
upstream = "own"

[[listener]]
name = "2"
bind = ["127.0.0.1:2"]
mode = "chat-tls"
upstream = "own"

[[listener]]
name = "3"
bind = ["127.0.0.1:3"]
mode = "media"
upstream = "own"

[[listener]]
name = "4"
bind = ["127.0.0.1:4"]
mode = "auto"
chat = "own"
media = "own"

[upstream.own]
endpoints = ["chat.example:5222"]
"#;
/// Its upstream.
const OWN: &str = "own";

/// A table of the file. All text is Markdown that knows nothing but `code`.
#[derive(Debug)]
pub struct Section {
    /// The line above its keys, such as `[relay]`.
    pub heading: String,
    /// What it is about.
    pub about: &'static str,
    /// What it may have.
    pub entries: Vec<Entry>,
}

/// A key.
#[derive(Debug)]
pub struct Entry {
    /// As in the file.
    pub name: &'static str,
    /// What to write: the type, and in which form.
    pub written: String,
    /// What holds where nothing is written. `None`: it must be written, save where [`Self::about`] says otherwise.
    pub default: Option<String>,
    /// Whether a reload takes it.
    pub reloads: bool,
    /// What it does.
    pub about: &'static str,
}

/// All tables with all keys.
///
/// # Errors
/// None, unless the smallest file is not good enough any more.
pub fn reference() -> Result<Vec<Section>, ConfigError> {
    let printed = Config::parse("smallest", SMALLEST)?.to_string();
    let (given, printed) = (lines(SMALLEST), lines(&printed));
    let section = |table: &Key| {
        let path = match table.form {
            Form::Named(_) => join(table.name, OWN),
            _ => table.name.to_owned(),
        };
        let entry = |key: &Key| Entry {
            name: key.name,
            written: written(key),
            default: default(&given, &printed, &path, key.name),
            reloads: !key.fixed,
            about: key.about(),
        };
        let entries = table.keys().unwrap_or_default().iter().map(entry).collect();
        Section { heading: table.heading(), about: table.about(), entries }
    };
    Ok(schema::FILE.iter().map(section).collect())
}

/// What errors tell to write, after the type.
fn written(key: &Key) -> String {
    let (kind, form) = match key.form {
        Form::Text(form) => ("string", form),
        Form::Texts(form) => ("array of strings", form),
        Form::Number(form) => ("integer", form),
        Form::Switch | Form::Table(_) | Form::Tables(_) | Form::Named(_) => return "boolean".into(),
    };
    let words = form.trim_start_matches("write ").split('"').enumerate();
    let words = words.map(|(index, word)| if index % 2 == 1 { format!("`\"{word}\"`") } else { word.into() });
    format!("{kind}: {}", words.collect::<String>())
}

/// What is printed of a key that is not given.
fn default(given: &[Line<'_>], printed: &[Line<'_>], table: &str, key: &str) -> Option<String> {
    let is_meant = |line: &&Line<'_>| line.table == table && line.key == key;
    if given.iter().any(|line| is_meant(&line)) {
        return None;
    }
    let mut lines = printed.iter().filter(is_meant);
    let first = lines.next()?;
    // A listener's may depend on its mode.
    let others = lines.filter(|line| line.value != first.value);
    let others = others.map(|line| format!(", {} where `mode = {}`", line.value, line.mode));
    Some(first.value.clone() + &others.collect::<String>())
}

/// A key with its value, or with what is said in place of one.
struct Line<'a> {
    table: &'a str,
    /// That of the listener.
    mode: &'a str,
    key: &'a str,
    /// In Markdown.
    value: String,
}

/// Takes a printed configuration apart.
fn lines(text: &str) -> Vec<Line<'_>> {
    let (mut table, mut mode) = ("", "");
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']']);
        } else if let Some((key, value)) = line.split_once(" = ") {
            if key == "mode" {
                mode = value;
            }
            lines.push(Line { table, mode, key, value: format!("`{value}`") });
        } else if let Some((keys, words)) = line.strip_prefix("# ").and_then(|line| line.split_once(": ")) {
            lines.extend(keys.split(", ").map(|key| Line { table, mode, key, value: words.into() }));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(heading: &str, name: &str) -> Entry {
        let section = reference().unwrap().into_iter().find(|section| section.heading == heading).unwrap();
        section.entries.into_iter().find(|entry| entry.name == name).unwrap()
    }

    #[test]
    fn types_and_defaults_are_those_that_hold() {
        let rows = [
            (
                "[relay]",
                "path",
                "string: `\"auto\"`, `\"wire\"`, `\"sockmap\"` or `\"userspace\"`",
                Some("`\"auto\"`"),
            ),
            ("[[listener]]", "mode", "string: `\"chat\"`, `\"chat-tls\"`, `\"media\"` or `\"auto\"`", None),
            ("[[listener]]", "gate", "boolean", Some("`false`, `true` where `mode = \"auto\"`")),
            ("[upstream.NAME]", "sources", "array of strings: an IP address of this machine", Some("`[]`")),
            (
                "[upstream.NAME]",
                "send_proxy_protocol",
                "string: `\"off\"`, `\"v1\"` or `\"v2\"`",
                Some("`\"off\"`"),
            ),
            ("[limits]", "per_source", "integer: a number; 0 is no limit", Some("`4096`")),
            ("[tls]", "key", "string: the name of a PEM file, relative to this file", Some("made by setu")),
        ];
        for (heading, name, written, default) in rows {
            let entry = find(heading, name);
            assert_eq!((&*entry.written, entry.default.as_deref()), (written, default), "{heading} {name}");
        }
        assert!(find("[timeouts]", "idle").reloads && !find("[security]", "user").reloads);
    }

    #[test]
    fn each_key_has_all_that_is_said_of_one() {
        for section in reference().unwrap() {
            assert!(section.about.ends_with('.') && !section.entries.is_empty(), "{}", section.heading);
            for Entry { name, default, about, .. } in section.entries {
                assert!(about.ends_with('.') && !about.contains('|'), "{name}: {about}");
                let given = SMALLEST.lines().any(|line| line.starts_with(&format!("{name} = ")));
                assert!(default.is_some() || given, "{name}: nothing is printed of it");
            }
        }
    }

    /// Else a key would seem to have no default.
    #[test]
    fn the_smallest_file_has_nothing_to_spare() {
        for index in 0..SMALLEST.lines().count() {
            let without = |(other, line)| (other != index).then_some(line);
            let lines: Vec<_> = SMALLEST.lines().enumerate().filter_map(without).collect();
            let line = SMALLEST.lines().nth(index).unwrap();
            assert_eq!(Config::parse("f", &lines.join("\n")).is_ok(), line.is_empty(), "{line}");
        }
        let (mut config, defaults) = (Config::parse("f", SMALLEST).unwrap(), Config::load(None).unwrap());
        config.listeners = defaults.listeners.clone();
        assert_eq!(config.upstreams.pop().unwrap().name, OWN);
        assert_eq!(config, defaults);
    }
}
