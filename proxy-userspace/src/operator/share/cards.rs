//! Instruction cards to print or to pass on: the code, the way by hand, and what the proxy can see, in the languages
//! of places where WhatsApp is or was blocked.
//!
//! A card's words are in `cards/LANGUAGE.toml`, for translators; `cards/card.html` lays them out. A card refers to
//! nothing outside of itself, since the one who opens it may reach little of the internet.

use serde::Deserialize;

use super::link::{Link, ShareError};

const LAYOUT: &str = include_str!("cards/card.html");
/// The file's name, and its words.
const LANGUAGES: [(&str, &str); 6] = [
    ("en.toml", include_str!("cards/en.toml")),
    ("fa.toml", include_str!("cards/fa.toml")),
    ("ar.toml", include_str!("cards/ar.toml")),
    ("ru.toml", include_str!("cards/ru.toml")),
    ("bn.toml", include_str!("cards/bn.toml")),
    ("zh.toml", include_str!("cards/zh.toml")),
];
/// WhatsApp's menus in English, for phones that are not in the card's language.
const ENGLISH_MENUS: &str = "Settings → Storage and data → Proxy → Use proxy → Set proxy";

/// The words of a card.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    /// As in BCP 47.
    language: String,
    direction: Direction,
    title: String,
    introduction: String,
    scan_heading: String,
    scan: String,
    manual_heading: String,
    /// What to tap on, in WhatsApp's own words for this language.
    menus: Vec<String>,
    enter: String,
    host: String,
    chat_port: String,
    media_port: String,
    tls: String,
    yes: String,
    no: String,
    sees_heading: String,
    sees: String,
    sees_not: String,
    provider: String,
    calls: String,
}

/// Which way the language is written.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Ltr,
    Rtl,
}

/// The file name and text of each card.
pub(super) fn all(link: &Link) -> Result<Vec<(String, String)>, ShareError> {
    let mut cards = Vec::new();
    for (file, text) in LANGUAGES {
        let words: Words =
            toml::from_str(text).map_err(|error| ShareError::Card { file, error: Box::new(error) })?;
        cards.push((format!("card-{}.html", words.language), card(&words, link)));
    }
    Ok(cards)
}

fn card(words: &Words, link: &Link) -> String {
    let menus: String = words.menus.iter().map(|menu| format!("<li>{}</li>", escape(menu))).collect();
    let english = match words.language.as_str() {
        "en" => String::new(),
        _ => format!("<p class=\"english\"><span lang=\"en\" dir=\"ltr\">{ENGLISH_MENUS}</span></p>"),
    };
    let direction = match words.direction {
        Direction::Ltr => "ltr",
        Direction::Rtl => "rtl",
    };
    // What is marked true is HTML already.
    let values = [
        ("language", words.language.as_str(), false),
        ("direction", direction, false),
        ("title", &words.title, false),
        ("introduction", &words.introduction, false),
        ("scan_heading", &words.scan_heading, false),
        ("scan", &words.scan, false),
        ("manual_heading", &words.manual_heading, false),
        ("menus", &menus, true),
        ("english", &english, true),
        ("enter", &words.enter, false),
        ("host", &words.host, false),
        ("chat_port", &words.chat_port, false),
        ("media_port", &words.media_port, false),
        ("tls", &words.tls, false),
        ("sees_heading", &words.sees_heading, false),
        ("sees", &words.sees, false),
        ("sees_not", &words.sees_not, false),
        ("provider", &words.provider, false),
        ("calls", &words.calls, false),
        ("code", &link.svg(), true),
        ("url", link.url(), false),
        ("host_value", &link.host, false),
        ("chat_port_value", &link.chat.to_string(), false),
        ("media_port_value", &link.media.to_string(), false),
        ("tls_value", if link.tls { &words.yes } else { &words.no }, false),
    ];
    values.into_iter().fold(LAYOUT.to_owned(), |html, (name, value, is_html)| {
        let value = if is_html { value.to_owned() } else { escape(value) };
        html.replace(&format!("{{{{{name}}}}}"), &value)
    })
}

/// Text as it may stand in HTML, in attributes too.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, operator::share};

    fn cards() -> Vec<(String, String)> {
        all(&share::link(&Config::load(None).unwrap(), "example.org").unwrap()).unwrap()
    }

    #[test]
    fn each_language_is_complete() {
        let cards = cards();
        assert_eq!(cards.len(), LANGUAGES.len());
        for ((name, html), (file, _)) in cards.iter().zip(LANGUAGES) {
            assert_eq!(*name, format!("card-{}.html", file.strip_suffix(".toml").unwrap()));
            assert!(!html.contains("{{") && !html.contains("}}"), "{name} has a place that nothing fills");
            assert_eq!(html.matches("<li>").count(), 5, "{name}: the menus of WhatsApp");
            assert!(html.contains("host=example.org&amp;chatPort="), "{name} has the link");
            assert!(html.contains("<svg "), "{name} has the code");
        }
    }

    #[test]
    fn direction_is_that_of_the_language() {
        for (name, html) in cards() {
            let wanted = if ["card-fa.html", "card-ar.html"].contains(&&*name) { "rtl" } else { "ltr" };
            let language = &name[5..7];
            assert!(html.contains(&format!("<html lang=\"{language}\" dir=\"{wanted}\">")), "{name}");
        }
    }

    /// Whoever opens a card may reach nothing else, and a request would tell others of it.
    #[test]
    fn cards_refer_to_nothing_outside() {
        for (name, html) in cards() {
            for outside in ["src=", "url(", "@import", "<link", "<script", "<iframe"] {
                assert!(!html.contains(outside), "{name}: {outside}");
            }
            let addresses: Vec<_> = html.match_indices("http").map(|(at, _)| &html[at..at + 20]).collect();
            for address in addresses {
                assert!(
                    address.starts_with("https://wa.me/proxy?")
                        || address.starts_with("http://www.w3.org/20"),
                    "{name}: {address}"
                );
            }
        }
    }

    #[test]
    fn words_cannot_become_markup() {
        assert_eq!(escape("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
    }
}
