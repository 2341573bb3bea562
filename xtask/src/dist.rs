//! What is handed to operators, made in `target/dist`: a static binary, its manual, a Debian package and an image.
//!
//! The binary is for the machine that builds it. On x86_64 none is made for aarch64: that needs the standard library
//! for that target, which stable Rust brings by rustup alone. On an aarch64 machine the same command makes all of it.

mod check;

use std::{
    env, fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

pub(crate) use check::check;

use crate::{
    docs,
    process::{self, output, run},
    setup,
};

const OUT: &str = "target/dist";
pub(crate) const BINARY: &str = "target/dist/setu";
const IMAGE: &str = "target/dist/setu-image.tar";
const IMAGE_NAME: &str = "localhost/setu:latest";
/// The user `setu` inside the image, as in dist/container/passwd.
const IMAGE_USER: u32 = 65532;
const CARGO_DEB: &str = "3.8.0";
/// Debian packages that build what is handed out and check it, and what for.
const PACKAGES: [(&str, &str); 7] = [
    ("buildah", "builds the image, without a daemon"),
    ("debootstrap", "a Debian to install the package in"),
    ("dpkg-dev", "the package"),
    ("man-db", "checks the manual"),
    ("prometheus", "promtool checks alerts and metrics"),
    ("python3-venv", "holds tools of the checks that come from PyPI"),
    ("systemd", "systemd-analyze checks the unit"),
];

/// Makes all of it.
pub(crate) fn build() -> Result<()> {
    setup::install(&PACKAGES)?;
    fs::create_dir_all(OUT)?;
    let target = host()?;
    binary(&target)?;
    println!("{BINARY}: static, for {target}");
    println!("(for another architecture: run this on such a machine; its standard library is not here)");
    docs::make(&Path::new(OUT).join("manual"))?;
    println!("{OUT}/manual: man pages and completions");
    println!("{}", debian_package(&target)?.display());
    image()?;
    println!("{IMAGE}: OCI image {IMAGE_NAME}");
    Ok(())
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// Cargo for a static build in a directory of its own: the flags would throw the other builds' results away.
fn cargo(target: &str) -> Result<Command> {
    if !target.ends_with("-linux-gnu") && !target.ends_with("-linux-musl") {
        bail!("a static binary can be made on Linux with glibc or musl; this is {target}");
    }
    let here = env::current_dir()?;
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        // Where it was built is nobody's business, and would differ from machine to machine.
        format!("--remap-path-prefix={}=setu", here.display()),
        format!("--remap-path-prefix={home}=cargo"),
    ];
    let mut cargo = process::cargo();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("CARGO_TARGET_DIR", build_directory()?);
    Ok(cargo)
}

fn build_directory() -> Result<PathBuf> {
    Ok(env::current_dir()?.join(OUT).join("build"))
}

fn binary(target: &str) -> Result<()> {
    // Naming the target keeps the flags away from build scripts and macros, which cannot be static.
    run(cargo(target)?
        .args(["build", "--quiet", "--locked", "--release", "--package", "proxy-userspace", "--target"])
        .arg(target))?;
    fs::copy(build_directory()?.join(target).join("release/setu"), BINARY)?;
    Ok(())
}

fn debian_package(target: &str) -> Result<PathBuf> {
    if !output(process::cargo().args(["deb", "--version"])).is_ok_and(|version| version.ends_with(CARGO_DEB))
    {
        println!("dist: building cargo-deb {CARGO_DEB}, which makes the Debian package");
        run(process::cargo()
            .args(["install", "--quiet", "--locked", "--force", "cargo-deb", "--version", CARGO_DEB])
            // It runs for a second; building it is what takes time.
            .envs([("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"), ("CARGO_PROFILE_RELEASE_LTO", "off")]))?;
    }
    let package = output(
        cargo(target)?
            .args([
                "deb",
                "--quiet",
                "--no-build",
                "--no-strip",
                "--compress-system",
                "--package",
                "proxy-userspace",
                "--target",
            ])
            .arg(target)
            .args(["--output", OUT]),
    )?;
    let package = package.lines().last().context("cargo-deb names no package")?;
    Ok(Path::new(package).strip_prefix(env::current_dir()?).unwrap_or(Path::new(package)).to_owned())
}

fn image() -> Result<()> {
    let context = Path::new(OUT).join("image");
    if context.exists() {
        fs::remove_dir_all(&context)?;
    }
    let root = context.join("root");
    let state = root.join("var/lib/setu");
    fs::create_dir_all(root.join("etc"))?;
    fs::create_dir_all(&state)?;
    chown(&state, Some(IMAGE_USER), Some(IMAGE_USER)).context("the image is built as root")?;
    fs::copy(BINARY, root.join("setu"))?;
    for file in ["passwd", "group"] {
        fs::copy(Path::new("dist/container").join(file), root.join("etc").join(file))?;
    }
    run(buildah()?
        .args([
            "build",
            "--quiet",
            "--isolation",
            "chroot",
            "--pull-never",
            "--layers=false",
            "--timestamp",
            "0",
        ])
        .args(["--file", "dist/container/Containerfile", "--tag", IMAGE_NAME])
        .arg(&context)
        .stdout(std::process::Stdio::null()))?;
    if Path::new(IMAGE).exists() {
        fs::remove_file(IMAGE)?;
    }
    run(buildah()?.args(["push", "--quiet", IMAGE_NAME]).arg(format!("oci-archive:{IMAGE}:{IMAGE_NAME}")))
}

/// buildah with storage of its own, so that it neither needs nor leaves anything on the machine.
fn buildah() -> Result<Command> {
    let storage = env::current_dir()?.join(OUT).join("buildah");
    let mut buildah = Command::new("buildah");
    buildah.arg("--root").arg(&storage).arg("--runroot").arg(storage.join("run"));
    buildah.args(["--storage-driver", "vfs"]);
    Ok(buildah)
}
