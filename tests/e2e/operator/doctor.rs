//! `setu doctor` and `setu status` before servers that play WhatsApp's: well, and wrong in each way that matters.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{ServerConfig, ServerConnection, pki_types::PrivateKeyDer};
use setu_tests::{
    Setu,
    dns::{Answer, DnsServer},
    network::{Network, PROXY, SERVERS, TO_CLIENTS},
    peers::{PATIENCE, Upstream, connect},
};
use tempfile::TempDir;

/// What one of WhatsApp's servers does.
#[derive(Clone, Copy)]
enum Plays {
    /// What it should.
    Well,
    /// It takes no connections.
    Dead,
    /// It takes each connection, and closes it once something is said.
    Mute,
    /// What a captive gateway says to everything.
    Gateway,
    /// It has a certificate for another name.
    Impostor,
    /// Its certificate ended long ago: the clock of who looks is wrong, or seems so.
    Expired,
}

/// An authority that the doctor trusts, and servers with its certificates.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn server(&self, name: &str, is_valid: bool) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if !is_valid {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap())
    }
}

/// What it says to everything.
fn gateway(stream: &TcpStream) {
    let _ = { stream }.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    let _ = stream.shutdown(Shutdown::Write);
    let _ = io::copy(&mut { stream }, &mut io::sink());
}

/// Serves each connection in this way, until the process ends.
fn serve(upstream: Upstream, each: impl Fn(TcpStream) + Send + Sync + Clone + 'static) {
    thread::spawn(move || {
        loop {
            let (stream, each) = (upstream.wait(), each.clone());
            thread::spawn(move || each(stream));
        }
    });
}

/// A server of WhatsApp's, with what it must not say before a client has spoken.
fn play(network: &Network, authority: &Authority, port: u16, plays: Plays) {
    if matches!(plays, Plays::Dead) {
        return;
    }
    let upstream = network.servers.within(|| Upstream::on(&format!("{}:{port}", SERVERS[0])));
    let (name, is_valid) = match plays {
        Plays::Well if port != 443 => return upstream.chat_server(),
        Plays::Gateway => return serve(upstream, |stream| gateway(&stream)),
        Plays::Mute => return serve(upstream, |stream| drop((&stream).read(&mut [0; 512]))),
        Plays::Well | Plays::Dead => ("mmg.whatsapp.net", true),
        Plays::Impostor => ("impostor.example", true),
        Plays::Expired => ("mmg.whatsapp.net", false),
    };
    let config = authority.server(name, is_valid);
    serve(upstream, move |mut stream| {
        let mut session = ServerConnection::new(config.clone()).unwrap();
        // Until the client goes.
        while session.complete_io(&mut stream).is_ok_and(|(read, wrote)| read + wrote > 0) {}
    });
}

/// A server as volunteers have it, with WhatsApp on one side and phones on the other.
struct World {
    network: Network,
    dns: DnsServer,
    folder: TempDir,
}

/// What stands below in the configuration: nothing, so that the default ports are served.
const DEFAULTS: &str = "";
const CHAT: &str =
    "[[listener]]\nname = \"chat\"\nbind = [\"0.0.0.0:443\"]\nmode = \"chat-tls\"\nupstream = \"chat\"\n";
const MEDIA: &str =
    "[[listener]]\nname = \"media\"\nbind = [\"0.0.0.0:587\"]\nmode = \"media\"\nupstream = \"media\"\n";
const ONE_PORT: &str = "[[listener]]\nname = \"all\"\nbind = [\"0.0.0.0:443\"]\nmode = \"auto\"\nchat = \"chat\"\nmedia = \"media\"\n";

impl World {
    /// With what WhatsApp's chat servers at 5222 and 80 do, and its media servers.
    fn new(chat: Plays, legacy: Plays, media: Plays, more: &str) -> Self {
        let network = Network::new();
        let authority = Authority::new();
        for (port, plays) in [(5222, chat), (80, legacy), (443, media)] {
            play(&network, &authority, port, plays);
        }
        let dns = network.servers.within(|| DnsServer::on(SERVERS[0]));
        for name in ["g.whatsapp.net", "whatsapp.net"] {
            dns.set(name, Answer::addresses(&[SERVERS[0]], 60));
        }
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[relay]\npath = \"userspace\"\n[security]\nallow_private_upstreams = true\nuser = \"root\"\n\
             [dns]\nservers = [\"{}\"]\n[tls]\nstate_dir = {:?}\n{more}",
            dns.address(),
            folder.path().join("state")
        );
        fs::write(folder.path().join("setu.toml"), config).unwrap();
        fs::write(folder.path().join("authority.pem"), authority.issuer.pem()).unwrap();
        Self { network, dns, folder }
    }

    fn well(more: &str) -> Self {
        Self::new(Plays::Well, Plays::Well, Plays::Well, more)
    }

    fn start(&self) -> Setu {
        let config = fs::read_to_string(self.folder.path().join("setu.toml")).unwrap();
        Setu::start_by(self.network.proxy.command(&Setu::binary().display().to_string()), &config, &[])
    }

    fn run(&self, mut command: Command) -> (Option<i32>, String) {
        command.env("SSL_CERT_FILE", self.folder.path().join("authority.pem")).env_remove("SSL_CERT_DIR");
        let output = command.output().unwrap();
        // Nothing may come before the first line, on a terminal neither.
        let text = [output.stderr, output.stdout].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code(), text)
    }

    /// The doctor on the server.
    fn inside(&self, more: &[&str]) -> (Option<i32>, String) {
        let mut command = self.network.proxy.command(&Setu::binary().display().to_string());
        command.args(["doctor", "--config"]).arg(self.folder.path().join("setu.toml")).args(more);
        self.run(command)
    }

    /// The doctor where phones are.
    fn outside(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.network.clients.command(&Setu::binary().display().to_string());
        command.args(["doctor", "--remote"]).args(arguments);
        self.run(command)
    }

    /// The same, on a machine that has this resolver.
    fn outside_by_name(&self, resolver: &str, name: &str) -> (Option<i32>, String) {
        let file = self.folder.path().join("resolv.conf");
        fs::write(&file, format!("nameserver {resolver}\n")).unwrap();
        let mut command = self.network.clients.command("unshare");
        command
            .args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""])
            .arg(&file);
        command.arg(Setu::binary()).args(["doctor", "--remote", name]);
        self.run(command)
    }
}

/// The first line, and the exit code.
fn is((code, text): (Option<i32>, String), wanted_code: i32, sentence: &str) -> String {
    assert_eq!((code, text.lines().next()), (Some(wanted_code), Some(sentence)), "{text}");
    text
}

/// The lines about one thing.
fn about<'a>(text: &'a str, what: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(what)).collect()
}

const WORKS: &str = "This server works: WhatsApp answers through its ports.";
const WORKS_OUTSIDE: &str = "This server works: phones can use it.";

#[test]
fn a_healthy_default_server_works_from_inside_and_from_outside() {
    let world = World::well(DEFAULTS);
    let setu = world.start();
    let text = is(world.inside(&[]), 0, WORKS);
    // Each thing once, and each port there.
    assert!(!text.contains("FAIL"), "{text}");
    for what in ["chat: WhatsApp's server answered", "whose certificate is genuine", "takes connections"] {
        assert_eq!(about(&text, what).len(), 1, "{what}: {text}");
    }
    for port in [443, 8443, 5222, 8222, 80, 8080, 587, 7777] {
        assert!(text.contains(&format!(" 127.0.0.1:{port}")), "{port}: {text}");
    }
    for what in ["has been running for", "may wait to be accepted", "open files"] {
        assert!(text.contains(what), "{what}: {text}");
    }
    let (code, json) = world.inside(&["--json"]);
    let has = |what: &str| json.contains(what);
    assert!(
        code == Some(0) && has("\"verdict\": \"works\"") && has("\"level\": \"ok\"") && has(WORKS),
        "{json}"
    );

    // From outside nothing is said of the machine that looks.
    let text = is(world.outside(&[PROXY]), 0, WORKS_OUTSIDE);
    for what in ["open files", "kernel", "clock is", "This machine", "FAIL"] {
        assert!(!text.contains(what), "{what}: {text}");
    }
    let link = format!("https://wa.me/proxy?host={PROXY}&chatPort=5222&mediaPort=7777&chatTLS=false");
    is(world.outside(&[&link]), 0, WORKS_OUTSIDE);
    world.network.lose(TO_CLIENTS, "tcp dport 587");
    is(world.outside(&[PROXY]), 24, "This server is fine, port 587 is closed from outside.");
    is(world.inside(&[]), 0, WORKS);
    world.network.mend();
    // What the link does not name may be closed.
    world.network.lose(TO_CLIENTS, "tcp dport { 80, 5222, 7777 }");
    let text = is(world.outside(&[PROXY]), 0, WORKS_OUTSIDE);
    assert_eq!(about(&text, "the link does not use it").len(), 1, "{text}");
    world.network.lose(TO_CLIENTS, "");
    let unreachable = "This server cannot be reached from here: none of its ports is open.";
    is(world.outside(&[PROXY]), 23, unreachable);
    drop(setu);
}

#[test]
fn a_machine_that_cannot_look_says_so_and_blames_nobody() {
    let world = World::well(DEFAULTS);
    let _setu = world.start();
    let dns = world.network.clients.within(|| DnsServer::at("127.0.0.53:53".parse().unwrap()));
    dns.set("proxy.example", Answer::addresses(&[PROXY], 60));
    is(world.outside_by_name("127.0.0.53", "proxy.example"), 0, WORKS_OUTSIDE);
    let unknown = "There is no server of this name: it has no address.";
    is(world.outside_by_name("127.0.0.53", "nobody.example"), 22, unknown);
    let no_dns = "Names do not resolve on this machine, so nothing can be said of the server: the network or the DNS \
                  here is down.";
    is(world.outside_by_name("127.0.0.54", "proxy.example"), 21, no_dns);
    world.network.clients.ip("link set proxy down");
    let no_network =
        "This machine has no way to the server, so nothing can be said of it: the network here is down.";
    is(world.outside(&[PROXY]), 20, no_network);
    is(world.outside_by_name("127.0.0.53", "proxy.example"), 20, no_network);
}

#[test]
fn each_thing_broken_in_turn_is_the_conclusion() {
    use Plays::{Dead, Expired, Gateway, Impostor, Mute, Well};
    let blocked = "cannot be reached from this server: its provider or a firewall is in the way.";
    let table = [
        (Dead, Dead, Well, 13, format!("WhatsApp's chat servers {blocked}"), 14),
        (Well, Well, Dead, 13, format!("WhatsApp's media servers {blocked}"), 14),
        (Dead, Dead, Dead, 13, format!("WhatsApp {blocked}"), 14),
        (Well, Dead, Well, 0, "This server works, but port 80 gets no answer from WhatsApp.".into(), 0),
        (
            Mute,
            Mute,
            Well,
            14,
            "WhatsApp's chat servers can be reached from this server, but no answer comes through setu.".into(),
            14,
        ),
        (Gateway, Gateway, Gateway, 15, "Something else answers in place of WhatsApp.".into(), 15),
        (Well, Well, Impostor, 15, "Something else answers in place of WhatsApp's media servers.".into(), 15),
        (
            Well,
            Well,
            Expired,
            17,
            "A certificate is not valid at this machine's time: the clock is wrong, or the certificate has ended."
                .into(),
            17,
        ),
    ];
    for (chat, legacy, media, code, sentence, code_outside) in table {
        let world = World::new(chat, legacy, media, DEFAULTS);
        let _setu = world.start();
        let text = is(world.inside(&[]), code, &sentence);
        // One cause is told once, however many ports it has.
        let told = about(&text, "FAIL").len() + about(&text, "for the reason above").len();
        assert!(told <= 3, "{text}");
        let (outside, text) = world.outside(&[PROXY]);
        assert_eq!(outside, Some(code_outside), "{sentence}: {text}");
    }
}

#[test]
fn dead_and_lying_names_are_the_conclusion() {
    let world = World::well(DEFAULTS);
    for name in ["g.whatsapp.net", "whatsapp.net"] {
        world.dns.set(name, Answer::Fails);
    }
    let setu = world.start();
    let text = is(world.inside(&[]), 12, "Names do not resolve on this server, so WhatsApp cannot be found.");
    assert_eq!((about(&text, "FAIL").len(), about(&text, "for the reason above").len()), (1, 1), "{text}");
    drop(setu);

    let world = World::well(DEFAULTS);
    let file = world.folder.path().join("setu.toml");
    let config = fs::read_to_string(&file).unwrap().replace("upstreams = true", "upstreams = false");
    fs::write(&file, config).unwrap();
    let _setu = world.start();
    let lies = "WhatsApp's names lead to addresses that are not public: the DNS of this server lies.";
    is(world.inside(&[]), 16, lies);
}

#[test]
fn a_setu_that_does_not_run_or_stops_is_the_conclusion() {
    let world = World::well("[timeouts]\ndrain = \"60s\"\n");
    let not_running = "setu is not running here.";
    let text = is(world.inside(&[]), 10, not_running);
    assert_eq!((about(&text, "FAIL").len(), about(&text, "for the reason above").len()), (1, 1), "{text}");
    is(world.outside(&[PROXY]), 23, "This server cannot be reached from here: none of its ports is open.");
    let mut setu = world.start();
    // One that stays, so that setu waits for its end; an answer shows that it is there.
    let mut client = world.network.clients.within(|| connect(format!("{PROXY}:5222").parse().unwrap()));
    client.write_all(b"WA\x06\x03\0\0\0").unwrap();
    client.read_exact(&mut [0]).unwrap();
    setu.signal("TERM");
    setu.wait_count("draining connections=1", 1);
    is(world.inside(&[]), 11, "setu is stopping: it takes no new connections.");
    drop(client);
    drop(setu);
    is(world.inside(&[]), 10, not_running);
}

#[test]
fn servers_with_other_ports_are_judged_by_these() {
    let world = World::well(ONE_PORT);
    let setu = world.start();
    is(world.inside(&[]), 0, WORKS);
    let link = format!("https://wa.me/proxy?host={PROXY}&chatPort=443&mediaPort=443&chatTLS=true");
    let text = is(world.outside(&[&link]), 0, WORKS_OUTSIDE);
    assert!(!text.contains("5222"), "what the link does not name is no matter: {text}");
    is(world.outside(&[PROXY, "--media-port", "443"]), 0, WORKS_OUTSIDE);
    // Who knows the host alone cannot know the port.
    let text =
        is(world.outside(&[PROXY]), 0, "This server works, but media comes in at port 443, as chat does.");
    assert!(!text.contains("FAIL"), "{text}");
    let closed = "This server is fine, port 587 is closed from outside.";
    is(world.outside(&[&format!("https://wa.me/proxy?host={PROXY}")]), 24, closed);
    is(world.outside(&[PROXY, "--media-port", "587"]), 24, closed);
    drop(setu);

    let world = World::well(CHAT);
    let setu = world.start();
    is(world.inside(&[]), 0, "This server works, but only for chat: none of its ports takes media.");
    is(world.outside(&[PROXY]), 24, "This server is fine, port 587 is closed from outside.");
    drop(setu);

    let world = World::well(MEDIA);
    let setu = world.start();
    is(world.inside(&[]), 0, "This server works, but only for media: none of its ports takes chat.");
    is(world.outside(&[PROXY]), 24, "This server is fine, port 443 is closed from outside.");
    drop(setu);
}

#[test]
fn the_machine_s_authorities_decide_who_is_whatsapp() {
    let world = World::well(MEDIA);
    let _setu = world.start();
    let file = world.folder.path().join("authority.pem");
    // An authority that does not vouch for the server is as good as an impostor.
    fs::write(&file, Authority::new().issuer.pem()).unwrap();
    let text = is(world.inside(&[]), 15, "Something else answers in place of WhatsApp's media servers.");
    assert_eq!(about(&text, "is not genuine").len(), 1, "{text}");
    // Without any the name alone is judged, and that is said.
    fs::write(&file, "").unwrap();
    let (code, text) = world.inside(&[]);
    assert!(code == Some(0) && text.contains("knows no certification authorities"), "{text}");
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    let run =
        |arguments: &[&str]| Command::new(Setu::binary()).arg("doctor").args(arguments).output().unwrap();
    for (arguments, named) in [
        (&["--remote", "a.example", "--config", "setu.toml"][..], "--config"),
        (&["--chat-port", "443"], "--remote"),
        (&["--remote", "a.example:443"], "--chat-port"),
        (&["--remote", "https://example.org/proxy?host=a.example"], "https://wa.me/proxy?host="),
    ] {
        let output = run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && errors.contains(named), "{arguments:?}: {errors}");
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
