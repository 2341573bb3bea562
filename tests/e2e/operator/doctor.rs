//! `setu doctor` and `setu status` before servers that play WhatsApp's: well, and wrong in each way that matters.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{self, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use setu_tests::{
    Setu,
    peers::{PATIENCE, Upstream, connect},
};
use tempfile::TempDir;

/// Certificates of an authority that only the test knows.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let authority = Self { folder };
        authority.openssl("ca", "/CN=Test authority", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, name: &str, subject: &str, more: &[&str]) {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-config", "openssl.cnf", "-subj", subject])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
            .args(more)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A TLS server with a certificate for a name.
    fn server(&self, name: &str) -> TlsServer {
        let alternative = format!("subjectAltName=DNS:{name}");
        let constraints = "basicConstraints=critical,CA:FALSE";
        let more = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", &alternative, "-addext", constraints];
        self.openssl("server", &format!("/CN={name}"), &more);
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-key", "server.key", "-www"])
            .current_dir(self.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| Some(line.unwrap().strip_prefix("ACCEPT ")?.to_owned()));
        let address = address.expect("openssl does not listen");
        // What it says later must go somewhere.
        thread::spawn(move || lines.for_each(drop));
        TlsServer { child, address }
    }
}

struct TlsServer {
    child: Child,
    address: String,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A setu before these servers, and the configuration with the addresses that it got.
fn start(chat: &str, media: &str, state: &path::Path) -> (Setu, String) {
    let listeners = [
        ("chat", "mode = \"chat\"\nupstream = \"chat\"\ngate = true"),
        ("proxied", "mode = \"chat\"\nupstream = \"chat\"\naccept_proxy_protocol = true"),
        ("tls", "mode = \"chat-tls\"\nupstream = \"chat\""),
        ("media", "mode = \"media\"\nupstream = \"media\""),
        ("all", "mode = \"auto\"\nchat = \"chat\"\nmedia = \"media\""),
    ];
    let mut text = format!(
        "[relay]\npath = \"userspace\"\n[upstream.chat]\nendpoints = [\"{chat}\"]\nsend_proxy_protocol = \"off\"\n\
         [upstream.media]\nendpoints = [\"{media}\"]\n[security]\nallow_private_upstreams = true\n\
         [tls]\nstate_dir = {state:?}\n[admin]\nbind = [\"127.0.0.1:0\"] # admin\n"
    );
    for (name, more) in listeners {
        text += &format!("[[listener]]\nname = \"{name}\"\nbind = [\"127.0.0.1:0\"] # {name}\n{more}\n");
    }
    let setu = Setu::start(&text);
    for (name, _) in listeners {
        text = text.replace(&format!("127.0.0.1:0\"] # {name}\n"), &format!("{}\"]\n", setu.address(name)));
    }
    text = text.replace("127.0.0.1:0\"] # admin", &format!("{}\"]", setu.admin()));
    (setu, text)
}

/// Runs the doctor; `roots` are the authorities of the machine. Returns whether all is well, and what it says.
fn doctor(config: &str, roots: &path::Path, more: &[&str]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setu.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(Setu::binary());
    command.args(["doctor", "--config"]).arg(&file).args(more);
    let output = command.env("SSL_CERT_FILE", roots).env_remove("SSL_CERT_DIR").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.len() > 500, "{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// The lines about one thing.
fn about<'a>(text: &'a str, what: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(what)).collect()
}

#[test]
fn all_is_well_and_then_one_thing_after_another_is_not() {
    let authority = Authority::new();
    let media = authority.server("mmg.whatsapp.net");
    let chat = Upstream::new();
    let address = chat.address();
    chat.echo();
    let state = tempfile::tempdir().unwrap();
    let (setu, config) = start(&address, &media.address, state.path());
    let roots = authority.file("ca.pem");

    let (well, text) = doctor(&config, &roots, &[]);
    assert!(well && !text.contains("FAIL"), "{text}");
    for listener in ["chat", "proxied", "all"] {
        let what = format!("ok    {listener} {}: chat: WhatsApp's server answered", setu.address(listener));
        assert_eq!(about(&text, &what).len(), 1, "{what}: {text}");
    }
    assert_eq!(about(&text, "chat inside TLS: WhatsApp's server answered").len(), 2, "{text}");
    assert_eq!(about(&text, "the TLS certificate is valid until").len(), 2, "{text}");
    let genuine = "whose certificate is genuine, judged by this machine's certification authorities (1)";
    assert_eq!(about(&text, genuine).len(), 2, "{text}");
    for what in ["has been running for", "and answers", "may wait to be accepted", "open files"] {
        assert!(text.contains(what), "{what} is missing: {text}");
    }

    // An authority that does not vouch for the server is as good as an impostor.
    let others = Authority::new();
    let (well, text) = doctor(&config, &others.file("ca.pem"), &[]);
    assert!(!well && about(&text, "FAIL").len() == 2, "{text}");
    assert_eq!(about(&text, "is not genuine").len(), 2, "{text}");
    // Without any the name alone is judged, and that is said.
    let (well, text) = doctor(&config, path::Path::new("/dev/null"), &["--host", "127.0.0.1"]);
    assert!(well && about(&text, "knows no certification authorities").len() == 2, "{text}");

    let (well, json) = doctor(&config, &roots, &["--json"]);
    assert!(well && json.contains("\"healthy\": true") && json.contains("\"verdict\": \"ok\""), "{json}");

    drop(setu);
    let (well, text) = doctor(&config, &roots, &[]);
    assert!(!well && text.contains("FAIL  setu is not running here"), "{text}");
    assert_eq!(about(&text, "not reachable").len(), 7, "{text}");
}

#[test]
fn an_impostor_and_a_server_without_an_answer_are_found() {
    let authority = Authority::new();
    let media = authority.server("impostor.example");
    // It takes every connection and closes it.
    let chat = Upstream::new();
    let address = chat.address();
    thread::spawn(move || {
        loop {
            drop(chat.accept());
        }
    });
    let state = tempfile::tempdir().unwrap();
    let (_setu, config) = start(&address, &media.address, state.path());
    let (well, text) = doctor(&config, &authority.file("ca.pem"), &[]);
    assert!(!well, "{text}");
    assert_eq!(about(&text, "no certificate for mmg.whatsapp.net").len(), 2, "{text}");
    assert_eq!(about(&text, "no answer to a client's hello").len(), 5, "{text}");
}

#[test]
fn status_tells_what_the_endpoint_tells() {
    let chat = Upstream::new();
    let address = chat.address();
    let state = tempfile::tempdir().unwrap();
    let (setu, _) = start(&address, &address, state.path());
    let _client = connect(setu.address("chat"));
    let run = |more: &[&str]| {
        let mut command = Command::new(Setu::binary());
        command.args(["status", "--admin", &setu.admin().to_string()]).args(more).output().unwrap()
    };
    // Until its servers have answered it starts, and says that by its exit code.
    let deadline = Instant::now() + PATIENCE;
    let mut output = run(&["--once"]);
    while output.status.code() == Some(4) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        output = run(&["--once"]);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.starts_with("working\n") && text.contains("\nsetu "), "{text}");
    let json = String::from_utf8_lossy(&run(&["--json"]).stdout).into_owned();
    assert!(json.contains("\"ready\": true") && json.contains("\"name\": \"media\""), "{json}");
    let nobody = Command::new(Setu::binary()).args(["status", "--admin", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("is setu running"));
}
