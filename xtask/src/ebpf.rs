//! Builds the eBPF objects, and compares them with the committed ones.
//!
//! They are committed because few machines can build them: the target needs `core` from source and a linker of
//! the compiler's LLVM. The provenance beside them says with what they were built, so that anyone can do it again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::process::{output, run};

const FOLDER: &str = "proxy-ebpf/object";
/// The binaries of the crate: sockmap's programs, and the wire's.
const OBJECTS: [&str; 2] = ["setu", "wire"];
const PROVENANCE: &str = "proxy-ebpf/object/provenance.toml";
/// The crates are built here, not in place: names of symbols depend on the absolute paths of path dependencies.
const BUILD: &str = "/tmp/setu-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// Which compiler there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// rustup's nightly with rust-src.
    Rustup,
    /// Debian's compiler with its source.
    Debian,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provenance {
    rustc: String,
    bpf_linker: String,
    rustflags: String,
    /// SHA-256 over the sources and the lock file.
    sources: String,
    /// SHA-256 of each object, by name.
    objects: BTreeMap<String, String>,
}

/// Finds a compiler that has the source of `core`.
pub(crate) fn way() -> Result<Way> {
    let sysroot = output(
        Command::new("rustc").args(["+nightly", "--print", "sysroot"]).stderr(std::process::Stdio::null()),
    );
    if sysroot.is_ok_and(|path| Path::new(&path).join("lib/rustlib/src/rust/library/core").exists()) {
        return Ok(Way::Rustup);
    }
    if Path::new("/usr/lib/rustlib/src/rust/library/core").exists() && Path::new("/usr/bin/rustc").exists() {
        return Ok(Way::Debian);
    }
    bail!(
        "no compiler for eBPF. Either:\n  rustup toolchain install nightly --component rust-src\n  \
         cargo install bpf-linker\nor on Debian, as root:\n  \
         apt-get install rustc-web cargo-web rust-web-src llvm-22-dev\n  \
         LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22\n\
         `cargo xtask setup` does the latter."
    )
}

/// What was built, in the order of [`OBJECTS`].
type Objects = Vec<Vec<u8>>;

/// Builds the objects and writes them with their provenance.
pub(crate) fn build() -> Result<()> {
    let (objects, provenance) = compile(Lock::Renew)?;
    fs::create_dir_all(FOLDER)?;
    for (name, object) in OBJECTS.iter().zip(objects) {
        fs::write(path(name), object)?;
        println!("{}: sha256 {}", path(name), provenance.objects[*name]);
    }
    fs::write(PROVENANCE, toml::to_string(&provenance)?)?;
    Ok(())
}

/// Fails unless what is built now is what is committed.
pub(crate) fn check() -> Result<()> {
    let committed =
        |name: &&str| fs::read(path(name)).with_context(|| format!("{} cannot be read", path(name)));
    let committed = OBJECTS.iter().map(committed).collect::<Result<Objects>>()?;
    let recorded: Provenance = toml::from_str(&fs::read_to_string(PROVENANCE)?)?;
    if hashes(&committed) != recorded.objects {
        bail!(
            "the objects in {FOLDER} are not those of {PROVENANCE}; run `cargo xtask ebpf` and commit all of it"
        );
    }
    let (objects, provenance) = compile(Lock::Keep)?;
    if objects != committed {
        bail!(
            "what is built now differs from what is committed.\ncommitted: {recorded:#?}\nnow: {provenance:#?}\n\
             With the same toolchain: run `cargo xtask ebpf` and commit the result. With another one, install the \
             recorded one."
        );
    }
    println!("ebpf: built from source, byte for byte what is committed ({:?})", recorded.objects);
    Ok(())
}

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.bpf.o")
}

fn hashes(objects: &Objects) -> BTreeMap<String, String> {
    OBJECTS.iter().zip(objects).map(|(name, object)| ((*name).to_owned(), sha256(object))).collect()
}

/// What becomes of the lock file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Keep,
    Renew,
}

fn compile(lock: Lock) -> Result<(Objects, Provenance)> {
    let way = way()?;
    for name in ["proxy-ebpf", "proxy-common"] {
        let to = Path::new(BUILD).join(name);
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        copy_tree(&Path::new(name).join("src"), &to.join("src"))?;
    }
    for file in ["proxy-ebpf/Cargo.toml", "proxy-ebpf/Cargo.lock"] {
        fs::copy(file, Path::new(BUILD).join(file)).with_context(|| format!("{file} cannot be copied"))?;
    }
    fs::write(Path::new(BUILD).join("proxy-common/Cargo.toml"), COMMON_MANIFEST)?;

    let (mut cargo, sysroot) = match way {
        Way::Rustup => {
            let mut cargo = Command::new("cargo");
            cargo.arg("+nightly");
            (cargo, output(Command::new("rustc").args(["+nightly", "--print", "sysroot"]))?)
        }
        Way::Debian => {
            let mut cargo = Command::new("/usr/bin/cargo");
            cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
            (cargo, "/usr".to_owned())
        }
    };
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    let flags = "-C debuginfo=2 -C target-cpu=v3 -C link-arg=--btf";
    let mut encoded: Vec<String> = flags.split(' ').map(Into::into).collect();
    encoded.push(format!("--remap-path-prefix={BUILD}=setu"));
    encoded.push(format!("--remap-path-prefix={sysroot}/lib/rustlib/src/rust=rust"));
    for registry in fs::read_dir(format!("{home}/registry/src")).into_iter().flatten().flatten() {
        encoded.push(format!("--remap-path-prefix={}=registry", registry.path().display()));
    }
    cargo
        .current_dir(Path::new(BUILD).join("proxy-ebpf"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("CARGO_ENCODED_RUSTFLAGS", encoded.join("\x1f"))
        .env("CARGO_TARGET_DIR", Path::new(BUILD).join("target"))
        .args(["build", "--quiet", "--release", "-Z", "build-std=core", "--target", TARGET]);
    if lock == Lock::Keep {
        cargo.arg("--locked");
    }
    run(&mut cargo)?;
    if lock == Lock::Renew {
        fs::copy(Path::new(BUILD).join("proxy-ebpf/Cargo.lock"), "proxy-ebpf/Cargo.lock")?;
    }
    let built = Path::new(BUILD).join("target").join(TARGET).join("release");
    let objects = OBJECTS.iter().map(|name| fs::read(built.join(name))).collect::<Result<Objects, _>>()?;

    let rustc = match way {
        Way::Rustup => output(Command::new("rustc").args(["+nightly", "--version"]))?,
        Way::Debian => output(Command::new("/usr/bin/rustc").arg("--version"))?,
    };
    let provenance = Provenance {
        rustc,
        bpf_linker: output(Command::new("bpf-linker").arg("--version"))?,
        rustflags: flags.into(),
        sources: sources()?,
        objects: hashes(&objects),
    };
    Ok((objects, provenance))
}

/// The manifest of the shared crate, which in place inherits from a workspace that is not copied.
const COMMON_MANIFEST: &str = "[package]\nname = \"proxy-common\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
                               [features]\nuser = []\n";

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Every file below a folder.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => list(&entry.path(), files)?,
            false => files.push(entry.path()),
        }
    }
    Ok(())
}

/// SHA-256 over the names and contents of all that the object is made of.
fn sources() -> Result<String> {
    let mut files = vec![PathBuf::from("proxy-ebpf/Cargo.toml"), PathBuf::from("proxy-ebpf/Cargo.lock")];
    for folder in ["proxy-ebpf/src", "proxy-common/src"] {
        list(Path::new(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.as_os_str().as_encoded_bytes());
        hash.update(fs::read(&file)?);
    }
    Ok(hex(&hash.finalize()))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
