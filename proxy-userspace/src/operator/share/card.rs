//! Instruction cards to print or to pass on: the code, the way by hand, what to do when it does not work, and what the
//! proxy can see.
//!
//! `card.html` lays out the words of a language. A card refers to nothing outside of itself, since the one who opens it may
//! reach little of the internet.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Link, ShareError};
use crate::operator::{languages::Language, text::Escaped};

const LAYOUT: &str = include_str!("card.html");
/// The only style that a card has.
pub(crate) const STYLE: &str = include_str!("card.css");
/// WhatsApp's menus in English, for phones that are not in the card's language.
const ENGLISH_MENUS: &str = "Settings &gt; Storage and data &gt; Proxy &gt; Use proxy &gt; Set proxy";

/// The card of a language, as HTML.
///
/// # Errors
/// Its words cannot be laid out.
pub(crate) fn card(language: &Language, link: &Link) -> Result<String, ShareError> {
    let words = &language.card;
    let mut html = LAYOUT.to_owned();
    let mut put = |place: &str, value: &str| html = html.replace(place, value);
    for (name, value) in serde_json::to_value(words)?.as_object().into_iter().flatten() {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = match value {
            Value::Array(items) => items
                .iter()
                .try_for_each(|item| write!(text, "<li>{}</li>", Escaped(item.as_str().unwrap_or_default()))),
            value => write!(text, "{}", Escaped(value.as_str().unwrap_or_default())),
        };
        put(&format!("{{{{{name}}}}}"), &text);
    }
    let [settings, storage, proxy, switch, _] = words.menus.each_ref().map(|menu| Escaped(menu));
    // The sign is mirrored where text runs from right to left.
    put("{proxy}", &format!("<bdi>{settings} &gt; {storage} &gt; {proxy}</bdi>"));
    put("{use}", &switch.to_string());
    let english = match language.code.as_str() {
        "en" => String::new(),
        _ => format!("<p class=\"small\"><span lang=\"en\" dir=\"ltr\">{ENGLISH_MENUS}</span></p>"),
    };
    let notice = match language.reviewed {
        Some(_) => String::new(),
        None => format!("<p class=\"small\">{}</p>", Escaped(&words.unreviewed)),
    };
    for (place, value) in [
        ("{{style}}", STYLE),
        ("{{language}}", &language.code),
        ("{{direction}}", language.direction.name()),
        ("{{english}}", &english),
        ("{{notice}}", &notice),
        ("{{picture}}", &link.svg(&words.code)),
        ("{{url}}", &Escaped(link.url()).to_string()),
        ("{{host_value}}", &Escaped(&link.host).to_string()),
        ("{{chat_port_value}}", &link.chat.to_string()),
        ("{{media_port_value}}", &link.media.to_string()),
        ("{{tls_value}}", &Escaped(if link.tls { &words.yes } else { &words.no }).to_string()),
    ] {
        put(place, value);
    }
    Ok(html)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        operator::{
            languages::{Direction, languages},
            share::{self, Ports},
        },
    };

    /// Each language's card.
    fn cards() -> Vec<(&'static Language, String)> {
        let link = share::link(&Config::load(None).unwrap(), "example.org", &Ports::default()).unwrap();
        languages().unwrap().iter().map(|language| (language, card(language, &link).unwrap())).collect()
    }

    #[test]
    fn each_card_is_complete() {
        for (language, html) in cards() {
            let name = &language.code;
            assert!(!html.contains("{{") && !html.contains("}}"), "{name} has a place that nothing fills");
            assert!(
                !html.contains("{proxy}") && !html.contains("{use}"),
                "{name} has a place for menus left"
            );
            assert_eq!(html.matches("<li>").count(), 5 + 3, "{name}: menus of WhatsApp, and what to try");
            assert!(html.contains("host=example.org&amp;chatPort="), "{name} has the link");
            assert!(html.contains("<svg "), "{name} has the code");
            // Each text of the language is somewhere.
            let words = serde_json::to_value(&language.card).unwrap();
            for (key, value) in words
                .as_object()
                .unwrap()
                .iter()
                .filter(|(key, _)| !["no", "works", "remove"].contains(&key.as_str()))
            {
                let texts = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                for text in texts {
                    assert!(html.contains(&Escaped(text.as_str().unwrap()).to_string()), "{name}: {key}");
                }
            }
            assert!(html.contains(&language.card.care), "{name} asks for care");
        }
    }

    #[test]
    fn cards_go_the_way_of_their_language_and_links_go_theirs() {
        for (language, html) in cards() {
            let (code, direction) = (&language.code, language.direction.name());
            assert!(html.contains(&format!("<html lang=\"{code}\" dir=\"{direction}\">")), "{code}");
            let link = html.split_once("<a href=").unwrap().0;
            assert!(link.ends_with("<p class=\"link\" dir=\"ltr\">"), "{code}");
            assert_eq!(html.matches("<td dir=\"ltr\">").count(), 3, "{code}: host and ports");
        }
        let rtl = cards().iter().filter(|(language, _)| language.direction == Direction::Rtl).count();
        assert_eq!(rtl, 4);
    }

    #[test]
    fn a_card_says_that_nobody_has_reviewed_it_until_somebody_has() {
        let link = share::link(&Config::load(None).unwrap(), "example.org", &Ports::default()).unwrap();
        let text = include_str!("../languages/fa.toml");
        let unreviewed: Language = toml::from_str(text).unwrap();
        let reviewed: Language =
            toml::from_str(&format!("reviewed = \"A. Name, 2026-11-28\"\n{text}")).unwrap();
        let says = |language: &Language| card(language, &link).unwrap().contains(&language.card.unreviewed);
        assert!(says(&unreviewed) && !says(&reviewed));
    }

    #[test]
    fn a_card_reaches_for_nothing() {
        for (language, html) in cards() {
            let name = &language.code;
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
}
