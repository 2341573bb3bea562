//! eBPF maps of a running setu, as bpftool sees them.

use std::{fs, io::Write as _, process::Command};

use tempfile::NamedTempFile;

/// Ids of the maps that a process holds, by itself and by its programs.
#[must_use]
pub fn of(pid: u32) -> Vec<u32> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        // It may have been closed since.
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        let number =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok());
        ids.extend(number("map_id:"));
        ids.extend(number("prog_id:").map(of_program).unwrap_or_default());
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Ids of the maps that a program uses.
fn of_program(id: u32) -> Vec<u32> {
    let shown = bpftool(&["prog", "show", "id", &id.to_string()]).unwrap_or_default();
    let list = shown.split_once("\"map_ids\":[").and_then(|(_, rest)| rest.split_once(']'));
    list.map_or_else(Vec::new, |(list, _)| list.split(',').filter_map(|id| id.trim().parse().ok()).collect())
}

/// Whether the kernel has the map.
#[must_use]
pub fn exists(id: u32) -> bool {
    bpftool(&["map", "show", "id", &id.to_string()]).is_some()
}

/// The id of a process' map by name.
#[must_use]
pub fn named(pid: u32, name: &str) -> Option<u32> {
    let shown = |id: &u32| bpftool(&["map", "show", "id", &id.to_string()]).unwrap_or_default();
    of(pid).into_iter().find(|id| shown(id).contains(&format!("\"name\":\"{name}\"")))
}

/// Entries of a hash.
#[must_use]
pub fn entries(id: u32) -> usize {
    bpftool(&["map", "dump", "id", &id.to_string()]).unwrap().matches("\"key\":").count()
}

/// Entries that a hash may have.
#[must_use]
pub fn capacity(id: u32) -> usize {
    let shown = bpftool(&["map", "show", "id", &id.to_string()]).unwrap();
    let (_, rest) = shown.split_once("\"max_entries\":").unwrap();
    rest.split(|char: char| !char.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Inserts keys of 8 bytes with one value into a hash until it takes no more, and returns how many it took.
#[must_use]
pub fn fill(id: u32, keys: &[u64], value: u32) -> usize {
    let before = entries(id);
    let lines = keys.iter().map(|key| {
        format!(
            "map update id {id} key hex {} value hex {}\n",
            hex(&key.to_ne_bytes()),
            hex(&value.to_ne_bytes())
        )
    });
    // It ends at the first that is refused.
    let _ = batch(lines);
    entries(id) - before
}

/// Removes keys of 8 bytes from a hash.
pub fn remove(id: u32, keys: &[u64]) {
    let lines = keys.iter().map(|key| format!("map delete id {id} key hex {}\n", hex(&key.to_ne_bytes())));
    assert!(batch(lines), "not all were there");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect()
}

/// Lets bpftool do all lines; whether it could.
fn batch(lines: impl Iterator<Item = String>) -> bool {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(lines.collect::<String>().as_bytes()).unwrap();
    let output = Command::new("bpftool").args(["batch", "file"]).arg(file.path()).output().unwrap();
    output.status.success()
}

/// The only value of an array, as numbers of 8 bytes.
#[must_use]
pub fn numbers(id: u32) -> Vec<u64> {
    let shown = bpftool(&["map", "dump", "id", &id.to_string()]).unwrap();
    let (_, rest) = shown.split_once("\"value\":[").unwrap();
    let (bytes, _) = rest.split_once(']').unwrap();
    let byte = |text: &str| u8::from_str_radix(text.trim_matches('"').trim_start_matches("0x"), 16).unwrap();
    let bytes: Vec<u8> = bytes.split(',').map(byte).collect();
    bytes.chunks_exact(8).map(|chunk| u64::from_ne_bytes(chunk.try_into().unwrap())).collect()
}

/// Runs bpftool; nothing when it fails.
fn bpftool(arguments: &[&str]) -> Option<String> {
    let output = Command::new("bpftool").arg("--json").args(arguments).output();
    let output = output.expect("bpftool is needed: cargo xtask setup");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
