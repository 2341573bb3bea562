//! Every direct dependency has its line in docs/releasing.md, which says why it is there, and no line is left of another.

use std::{collections::BTreeSet, fs, path::Path};

/// Manifests that name dependencies with their versions.
const MANIFESTS: [&str; 8] = [
    "Cargo.toml",
    "bench/Cargo.toml",
    "fuzz/Cargo.toml",
    "proxy-common/Cargo.toml",
    "proxy-ebpf/Cargo.toml",
    "proxy-userspace/Cargo.toml",
    "tests/Cargo.toml",
    "xtask/Cargo.toml",
];

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).unwrap()
}

/// Dependencies of all kinds that a manifest names, but for those of this repository.
fn named(manifest: &toml::Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            let foreign = |value: &toml::Value| value.get("path").is_none();
            names.extend(table.iter().filter(|(_, value)| foreign(value)).map(|(name, _)| name.clone()));
        } else {
            names.extend(named(table));
        }
    }
    names
}

/// The names in a table's first column, where the second is not empty.
fn explained(document: &str) -> Vec<String> {
    let (_, table) = document.split_once("## Dependencies").unwrap();
    let row = |line: &str| {
        let (name, why) = line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | ")?;
        (!why.trim().is_empty()).then(|| name.to_owned())
    };
    table.lines().filter_map(row).collect()
}

#[test]
fn every_dependency_has_its_reason() {
    let all: BTreeSet<_> = MANIFESTS.iter().flat_map(|file| named(&read(file).parse().unwrap())).collect();
    let own = ["proxy-common", "proxy-userspace", "setu-tests"].map(str::to_owned);
    let expected: Vec<_> = all.into_iter().filter(|name| !own.contains(name)).collect();
    assert!(expected.len() > 40, "{expected:?}");
    assert_eq!(
        explained(&read("docs/releasing.md")),
        expected,
        "docs/releasing.md, in order of the alphabet"
    );
}

#[test]
fn what_has_no_reason_is_found() {
    let manifest =
        "[dependencies]\na = \"1\"\nb = { path = \"b\" }\n[target.x.dev-dependencies]\nc.workspace = true";
    assert_eq!(Vec::from_iter(named(&manifest.parse().unwrap())), ["a", "c"]);
    assert_eq!(explained("## Dependencies\n| `a` | one |\n| `b` |  |\n| c | two |\n"), ["a"]);
}
