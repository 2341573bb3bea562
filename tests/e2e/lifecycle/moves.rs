//! Files that move while setu runs, behind a sandbox that was made at its start; and what a reload asks of a setu that has
//! given up its rights, or is in its own way.

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    net::{SocketAddr, SocketAddrV6, TcpStream},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path as File,
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Path, Setu, config,
    dns::{Answer, DnsServer},
    front_door, listener,
    machine::{is_root, quiet_port},
    netns::Netns,
    peers::{Upstream, exchange},
    servers, upstream,
};
use tempfile::TempDir;

/// Longer than any look at a file takes to come.
const PATIENCE: Duration = Duration::from_secs(25);

fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(300));
    }
    true
}

/// A folder that every user may read, where neither the configurations of tests are nor anything that setu reads anyway.
fn folder() -> TempDir {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn put(file: &File, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// Makes a link lead there in one step, as those do who care.
fn repoint(link: &File, target: impl AsRef<File>) {
    let new = link.with_extension("new");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// A small machine: a network, a resolver, and folders in the place of /etc and /run.
struct Machine {
    network: Netns,
    etc: TempDir,
    run: TempDir,
    _dns: DnsServer,
    upstream: String,
}

/// Not 127.0.0.1, which is asked when none is named.
const GOOD: &str = "nameserver 127.0.0.53\n";
/// Where a service keeps it.
const TARGET: &str = "/run/service/stub/resolv.conf";
/// Nobody is there.
const DEAD: &str = "nameserver 127.0.0.77\n";

impl Machine {
    fn new() -> Self {
        Self::with_resolver("127.0.0.53")
    }

    fn with_resolver(ip: &str) -> Self {
        let (network, etc, run) = (Netns::alone(), folder(), folder());
        for file in ["passwd", "group"] {
            fs::copy(format!("/etc/{file}"), etc.path().join(file)).unwrap();
        }
        put(&etc.path().join("hosts"), "127.0.0.1 localhost\n");
        put(&etc.path().join("nsswitch.conf"), "hosts: files dns\n");
        let (dns, upstream) = network.within(|| {
            let upstream = Upstream::new();
            let port = upstream.address().rsplit_once(':').unwrap().1.to_owned();
            upstream.echo();
            (DnsServer::at(format!("{ip}:53").parse().unwrap()), format!("chat.test:{port}"))
        });
        dns.set("chat.test", Answer::addresses(&["127.0.0.1"], 60));
        Self { network, etc, run, _dns: dns, upstream }
    }

    fn start(&self) -> Setu {
        let mut command = self.network.command("unshare");
        let script = "mount --bind \"$0\" /etc; mount --bind \"$1\" /run; shift; exec \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
        command.arg(self.etc.path()).arg(self.run.path()).arg(Setu::binary());
        Setu::start_by(command, &config(Path::Userspace, &self.upstream, ""), &[])
    }

    /// Whether a client is served: its name is found.
    fn is_served(&self, at: SocketAddr) -> bool {
        self.network.within(|| {
            let Ok(mut client) = TcpStream::connect(at) else { return false };
            client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let mut answer = [0; 5];
            client.write_all(b"hello").is_ok()
                && client.read_exact(&mut answer).is_ok()
                && &answer == b"hello"
        })
    }
}

/// `resolv.conf` is often a link to what a service writes, which may come, or come anew, when setu runs already.
#[test]
fn a_resolv_conf_that_comes_or_moves_is_followed() {
    if !is_root() {
        println!("skipped: mounts and a network of its own take root");
        return;
    }
    type Step = fn(&File, &File);
    let nothing: Step = |_, _| {};
    let cases: [(&str, Step, Step); 5] = [
        ("it was there all the time", |link, _| put(link, GOOD), nothing),
        ("it is written", nothing, |link, _| put(link, GOOD)),
        (
            "what it is a link to is written",
            |link, _| symlink(TARGET, link).unwrap(),
            |_, target| put(target, GOOD),
        ),
        (
            "it becomes a link",
            |link, _| put(link, DEAD),
            |link, target| {
                put(target, GOOD);
                repoint(link, TARGET);
            },
        ),
        (
            "the folder of what it is a link to is made anew",
            |link, target| {
                put(target, DEAD);
                symlink(TARGET, link).unwrap();
            },
            |_, target| {
                fs::remove_dir_all(target.parent().unwrap().parent().unwrap()).unwrap();
                put(target, GOOD);
            },
        ),
    ];
    for (name, before, later) in cases {
        let machine = Machine::new();
        let link = machine.etc.path().join("resolv.conf");
        let target = machine.run.path().join("service/stub/resolv.conf");
        before(&link, &target);
        let setu = machine.start();
        let at = setu.address("chat");
        if name != "it was there all the time" {
            assert!(!machine.is_served(at), "{name}: there is no resolver yet");
        }
        later(&link, &target);
        assert!(eventually(|| machine.is_served(at)), "{name}: {}", setu.tail());
    }
}

/// As glibc does it.
#[test]
fn without_a_resolver_this_machine_is_asked() {
    if !is_root() {
        println!("skipped: mounts and a network of its own take root");
        return;
    }
    for text in [None, Some(""), Some("search a.test\nnameserver nobody\n")] {
        let machine = Machine::with_resolver("127.0.0.1");
        if let Some(text) = text {
            put(&machine.etc.path().join("resolv.conf"), text);
        }
        let setu = machine.start();
        let at = setu.address("chat");
        assert!(eventually(|| machine.is_served(at)), "{text:?}: {}", setu.tail());
    }
}

/// A router's link-local address is often that of a resolver, and an interface may come when setu runs already.
#[test]
fn a_resolver_behind_an_interface_is_asked_once_that_is_there() {
    if !is_root() {
        println!("skipped: mounts and a network of its own take root");
        return;
    }
    for comes_late in [false, true] {
        let machine = Machine::new();
        put(&machine.etc.path().join("resolv.conf"), "nameserver fe80::1%uplink\n");
        let come = || {
            machine.network.ip("link add uplink type veth peer name router");
            machine.network.ip("link set router up");
            machine.network.ip("link set uplink up");
            machine.network.ip("address add fe80::1/64 dev uplink nodad");
            machine.network.within(|| {
                let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
                let line = addresses.lines().find(|line| line.ends_with(" uplink")).unwrap();
                let number = u32::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
                let dns = DnsServer::at(SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, number).into());
                dns.set("chat.test", Answer::addresses(&["127.0.0.1"], 60));
                dns
            })
        };
        let there = (!comes_late).then(come);
        let setu = machine.start();
        let at = setu.address("chat");
        let there = there.unwrap_or_else(|| {
            assert!(!machine.is_served(at), "there is no such interface yet");
            come()
        });
        assert!(eventually(|| machine.is_served(at)), "late: {comes_late}: {}", setu.tail());
        assert!(there.queries() > 0);
    }
}

#[test]
fn the_hosts_file_has_the_turn_that_nsswitch_gives_it() {
    if !is_root() {
        println!("skipped: mounts and a network of its own take root");
        return;
    }
    for (order, is_served) in [("files dns", false), ("dns files", true), ("dns", true)] {
        let machine = Machine::new();
        put(&machine.etc.path().join("resolv.conf"), GOOD);
        put(&machine.etc.path().join("nsswitch.conf"), &format!("hosts: {order}\n"));
        // Nobody is there.
        put(&machine.etc.path().join("hosts"), "127.0.0.9 chat.test\n");
        let setu = machine.start();
        assert_eq!(machine.is_served(setu.address("chat")), is_served, "{order}: {}", setu.tail());
    }
}

/// `tls.crt` and `tls.key` for a name.
fn certificate(folder: &File, name: &str) {
    fs::create_dir_all(folder).unwrap();
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj \"/CN=$1\" \
                    -keyout tls.key -out tls.crt; chmod 644 tls.key";
    let folder = folder.to_str().unwrap();
    let made = servers::run("sh", &["-ec", &format!("cd {folder}; {script}"), "sh", name]);
    assert!(made.success, "{made:?}");
}

/// Whom the certificate that clients are shown is about.
fn subject(at: SocketAddr) -> String {
    let script =
        format!("openssl s_client -connect {at} </dev/null 2>/dev/null | openssl x509 -noout -subject");
    servers::run("sh", &["-c", &script]).output.trim().replace(' ', "").replace("subject=CN=", "")
}

/// With this in `[tls]`.
fn tls(state: &File, keys: &str) -> String {
    let more = [
        keys.to_owned(),
        listener("tls", "mode = \"chat-tls\"\nupstream = \"test\""),
        upstream("test", "127.0.0.1:1", "off"),
    ];
    front_door(Path::Userspace, &state.join("kept"), &more.concat())
}

fn files(folder: &File) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!("certificate = \"{}\"\nkey = \"{}\"\n", file("tls.crt"), file("tls.key"))
}

/// Certificate managers renew by pointing a link elsewhere, or by putting another folder in the old one's place.
#[test]
fn a_certificate_behind_a_link_that_moves_is_taken_up() {
    type Step = fn(&File);
    let cases: [(&str, Step, Step); 4] = [
        (
            "the files are replaced",
            |folder| fs::rename(folder.join("one"), folder.join("live")).unwrap(),
            |folder| certificate(&folder.join("live"), "two.test"),
        ),
        (
            "the folder is a link",
            |folder| symlink("one", folder.join("live")).unwrap(),
            |folder| repoint(&folder.join("live"), "two"),
        ),
        (
            "the files are links",
            |folder| {
                fs::create_dir(folder.join("live")).unwrap();
                for file in ["tls.crt", "tls.key"] {
                    symlink(format!("../one/{file}"), folder.join("live").join(file)).unwrap();
                }
            },
            |folder| {
                for file in ["tls.crt", "tls.key"] {
                    repoint(&folder.join("live").join(file), format!("../two/{file}"));
                }
            },
        ),
        (
            "the folder is replaced",
            |folder| fs::rename(folder.join("one"), folder.join("live")).unwrap(),
            |folder| {
                fs::rename(folder.join("live"), folder.join("old")).unwrap();
                fs::rename(folder.join("two"), folder.join("live")).unwrap();
            },
        ),
    ];
    thread::scope(|scope| {
        for (name, before, later) in cases {
            scope.spawn(move || {
                let (state, folder) = (folder(), folder());
                for name in ["one", "two"] {
                    certificate(&folder.path().join(name), &format!("{name}.test"));
                }
                before(folder.path());
                let setu = Setu::start(&tls(state.path(), &files(&folder.path().join("live"))));
                let at = setu.address("tls");
                assert_eq!(subject(at), "one.test", "{name}");
                later(folder.path());
                assert!(eventually(|| subject(at) == "two.test"), "{name}: {}", setu.tail());
            });
        }
    });
}

/// Where the sandbox ends is said, and not that somebody should let setu's user read what he may read.
#[test]
fn a_certificate_beyond_the_sandbox_takes_a_restart() {
    if !is_root() {
        println!("skipped: the sandbox is made as root");
        return;
    }
    let (beyond, state) = (folder(), folder());
    certificate(beyond.path(), "new.test");
    let mut setu = Setu::start(&tls(state.path(), ""));
    let at = setu.address("tls");
    let before = subject(at);
    setu.reload(&tls(state.path(), &files(beyond.path())));
    let said = setu.lines(|line| line.contains("not reloaded"));
    assert!(said.len() == 1 && said[0].contains("does not reach there: restart setu"), "{}", setu.tail());
    assert!(!said[0].contains("let setu's user read it"), "{said:?}");
    assert_eq!(subject(at), before);

    // Beside it: one where setu may look, and one that setu's user may not read, whatever the sandbox.
    let near = tempfile::tempdir_in(setu.configuration().parent().unwrap()).unwrap();
    fs::set_permissions(near.path(), Permissions::from_mode(0o755)).unwrap();
    certificate(near.path(), "near.test");
    fs::set_permissions(near.path().join("tls.key"), Permissions::from_mode(0o600)).unwrap();
    setu.reload(&tls(state.path(), &files(near.path())));
    assert_eq!(setu.count("tls.key: cannot be read"), 1, "{}", setu.tail());
    assert_eq!(setu.count("let setu's user read it"), 1, "{}", setu.tail());
    fs::set_permissions(near.path().join("tls.key"), Permissions::from_mode(0o644)).unwrap();
    setu.reload(&tls(state.path(), &files(near.path())));
    assert_eq!(subject(at), "near.test", "{}", setu.tail());
}

/// A folder that was removed and made anew is not the one that the rule is for, whatever its name.
#[test]
fn a_folder_that_was_made_anew_is_beyond_the_sandbox() {
    if !is_root() {
        println!("skipped: the sandbox is made as root");
        return;
    }
    let (around, state) = (folder(), folder());
    let (removed, deep) = (around.path().join("p/q"), around.path().join("p/q/r"));
    certificate(&deep, "one.test");
    let text = tls(state.path(), &files(&deep));
    let mut setu = Setu::start(&text);
    fs::remove_dir_all(removed).unwrap();
    certificate(&deep, "two.test");
    setu.reload(&text);
    let said = setu.lines(|line| line.contains("not reloaded"));
    assert!(said.len() == 1 && said[0].contains("does not reach there: restart setu"), "{}", setu.tail());
}

/// The configuration and resolv.conf may become links as well.
#[test]
fn other_files_beyond_the_sandbox_take_a_restart() {
    if !crate::may_use_kernel() {
        return;
    }
    const SAID: &str = "the sandbox that setu made at its start does not reach there: restart setu";
    let (machine, beyond) = (Machine::new(), folder());
    put(&machine.etc.path().join("resolv.conf"), GOOD);
    let mut setu = machine.start();
    assert!(machine.is_served(setu.address("chat")));
    put(&beyond.path().join("resolv.conf"), DEAD);
    repoint(&machine.etc.path().join("resolv.conf"), beyond.path().join("resolv.conf"));
    assert!(eventually(|| setu.count(SAID) == 1), "{}", setu.tail());
    assert!(setu.lines(|line| line.contains(SAID))[0].contains("/etc/resolv.conf cannot be read"));

    let text = fs::read_to_string(setu.configuration()).unwrap();
    put(&beyond.path().join("setu.toml"), &text);
    repoint(setu.configuration(), beyond.path().join("setu.toml"));
    setu.reload(&text);
    let said = setu.lines(|line| line.contains("not reloaded"));
    assert!(said.len() == 1 && said[0].contains(SAID), "{said:?}");
}

/// setu is in its own way, and says so.
#[test]
fn a_reload_between_a_wildcard_and_one_address_takes_a_restart() {
    let upstream = Upstream::new();
    let port = quiet_port();
    let text = |ip: &str| {
        config(Path::Userspace, &upstream.address(), "").replace("127.0.0.1:0", &format!("{ip}:{port}"))
    };
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    for (from, to, is_done) in [
        ("0.0.0.0", "127.0.0.1", false),
        ("127.0.0.1", "0.0.0.0", false),
        // The same port of another address is no obstacle.
        ("127.0.0.2", "127.0.0.1", true),
    ] {
        let mut setu = Setu::start(&text(from));
        setu.reload(&text(to));
        let own = format!("port {port} is this setu's own already");
        let said = setu.lines(|line| line.contains(&own) && line.contains("restart setu"));
        assert_eq!(said.len(), usize::from(!is_done), "{from} to {to}: {}", setu.tail());
        assert_eq!(setu.count("stop that"), 0, "{from} to {to}: {}", setu.tail());
        let (client, server) = upstream.connect(at);
        exchange(&client, &server, b"served either way");
        drop(setu);
    }
}

/// setu was root, and is not any more: to run it as root is no advice.
#[test]
fn a_low_port_by_a_reload_takes_a_restart() {
    if !is_root() {
        println!("skipped: without root there is no right to give up");
        return;
    }
    let network = Netns::alone();
    let text = |port: u16| {
        config(Path::Userspace, "127.0.0.1:1", "").replace("127.0.0.1:0", &format!("127.0.0.1:{port}"))
    };
    let mut setu = Setu::start_in(&text(5222), Some(&network));
    setu.reload(&text(81));
    let said = setu.lines(|line| line.contains("not reloaded"));
    assert!(
        said.len() == 1 && said[0].contains("port 81 any more") && said[0].contains("restart setu"),
        "{said:?}"
    );
    assert!(!said[0].contains("run as root") && !said[0].contains("setcap"), "{said:?}");
    // A high one is taken, and the low one by a new start.
    setu.reload(&text(8081));
    assert_eq!(setu.address("chat").port(), 8081);
    drop(setu);
    assert_eq!(Setu::start_in(&text(81), Some(&network)).address("chat").port(), 81);
}
