//! The page on all keys of the configuration.

use clap_mangen::roff::{Inline, Roff, bold, roman};
use setu::config::{Config, Entry, Section};

/// Before the keys.
const INTRODUCTION: [&str; 2] = [
    "setu and all of its commands read `/etc/setu/setu.toml`, in TOML, which `setu init` writes; with `--config FILE` another. \
     A key that the file does not have keeps its default. A mistake is an error with file, line, key and the fix, before \
     anything is bound. Where there is no such file the defaults hold, which are the ports of WhatsApp's own proxy; \
     `--config /dev/null` asks for them where there is one.",
    "`setu check` prints all keys with the values that they would have, and tells what this machine can \
     do. `systemctl reload setu`, or SIGHUP, takes a changed file without touching connections, and changes nothing if \
     there is a mistake in it. A few keys take a restart; the log says so when they have changed.",
];
/// Before what is printed of the default listeners and upstreams.
const DEFAULTS: &str = "Where a file has no `[[listener]]` these listen. These upstreams are always there, as far as a file \
                        does not change them.";

/// For `docs`.
pub(crate) fn markdown(keys: &[Section], defaults: &Config) -> String {
    let mut page =
        "# Configuration\n\n<!-- Made of proxy-userspace/src/config/schema.rs: cargo xtask docs -->\n"
            .to_owned();
    for paragraph in INTRODUCTION {
        page += &format!("\n{paragraph}\n");
    }
    for Section { heading, about, entries } in keys {
        page += &format!("\n## `{heading}`\n\n{about}\n\n");
        page += "| key | type | default | reload | what it does |\n| --- | --- | --- | --- | --- |\n";
        for Entry { name, written, default, reloads, about } in entries {
            let default = default.as_deref().unwrap_or("must be written");
            let reload = if *reloads { "yes" } else { "no" };
            page += &format!("| `{name}` | {written} | {default} | {reload} | {about} |\n");
        }
    }
    page + &format!("\n## Default listeners and upstreams\n\n{DEFAULTS}\n\n```toml\n{}\n```\n", of(defaults))
}

/// For man.
pub(crate) fn man(keys: &[Section], defaults: &Config) -> String {
    let mut page = Roff::new();
    let version = concat!("setu ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["setu.toml", "5", r#""""#, version]);
    page.control("SH", ["NAME"]).text([roman("setu.toml - the configuration of setu")]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in INTRODUCTION {
        page.control("PP", []).text(inlines(paragraph));
    }
    for Section { heading, about, entries } in keys {
        page.control("SH", [heading.as_str()]).text(inlines(about));
        for Entry { name, written, default, reloads, about } in entries {
            let default = match default {
                Some(default) => format!("Default: {default}."),
                None => "It must be written.".into(),
            };
            let reload = if *reloads { "" } else { " It takes a restart." };
            page.control("TP", []).text([bold(*name)]).text(inlines(about));
            page.control("br", []).text(inlines(&format!("Type: {written}. {default}{reload}")));
        }
    }
    page.control("SH", ["DEFAULT LISTENERS AND UPSTREAMS"]).text(inlines(DEFAULTS));
    page.control("PP", []).control("EX", []);
    for line in of(defaults).lines() {
        page.text([roman(line)]);
    }
    page.control("EE", []);
    page.control("SH", ["FILES"]).text([bold("/etc/setu/setu.toml")]);
    page.control("PP", []).text([bold("/usr/share/doc/setu/examples/*.toml")]);
    page.control("SH", ["SEE ALSO"]).text(inlines("`setu`(1), `setu-run`(1), `setu-check`(1)"));
    page.render()
}

/// The listeners and upstreams of a configuration, as a file has them.
fn of(config: &Config) -> String {
    let text = config.to_string();
    let tables = text.split("\n\n");
    let wanted = tables.filter(|table| table.starts_with("[[listener]]") || table.starts_with("[upstream."));
    wanted.collect::<Vec<_>>().join("\n\n")
}

/// Markdown that knows nothing but `code`.
pub(crate) fn inlines(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(index, part)| if index % 2 == 1 { bold(part) } else { roman(part) }).collect()
}
