//! `/share`: where an operator makes the link that sets phones to this server, with the code and the cards; in the language
//! of the browser, for those who are at home in one of the cards'. A form that needs no script asks for what only the
//! operator knows, and what is wrong in it is told beside it.

use std::fmt::{self, Write as _};

use super::{Instance, page::head};
use crate::operator::{
    languages::{Language, LanguageError, Languages, languages},
    share::{self, Field, Format, Link, Ports, ShareError},
    text::Escaped,
};

/// What a request says of a link, as it was typed: a query with the names of [`Field`]s, and `lang`.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Of the card or the page; else the best of those that the browser wants.
    language: String,
    accepted: String,
    host: String,
    chat_port: String,
    media_port: String,
    chat_tls: String,
}

impl Asked {
    /// By a query, and the header Accept-Language.
    pub(super) fn new(query: &str, accepted: &str) -> Self {
        let mut asked = Self { accepted: accepted.into(), ..Self::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let to = match &*name {
                "lang" => &mut asked.language,
                "host" => &mut asked.host,
                "chat_port" => &mut asked.chat_port,
                "media_port" => &mut asked.media_port,
                "chat_tls" => &mut asked.chat_tls,
                _ => continue,
            };
            value.trim().clone_into(to);
        }
        asked
    }

    fn ports(&self) -> Result<Ports, ShareError> {
        let port = |given: &str, field| match given.parse() {
            _ if given.is_empty() => Ok(None),
            Ok(0) | Err(_) => Err(ShareError::Port { given: given.into(), field }),
            Ok(port) => Ok(Some(port)),
        };
        Ok(Ports {
            chat: port(&self.chat_port, Field::ChatPort)?,
            media: port(&self.media_port, Field::MediaPort)?,
            chat_tls: match self.chat_tls.as_str() {
                "" => None,
                given => Some(given.parse().map_err(|_| ShareError::ChatTls(given.into()))?),
            },
        })
    }

    /// What is to be linked to; nothing when neither the query nor the configuration names a host.
    fn link(&self, instance: &Instance) -> Result<Option<Link>, ShareError> {
        instance.share((!self.host.is_empty()).then_some(&self.host), &self.ports()?)
    }

    fn language<'a>(&self, languages: &'a Languages) -> &'a Language {
        languages.named(&self.language).unwrap_or_else(|| languages.preferred(&self.accepted))
    }
}

/// The card in the language that is asked for.
///
/// # Errors
/// Why there is none.
pub(super) fn card(instance: &Instance, asked: &Asked) -> Result<String, ShareError> {
    let link = asked.link(instance)?.ok_or(ShareError::NoHost)?;
    share::card(asked.language(languages()?), &link)
}

/// The code in a format.
///
/// # Errors
/// Why there is none.
pub(super) fn code(instance: &Instance, asked: &Asked, format: Format) -> Result<Vec<u8>, ShareError> {
    format.encode(&asked.link(instance)?.ok_or(ShareError::NoHost)?)
}

/// Where the code is in a format.
pub(super) fn file(format: Format) -> String {
    format!("/share.{}", format.extension())
}

/// The page: the form, and the link if there is one.
///
/// # Errors
/// The page that says what is wrong.
pub(super) fn page(instance: &Instance, asked: &Asked) -> Result<String, String> {
    let languages = languages().map_err(LanguageError::to_string)?;
    let link = asked.link(instance);
    let mut to = String::with_capacity(48 * 1024);
    // Writing to a string cannot fail.
    let _ = write(&mut to, asked, languages, &link);
    if link.is_ok() { Ok(to) } else { Err(to) }
}

fn write(
    to: &mut String,
    asked: &Asked,
    languages: &Languages,
    link: &Result<Option<Link>, ShareError>,
) -> fmt::Result {
    let language = asked.language(languages);
    let words = &language.page;
    head(to, (&language.code, language.direction.name()), &Escaped(&words.title).to_string())?;
    writeln!(to, "<header>\n<h1>{}</h1>\n</header>\n<main>", Escaped(&words.title))?;
    if let Ok(Some(link)) = link {
        code_and_link(to, language, link)?;
        copies(to, language, languages, link)?;
    }
    form(to, asked, language, link.as_ref().err())?;
    writeln!(
        to,
        "</main>\n<footer><p><a href=\"/\">{}</a></p></footer>\n</body>\n</html>",
        Escaped(&words.status)
    )
}

/// Words in English on a page that may be in another language.
fn english(text: &str) -> String {
    format!("<span lang=\"en\" dir=\"ltr\">{}</span>", Escaped(text))
}

fn code_and_link(to: &mut String, Language { card, page, .. }: &Language, link: &Link) -> fmt::Result {
    for warning in link.warnings() {
        writeln!(
            to,
            "<div class=\"state waiting wide\" role=\"status\"><p>{} {}</p></div>",
            Escaped(&page.warned),
            english(&warning)
        )?;
    }
    let url = Escaped(link.url());
    writeln!(
        to,
        "<section aria-labelledby=\"code\">\n<h2 id=\"code\">{}</h2>\n<div class=\"code\">{}</div>\n\
         <p>{}</p>\n<p dir=\"ltr\"><a href=\"{url}\">{url}</a></p>\n<p>{} {}</p>\n</section>",
        Escaped(&page.scan),
        link.svg(&card.code),
        Escaped(&page.send),
        Escaped(&card.calls),
        Escaped(&card.care),
    )
}

/// The cards, and the code in each format.
fn copies(to: &mut String, language: &Language, languages: &Languages, link: &Link) -> fmt::Result {
    let (words, query) = (&language.page, link.query());
    let query = Escaped(&query);
    writeln!(
        to,
        "<section aria-labelledby=\"cards\">\n<h2 id=\"cards\">{}</h2>\n<ul class=\"choices\">",
        Escaped(&words.cards)
    )?;
    for Language { code, name, direction, .. } in languages.iter() {
        writeln!(
            to,
            "<li><a href=\"/share/card?lang={code}&amp;{query}\" lang=\"{code}\" hreflang=\"{code}\" dir=\"{}\">{}</a></li>",
            direction.name(),
            Escaped(name)
        )?;
    }
    writeln!(to, "</ul>\n<h2 id=\"files\">{}</h2>\n<ul class=\"choices\">", Escaped(&words.files))?;
    for format in Format::ALL {
        let (at, extension) = (file(format), format.extension());
        writeln!(
            to,
            "<li><a href=\"{at}?{query}\" download=\"proxy.{extension}\">{}</a></li>",
            extension.to_uppercase()
        )?;
    }
    to.write_str("</ul>\n</section>\n")
}

fn form(to: &mut String, asked: &Asked, language: &Language, error: Option<&ShareError>) -> fmt::Result {
    let Language { card, page, .. } = language;
    to.write_str("<section class=\"wide\">\n<form action=\"/share\">\n")?;
    if !asked.language.is_empty() {
        // Whoever has chosen one stays with it.
        writeln!(to, "<input type=\"hidden\" name=\"lang\" value=\"{}\">", language.code)?;
    }
    let failed = |field| error.filter(|error| error.field() == field);
    input(to, language, Field::Host, &page.host, &asked.host, Some(&page.host_hint), failed(Field::Host))?;
    let ports = [Field::ChatPort, Field::MediaPort, Field::ChatTls];
    let said = [&asked.chat_port, &asked.media_port, &asked.chat_tls].iter().any(|said| !said.is_empty());
    let open = if said || ports.into_iter().any(|field| failed(field).is_some()) { " open" } else { "" };
    writeln!(to, "<details{open}><summary>{}</summary>", Escaped(&page.other_ports))?;
    for (field, label, value) in [
        (Field::ChatPort, &card.chat_port, &asked.chat_port),
        (Field::MediaPort, &card.media_port, &asked.media_port),
    ] {
        input(to, language, field, label, value, None, failed(field))?;
    }
    let name = Field::ChatTls.name();
    writeln!(to, "<p><label for=\"{name}\">{}</label>", Escaped(&card.tls))?;
    write!(
        to,
        "<select id=\"{name}\" name=\"{name}\"{}>",
        described(Field::ChatTls, None, failed(Field::ChatTls))
    )?;
    for (value, label) in [("", &page.as_configured), ("true", &card.yes), ("false", &card.no)] {
        let selected = if asked.chat_tls == value { " selected" } else { "" };
        write!(to, "<option value=\"{value}\"{selected}>{}</option>", Escaped(label))?;
    }
    to.write_str("</select></p>\n")?;
    explain(to, language, Field::ChatTls, failed(Field::ChatTls))?;
    writeln!(to, "</details>\n<p><button>{}</button></p>\n</form>\n</section>", Escaped(&page.make))
}

/// A field with its label, a hint, and what is wrong with what was typed.
fn input(
    to: &mut String,
    language: &Language,
    field: Field,
    label: &str,
    value: &str,
    hint: Option<&str>,
    error: Option<&ShareError>,
) -> fmt::Result {
    let name = field.name();
    let kind = match field {
        Field::Host => "required autocapitalize=\"none\" spellcheck=\"false\"",
        _ => "inputmode=\"numeric\"",
    };
    writeln!(
        to,
        "<p><label for=\"{name}\">{}</label>\n<input id=\"{name}\" name=\"{name}\" value=\"{}\" dir=\"ltr\" \
         autocomplete=\"off\" {kind}{}></p>",
        Escaped(label),
        Escaped(value),
        described(field, hint, error)
    )?;
    explain(to, language, field, error)?;
    match hint {
        Some(hint) => writeln!(to, "<p class=\"none\" id=\"{name}-hint\">{}</p>", Escaped(hint)),
        None => Ok(()),
    }
}

/// Attributes by which a field is read aloud with what is beside it.
fn described(field: Field, hint: Option<&str>, error: Option<&ShareError>) -> String {
    let name = field.name();
    match (hint, error) {
        (_, Some(_)) => format!(" aria-invalid=\"true\" aria-describedby=\"{name}-error\""),
        (Some(_), None) => format!(" aria-describedby=\"{name}-hint\""),
        (None, None) => String::new(),
    }
}

fn explain(to: &mut String, language: &Language, field: Field, error: Option<&ShareError>) -> fmt::Result {
    let Some(error) = error else { return Ok(()) };
    writeln!(
        to,
        "<div class=\"state bad\" id=\"{}-error\" role=\"alert\"><p>{} {}</p></div>",
        field.name(),
        Escaped(&language.page.refused),
        english(&error.to_string())
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;

    /// The page in a language.
    fn page_in(language: &str, query: &str) -> String {
        let asked = Asked::new(&format!("{query}&lang={language}"), "");
        let made = |asked: &Asked| share::link(&Config::load(None).unwrap(), &asked.host, &asked.ports()?);
        let link = if asked.host.is_empty() { Ok(None) } else { made(&asked).map(Some) };
        let mut page = String::new();
        write(&mut page, &asked, languages().unwrap(), &link).unwrap();
        page
    }

    /// What attributes say aloud, or in place of something.
    fn spoken(html: &str) -> BTreeSet<&str> {
        ["aria-label=\"", "title=\"", "alt=\"", "placeholder=\""]
            .into_iter()
            .flat_map(|attribute| html.split(attribute).skip(1))
            .map(|rest| rest.split_once('"').unwrap().0)
            .collect()
    }

    #[test]
    fn queries_are_read_as_browsers_write_them() {
        let asked = Asked::new("host=+a%3Cb%3E+&chat_port=443&media_port=&chat_tls=false&x=y&lang=fa", "en");
        assert_eq!((asked.host.as_str(), asked.language.as_str()), ("a<b>", "fa"));
        let ports = asked.ports().unwrap();
        assert_eq!((ports.chat, ports.media, ports.chat_tls), (Some(443), None, Some(false)));
        for (query, field) in [
            ("chat_port=0", Field::ChatPort),
            ("media_port=65536", Field::MediaPort),
            ("chat_port=x", Field::ChatPort),
            ("chat_tls=1", Field::ChatTls),
        ] {
            assert_eq!(Asked::new(query, "").ports().unwrap_err().field(), field, "{query}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_beside_its_field() {
        for (query, field) in [
            ("host=::1", "host"),
            ("host=example.org&chat_port=0", "chat_port"),
            ("host=example.org&media_port=-1", "media_port"),
            ("host=example.org&chat_tls=perhaps", "chat_tls"),
        ] {
            let page = page_in("en", query);
            let described = format!("name=\"{field}\"");
            let element = page.split(&described).nth(1).unwrap().split_once('>').unwrap().0;
            assert!(element.contains(&format!("aria-describedby=\"{field}-error\"")), "{query}: {element}");
            assert!(page.contains(&format!("id=\"{field}-error\" role=\"alert\"")), "{query}: {page}");
            assert_eq!(page.contains("<details open>"), field != "host", "{query}");
            assert!(!page.contains("wa.me"), "{query}: no link");
        }
    }

    #[test]
    fn what_was_typed_cannot_become_markup() {
        let page = page_in("en", "host=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&chat_port=%22%20onfocus=%22x");
        assert!(!page.contains("<script") && !page.contains("\" onfocus"), "{page}");
    }

    #[test]
    fn labels_are_in_the_language_of_the_page() {
        let link = share::link(&Config::load(None).unwrap(), "example.org", &Ports::default()).unwrap();
        let languages = languages().unwrap();
        let (english_page, english_card) =
            (page_in("en", "host=example.org"), share::card(&languages.english, &link).unwrap());
        let english: BTreeSet<_> = spoken(&english_page).union(&spoken(&english_card)).copied().collect();
        assert!(!english.is_empty());
        for language in languages.iter().filter(|language| language.code != "en") {
            for html in [page_in(&language.code, "host=example.org"), share::card(language, &link).unwrap()] {
                let (code, direction) = (&language.code, language.direction.name());
                assert!(html.contains(&format!("<html lang=\"{code}\" dir=\"{direction}\">")), "{code}");
                assert_eq!(spoken(&html).intersection(&english).next(), None, "{code}");
                assert!(spoken(&html).contains(language.card.code.as_str()), "{code}");
            }
            for query in ["", "host=::1"] {
                let page = page_in(&language.code, query);
                let labels: Vec<_> = page.split("<label for=").skip(1).collect();
                assert_eq!(labels.len(), 4, "{}", language.code);
                let words = [&language.page.host, &language.card.chat_port, &language.card.media_port];
                for word in words {
                    assert!(
                        labels.iter().any(|label| label.contains(&format!(">{}</label>", Escaped(word)))),
                        "{word}"
                    );
                }
            }
        }
    }
}
