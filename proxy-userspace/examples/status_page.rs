//! Makes the status page of what `/status.json` said: `cargo run --example status_page [QUERY [LANGUAGE]] < status.json >
//! page.html`, with the query and the language that a browser would send. With it the page is looked at in states that a test cannot wait for.

use std::io::{self, Read as _, Write as _};

use setu::operator::admin::{Status, View, page};

fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let status: Status = serde_json::from_str(&text)?;
    let [query, language] = [1, 2].map(|number| std::env::args().nth(number));
    let page = page(&status, View::of(query.as_deref()), language.as_deref().unwrap_or_default());
    io::stdout().write_all(page.map_err(io::Error::other)?.as_bytes())
}
