//! Every overlay with every choice of components is put together as `kubectl` does it, and held against schemas.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{python, quiet, remove};
use crate::{dist::OUT, process::output};

/// Versions of Kubernetes whose schemas the manifests must fit: the oldest in wide use, and a recent one.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];
const MANIFESTS: &str = "dist/kubernetes";

pub(super) fn check() -> Result<()> {
    let mut overlays = folders("overlays")?;
    overlays.push("base".into());
    let components = folders("components")?;
    let made = Path::new(OUT).join("kubernetes");
    remove(&made)?;
    let mut files = Vec::new();
    for overlay in &overlays {
        for choice in 0..1_u32 << components.len() {
            let chosen = components.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1);
            let chosen: Vec<_> = chosen.map(|(_, component)| component.as_str()).collect();
            let directory = made.join(files.len().to_string());
            files.push(build(&directory, overlay, &chosen)?);
        }
    }
    for version in VERSIONS {
        // Of what is not Kubernetes' own it has no schema, and would warn.
        quiet(
            python::tool("kubernetes-validate")?
                .args(["--strict", "--no-warn", "--kubernetes-version", version])
                .args(&files),
        )?;
    }
    quiet(python::tool("python")?.arg("xtask/src/dist/custom-resources.py").args(&files))?;
    python::yaml(&[&Path::new(MANIFESTS).join("components/scale-on-connections/prometheus-adapter.yaml")])?;
    println!("      {} choices of overlay and components", files.len());
    Ok(())
}

/// Puts an overlay and components together, as an operator's own overlay would, and returns the file with the outcome.
fn build(directory: &Path, overlay: &str, components: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let root = "../../../../dist/kubernetes";
    let components: Vec<_> = components.iter().map(|component| format!("{root}/{component}")).collect();
    fs::write(
        directory.join("kustomization.yaml"),
        format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: \
             [{root}/{overlay}]\ncomponents: [{}]\n",
            components.join(", ")
        ),
    )?;
    let manifests = output(python::tool("kubectl")?.arg("kustomize").arg(directory))
        .with_context(|| format!("{overlay} with {components:?}"))?;
    ensure!(manifests.contains("kind: Deployment"), "{overlay} has no Deployment");
    let file = directory.join("manifests.yaml");
    fs::write(&file, manifests)?;
    Ok(file)
}

/// The folders below one of `dist/kubernetes`, each with that one's name before its own.
fn folders(parent: &str) -> Result<Vec<String>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(Path::new(MANIFESTS).join(parent))? {
        folders.push(format!("{parent}/{}", entry?.file_name().to_string_lossy()));
    }
    ensure!(!folders.is_empty(), "there are no {parent}");
    folders.sort();
    Ok(folders)
}
