//! The real bench: that a run leaves a report that renders to itself, and nothing else; and that Ctrl-C ends it.
//! Runs use only the ceiling without a proxy, because it is the harness that is tested.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use setu_tests::machine::is_root;

fn bench(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_setu-bench"));
    command.arg("bench").args(arguments).current_dir(folder).stdout(Stdio::piped());
    command
}

/// The namespaces of a run that has ended.
fn left_by(child: &Child) -> Vec<String> {
    let begin = format!("setu-test-{}-", child.id());
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&begin))
        .collect()
}

#[test]
fn a_run_leaves_a_report_that_renders_to_itself() {
    if !is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let chosen =
        ["--quick", "--peer", "direct", "--scenario", "ping-pong-32", "--scenario", "bulk-1", "--out", "run"];
    let mut child = bench(folder.path(), &chosen).spawn().unwrap();
    let printed: Vec<_> =
        BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success(), "{printed:#?}");
    assert_eq!(left_by(&child), Vec::<String>::new());

    let raw = fs::read_to_string(folder.path().join("run/raw.json")).unwrap();
    let raw: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let rounds = raw["rounds"].as_array().unwrap();
    // Three rounds of each of three scenarios.
    assert_eq!(rounds.len(), 9, "{printed:#?}");
    for round in rounds {
        let (work, busy) =
            (round["outcome"]["work"].as_u64().unwrap(), round["cost"]["busy"].as_f64().unwrap());
        assert!(work > 0 && busy > 0.0 && round["peer"] == "direct", "{round}");
    }

    fs::create_dir(folder.path().join("docs")).unwrap();
    let documents =
        [("README.md", "One stream to the client"), ("docs/performance.md", "(../run/README.md)")];
    let documents = documents.map(|(name, said)| (folder.path().join(name), said));
    let render = |arguments: &[&str]| {
        let arguments = [&["--render", "run"], arguments].concat();
        bench(folder.path(), &arguments).stderr(Stdio::null()).status().unwrap().success()
    };
    for (document, _) in &documents {
        fs::write(document, "before\n<!-- bench:begin -->\nas it was\n<!-- bench:end -->\nafter\n").unwrap();
    }
    assert!(!render(&["--check"]), "what documents said before passes");
    assert!(render(&[]));
    assert!(render(&["--check"]), "what was rendered does not pass");
    for (document, said) in documents {
        let text = fs::read_to_string(&document).unwrap();
        assert!(text.starts_with("before\n<!-- bench:begin -->\n"), "{text}");
        assert!(text.ends_with("<!-- bench:end -->\nafter\n"), "{text}");
        assert!(text.contains(said) && !text.contains("as it was"), "{text}");
        fs::write(&document, text.replace(said, "")).unwrap();
        assert!(!render(&["--check"]), "{} is not checked", document.display());
        assert!(render(&[]));
    }
    let plot = folder.path().join("run/bulk.svg");
    fs::write(&plot, fs::read_to_string(&plot).unwrap() + " ").unwrap();
    assert!(!render(&["--check"]), "a changed plot passes");
}

#[test]
fn an_interrupted_run_takes_down_what_it_made() {
    if !is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let chosen = ["--quick", "--peer", "direct", "--scenario", "stalled", "--out", "run"];
    let mut child = bench(folder.path(), &chosen).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It is printed when namespaces and server are there.
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("stalled: "), "{first}");
    assert_eq!(left_by(&child).len(), 3);
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
    let output = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(!child.wait().unwrap().success() && output.contains("interrupted"), "{output}");
    assert_eq!(left_by(&child), Vec::<String>::new());
}

#[test]
fn a_run_without_root_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups"]).arg(env!("CARGO_BIN_EXE_setu-bench"));
    if !is_root() {
        command = Command::new(env!("CARGO_BIN_EXE_setu-bench"));
    }
    let output = command.args(["bench", "--quick"]).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("need root"), "{said}");
}
