//! `setu wire`: what is left in the kernel of connections on the wire, which outlive setu, and how to be rid of it.

use std::fmt::Write as _;

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};

use super::text::grouped;
use crate::relay::wire::{Flows, Pinned, pinned};

/// What `setu wire` ends with.
pub const EXIT_STATUS: &str = "\
Exit status:
  0  it is shown, or nothing is left
  1  it cannot be read or taken away, or a keeper that runs has it
  2  wrong usage";

/// What there is, for the operator's terminal. Of connections only how many there are.
///
/// # Errors
/// The pins cannot be read.
pub fn show() -> anyhow::Result<String> {
    let all = all()?;
    if all.is_empty() {
        return Ok("nothing of the wire is pinned: no connection outlives its setu here\n".into());
    }
    let mut text = String::new();
    for pinned in &all {
        describe(&mut text, pinned);
    }
    Ok(text)
}

/// Takes away what no living keeper has, and tells what that was.
///
/// # Errors
/// One that runs has it, or it cannot be taken away; all others are gone then.
pub fn clear() -> anyhow::Result<String> {
    let (mut text, mut held) = (String::new(), Vec::new());
    for pinned in all()? {
        let path = pinned.path().display().to_string();
        let flows = pinned.flows();
        if !pinned.clear().with_context(|| path.clone())? {
            held.push(path);
            continue;
        }
        let what = flows.map_or_else(|_| "its connections".into(), |flows| connections(flows.on_wire));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "took {path} away, and {what} with it");
    }
    if let [_, ..] = held.as_slice() {
        anyhow::bail!(
            "{text}{}: the keeper of a setu has it; stop that setu, which clears it as well, or if only the process \
             setu-keeper is left, end that (SIGKILL)",
            held.join(", ")
        );
    }
    Ok(if text.is_empty() { "nothing of the wire was pinned\n".into() } else { text })
}

fn all() -> anyhow::Result<Vec<Pinned>> {
    pinned().context("the wire's pins cannot be read; ask as root")
}

fn describe(text: &mut String, pinned: &Pinned) {
    let keeper = if pinned.is_held() { "runs" } else { "is gone: nobody ends these connections" };
    let name = |index: u32| match device_name(index) {
        Some(name) => format!("{name} ({index})"),
        None => format!("{index}"),
    };
    let devices: Vec<_> = pinned.devices().into_iter().map(name).collect();
    let devices = if devices.is_empty() { "none".into() } else { devices.join(", ") };
    let flows = match pinned.flows() {
        Ok(Flows { on_wire, over, most }) => format!(
            "{} on the wire, {} that ended a short while ago, of {}",
            grouped(on_wire.into()),
            grouped(over.into()),
            grouped(most.into())
        ),
        Err(error) => format!("not known: {error}"),
    };
    let _ = writeln!(
        text,
        "{}\n  keeper       {keeper}\n  devices      {devices}\n  connections  {flows}",
        pinned.path().display()
    );
}

fn connections(count: u32) -> String {
    match count {
        1 => "1 connection".into(),
        count => format!("{} connections", grouped(count.into())),
    }
}

/// The device with this index in this network; others' pins may be of another network, whose devices have other names.
fn device_name(index: u32) -> Option<String> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    index_to_name(any, index).ok()
}
