//! The keys that a file may have, and what each is written as.
//!
//! serde's errors name neither the path of a key nor what to write instead. So a file is held against this table before
//! it is deserialised, and what deserialises afterwards cannot fail.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What a key is written as. The text is the remedy for one that is written otherwise.
pub(super) enum Form {
    /// One string.
    Text(&'static str),
    /// An array of strings.
    Texts(&'static str),
    /// An integer of 32 bits without a sign.
    Number(&'static str),
    /// `true` or `false`.
    Switch,
    /// `[NAME]`.
    Table(&'static [Key]),
    /// Any number of `[[NAME]]`.
    Tables(&'static [Key]),
    /// Any number of `[NAME.CHOSEN]`.
    Named(&'static [Key]),
}

/// A key of a table.
pub(super) struct Key {
    name: &'static str,
    form: Form,
    required: bool,
}

/// What is wrong with a key. The file's name is not known here.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) key: String,
    pub(super) problem: String,
    pub(super) remedy: String,
}

const fn key(name: &'static str, form: Form) -> Key {
    Key { name, form, required: false }
}

const fn required(name: &'static str, form: Form) -> Key {
    Key { name, form, required: true }
}

pub(super) const BIND: &str = "write IP:port, for example \"0.0.0.0:5222\" or \"[::]:5222\"";
pub(super) const BYTES: &str = "write a size such as \"256MiB\" or \"1GiB\"";
pub(super) const CLIENT_ADDRESSES: &str = "write \"never\", \"truncated\" or \"full\"";
pub(super) const ENDPOINT: &str = "write host:port, an IPv6 address in brackets";
pub(super) const FALLBACK: &str = "write IP:port of your web server, for example \"127.0.0.1:8081\"";
pub(super) const LIMIT: &str = "write a number; 0 is no limit";
pub(super) const MODE: &str = "write \"chat\", \"chat-tls\", \"media\" or \"auto\"";
pub(super) const NAME: &str = "write 1 to 64 letters, digits, \"-\" or \"_\": it is used in logs and metrics";
pub(super) const PATH: &str = "write \"auto\", \"sockmap\" or \"userspace\"";
pub(super) const PATTERN: &str =
    "write a name such as \"whatsapp.net\", or \"*.whatsapp.net\" for all below it";
pub(super) const POSITIVE: &str = "write a number from 1, or leave the key out";
pub(super) const RANGE: &str = "write a range such as \"10.0.0.0/8\" or \"fd00::/8\"";
pub(super) const ROUTE: &str = "write \"fixed\" or \"sni\"";
pub(super) const SEND: &str = "write \"off\", \"v1\" or \"v2\"";
pub(super) const SERVER: &str = "write the IP or IP:port of a resolver, for example \"9.9.9.9\"";
pub(super) const SOURCE: &str = "write an IP address of this machine";
pub(super) const TIME: &str = "write a time such as \"500ms\", \"5s\" or \"3m\"";
pub(super) const TLS_NAME: &str = "write a name such as \"proxy.example.org\", or an IP address";
const FILE_NAME: &str = "write the name of a PEM file, relative to this file";
pub(super) const USER: &str = "write the name of a user of this machine, or its number";
const UPSTREAM: &str = "write the name of an upstream, for example \"chat\"";

/// All keys.
const FILE: &[Key] = &[
    key("relay", Form::Table(&[key("path", Form::Text(PATH))])),
    key("listener", Form::Tables(LISTENER)),
    key("upstream", Form::Named(UPSTREAMS)),
    key("timeouts", Form::Table(TIMEOUTS)),
    key("limits", Form::Table(LIMITS)),
    key("allow", Form::Table(&[key("sni", Form::Texts(PATTERN))])),
    key("proxy_protocol", Form::Table(&[key("trusted", Form::Texts(RANGE))])),
    key("tls", Form::Table(TLS)),
    key("dns", Form::Table(&[key("servers", Form::Texts(SERVER))])),
    key("admin", Form::Table(&[key("bind", Form::Texts(BIND))])),
    key("privacy", Form::Table(&[key("client_addresses", Form::Text(CLIENT_ADDRESSES))])),
    key("security", Form::Table(SECURITY)),
];

const LISTENER: &[Key] = &[
    required("name", Form::Text(NAME)),
    required("bind", Form::Texts(BIND)),
    required("mode", Form::Text(MODE)),
    key("accept_proxy_protocol", Form::Switch),
    key("gate", Form::Switch),
    // Which of these there must be is up to the mode.
    key("upstream", Form::Text(UPSTREAM)),
    key("chat", Form::Text(UPSTREAM)),
    key("media", Form::Text(UPSTREAM)),
    key("fallback", Form::Text(FALLBACK)),
];

const UPSTREAMS: &[Key] = &[
    // Only the defaults' upstreams may do without.
    key("endpoints", Form::Texts(ENDPOINT)),
    key("send_proxy_protocol", Form::Text(SEND)),
    key("route", Form::Text(ROUTE)),
    key("sources", Form::Texts(SOURCE)),
];

const TIMEOUTS: &[Key] = &[
    key("connect", Form::Text(TIME)),
    key("inspect", Form::Text(TIME)),
    key("handshake", Form::Text(TIME)),
    key("idle", Form::Text(TIME)),
    key("half_close", Form::Text(TIME)),
    key("vanished", Form::Text(TIME)),
    key("drain", Form::Text(TIME)),
];

const LIMITS: &[Key] = &[
    key("connections", Form::Number(POSITIVE)),
    key("per_source", Form::Number(LIMIT)),
    key("per_source_rate", Form::Number(LIMIT)),
    key("exempt", Form::Texts(RANGE)),
    key("pending", Form::Number(POSITIVE)),
    key("kernel_bytes", Form::Text(BYTES)),
];

const TLS: &[Key] = &[
    key("certificate", Form::Text(FILE_NAME)),
    key("key", Form::Text(FILE_NAME)),
    key("names", Form::Texts(TLS_NAME)),
    key("state_dir", Form::Text("write the name of a directory that setu may write to")),
];

const SECURITY: &[Key] = &[key("allow_private_upstreams", Form::Switch), key("user", Form::Text(USER))];

/// Holds a file against the table.
pub(super) fn check(file: &Spanned<DeTable<'_>>) -> Result<(), Fault> {
    table(file.get_ref(), &file.span(), FILE, "")
}

fn table(table: &DeTable<'_>, span: &Range<usize>, keys: &[Key], path: &str) -> Result<(), Fault> {
    for (name, value) in table {
        let Some(known) = keys.iter().find(|key| key.name == name.get_ref()) else {
            return Err(unknown(name, keys, path));
        };
        known.check(value, &join(path, known.name))?;
    }
    match keys.iter().find(|key| key.required && !table.contains_key(key.name)) {
        None => Ok(()),
        Some(missing) => Err(Fault {
            span: span.clone(),
            key: join(path, missing.name),
            problem: "it is missing".into(),
            remedy: missing.remedy(),
        }),
    }
}

fn unknown(name: &Spanned<impl AsRef<str>>, keys: &[Key], path: &str) -> Fault {
    let written = name.get_ref().as_ref();
    let distance = |key: &&Key| strsim::osa_distance(key.name, written);
    let remedy = match keys.iter().min_by_key(distance) {
        // A slip of a finger or two, in a word that is long enough to be known by the rest.
        Some(near) if 3 * distance(&near) <= near.name.len().max(written.len()) => {
            format!("write `{}`", near.name)
        }
        _ => {
            let names: Vec<_> = keys.iter().map(|key| key.name).collect();
            format!("the keys here are: {}", names.join(", "))
        }
    };
    Fault { span: name.span(), key: join(path, written), problem: "there is no such key".into(), remedy }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

impl Key {
    fn check(&self, value: &Spanned<DeValue<'_>>, path: &str) -> Result<(), Fault> {
        let wrong = |value: &Spanned<DeValue<'_>>, problem: String| {
            Err(Fault { span: value.span(), key: path.into(), problem, remedy: self.remedy() })
        };
        match (&self.form, value.get_ref()) {
            (Form::Text(_), DeValue::String(_)) | (Form::Switch, DeValue::Boolean(_)) => Ok(()),
            (Form::Number(_), DeValue::Integer(number)) => {
                match u32::from_str_radix(number.as_str(), number.radix()) {
                    Ok(_) => Ok(()),
                    Err(_) => wrong(value, format!("{number} is not between 0 and {}", u32::MAX)),
                }
            }
            (Form::Texts(_), DeValue::Array(items)) => {
                match items.iter().find(|item| !item.get_ref().is_str()) {
                    Some(item) => wrong(item, format!("one of its items is {}", kind(item))),
                    None => Ok(()),
                }
            }
            (Form::Table(keys), DeValue::Table(inner)) => table(inner, &value.span(), keys, path),
            (Form::Tables(keys), DeValue::Array(items)) => {
                for item in items {
                    let DeValue::Table(inner) = item.get_ref() else {
                        return wrong(item, format!("one of its items is {}", kind(item)));
                    };
                    table(inner, &item.span(), keys, path)?;
                }
                Ok(())
            }
            (Form::Named(keys), DeValue::Table(named)) => {
                for (name, item) in named {
                    let path = join(path, name.get_ref());
                    let DeValue::Table(inner) = item.get_ref() else {
                        let problem = format!("it is {}", kind(item));
                        return Err(Fault { span: name.span(), key: path, problem, remedy: self.remedy() });
                    };
                    table(inner, &item.span(), keys, &path)?;
                }
                Ok(())
            }
            _ => wrong(value, format!("it is {}", kind(value))),
        }
    }

    /// What to write.
    fn remedy(&self) -> String {
        match self.form {
            Form::Text(remedy) | Form::Number(remedy) => remedy.into(),
            Form::Texts(remedy) => format!("{remedy}, between [ and ]"),
            Form::Switch => "write true or false".into(),
            Form::Table(_) => format!("write its keys below a line [{}]", self.name),
            Form::Tables(_) => format!("write the keys of each below a line [[{}]]", self.name),
            Form::Named(_) => format!("write the keys of each below a line [{}.NAME]", self.name),
        }
    }
}

/// The type of a value, with its article.
fn kind(value: &Spanned<DeValue<'_>>) -> String {
    let noun = value.get_ref().type_str();
    let article = if noun.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {noun}")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;
    use crate::config::Config;

    /// The dotted names of all keys below these.
    fn known(keys: &[Key], path: &str, names: &mut BTreeSet<String>) {
        for key in keys {
            let path = join(path, key.name);
            match key.form {
                Form::Table(keys) | Form::Tables(keys) | Form::Named(keys) => known(keys, &path, names),
                Form::Text(_) | Form::Texts(_) | Form::Number(_) | Form::Switch => {
                    names.insert(path);
                }
            }
        }
    }

    /// The dotted names of all keys in a file.
    fn written(text: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, value) in text.parse::<toml::Table>().unwrap() {
            let inner = |value: &toml::Value| value.as_table().unwrap().clone();
            let tables: Vec<toml::Table> = match (name.as_str(), &value) {
                ("listener", toml::Value::Array(items)) => items.iter().map(inner).collect(),
                ("upstream", toml::Value::Table(named)) => named.values().map(inner).collect(),
                _ => vec![inner(&value)],
            };
            names.extend(tables.iter().flat_map(|table| table.keys()).map(|key| join(&name, key)));
        }
        names
    }

    /// The schema, the raw types, and what is printed have the same keys.
    #[test]
    fn every_key_is_read_and_printed() {
        let mut names = BTreeSet::new();
        known(FILE, "", &mut names);
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/valid/every-key.toml");
        let text = fs::read_to_string(file).unwrap();
        assert_eq!(written(&text), names);
        assert_eq!(written(&Config::parse("f", &text).unwrap().to_string()), names);
    }
}
