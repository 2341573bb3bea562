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
pub(super) const ENDPOINT: &str = "write host:port, an IPv6 address in brackets";
pub(super) const MODE: &str = "write \"chat\" or \"media\"";
pub(super) const PATH: &str = "write \"auto\", \"sockmap\" or \"userspace\"";
pub(super) const TIME: &str = "write a time such as \"500ms\", \"5s\" or \"3m\"";

/// All keys.
const FILE: &[Key] = &[
    key("relay", Form::Table(&[key("path", Form::Text(PATH))])),
    key(
        "listener",
        Form::Tables(&[
            required("name", Form::Text("write a name for logs, for example \"chat\"")),
            required("bind", Form::Texts(BIND)),
            required("mode", Form::Text(MODE)),
            key("upstream", Form::Text("write the name of an upstream, for example \"chat\"")),
        ]),
    ),
    key("upstream", Form::Named(&[required("endpoints", Form::Texts(ENDPOINT))])),
    key(
        "timeouts",
        Form::Table(&[
            key("connect", Form::Text(TIME)),
            key("idle", Form::Text(TIME)),
            key("half_close", Form::Text(TIME)),
        ]),
    ),
    key("security", Form::Table(&[key("allow_private_upstreams", Form::Switch)])),
];

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
        // A slip of a finger or two.
        Some(near) if distance(&near) <= 2 => format!("write `{}`", near.name),
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
        let wrong = |value: &Spanned<DeValue<'_>>, noun: &str| {
            Err(Fault {
                span: value.span(),
                key: path.into(),
                problem: format!("{noun} is {}", with_article(value.get_ref().type_str())),
                remedy: self.remedy(),
            })
        };
        match (&self.form, value.get_ref()) {
            (Form::Text(_), DeValue::String(_)) | (Form::Switch, DeValue::Boolean(_)) => Ok(()),
            (Form::Texts(_), DeValue::Array(items)) => {
                match items.iter().find(|item| !item.get_ref().is_str()) {
                    Some(item) => wrong(item, "one of its items"),
                    None => Ok(()),
                }
            }
            (Form::Table(keys), DeValue::Table(inner)) => table(inner, &value.span(), keys, path),
            (Form::Tables(keys), DeValue::Array(items)) => {
                for item in items {
                    let DeValue::Table(inner) = item.get_ref() else {
                        return wrong(item, "one of its items");
                    };
                    table(inner, &item.span(), keys, path)?;
                }
                Ok(())
            }
            (Form::Named(keys), DeValue::Table(named)) => {
                for (name, item) in named {
                    let path = join(path, name.get_ref());
                    let DeValue::Table(inner) = item.get_ref() else {
                        let problem = format!("it is {}", with_article(item.get_ref().type_str()));
                        return Err(Fault { span: name.span(), key: path, problem, remedy: self.remedy() });
                    };
                    table(inner, &item.span(), keys, &path)?;
                }
                Ok(())
            }
            _ => wrong(value, "it"),
        }
    }

    /// What to write.
    fn remedy(&self) -> String {
        match self.form {
            Form::Text(remedy) => remedy.into(),
            Form::Texts(remedy) => format!("{remedy}, between [ and ]"),
            Form::Switch => "write true or false".into(),
            Form::Table(_) => format!("write its keys below a line [{}]", self.name),
            Form::Tables(_) => format!("write the keys of each below a line [[{}]]", self.name),
            Form::Named(_) => format!("write the keys of each below a line [{}.NAME]", self.name),
        }
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}
