//! The code to scan, in the forms that people meet it: on a terminal, as SVG and as PNG.

use std::fmt::Write as _;

use png::{BitDepth, ColorType, EncodingError, PixelDimensions, Unit};
use qrcode::{Color, EcLevel, QrCode, types::QrError};

use crate::operator::text::Escaped;

/// Light modules around the code, without which scanners do not find it (ISO/IEC 18004, section 9.1).
const QUIET: usize = 4;
/// Pixels of each side of a PNG, at least, and how many of them there are in a metre of paper, 300 in an inch: it is printed
/// as wide as a hand.
const PNG_SIDE: u32 = 1024;
const PNG_DENSITY: u32 = 11_811;
/// Black on white from the fixed part of the 256 colours, which no terminal theme changes.
const BLACK_ON_WHITE: &str = "\x1b[38;5;16;48;5;231m";
const PLAIN: &str = "\x1b[0m";

/// The modules of a code.
#[derive(Debug, Clone)]
pub(super) struct Code {
    width: usize,
    dark: Vec<bool>,
}

impl Code {
    pub(super) fn new(text: &str) -> Result<Self, QrError> {
        // Medium: 15 % may be lost to a crease of the paper or a light on the screen.
        let code = QrCode::with_error_correction_level(text, EcLevel::M)?;
        Ok(Self {
            width: code.width(),
            dark: code.to_colors().into_iter().map(|colour| colour == Color::Dark).collect(),
        })
    }

    /// Sides of the code with its quiet zone, in modules.
    pub(super) fn side(&self) -> usize {
        self.width + 2 * QUIET
    }

    /// Whether a module, counted with the quiet zone, is dark.
    pub(super) fn dark(&self, x: usize, y: usize) -> bool {
        let inside = |at: usize| at.checked_sub(QUIET).filter(|at| *at < self.width);
        match (inside(x), inside(y)) {
            (Some(x), Some(y)) => self.dark[y * self.width + x],
            _ => false,
        }
    }

    pub(super) fn terminal(&self, colours: bool) -> String {
        let (begin, end) = if colours { (BLACK_ON_WHITE, PLAIN) } else { ("", "") };
        let mut text = String::new();
        for y in (0..self.side()).step_by(2) {
            text += begin;
            for x in 0..self.side() {
                text.push(match (self.dark(x, y), self.dark(x, y + 1)) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            text += end;
            text.push('\n');
        }
        text
    }

    /// With the words that are read aloud in its place.
    pub(super) fn svg(&self, label: &str) -> String {
        let side = self.side();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" role=\"img\" \
             aria-label=\"{}\" shape-rendering=\"crispEdges\"><rect width=\"{side}\" height=\"{side}\" \
             fill=\"#fff\"/><path d=\"",
            Escaped(label)
        );
        for y in 0..side {
            let mut x = 0;
            while x < side {
                let run = (x..side).take_while(|x| self.dark(*x, y)).count();
                if run > 0 {
                    // Writing to a string cannot fail.
                    let _ = write!(svg, "M{x} {y}h{run}v1h-{run}z");
                }
                x += run + 1;
            }
        }
        svg + "\"/></svg>\n"
    }

    pub(super) fn png(&self) -> Result<Vec<u8>, EncodingError> {
        let modules = self.side() as u32;
        let scale = PNG_SIDE.div_ceil(modules);
        let side = modules * scale;
        let dark = |x: u32, y: u32| self.dark((x / scale) as usize, (y / scale) as usize);
        let pixels: Vec<u8> =
            (0..side).flat_map(|y| (0..side).map(move |x| if dark(x, y) { 0 } else { u8::MAX })).collect();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side, side);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_pixel_dims(Some(PixelDimensions {
            xppu: PNG_DENSITY,
            yppu: PNG_DENSITY,
            unit: Unit::Meter,
        }));
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(super) mod testing {
    /// What a scanner reads in an image of as many pixels on each side.
    pub(in super::super) fn scan(side: usize, dark: impl Fn(usize, usize) -> bool) -> String {
        let mut image =
            rqrr::PreparedImage::prepare_from_greyscale(side, side, |x, y| if dark(x, y) { 0 } else { 255 });
        let grids = image.detect_grids();
        assert_eq!(grids.len(), 1, "codes in the image");
        grids[0].decode().unwrap().1
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const LINK: &str = "https://wa.me/proxy?host=example.org&chatPort=443&mediaPort=587&chatTLS=true";

    /// What a scanner reads in modules.
    fn scan(side: usize, dark: impl Fn(usize, usize) -> bool) -> String {
        // Four pixels for each module, as a camera has more pixels than modules too.
        testing::scan(side * 4, |x, y| dark(x / 4, y / 4))
    }

    /// The modules that an SVG paints: rectangles of height 1, `M{x} {y}h{run}v1h-{run}z`.
    fn paint(svg: &str) -> (usize, Vec<(usize, usize)>) {
        let between = |text: &str, begin: &str, end: &str| -> String {
            text.split_once(begin).unwrap().1.split_once(end).unwrap().0.into()
        };
        let side = between(svg, "viewBox=\"0 0 ", " ").parse().unwrap();
        let mut dark = Vec::new();
        for rectangle in between(svg, "<path d=\"", "\"").split_terminator('z') {
            let (at, run) = rectangle.strip_prefix('M').unwrap().split_once('h').unwrap();
            let (x, y) = at.split_once(' ').unwrap();
            let (x, y): (usize, usize) = (x.parse().unwrap(), y.parse().unwrap());
            let (run, back) = run.split_once("v1h-").unwrap();
            assert_eq!(run, back);
            dark.extend((x..x + run.parse::<usize>().unwrap()).map(|x| (x, y)));
        }
        (side, dark)
    }

    #[test]
    fn the_svg_reads_as_the_link() {
        let (side, dark) = paint(&Code::new(LINK).unwrap().svg("QR code"));
        assert_eq!(scan(side, |x, y| dark.contains(&(x, y))), LINK);
    }

    #[test]
    fn the_svg_is_labelled() {
        let svg = Code::new(LINK).unwrap().svg("a \"code\"");
        assert!(svg.contains(" role=\"img\" aria-label=\"a &quot;code&quot;\""), "{svg}");
    }

    #[test]
    fn the_png_reads_as_the_link_and_is_large_enough_to_print() {
        let host = "a.".repeat(126) + "b";
        for link in [LINK, &LINK.replace("example.org", &host)] {
            let png = Code::new(link).unwrap().png().unwrap();
            let mut reader = png::Decoder::new(Cursor::new(png)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let frame = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((frame.color_type, frame.bit_depth), (ColorType::Grayscale, BitDepth::Eight));
            assert!((1000..1300).contains(&frame.width) && frame.width == frame.height, "{frame:?}");
            let side = frame.width as usize;
            assert_eq!(testing::scan(side, |x, y| pixels[y * side + x] == 0), link);
            // The quiet zone is four modules, of which a code of this width has at most 185.
            let quiet = side * QUIET / 185;
            assert!(pixels[..quiet * side].iter().all(|pixel| *pixel == 255), "nothing is in the quiet zone");
        }
    }

    #[test]
    fn the_terminals_code_reads_as_the_link() {
        for colours in [false, true] {
            let text = Code::new(LINK).unwrap().terminal(colours);
            let text = text.replace(BLACK_ON_WHITE, "").replace(PLAIN, "");
            let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
            let read = scan(lines[0].len(), |x, y| match lines.get(y / 2).map(|line| line[x]) {
                Some('█') => true,
                Some('▀') => y % 2 == 0,
                Some('▄') => y % 2 == 1,
                _ => false,
            });
            assert_eq!(read, LINK);
        }
    }

    #[test]
    fn colours_begin_and_end_on_each_line() {
        for line in Code::new(LINK).unwrap().terminal(true).lines() {
            assert!(line.starts_with(BLACK_ON_WHITE) && line.ends_with(PLAIN), "{line:?}");
        }
        assert!(!Code::new(LINK).unwrap().terminal(false).contains('\x1b'));
    }

    #[test]
    fn the_longest_link_fits() {
        let host = "a.".repeat(126) + "b";
        let link = LINK.replace("example.org", &host);
        let (side, dark) = paint(&Code::new(&link).unwrap().svg("QR code"));
        assert_eq!(scan(side, |x, y| dark.contains(&(x, y))), link);
    }
}
