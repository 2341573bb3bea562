//! The order of the layers that `lib.rs` lists: each module imports only from those listed before its own, in its tests
//! too. Inside a folder parts may import from each other, but not in a circle, and not what the folder's own file defines,
//! which imports them; tests may. Nor may that file say what a part's type can do (`impl`), which is the same unseen.
//!
//! Read from the tokens of the source: every path that begins with `crate`, `super` or `self` counts. A name that a `mod.rs`
//! exports from one of its parts counts as that part's.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The segments of a module's path, without `crate`.
type ModulePath = Vec<String>;

#[derive(Default)]
struct Module {
    file: String,
    imports: Vec<Import>,
    /// Types that get methods here, without a trait, by line.
    impls: Vec<(usize, String)>,
    /// Names that come from its parts, with the path to each.
    exports: BTreeMap<String, ModulePath>,
}

struct Import {
    line: usize,
    in_test: bool,
    /// From the crate's root to the name that is imported.
    path: ModulePath,
}

struct Source {
    layers: Vec<String>,
    modules: BTreeMap<ModulePath, Module>,
}

impl Source {
    /// The sources below a folder.
    fn read(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files);
        // The binary is a crate of its own, on top of all layers.
        files.remove("main.rs");
        Self::parse(&files)
    }

    /// By path below the crate's `src`.
    fn parse(files: &BTreeMap<String, String>) -> Self {
        let layers = files["lib.rs"].lines().filter_map(layer).collect();
        let paths: BTreeSet<_> = files.keys().map(|file| module_path(file)).collect();
        let parse = |(file, text): (&String, &String)| {
            let path = module_path(file);
            let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
            let mut module = Module { file: file.clone(), ..Module::default() };
            module.walk(tokens, &path, &paths);
            (path, module)
        };
        Self { modules: files.iter().map(parse).collect(), layers }
    }

    /// The module that a path leads into, through what modules export from their parts.
    fn home(&self, path: &[String]) -> ModulePath {
        let known = |len: &usize| self.modules.contains_key(&path[..*len]);
        let len = (0..=path.len()).rev().find(known).unwrap_or(0);
        let (module, name) = (&path[..len], path.get(len));
        match name.and_then(|name| self.modules.get(module)?.exports.get(name)) {
            Some(there) if there.as_slice() != path => self.home(there),
            _ => module.to_vec(),
        }
    }

    /// Imports from layers that come later, or are not listed.
    fn upward(&self) -> Vec<String> {
        let place = |path: &[String]| self.layers.iter().position(|layer| Some(layer) == path.first());
        let mut wrong = Vec::new();
        for (path, module) in &self.modules {
            for import in &module.imports {
                let (from, to) = (place(path), place(&self.home(&import.path)));
                if !path.is_empty() && (from.is_none() || to.is_none() || to > from) {
                    wrong.push(format!("{}, above `{}`", import.tell(module), path[0]));
                }
            }
        }
        wrong
    }

    /// Circles among the parts of each folder and with its own file, by the imports that close them.
    fn circles(&self) -> Vec<String> {
        // By folder: which part imports from which, and by which import.
        let mut folders: BTreeMap<ModulePath, BTreeMap<(String, String), String>> = BTreeMap::new();
        let mut circles = Vec::new();
        for (path, module) in &self.modules {
            for import in module.imports.iter().filter(|import| !import.in_test) {
                let home = self.home(&import.path);
                let shared = path.iter().zip(&home).take_while(|(from, to)| from == to).count();
                match (path.get(shared), home.get(shared)) {
                    // Between layers the order is all there is to say.
                    (Some(from), Some(to)) if shared > 0 => {
                        let parts = folders.entry(path[..shared].to_vec()).or_default();
                        parts.entry((from.clone(), to.clone())).or_insert_with(|| import.tell(module));
                    }
                    (Some(_), None) => circles.push(format!("{}, of its own folder", import.tell(module))),
                    _ => {}
                }
            }
        }
        for module in self.modules.values() {
            for (line, name) in module.impls.iter().filter(|(_, name)| module.exports.contains_key(name)) {
                circles.push(format!(
                    "src/{}:{line}: `impl {name}`, which a part of its folder defines",
                    module.file
                ));
            }
        }
        for parts in folders.values() {
            for ((from, to), import) in parts {
                if reaches(parts, to, from) {
                    circles.push(format!("{import}, in a circle with `{from}`"));
                }
            }
        }
        circles
    }
}

impl Module {
    fn walk(&mut self, tokens: TokenStream, module: &[String], all: &BTreeSet<ModulePath>) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let in_test = module.iter().any(|part| part == "tests" || part == "testing");
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at..] {
                [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..]
                    if word == "mod" =>
                {
                    self.walk(body.stream(), &[module, &[name.to_string()]].concat(), all);
                    at += 2;
                }
                [TokenTree::Ident(word), TokenTree::Ident(part), ..]
                    if word == "use" && all.contains(&[module, &[part.to_string()]].concat()) =>
                {
                    let (paths, len) = tree(&tokens[at + 1..]);
                    for path in paths {
                        if let Some(name) = path.last() {
                            self.exports.insert(name.clone(), [module, &path].concat());
                        }
                    }
                    at += len;
                }
                [TokenTree::Punct(dollar), TokenTree::Ident(name), ..]
                    if dollar.as_char() == '$' && name != "crate" =>
                {
                    at += 1;
                }
                [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(_), ..]
                    if word == "impl" =>
                {
                    self.impls.push((word.span().start().line, name.to_string()));
                    at += 1;
                }
                [TokenTree::Ident(word), TokenTree::Punct(colon), TokenTree::Punct(_), ..]
                    if (word == "crate" || word == "super" || word == "self") && colon.as_char() == ':' =>
                {
                    let line = word.span().start().line;
                    let (paths, len) = tree(&tokens[at..]);
                    for path in paths {
                        self.imports.push(Import { line, in_test, path: absolute(&path, module) });
                    }
                    at += len - 1;
                }
                [TokenTree::Group(group), ..] => self.walk(group.stream(), module, all),
                _ => {}
            }
            at += 1;
        }
    }
}

impl Import {
    fn tell(&self, module: &Module) -> String {
        format!("src/{}:{}: imports `{}`", module.file, self.line, self.path.join("::"))
    }
}

/// Whether there is a way along the imports.
fn reaches(parts: &BTreeMap<(String, String), String>, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(part) = next.pop() {
        if part == to {
            return true;
        }
        if seen.insert(part) {
            next.extend(parts.keys().filter(|(from, _)| from == part).map(|(_, to)| to.as_str()));
        }
    }
    false
}

/// The paths of a tree as `use` has it, `a::{b, c::d}` is two, and how many tokens it has.
fn tree(tokens: &[TokenTree]) -> (Vec<ModulePath>, usize) {
    let mut path = Vec::new();
    let mut len = 0;
    loop {
        match &tokens[len..] {
            [TokenTree::Ident(word), ..] if word != "as" => path.push(word.to_string()),
            [TokenTree::Group(group), ..] if len > 0 && group.delimiter() == Delimiter::Brace => {
                let inner: Vec<_> = group.stream().into_iter().collect();
                let comma =
                    |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
                let parts = inner.split(comma).filter(|part| !part.is_empty());
                let paths = parts.flat_map(|part| tree(part).0);
                return (paths.map(|inner| [path.clone(), inner].concat()).collect(), len + 1);
            }
            _ => break,
        }
        len += 1;
        match &tokens[len..] {
            [TokenTree::Punct(first), TokenTree::Punct(second), ..]
                if first.as_char() == ':' && second.as_char() == ':' =>
            {
                len += 2;
            }
            _ => break,
        }
    }
    // `a::{self}` is `a`.
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    (vec![path], len)
}

/// A path from the crate's root.
fn absolute(path: &[String], module: &[String]) -> ModulePath {
    let (mut base, mut rest) = (module, path);
    while let [first, others @ ..] = rest {
        base = match first.as_str() {
            "crate" => &[],
            "super" => base.split_last().map_or(&[], |(_, parent)| parent),
            "self" => base,
            _ => break,
        };
        rest = others;
    }
    [base, rest].concat()
}

/// The layer that a line of `lib.rs` lists.
fn layer(line: &str) -> Option<String> {
    let (number, rest) = line.strip_prefix("//! ")?.split_once(". `")?;
    number.parse::<u32>().ok()?;
    rest.split_once("`: ").map(|(name, _)| name.to_owned())
}

fn module_path(file: &str) -> ModulePath {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').map(Into::into).collect() }
}

fn collect(folder: &Path, below: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

fn setu() -> Source {
    Source::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn every_layer_is_listed() {
    let source = setu();
    let modules: BTreeSet<_> = source.modules.keys().filter_map(|path| path.first().cloned()).collect();
    let listed: BTreeSet<_> = source.layers.iter().cloned().collect();
    assert_eq!(listed, modules);
}

#[test]
fn no_layer_imports_from_one_above_it() {
    assert_eq!(setu().upward(), [""; 0]);
}

#[test]
fn the_parts_of_a_folder_form_no_circle() {
    assert_eq!(setu().circles(), [""; 0]);
}

#[test]
fn made_circles_are_found() {
    let files = [
        ("lib.rs", "//! 1. `low`: it is below.\n//! 2. `high`: it is above.\nmod low; mod high;"),
        (
            "low.rs",
            "fn f() {\n    other!(crate::high::X);\n}\n/* crate::high::Y */ const TEXT: &str = \"crate::high\";",
        ),
        (
            "high/mod.rs",
            "mod one; mod two; mod three; pub use three::Three; struct Own; impl Own {} impl Three {}",
        ),
        ("high/one.rs", "use crate::{low, high::two::Two};"),
        ("high/two.rs", "use super::{Own, Three};"),
        ("high/tests.rs", "use super::{Own, one};"),
        ("high/three.rs", "mod inner { use super::super::one; use super::*; }"),
    ];
    let parse = |files: &[(&str, &str)]| {
        Source::parse(&files.iter().map(|(file, text)| ((*file).into(), (*text).into())).collect())
    };
    let source = parse(&files);
    assert_eq!(source.upward(), ["src/low.rs:2: imports `high::X`, above `low`"]);
    assert_eq!(
        source.circles(),
        [
            "src/high/two.rs:1: imports `high::Own`, of its own folder",
            "src/high/mod.rs:1: `impl Three`, which a part of its folder defines",
            "src/high/one.rs:1: imports `high::two::Two`, in a circle with `one`",
            "src/high/three.rs:1: imports `high::one`, in a circle with `three`",
            "src/high/two.rs:1: imports `high::Three`, in a circle with `two`",
        ]
    );
    // Without what the last imports there is a way, but no circle.
    let mut files = files;
    files[6].1 = "";
    files[2].1 = "mod one; mod two; mod three; pub use three::Three; struct Own;";
    assert_eq!(parse(&files).circles(), ["src/high/two.rs:1: imports `high::Own`, of its own folder"]);
}

/// What has one place: a sequence of tokens, and the files or folders that may have it. Constants of libc may stand anywhere,
/// errnos for instance.
const PLACES: [(&str, &[&str]); 9] = [
    ("aya ::", &["relay/sockmap/", "relay/wire/", "relay/refusal.rs"]),
    ("toml ::", &["config/", "operator/languages/"]),
    // For clients nobody but `upstream` dials. The others ask the running setu, as its clients, and loopback.
    ("TcpSocket ::", &["upstream/happy_eyeballs.rs"]),
    (
        "TcpStream :: connect",
        &["operator/doctor/probe.rs", "operator/admin/fetch.rs", "relay/sockmap/probe.rs"],
    ),
    // How the order of the layers would be got round.
    ("include !", &[]),
    ("# [path = ", &[]),
    ("crate as ", &[]),
    ("super as ", &[]),
    ("self as ", &[]),
];

/// The tokens of what is not a test, with a space between them.
fn flat(tokens: TokenStream, out: &mut String) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at..] {
            [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(_), ..]
                if word == "mod" && name == "tests" =>
            {
                at += 2;
            }
            [TokenTree::Group(group), ..] => {
                let mark = match group.delimiter() {
                    Delimiter::Bracket => "[",
                    Delimiter::Parenthesis => "(",
                    _ => "{ ",
                };
                out.push_str(mark);
                flat(group.stream(), out);
            }
            [TokenTree::Punct(first), TokenTree::Punct(second), ..]
                if first.as_char() == ':' && second.as_char() == ':' =>
            {
                out.push_str(":: ");
                at += 1;
            }
            [token, ..] => {
                out.push_str(&token.to_string());
                out.push(' ');
            }
            [] => {}
        }
        at += 1;
    }
}

/// Where something stands that has its place elsewhere.
fn misplaced(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, text) in files {
        if module_path(file).iter().any(|part| part == "tests" || part == "testing") {
            continue;
        }
        let mut tokens = String::new();
        flat(text.parse().unwrap(), &mut tokens);
        for (what, places) in PLACES {
            if tokens.contains(what) && !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!("src/{file}: `{what}` belongs in {places:?}"));
            }
        }
        // A call is a small letter and a parenthesis.
        let mut calls = tokens.split("libc :: ").skip(1).filter_map(|rest| rest.split_once(' '));
        let is_call = |(name, rest): (&str, &str)| {
            name.starts_with(|first: char| first.is_ascii_lowercase()) && rest.starts_with('(')
        };
        if calls.any(is_call) && !file.starts_with("sys/") {
            wrong.push(format!("src/{file}: calls of libc belong in sys"));
        }
        // Else what is in them would not count as one.
        let hidden = |line: &(usize, &str)| {
            let plain =
                line.1.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
            plain.starts_with("mod tests") || plain.starts_with("mod testing")
        };
        let lines: Vec<_> = text.lines().enumerate().collect();
        for (at, _) in lines.iter().copied().filter(hidden) {
            if at == 0 || lines[at - 1].1.trim() != "#[cfg(test)]" {
                wrong.push(format!("src/{file}:{}: is named as a test and is none", at + 1));
            }
        }
    }
    wrong
}

#[test]
fn what_has_one_place_is_there() {
    let mut files = BTreeMap::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    assert_eq!(misplaced(&files), [""; 0]);
    let made = [
        ("front/a.rs", "use aya::Ebpf; fn f() { let _ = libc::EINVAL; unsafe { libc::close(0) } }"),
        ("front/b.rs", "use std::net; fn f() { net::TcpStream::connect(a) }\npub(crate) mod testing;"),
        ("front/c.rs", "// aya::X\nconst A: &str = \"aya::X\";\n#[cfg(test)]\nmod tests { use aya::X; }"),
        ("sys/d.rs", "use crate as other; fn f() { unsafe { libc::close(0) } }"),
    ];
    let made = made.map(|(file, text)| (file.to_owned(), text.to_owned())).into();
    assert_eq!(
        misplaced(&made),
        [
            "src/front/a.rs: `aya ::` belongs in [\"relay/sockmap/\", \"relay/wire/\", \"relay/refusal.rs\"]",
            "src/front/a.rs: calls of libc belong in sys",
            "src/front/b.rs: `TcpStream :: connect` belongs in [\"operator/doctor/probe.rs\", \"operator/admin/fetch.rs\", \
             \"relay/sockmap/probe.rs\"]",
            "src/front/b.rs:2: is named as a test and is none",
            "src/sys/d.rs: `crate as ` belongs in []",
        ]
    );
}
