//! Checks what was made, and what of `dist` operators take as it is, each with the tool that will read it.

mod ansible;
mod kubernetes;
mod machine;
mod python;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use machine::{BENCH, Machine, PACKAGE};

use super::{BINARY, IMAGE, OUT, buildah};
use crate::process::{output, run};

/// systemd's exposure of the unit, in tenths: `systemd-analyze security` goes from 0 (best) to 100.
const EXPOSURE: &str = "25";
/// What the image says at /metrics.
const METRICS: &str = "target/dist/metrics.txt";

/// A check's name and what it does.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 17] = [
    ("the binary is static and runs", binary),
    ("examples are configurations that setu takes", examples),
    ("man pages and completions", manual),
    ("the unit: systemd-analyze security", unit),
    ("the image serves", image),
    ("the image serves what a mounted file says", image_with_configuration),
    ("alerts and metrics: promtool", alerts),
    ("dashboard and alerts name metrics that exist", metric_names),
    ("Kubernetes manifests: kustomize and schemas", kubernetes::check),
    ("the compose file is YAML", compose),
    ("shell scripts: shellcheck", scripts),
    ("Ansible: ansible-lint", ansible::lint),
    ("no name of this machine in the binary", anonymous),
    (
        "the package on a Debian with systemd: install, set up, ask the doctor, share, upgrade under 500 flows, remove",
        package,
    ),
    ("cloud-init on a Debian with systemd: schema, wrong and right checksum", cloud_init),
    ("certbot's hook on a Debian with systemd: setu serves what was renewed", certbot),
    ("Ansible, two Debians with systemd: serve, again, a mistake, rotate", ansible::serve_and_rotate),
];

/// Passes all checks, and tells of each.
pub(crate) fn check() -> Result<()> {
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(()) => println!("pass  {name}"),
            Err(error) => {
                failed += 1;
                println!("FAIL  {name}: {error:#}");
            }
        }
    }
    println!("{} passed, {failed} failed", CHECKS.len() - failed);
    ensure!(failed == 0, "what would be handed out is not right");
    Ok(())
}

fn binary() -> Result<()> {
    let linked = output(Command::new("ldd").arg(BINARY))?;
    ensure!(linked.contains("statically linked"), "ldd says: {linked}");
    let version = output(Command::new(BINARY).arg("--version"))?;
    ensure!(version.starts_with("setu "), "it says: {version}");
    Ok(())
}

fn examples() -> Result<()> {
    let mut files = files("dist/examples")?;
    files.push("dist/setu.toml".into());
    files.push("dist/kubernetes/base/setu.toml".into());
    for overlay in fs::read_dir("dist/kubernetes/overlays")? {
        files.push(overlay?.path().join("setu.toml"));
    }
    for file in files {
        let mut setu = Command::new(BINARY);
        let result = setu.args(["check", "--config"]).arg(&file).output()?;
        // Ports may be taken and privileges missing here: 64 alone is a configuration that cannot be used.
        let code = result.status.code();
        ensure!(matches!(code, Some(0 | 1)), "{}", String::from_utf8_lossy(&result.stderr).trim());
    }
    Ok(())
}

fn manual() -> Result<()> {
    for page in files(&format!("{OUT}/manual/man"))? {
        let man = Command::new("man").args(["--warnings", "--local-file"]).arg(&page).output()?;
        let warnings = String::from_utf8_lossy(&man.stderr);
        ensure!(man.status.success() && warnings.is_empty(), "{}: {warnings}", page.display());
    }
    run(Command::new("bash").arg("-n").arg(Path::new(OUT).join("manual/completions/setu.bash")))
}

fn unit() -> Result<()> {
    let analysis = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=true"])
        .arg(format!("--threshold={EXPOSURE}"))
        .arg("dist/systemd/setu.service")
        .output()?;
    let text = String::from_utf8_lossy(&analysis.stdout);
    ensure!(analysis.status.success(), "{}", text.lines().last().unwrap_or_default());
    // A directive that systemd does not know protects from nothing.
    let warnings = String::from_utf8_lossy(&analysis.stderr);
    ensure!(warnings.is_empty(), "{warnings}");
    Ok(())
}

fn alerts() -> Result<()> {
    for arguments in [
        ["check", "rules", "setu.rules.yml"],
        ["test", "rules", "setu.rules.test.yml"],
        ["test", "rules", "setu.useful.test.yml"],
        ["check", "config", "prometheus.example.yml"],
    ] {
        quiet(Command::new("promtool").args(arguments).current_dir("dist/prometheus"))?;
    }
    // promtool knows the older format alone, in which the name of a counter has its ending everywhere.
    let mut metrics = metrics()?;
    for name in counters(&metrics) {
        for word in ["HELP", "TYPE"] {
            metrics = metrics.replace(&format!("# {word} {name} "), &format!("# {word} {name}_total "));
        }
    }
    let file = Path::new(OUT).join("metrics.prom");
    fs::write(&file, metrics)?;
    quiet(Command::new("promtool").args(["check", "metrics"]).stdin(fs::File::open(file)?))
}

/// What the image answered for /metrics.
fn metrics() -> Result<String> {
    fs::read_to_string(METRICS).context("the image must serve first")
}

/// Names of counters, without their ending.
fn counters(metrics: &str) -> Vec<String> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    types.map(str::to_owned).collect()
}

fn metric_names() -> Result<()> {
    let metrics = metrics()?;
    let gauges = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" gauge"));
    let counters = counters(&metrics).into_iter().map(|name| name + "_total");
    let known: BTreeSet<_> = gauges.map(str::to_owned).chain(counters).collect();
    for file in [
        "dist/grafana/setu.json",
        "dist/prometheus/setu.rules.yml",
        "dist/kubernetes/components/scale-on-connections/kustomization.yaml",
        "dist/kubernetes/components/scale-on-connections/prometheus-adapter.yaml",
    ] {
        let text = fs::read_to_string(file)?;
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let mut found = 0;
        for word in words.filter(|word| word.starts_with("setu_") || word.starts_with("process_")) {
            ensure!(known.contains(word), "{file} names {word}, which setu does not have");
            found += 1;
        }
        ensure!(found > 0, "{file} names no metric");
    }
    quiet(Command::new("python3").args(["-m", "json.tool", "dist/grafana/setu.json"]))
}

fn compose() -> Result<()> {
    python::yaml(&[Path::new("dist/container/compose.yaml")])
}

/// Also the script that cloud-init runs, which is inside of its YAML.
fn scripts() -> Result<()> {
    let mut scripts = files("dist/debian")?;
    scripts.extend(files("dist/certbot")?);
    scripts.extend(
        files("xtask/src/dist")?.into_iter().filter(|file| file.extension().is_some_and(|it| it == "sh")),
    );
    quiet(python::tool("shellcheck")?.args(&scripts))?;
    let print = "import yaml; print(yaml.safe_load(open('dist/cloud-init.yaml'))['runcmd'][0])";
    let script = output(python::tool("python")?.args(["-c", print]))?;
    let file = Path::new(OUT).join("cloud-init.sh");
    fs::write(&file, script)?;
    quiet(python::tool("shellcheck")?.args(["--shell", "sh"]).arg(file))
}

/// Runs the image as it comes, asks it whether it lives, and keeps its metrics.
fn image() -> Result<()> {
    in_image(&[], "curl --silent --show-error --fail http://127.0.0.1:8199/metrics --output \"$METRICS\"")
}

/// Runs the image with a file where its configuration is, and no other word of it: it serves that file's ports.
fn image_with_configuration() -> Result<()> {
    let file = std::env::current_dir()?.join("dist/examples/one-port.toml");
    let volume = format!("--volume={}:/etc/setu/setu.toml:ro", file.display());
    let ports = r#"
        listens() { test -n "$(ss --no-header --tcp --listening --numeric "sport = :$1")"; }
        listens 443 || { echo "port 443 is not served" >&2; exit 1; }
        ! listens 5222 || { echo "port 5222 is served, which the file does not name" >&2; exit 1; }"#;
    in_image(&[&volume], ports)
}

/// Runs the image in a network of its own, and a script beside it once it lives.
fn in_image(options: &[&str], script: &str) -> Result<()> {
    const SERVE: &str = r#"
ip link set lo up
"$@" &
for _ in $(seq 100); do
    ! curl --silent --fail http://127.0.0.1:8199/healthz || break
    sleep 0.1
done
"#;
    let container =
        output(buildah()?.args(["from", "--quiet", "--pull-never"]).arg(format!("oci-archive:{IMAGE}")))?;
    let mut inside = buildah()?;
    inside.args(["run", "--isolation", "chroot"]).args(options).args([&container, "/setu", "run"]);
    let mut machine = Command::new("unshare");
    // With its first process, the shell, all end.
    machine.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
    machine.arg(format!("{SERVE}{script}")).arg("sh").env("METRICS", METRICS);
    machine.arg(inside.get_program()).args(inside.get_args());
    let served = quiet(&mut machine);
    run(buildah()?.args(["rm", &container]).stdout(Stdio::null()))?;
    served
}

fn anonymous() -> Result<()> {
    let binary = fs::read(BINARY)?;
    for variable in ["HOME", "PWD"] {
        let Ok(path) = std::env::var(variable) else { continue };
        let path = format!("{path}/");
        let found = path.len() > 2 && binary.windows(path.len()).any(|window| window == path.as_bytes());
        ensure!(!found, "the binary has {path} in it, of ${variable}");
    }
    Ok(())
}

fn package() -> Result<()> {
    Machine::boot()?.test("package-test.sh", &[PACKAGE, BENCH])
}

fn cloud_init() -> Result<()> {
    const USER_DATA: &str = "/root/user-data.yaml";
    let machine = Machine::boot()?;
    machine.put("dist/cloud-init.yaml", USER_DATA)?;
    machine.test("cloud-init-test.sh", &[PACKAGE, USER_DATA])
}

fn certbot() -> Result<()> {
    Machine::boot()?.test("certbot-test.sh", &[PACKAGE])
}

/// Waits until something holds, for a minute at most.
fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if holds()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    bail!("not within a minute: {what}")
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn files(directory: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{directory} cannot be read"))? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Runs without output, unless it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} could not be started"))?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&said).trim());
    Ok(())
}
