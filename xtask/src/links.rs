//! Documents lead their readers where they say: links to files and headings that are there, commands that exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;

use crate::Cli;

/// Text outside of fenced blocks, which show what is typed and printed.
fn prose(document: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    document.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    })
}

/// Where links and images lead, save those to other hosts.
fn targets(document: &str) -> Vec<&str> {
    let links = prose(document).flat_map(|line| line.split("](").skip(1));
    let targets = links.filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://")).collect()
}

/// What a link may name after `#`: headings in small letters, with hyphens for spaces, without punctuation.
fn anchors<'a>(document: &'a str) -> Vec<String> {
    let heading = |line: &'a str| line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ');
    let headings = prose(document).filter_map(heading);
    let headings = headings.map(|heading| heading.trim().to_lowercase().replace(' ', "-"));
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, '-' | '_');
    headings.map(|heading| heading.chars().filter(kept).collect()).collect()
}

/// Why a link of this document leads nowhere.
fn broken(document: &Path, target: &str) -> Option<String> {
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let file = match file {
        "" => document.to_owned(),
        file => document.parent().unwrap_or(Path::new("")).join(file),
    };
    let says = |what| Some(format!("{}: {target}: {what}", document.display()));
    if !file.exists() {
        return says("no such file");
    }
    let anchor = anchor?;
    let there = fs::read_to_string(file).is_ok_and(|text| anchors(&text).iter().any(|one| one == anchor));
    if there { None } else { says("no such heading") }
}

/// All Markdown below a folder, but for what is built, fetched or hidden.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
            found.extend(documents(&path));
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let mut wrong = Vec::new();
    for document in documents(&repository()) {
        let text = fs::read_to_string(&document).unwrap();
        wrong.extend(targets(&text).into_iter().filter_map(|target| broken(&document, target)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn commands_of_documents_exist() {
    let cli = Cli::command();
    let known: Vec<_> = cli.get_subcommands().map(|task| task.get_name().to_owned()).collect();
    for document in documents(&repository()) {
        let text = fs::read_to_string(&document).unwrap();
        for rest in text.split("cargo xtask ").skip(1) {
            let task: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            // `cargo xtask …` stands for any of them.
            let known = task.is_empty() || known.contains(&task);
            assert!(known, "{}: there is no cargo xtask {task}", document.display());
        }
    }
}

#[test]
fn what_leads_nowhere_is_found() {
    let text =
        "# A house\n[one](there.md) and [two](#a-house), ![three](https://host/x)\n```\n# b\n[x](y)\n```\n";
    assert_eq!(targets(text), ["there.md", "#a-house"]);
    assert_eq!(anchors(&format!("{text}## Ports, and `what` else?\n")), ["a-house", "ports-and-what-else"]);
    let readme = repository().join("README.md");
    assert_eq!(broken(&readme, "docs/architecture.md#code-map"), None);
    for target in ["docs/nothing.md", "docs/architecture.md#nothing", "#nothing"] {
        assert!(broken(&readme, target).is_some_and(|said| said.contains(target)), "{target}");
    }
}
