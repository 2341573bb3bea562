//! The plots: bars that read well on light and on dark.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::{
        Color as _, DrawingArea, EmptyElement, IntoDrawingArea as _, IntoFont as _, PathElement, RGBColor,
        Rectangle, SVGBackend, Text,
    },
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Run,
    metric::{Metric, Spread, digits},
};
use crate::{peers::Kind, scenarios};

/// Colours on light, and what a style sheet makes of them on dark. All differ, so that each stands for one thing.
const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(31, 35, 40);
const FAINT: RGBColor = RGBColor(101, 109, 118);
const OURS: RGBColor = RGBColor(9, 105, 218);
const THEIRS: RGBColor = RGBColor(140, 149, 159);
const CEILING: RGBColor = RGBColor(208, 215, 222);
const DARK: [(RGBColor, &str); 6] = [
    (PAPER, "#0d1117"),
    (INK, "#e6edf3"),
    (FAINT, "#9198a1"),
    (OURS, "#4493f8"),
    (THEIRS, "#656c76"),
    (CEILING, "#3d444d"),
];

const WIDTH: i32 = 760;
const ROW: i32 = 22;
const HEADING: i32 = 34;
/// Where bars begin, and the longest ends.
const LEFT: i32 = 150;
const RIGHT: i32 = 590;

/// File, title, and what is in it.
struct Figure {
    file: &'static str,
    title: &'static str,
    panels: &'static [(&'static str, Metric)],
}

static FIGURES: [Figure; 8] = [
    Figure {
        file: "bulk.svg",
        title: "Bulk",
        panels: &[
            ("bulk-1-down", Metric::Rate),
            ("bulk-1-up", Metric::Rate),
            ("bulk-8-down", Metric::Rate),
            ("bulk-8-up", Metric::Rate),
        ],
    },
    Figure {
        file: "bulk-cost.svg",
        title: "Cost of the proxy in bulk",
        panels: &[("bulk-1-down", Metric::Added), ("bulk-1-up", Metric::Added)],
    },
    Figure {
        file: "ping-pong.svg",
        title: "Ping-pong",
        panels: &[
            ("ping-pong-1", Metric::Rate),
            ("ping-pong-32", Metric::Rate),
            ("ping-pong-500", Metric::Rate),
            ("ping-pong-4000", Metric::Rate),
        ],
    },
    Figure {
        file: "latency.svg",
        title: "Latency",
        panels: &[
            ("ping-pong-1", Metric::P50),
            ("ping-pong-1", Metric::P99),
            ("ping-pong-32", Metric::P99),
            ("ping-pong-500", Metric::P99),
        ],
    },
    Figure {
        file: "connections.svg",
        title: "New connections",
        panels: &[("connections", Metric::Rate), ("sni-connections", Metric::Rate)],
    },
    Figure {
        file: "tls.svg",
        title: "TLS that ends at the proxy",
        panels: &[("tls-handshakes", Metric::Own), ("tls-ping-pong-32", Metric::Rate)],
    },
    Figure {
        file: "memory.svg",
        title: "Memory",
        panels: &[
            ("idle", Metric::Resident),
            ("idle", Metric::Memory),
            ("stalled", Metric::Held),
            ("stalled-after-reading", Metric::Held),
        ],
    },
    Figure { file: "phones.svg", title: "Phones", panels: &[("phones", Metric::Added)] },
];

/// A panel with something in it.
struct Panel {
    title: String,
    bars: Vec<(Kind, Spread)>,
}

/// File and text of each figure that this run has numbers for.
///
/// # Errors
/// When it cannot be drawn.
pub(super) fn all(run: &Run) -> Result<Vec<(&'static str, String)>> {
    let drawn = figures(run).map(|(figure, panels)| {
        let svg = draw(&panels).map_err(|error| anyhow!("{} cannot be drawn: {error}", figure.file))?;
        Ok((figure.file, svg))
    });
    drawn.collect()
}

/// Shows the figures in a document to which the run's folder is `folder`.
pub(super) fn shown(run: &Run, folder: &Path) -> String {
    let images = figures(run)
        .map(|(figure, _)| format!("![{}]({})\n\n", figure.title, folder.join(figure.file).display()));
    images.collect()
}

/// The figures that this run has numbers for, each with its panels.
fn figures(run: &Run) -> impl Iterator<Item = (&'static Figure, Vec<Panel>)> {
    let panels = |figure: &'static Figure| {
        let panels = figure.panels.iter().filter_map(|(name, metric)| panel(run, name, *metric));
        (figure, panels.collect::<Vec<_>>())
    };
    FIGURES.iter().map(panels).filter(|(_, panels)| !panels.is_empty())
}

fn panel(run: &Run, name: &str, metric: Metric) -> Option<Panel> {
    let scenario = scenarios::all().into_iter().find(|scenario| scenario.name == name)?;
    let about_proxies = !matches!(metric, Metric::Rate | Metric::P50 | Metric::P99);
    let peers = run.peers(&scenario).into_iter().filter(|kind| !(about_proxies && kind.is_ceiling()));
    let bars: Vec<_> = peers.filter_map(|kind| Some((kind, run.spread(&scenario, kind, metric)?))).collect();
    (!bars.is_empty())
        .then(|| Panel { title: format!("{} · {}", scenario.title, metric.name(scenario.unit)), bars })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(panels: &[Panel]) -> Result<String, Box<dyn std::error::Error>> {
    let height: i32 = panels.iter().map(|panel| HEADING + ROW * panel.bars.len() as i32).sum::<i32>() + 12;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        area.fill(&PAPER)?;
        let mut top = 0;
        for panel in panels {
            top = draw_panel(&area, panel, top)?;
        }
        area.present()?;
    }
    Ok(with_dark(&svg))
}

/// Returns where the next one begins.
fn draw_panel(area: &Area<'_>, panel: &Panel, top: i32) -> Result<i32, Box<dyn std::error::Error>> {
    text(area, &panel.title, (10, top + HEADING - 14), 16, HPos::Left, INK)?;
    let most = panel.bars.iter().map(|(_, spread)| spread.high).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| LEFT + (f64::from(RIGHT - LEFT) * (value / most).clamp(0.0, 1.0)) as i32;
    let mut middle = top + HEADING + ROW / 2;
    for (kind, Spread { low, median, high }) in &panel.bars {
        let colour = match kind {
            kind if kind.is_setu() => OURS,
            kind if kind.is_ceiling() => CEILING,
            _ => THEIRS,
        };
        text(area, kind.name(), (LEFT - 8, middle), 15, HPos::Right, INK)?;
        area.draw(&Rectangle::new([(LEFT, middle - 7), (at(*median), middle + 7)], colour.filled()))?;
        area.draw(&PathElement::new([(at(*low), middle), (at(*high), middle)], INK))?;
        for end in [low, high] {
            area.draw(&PathElement::new([(at(*end), middle - 3), (at(*end), middle + 3)], INK))?;
        }
        text(area, &digits(*median), (at(high.max(*median)) + 8, middle), 15, HPos::Left, FAINT)?;
        middle += ROW;
    }
    Ok(middle - ROW / 2)
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: u32, side: HPos, colour: RGBColor) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(side, VPos::Center));
    area.draw(&(EmptyElement::at(at) + Text::new(text.to_owned(), (0, 0), style)))?;
    Ok(())
}

/// Adds what a reader with a dark screen sees instead. Readers without style sheets keep the light colours.
fn with_dark(svg: &str) -> String {
    let mut style = String::from("<style>@media (prefers-color-scheme: dark) {");
    for (RGBColor(red, green, blue), dark) in DARK {
        let light = format!("#{red:02X}{green:02X}{blue:02X}");
        style += &format!(" [fill=\"{light}\"] {{ fill: {dark} }} [stroke=\"{light}\"] {{ stroke: {dark} }}");
    }
    style += " }</style>\n";
    match svg.find(">\n") {
        Some(end) => format!("{}{style}{}", &svg[..end + 2], &svg[end + 2..]),
        None => svg.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_has_a_dark_one() {
        let spread = |median| Spread { low: median * 0.9, median, high: median * 1.1 };
        let bars =
            vec![(Kind::Direct, spread(9.0)), (Kind::Nginx, spread(3.0)), (Kind::SetuSockmap, spread(6.0))];
        let svg = draw(&[Panel { title: "a < b".into(), bars }]).unwrap();
        let (style, drawing) = svg.split_once("</style>").unwrap();
        for attribute in ["fill=\"#", "stroke=\"#"] {
            for colour in drawing.split(attribute).skip(1).map(|rest| &rest[..6]) {
                assert!(style.contains(&format!("{attribute}{colour}\"]")), "{colour}");
            }
        }
        for shown in ["a &lt; b", "setu-sockmap", "3.00"] {
            assert!(drawing.contains(shown), "{shown}");
        }
    }
}
