//! What a running setu could still do. What is refused from inside is in the unit tests of `privilege`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, config,
    machine::is_root,
    nobody::Nobody,
    peers::{Manner, PATIENCE, Upstream, exchange, finish, receive, send},
};

crate::on_both_paths! {
    no_thread_keeps_a_privilege
}

/// The values of a line of /proc/PID/task/*/status, without repetition.
fn of_all_threads(setu: &Setu, key: &str) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", setu.pid())).unwrap();
    let texts = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    texts
        .map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn only<const N: usize>(values: [&str; N]) -> BTreeSet<String> {
    values.map(String::from).into()
}

const NONE: &str = "0000000000000000";

fn is_restricted(setu: &Setu) {
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(of_all_threads(setu, key), only([NONE]), "{key}");
    }
    assert_eq!(of_all_threads(setu, "NoNewPrivs"), only(["1"]));
    assert_eq!(of_all_threads(setu, "Seccomp"), only(["2"]));
    let dropped = setu.lines(|line| line.contains("privileges dropped user="));
    let [dropped] = &dropped[..] else { panic!("{dropped:?}: {}", setu.tail()) };
    assert!(dropped.contains(" seccomp=true"), "{dropped}");
    // Without securityfs nobody knows, and every kernel of today has it.
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_else(|_| "landlock".into());
    assert_eq!(dropped.contains("landlock=none"), !modules.contains("landlock"), "{dropped}");
}

fn no_thread_keeps_a_privilege(path: Path) {
    let upstream = Upstream::new();
    let setu = Setu::start(&config(path, &upstream.address(), ""));
    is_restricted(&setu);
    if is_root() {
        assert_eq!(of_all_threads(&setu, "CapBnd"), only([NONE]));
        assert_eq!(of_all_threads(&setu, "Groups"), only([""]));
        let users = of_all_threads(&setu, "Uid");
        assert!(users.len() == 1 && !users.iter().any(|ids| ids.split(' ').any(|id| id == "0")), "{users:?}");
    }
    // It still works, for bulk that leaves the kernel and comes back as well.
    let (client, server) = upstream.connect(setu.address("chat"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(&server, 1, 20_000_000, Manner::FAST);
            finish(&server);
        });
        assert_eq!(receive(&client, 1, Manner::UNEVEN), 20_000_000);
    });
    is_restricted(&setu);
}

#[test]
fn a_user_can_be_named() {
    if !is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "")
        .replace("[security]", "[security]\nuser = \"54321\"");
    let setu = Setu::start(&text);
    assert_eq!(of_all_threads(&setu, "Uid"), only(["54321 54321 54321 54321"]));
    assert_eq!(of_all_threads(&setu, "Gid"), only(["54321 54321 54321 54321"]));
}

/// Certificates are given to those who need them by a group.
#[test]
fn a_named_user_has_its_groups_but_roots() {
    if !is_root() {
        println!("skipped: only root becomes another user");
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let etc = folder.path().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(etc.join("passwd"), "root:x:0:0::/:/none\nproxy:x:54321:54320::/:/none\n").unwrap();
    fs::write(etc.join("group"), "root:x:0:proxy\nproxy:x:54320:\ncerts:x:54322:www,proxy\n").unwrap();
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=one.test"
                .split(' '),
        )
        .args(["-keyout", "tls.key", "-out", "tls.crt"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let key = folder.path().join("tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&key, Some(0), Some(54_322)).unwrap();

    let upstream = Upstream::new();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let keys = format!(
        "[tls]\nstate_dir = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        file("state"),
        file("tls.crt"),
        file("tls.key")
    );
    let text = config(Path::Userspace, &upstream.address(), &keys)
        .replace("mode = \"chat\"", "mode = \"chat-tls\"")
        .replace("[security]", "[security]\nuser = \"proxy\"");
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc; exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script]).arg(etc).arg(Setu::binary());
    let mut setu = Setu::start_by(command, &text, &[]);
    assert_eq!(of_all_threads(&setu, "Gid"), only(["54320 54320 54320 54320"]));
    assert_eq!(of_all_threads(&setu, "Groups"), only(["54322"]));
    assert_eq!(setu.count("cannot read it any more"), 0, "{}", setu.tail());
    setu.reload(&text);
    assert_eq!(setu.count("not reloaded"), 0, "{}", setu.tail());
}

#[test]
fn the_state_directory_goes_with_the_user() {
    if !is_root() {
        println!("skipped: only root becomes another user");
        return;
    }
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let more = format!("[tls]\nstate_dir = \"{}\"\n", state.display());
    let text = config(Path::Userspace, &upstream.address(), &more)
        .replace("mode = \"chat\"", "mode = \"chat-tls\"")
        .replace("[security]", "[security]\nuser = \"54321\"");
    // Twice: what the first wrote as its user, the second keeps.
    let mut certificates = BTreeSet::new();
    for _ in 0..2 {
        drop(Setu::start(&text));
        let file = state.join("certificate.pem");
        let owners = [&state, &file].map(|path| fs::metadata(path).unwrap().uid());
        assert_eq!(owners, [54321; 2]);
        certificates.insert(fs::read(file).unwrap());
    }
    assert_eq!(certificates.len(), 1);
}

/// What whoever has become setu's user has laid out in its folder leads root to nothing else.
#[test]
fn root_is_not_led_out_of_the_state_directory() {
    if !is_root() {
        println!("skipped: only root can be led to more than it is");
        return;
    }
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (state, roots) = (folder.path().join("state"), folder.path().join("roots"));
    fs::create_dir(&state).unwrap();
    fs::write(&roots, "root's own").unwrap();
    for name in ["certificate.pem", "handover.secret", "handover.sock"] {
        symlink(&roots, state.join(name)).unwrap();
    }
    // Names that an earlier version would have used for what it writes.
    for pid in process::id()..process::id() + 2_000 {
        symlink(&roots, state.join(format!("certificate.{pid}.tmp"))).unwrap();
    }
    chown(&state, Some(54_321), Some(54_321)).unwrap();
    let more = format!("[tls]\nstate_dir = \"{}\"\n", state.display());
    let text = config(Path::Userspace, &upstream.address(), &more)
        .replace("mode = \"chat\"", "mode = \"chat-tls\"")
        .replace("[security]", "[security]\nuser = \"54321\"");
    let file = folder.path().join("setu.toml");
    fs::write(&file, &text).unwrap();
    let renewed = Command::new(Setu::binary()).args(["cert", "new", "--config"]).arg(&file).output().unwrap();
    assert!(renewed.status.success(), "{renewed:?}");
    let certificate = state.join("certificate.pem");
    let made = fs::symlink_metadata(&certificate).unwrap();
    assert!(made.is_file() && made.uid() == 54_321);
    for name in ["certificate.pem", "handover.secret"] {
        fs::remove_file(state.join(name)).unwrap();
        symlink(&roots, state.join(name)).unwrap();
    }
    drop(Setu::start(&text));
    let (left, kept) = (fs::metadata(&roots).unwrap(), fs::symlink_metadata(&certificate).unwrap());
    assert_eq!((fs::read_to_string(&roots).unwrap().as_str(), left.uid()), ("root's own", 0));
    assert!(kept.is_file() && kept.uid() == 54_321);
}

#[test]
fn a_folder_that_others_use_is_no_state_directory() {
    if !is_root() {
        println!("skipped: only root gives folders away");
        return;
    }
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    let others = folder.path().join("another's");
    fs::write(&others, "").unwrap();
    chown(&others, Some(12_345), None).unwrap();
    let more = format!("[tls]\nstate_dir = \"{}\"\n", folder.path().display());
    let text = config(Path::Userspace, &upstream.address(), &more);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("setu.toml");
    let ask = |command: &str, text: &str| {
        fs::write(&file, text).unwrap();
        let output = Command::new("timeout")
            .arg("20")
            .arg(Setu::binary())
            .args([command, "--config"])
            .arg(&file)
            .output();
        let output = output.unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    for (command, expected) in [("run", 64), ("check", 1)] {
        let (code, said) = ask(command, &text);
        assert_eq!(code, Some(expected), "{said}");
        assert!(said.contains("tls.state_dir: ") && said.contains("\"another's\" in it"), "{said}");
        assert!(said.contains("/setu"), "it says what to write: {said}");
    }
    let owners = [folder.path(), &others].map(|path| fs::metadata(path).unwrap().uid());
    assert_eq!(owners, [0, 12_345]);
    // A folder in it is fine.
    let below = format!("{}/setu", folder.path().display());
    let (code, said) = ask("check", &text.replace(&folder.path().display().to_string(), &below));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("and keeps its state in"), "{said}");
}

/// Where there is no user `setu`, as here, it is one that nobody else is, and stays that one.
#[test]
fn a_user_without_a_name_is_nobody_elses() {
    if !is_root() || fs::read_to_string("/etc/passwd").unwrap().lines().any(|line| line.starts_with("setu:"))
    {
        println!("skipped: only root becomes another, and here there may be a user setu");
        return;
    }
    let upstream = Upstream::new();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let state = folder.path().join("state");
    let more = format!("[tls]\nstate_dir = \"{}\"\n", state.display());
    let text =
        config(Path::Userspace, &upstream.address(), &more).replace("mode = \"chat\"", "mode = \"chat-tls\"");
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let setu = Setu::start(&text);
        let users = of_all_threads(&setu, "Uid");
        assert_eq!(users.len(), 1);
        let user: u32 = users.first().unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((61_184..=65_519).contains(&user), "{user}");
        let files = ["", "certificate.pem", "handover.sock", "handover.secret"].map(|name| state.join(name));
        // The door opens right after it is ready.
        let deadline = Instant::now() + PATIENCE;
        while !files[2].exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(files.each_ref().map(|file| fs::symlink_metadata(file).unwrap().uid()), [user; 4]);
        // Every other service's nobody, and a process of another that has no name.
        for other in ["65534", "61184"] {
            let mut reach = Command::new("setpriv");
            reach.args(["--reuid", other, "--regid", other, "--clear-groups", "cat"]).arg(&files[1]);
            let output = reach.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(other == user.to_string() || said.contains("Permission denied"), "{output:?}");
        }
        seen.insert((user, fs::read(&files[1]).unwrap()));
    }
    assert_eq!(seen.len(), 1, "the user and the certificate stay");
}

#[test]
fn without_any_privilege_it_serves_in_userspace() {
    if !is_root() {
        println!("skipped: every other test runs without privileges already");
        return;
    }
    let nobody = Nobody::new();
    let upstream = Upstream::new();
    let text = config(Path::Userspace, &upstream.address(), "").replace("\"userspace\"", "\"auto\"");
    let setu = Setu::start_by(nobody.setu(), &text, &[]);
    assert_eq!(setu.count("ready path=userspace"), 1, "{}", setu.tail());
    is_restricted(&setu);
    let (client, server) = upstream.connect(setu.address("chat"));
    exchange(&client, &server, b"there");
    exchange(&server, &client, b"and back");
}
