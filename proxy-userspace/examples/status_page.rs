//! Makes the status page of what `/status.json` said: `cargo run --example status_page < status.json > page.html`. With it
//! the page is looked at in states that a test cannot wait for.

use std::io::{self, Read as _, Write as _};

use setu::operator::admin::{Refresh, Status, page};

fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let status: Status = serde_json::from_str(&text)?;
    io::stdout().write_all(page(&status, Refresh::On).as_bytes())
}
