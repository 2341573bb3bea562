//! The code on a page to print, with the link and what a phone needs as text below it. In English and the fonts that every
//! reader of PDF has: other scripts would need fonts of their own, and the cards are printed by browsers, which have them.

use pdf_writer::{Content, Name, Pdf, Rect, Ref, Str, TextStr};

use super::Link;
use crate::operator::languages::Language;

/// Points, of which an inch has 72: A4, its margin, and the code, which is as wide as a hand is long.
const PAGE: (f32, f32) = (595.0, 842.0);
const MARGIN: f32 = 57.0;
const CODE: f32 = 340.0;
/// The size of what is to be typed, and from line to line. A character of Courier is 0.6 of its size wide.
const SIZE: f32 = 10.0;
const LEADING: f32 = 14.0;
const CHARACTERS: usize = ((PAGE.0 - 2.0 * MARGIN) / (0.6 * SIZE)) as usize;

const PROSE: Name<'_> = Name(b"Prose");
const HEADING: Name<'_> = Name(b"Heading");
const TYPED: Name<'_> = Name(b"Typed");

pub(super) fn pdf(link: &Link, english: &Language) -> Vec<u8> {
    let mut references = (1..).map(Ref::new);
    let mut reference = || references.next().unwrap_or(Ref::new(i32::MAX));
    let [catalog, pages, page, content, info] = std::array::from_fn(|_| reference());
    let fonts = [(PROSE, "Helvetica"), (HEADING, "Helvetica-Bold"), (TYPED, "Courier")]
        .map(|(name, font)| (name, font, reference()));
    let mut pdf = Pdf::new();
    pdf.catalog(catalog).pages(pages).lang(TextStr("en"));
    pdf.document_info(info).title(TextStr(&english.card.title));
    pdf.pages(pages).kids([page]).count(1);
    let mut only = pdf.page(page);
    only.media_box(Rect::new(0.0, 0.0, PAGE.0, PAGE.1)).parent(pages).contents(content);
    only.resources().fonts().pairs(fonts.map(|(name, _, reference)| (name, reference)));
    drop(only);
    for (_, font, reference) in fonts {
        pdf.type1_font(reference).base_font(Name(font.as_bytes()));
    }
    pdf.stream(content, &paint(link, english));
    pdf.finish()
}

fn paint(link: &Link, english: &Language) -> Vec<u8> {
    let words = &english.card;
    let mut content = Content::new();
    let (left, top) = ((PAGE.0 - CODE) / 2.0, PAGE.1 - MARGIN - 40.0);
    let code = link.code();
    let module = CODE / code.side() as f32;
    for (y, x) in (0..code.side()).flat_map(|y| (0..code.side()).map(move |x| (y, x))) {
        if code.dark(x, y) {
            // From the bottom up, as PDF counts.
            content.rect(left + x as f32 * module, top - (y + 1) as f32 * module, module, module);
        }
    }
    content.fill_nonzero();
    content.begin_text();
    content.next_line(MARGIN, PAGE.1 - MARGIN - 20.0);
    content.set_font(HEADING, 20.0).show(Str(words.title.as_bytes()));
    content.set_leading(LEADING);
    content.next_line(0.0, top - CODE - 20.0 - (PAGE.1 - MARGIN - 20.0));
    content.set_font(TYPED, SIZE);
    let values = [
        (&words.host, link.host.as_str()),
        (&words.chat_port, &link.chat.to_string()),
        (&words.media_port, &link.media.to_string()),
        (&words.tls, if link.tls { &words.yes } else { &words.no }),
    ];
    let table = values.map(|(name, value)| format!("{name:<12}{value}"));
    for line in [link.url(), ""].into_iter().chain(table.iter().map(String::as_str)).chain([""]) {
        // Every byte is a character, and an empty line is one too.
        for part in line.as_bytes().chunks(CHARACTERS).chain(line.is_empty().then_some(&[][..])) {
            content.show(Str(part)).next_line_using_leading();
        }
    }
    content.set_font(PROSE, 11.0);
    for sentence in [&words.calls, &words.care] {
        content.show(Str(sentence.as_bytes())).next_line_using_leading();
    }
    content.end_text();
    content.finish().into_vec()
}

#[cfg(test)]
mod tests {
    use hayro_syntax::content::ops::TypedInstruction;

    use super::*;
    use crate::{
        config::Config,
        operator::{
            languages::languages,
            share::{self, Ports, qr::testing::scan},
        },
    };

    /// What a reader of PDF finds on the only page: the rectangles that are filled, and the text.
    fn read(pdf: Vec<u8>) -> (Vec<[f32; 4]>, String) {
        let pdf = hayro_syntax::Pdf::new(pdf).unwrap();
        assert_eq!(pdf.pages().len(), 1);
        let (mut rectangles, mut text) = (Vec::new(), String::new());
        let mut operations = pdf.pages()[0].typed_operations();
        while let Some(operation) = operations.next() {
            match operation {
                TypedInstruction::RectPath(it) => {
                    rectangles.push([it.0, it.1, it.2, it.3].map(|number| number.as_f32()));
                }
                TypedInstruction::ShowText(it) => text += std::str::from_utf8(it.0.as_bytes()).unwrap(),
                _ => {}
            }
        }
        (rectangles, text)
    }

    #[test]
    fn the_pdf_reads_as_the_link_and_tells_what_to_type() {
        let english = &languages().unwrap().english;
        for host in ["example.org", &("a.".repeat(126) + "b")] {
            let link = share::link(&Config::load(None).unwrap(), host, &Ports::default()).unwrap();
            let (rectangles, text) = read(pdf(&link, english));
            // As seen from above, with two pixels for a point.
            let side = (PAGE.1 * 2.0) as usize;
            let mut dark = vec![false; side * side];
            for [x, y, width, height] in rectangles {
                let pixels = |from: f32, to: f32| (from * 2.0).round() as usize..(to * 2.0).round() as usize;
                for row in pixels(PAGE.1 - y - height, PAGE.1 - y) {
                    for column in pixels(x, x + width) {
                        dark[row * side + column] = true;
                    }
                }
            }
            assert_eq!(scan(side, |x, y| dark[y * side + x]), link.url());
            for word in [link.url(), host, "443", "587", &english.card.care] {
                assert!(text.contains(word), "{word} in {text}");
            }
            assert!(text.is_ascii(), "these fonts have no more: {text}");
        }
    }
}
