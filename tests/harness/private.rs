//! A machine whose /etc, /var/lib, network and processes are the test's own, for what setu finds at its fixed places.

use std::{fs, process::Command};

use crate::{Setu, machine::is_root};

/// Before each script: the places, and words to say what is expected. `said TEXT COMMAND` fails where the command does not
/// say the text, on either output; `unsaid` where it does; `serve OPTIONS` runs setu until it is ready.
const PRELUDE: &str = r#"
chmod 755 "$ETC"
mount --bind "$ETC" /etc
mount -t tmpfs tmpfs /var/lib
ip link set lo up
try() {
    code=0
    output=$("$@" 2>&1) || code=$?
}
said() {
    text=$1
    shift
    try "$@"
    case $output in *"$text"*) ;; *) echo "$*: no \"$text\" in: $output" >&2; exit 1 ;; esac
}
unsaid() {
    text=$1
    shift
    try "$@"
    case $output in *"$text"*) echo "$*: \"$text\" is in: $output" >&2; exit 1 ;; esac
}
ended() {
    test "$code" = "$1" || { echo "it ended with $code and not $1: $output" >&2; exit 1; }
}
serve() {
    "$SETU" run "$@" 2>/etc/log &
    pid=$!
    for _ in $(seq 600); do
        ! grep -q "ready path=" /etc/log || return 0
        sleep 0.1
    done
    cat /etc/log >&2
    exit 1
}
"#;

/// Runs a script of sh as root on such a machine; `$SETU` is the binary. All that it leaves goes with it.
///
/// # Panics
/// When it fails, with what it said.
#[expect(clippy::print_stdout, reason = "what is skipped says so")]
pub fn on_a_private_machine(script: &str) {
    if !is_root() {
        return println!("skipped: a machine of its own takes root");
    }
    let etc = tempfile::tempdir().unwrap();
    for file in ["passwd", "group", "hosts", "nsswitch.conf"] {
        // A machine may do without some.
        let _ = fs::copy(format!("/etc/{file}"), etc.path().join(file));
    }
    fs::create_dir(etc.path().join("setu")).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-euc", &format!("{PRELUDE}{script}")])
        .env("ETC", etc.path())
        .env("SETU", Setu::binary())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said}\n{}",
        fs::read_to_string(etc.path().join("log")).unwrap_or_default()
    );
}
