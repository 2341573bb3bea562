//! The words of what people read who are not operators, in the languages of places where WhatsApp is or was blocked. Each
//! language is one file, which a translator can edit; the notes for that are in `en.toml`.

mod status;

use std::{
    fmt::{Display, Write as _},
    iter,
    sync::LazyLock,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use status::Status;

const ENGLISH: (&str, &str) = ("en.toml", include_str!("en.toml"));
/// The other files' names, and what is in them.
const OTHERS: [(&str, &str); 15] = [
    ("fa.toml", include_str!("fa.toml")),
    ("ar.toml", include_str!("ar.toml")),
    ("ur.toml", include_str!("ur.toml")),
    ("ps.toml", include_str!("ps.toml")),
    ("ru.toml", include_str!("ru.toml")),
    ("tr.toml", include_str!("tr.toml")),
    ("bn.toml", include_str!("bn.toml")),
    ("hi.toml", include_str!("hi.toml")),
    ("my.toml", include_str!("my.toml")),
    ("zh.toml", include_str!("zh.toml")),
    ("id.toml", include_str!("id.toml")),
    ("am.toml", include_str!("am.toml")),
    ("es.toml", include_str!("es.toml")),
    ("fr.toml", include_str!("fr.toml")),
    ("pt.toml", include_str!("pt.toml")),
];

/// A file of words is broken.
#[derive(Debug, Error)]
#[error("operator/languages/{file}: {error}")]
pub struct LanguageError {
    file: &'static str,
    error: Box<toml::de::Error>,
}

/// All languages.
#[derive(Debug)]
pub(crate) struct Languages {
    pub(crate) english: Language,
    others: Vec<Language>,
}

/// A language with its words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Language {
    /// As in BCP 47.
    #[serde(rename = "language")]
    pub(crate) code: String,
    /// What the language calls itself.
    pub(crate) name: String,
    pub(crate) direction: Direction,
    /// The native speaker who has read all of it, and when.
    pub(crate) reviewed: Option<String>,
    pub(crate) card: Card,
    pub(crate) page: Page,
    pub(crate) status: Status,
}

/// Which way a language is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Ltr,
    Rtl,
}

/// The words of a card. The names of fields are also those of the places in `share/card.html`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    pub(crate) title: String,
    introduction: String,
    scan_heading: String,
    scan: String,
    /// For who cannot see the code.
    pub(crate) code: String,
    manual_heading: String,
    /// What to tap on, in WhatsApp's own words for this language.
    pub(crate) menus: [String; 5],
    enter: String,
    pub(crate) host: String,
    pub(crate) chat_port: String,
    pub(crate) media_port: String,
    pub(crate) tls: String,
    pub(crate) yes: String,
    pub(crate) no: String,
    works_heading: String,
    works: String,
    steps_heading: String,
    steps: [String; 3],
    remove_heading: String,
    remove: String,
    sees_heading: String,
    sees: String,
    sees_not: String,
    provider: String,
    pub(crate) calls: String,
    pub(crate) care: String,
    pub(crate) unreviewed: String,
}

/// The words of `/share`.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    pub(crate) title: String,
    pub(crate) host: String,
    pub(crate) host_hint: String,
    pub(crate) other_ports: String,
    pub(crate) as_configured: String,
    pub(crate) make: String,
    pub(crate) refused: String,
    pub(crate) warned: String,
    pub(crate) scan: String,
    pub(crate) send: String,
    pub(crate) cards: String,
    pub(crate) files: String,
    pub(crate) status: String,
}

/// All languages, read once.
///
/// # Errors
/// A file is broken; a test sees to it that none is.
pub(crate) fn languages() -> Result<&'static Languages, &'static LanguageError> {
    static ALL: LazyLock<Result<Languages, LanguageError>> = LazyLock::new(|| {
        let read = |(file, text)| {
            toml::from_str(text).map_err(|error| LanguageError { file, error: Box::new(error) })
        };
        Ok(Languages {
            english: read(ENGLISH)?,
            others: OTHERS.into_iter().map(read).collect::<Result<_, _>>()?,
        })
    });
    ALL.as_ref()
}

impl Languages {
    /// English first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Language> {
        iter::once(&self.english).chain(&self.others)
    }

    /// The language with this code.
    pub(crate) fn named(&self, code: &str) -> Option<&Language> {
        self.iter().find(|language| language.code.eq_ignore_ascii_case(code))
    }

    /// What a reader likes best of these, by the header Accept-Language, in which browsers have the best first; or English.
    pub(crate) fn preferred(&self, accepted: &str) -> &Language {
        let primary = |tag: &str| {
            let end = tag.find(['-', ';']).unwrap_or(tag.len());
            self.named(tag[..end].trim())
        };
        accepted.split(',').find_map(primary).unwrap_or(&self.english)
    }
}

impl Language {
    /// What readers are told of a text that nobody has reviewed. What is English was not translated.
    pub(crate) fn unreviewed(&self) -> Option<&str> {
        (self.reviewed.is_none() && self.code != "en").then_some(&self.card.unreviewed)
    }
}

/// A text with values in their places, in whatever order a language has them.
pub(crate) fn fill(text: &str, values: &[&dyn Display]) -> String {
    let mut parts = text.split('{');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (place, rest) = part.split_once('}').unwrap_or(("", part));
        if let Some(value) = place.parse::<usize>().ok().and_then(|place| values.get(place)) {
            // Writing to a string cannot fail.
            let _ = write!(filled, "{value}");
        }
        filled.push_str(rest);
    }
    filled
}

impl Direction {
    /// As the attribute `dir` has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ltr => "ltr",
            Self::Rtl => "rtl",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Words that are the same in English.
    const SAME: [(&str, &str); 6] = [
        ("tr", "Proxy"),
        ("es", "Proxy"),
        ("es", "no"),
        ("fr", "Proxy"),
        ("fr", "port {0}"),
        ("pt", "Proxy"),
    ];

    /// Each text with the way to it: `card.steps.0`.
    fn texts(file: &str) -> BTreeMap<String, String> {
        fn walk(way: &str, value: &toml::Value, to: &mut BTreeMap<String, String>) {
            let inner: Vec<(String, &toml::Value)> = match value {
                toml::Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
                toml::Value::Array(list) => {
                    list.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect()
                }
                other => {
                    to.insert(
                        way.into(),
                        other.as_str().unwrap_or_else(|| panic!("{way} is no text")).into(),
                    );
                    return;
                }
            };
            for (key, value) in inner {
                walk(&format!("{way}.{key}"), value, to);
            }
        }
        let mut found = BTreeMap::new();
        for (section, value) in toml::from_str::<toml::Table>(file).unwrap() {
            walk(&section, &value, &mut found);
        }
        found
    }

    #[test]
    fn no_key_is_missing_or_superfluous() {
        languages().unwrap_or_else(|error| panic!("{error}"));
        let keys = |text| -> Vec<_> {
            // Who has reviewed it is said where somebody has.
            texts(text).into_keys().filter(|key| key != "reviewed").collect()
        };
        let english = keys(ENGLISH.1);
        assert!(english.len() > 40, "{english:?}");
        for (file, text) in OTHERS {
            assert_eq!(keys(text), english, "{file}");
        }
    }

    #[test]
    fn no_text_is_empty_or_english_by_oversight() {
        let english = texts(ENGLISH.1);
        for (file, text) in OTHERS {
            let code = file.strip_suffix(".toml").unwrap();
            for (key, text) in texts(text) {
                assert!(!text.trim().is_empty() && text.trim() == text, "{file}: {key} is {text:?}");
                let same = key != "direction" && english.get(&key) == Some(&text);
                assert_eq!(same, SAME.contains(&(code, text.as_str())), "{file}: {key} = {text:?}");
            }
        }
    }

    #[test]
    fn digits_are_latin_and_places_for_menus_are_kept() {
        for (file, text) in iter::once(ENGLISH).chain(OTHERS) {
            for (key, text) in texts(text) {
                let other = text.chars().find(|character| character.is_numeric() && !character.is_ascii());
                assert_eq!(other, None, "{file}: {key}");
                if key.starts_with("status.") {
                    continue;
                }
                let places: &[&str] = match key.as_str() {
                    "card.works" => &["{proxy}"],
                    "card.remove" => &["{proxy}", "{use}"],
                    _ => &[],
                };
                assert_eq!(text.matches('{').count(), places.len(), "{file}: {key} = {text:?}");
                assert!(places.iter().all(|place| text.contains(place)), "{file}: {key} = {text:?}");
            }
        }
    }

    #[test]
    fn values_have_the_same_places_in_all_languages() {
        let places = |text: &str| {
            let mut places: Vec<_> = text.split('{').skip(1).map(|rest| rest[..2].to_owned()).collect();
            places.sort_unstable();
            places
        };
        let english = texts(ENGLISH.1);
        for (file, text) in OTHERS {
            for (key, text) in texts(text).into_iter().filter(|(key, _)| key.starts_with("status.")) {
                assert_eq!(places(&text), places(&english[&key]), "{file}: {key} = {text:?}");
            }
        }
        // They go into the page as they are.
        for (file, text) in iter::once(ENGLISH).chain(OTHERS) {
            for (key, text) in texts(text).into_iter().filter(|(key, _)| key.starts_with("status.")) {
                assert!(!text.contains(['<', '>', '&', '"']), "{file}: {key} = {text:?}");
            }
        }
        assert_eq!(fill("{1} of {0}, {1}", &[&"{1}", &2]), "2 of {1}, 2");
        assert_eq!(fill("none", &[&1]), "none");
    }

    #[test]
    fn files_are_named_by_their_language_and_go_its_way() {
        let languages = languages().unwrap();
        for ((file, _), language) in iter::once(ENGLISH).chain(OTHERS).zip(languages.iter()) {
            assert_eq!(file.strip_suffix(".toml"), Some(language.code.as_str()));
            let rtl = ["fa", "ar", "ur", "ps"].contains(&language.code.as_str());
            assert_eq!(language.direction == Direction::Rtl, rtl, "{file}");
        }
        for code in
            ["en", "fa", "ar", "ru", "bn", "zh", "ur", "tr", "es", "fr", "my", "am", "pt", "hi", "id", "ps"]
        {
            assert!(languages.named(code).is_some(), "{code}");
        }
    }

    #[test]
    fn browsers_get_the_first_of_their_languages_that_there_is() {
        let languages = languages().unwrap();
        for (accepted, code) in [
            ("", "en"),
            ("de", "en"),
            ("de-DE,de;q=0.9,fa;q=0.8,en;q=0.7", "fa"),
            ("pt-BR,pt;q=0.9", "pt"),
            ("ZH-hant-TW", "zh"),
            ("en-GB,fa", "en"),
            ("*;q=0.5, my", "my"),
            (";,-,é", "en"),
        ] {
            assert_eq!(languages.preferred(accepted).code, code, "{accepted}");
        }
    }
}
