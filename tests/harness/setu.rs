//! The real binary.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tempfile::NamedTempFile;

use crate::netns::Netns;

/// How long starting and stopping may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The path that setu is made to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// In the kernel.
    Sockmap,
    /// In the process.
    Userspace,
    /// As packets.
    Wire,
    /// Wherever setu finds it best, the wire aside: [`Path::Wire`] is that.
    Auto,
}

impl Path {
    /// Its name in configuration and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sockmap => "sockmap",
            Self::Userspace => "userspace",
            Self::Wire => "wire",
            Self::Auto => "auto",
        }
    }
}

/// A configuration with one chat listener before `upstream`, to which nobody connects before a client comes; `more` is put
/// below.
#[must_use]
pub fn config(path: Path, upstream: &str, more: &str) -> String {
    let wire = if path == Path::Auto { "[wire]\nauto = false\n" } else { "" };
    format!(
        "[relay]\npath = \"{}\"\n{wire}[[listener]]\nname = \"chat\"\nbind = [\"127.0.0.1:0\"]\nmode = \"chat\"\n\
         upstream = \"test\"\n[upstream.test]\nendpoints = [\"{upstream}\"]\n\
         [security]\nallow_private_upstreams = true\n[admin]\nbind = []\nready_after = \"0s\"\n{more}",
        path.name()
    )
}

/// As [`config`], of several listeners, which `more` has, without limits for those who all come from loopback.
#[must_use]
pub fn front_door(path: Path, state: &std::path::Path, more: &str) -> String {
    format!(
        "[relay]\npath = \"{}\"\n[security]\nallow_private_upstreams = true\n[admin]\nbind = []\nready_after = \"0s\"\n\
         [limits]\nper_source = 0\nper_source_rate = 0\n[tls]\nstate_dir = \"{}\"\n{more}",
        path.name(),
        state.display()
    )
}

/// A listener on loopback, for [`front_door`].
#[must_use]
pub fn listener(name: &str, keys: &str) -> String {
    format!("[[listener]]\nname = \"{name}\"\nbind = [\"127.0.0.1:0\"]\n{keys}\n")
}

/// An upstream of one endpoint, for [`front_door`].
#[must_use]
pub fn upstream(name: &str, endpoint: impl Display, proxy_protocol: &str) -> String {
    format!("[upstream.{name}]\nendpoints = [\"{endpoint}\"]\nsend_proxy_protocol = \"{proxy_protocol}\"\n")
}

/// For [`config`]: no limits for each source, since all clients of a test may come from one address.
pub const ONE_SOURCE: &str = "[limits]\nper_source = 0\nper_source_rate = 0\n";

/// Ends of connections that mean that setu found no endpoint, or has a defect.
pub const NOT_PLACED: [&str; 7] = [
    "connect_refused",
    "connect_unreachable",
    "connect_timeout",
    "upstream_down",
    "resolve_failed",
    "out_of_resources",
    "internal_error",
];

/// A running setu. Dropping it kills it.
#[derive(Debug)]
pub struct Setu {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    config: NamedTempFile,
}

impl Setu {
    /// Starts setu and waits until it is ready.
    #[must_use]
    pub fn start(config: &str) -> Self {
        Self::start_in(config, None)
    }

    /// As [`Self::start`], in a network namespace.
    #[must_use]
    pub fn start_in(config: &str, namespace: Option<&Netns>) -> Self {
        Self::start_with_log(config, namespace, "debug")
    }

    /// As [`Self::start_in`], with a level of logging: `debug` has a line for each connection's end.
    #[must_use]
    pub fn start_with_log(config: &str, namespace: Option<&Netns>, level: &str) -> Self {
        Self::start_logging(config, namespace, &format!("setu={level}"))
    }

    /// As [`Self::start_in`], with another filter of the log; it must let through what `info` does.
    #[must_use]
    pub fn start_logging(config: &str, namespace: Option<&Netns>, filter: &str) -> Self {
        let mut command = match namespace {
            Some(namespace) => namespace.command(&Self::binary().display().to_string()),
            None => Command::new(Self::binary()),
        };
        command.env("SETU_LOG", filter);
        Self::start_by(command, config, &[])
    }

    /// As [`Self::start`], by a command that takes the arguments of setu, and with more of them.
    #[must_use]
    pub fn start_by(mut command: Command, config: &str, more: &[&str]) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        // The user that setu becomes must be able to read it again.
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        file.write_all(config.as_bytes()).unwrap();
        command.args(["run", "--config"]).arg(file.path()).args(more);
        if !command.get_envs().any(|(key, _)| key == "SETU_LOG") {
            command.env("SETU_LOG", "setu=debug");
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let mut setu = Self { child, log, config: file };
        setu.wait_for(PATIENCE, "ready", |line| line.contains("ready path="));
        setu
    }

    /// Writes another configuration and has setu reload it. Returns when it has, or has refused to.
    pub fn reload(&mut self, config: &str) {
        let seen = self.count("reloaded");
        fs::write(self.config.path(), config).unwrap();
        self.signal("HUP");
        self.wait_count("reloaded", seen + 1);
    }

    /// The binary under test.
    #[must_use]
    pub fn binary() -> PathBuf {
        std::env::var_os("SETU_BIN").map(PathBuf::from).unwrap_or_else(|| {
            let test = std::env::current_exe().unwrap();
            let found = test.ancestors().nth(2).unwrap().join("setu");
            assert!(found.exists(), "no setu: set SETU_BIN, or run the tests by `cargo xtask test`");
            found
        })
    }

    /// Where a listener can be reached.
    #[must_use]
    pub fn address(&self, listener: &str) -> SocketAddr {
        let prefix = format!("listening listener={listener} address=");
        let log = self.log.lock().unwrap();
        let line = log
            .iter()
            .rev()
            .find_map(|line| line.split_once(&prefix))
            .expect("the listener is not in the log");
        line.1.trim().parse().unwrap()
    }

    /// Where its admin endpoint can be reached; the first, when there are several.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        let log = self.log.lock().unwrap();
        let line = log.iter().find_map(|line| line.split_once("admin endpoint address="));
        line.expect("the admin endpoint is not in the log").1.trim().parse().unwrap()
    }

    /// All that it has written to its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// What it writes to its log, also after its end.
    #[must_use]
    pub fn transcript(&self) -> Arc<Mutex<Vec<String>>> {
        self.log.clone()
    }

    /// The file of its configuration.
    #[must_use]
    pub fn configuration(&self) -> &std::path::Path {
        self.config.path()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until so many connections have ended for this reason.
    pub fn wait_closed(&mut self, reason: &str, count: usize) {
        self.wait_count(&format!("closed reason={reason} "), count);
    }

    /// Waits until so many lines of the log have this.
    pub fn wait_count(&mut self, needle: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(needle) < count {
            let seen = self.count(needle);
            assert!(Instant::now() < deadline, "expected {count} of {needle:?}, saw {seen}\n{}", self.tail());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many lines of the log have this.
    #[must_use]
    pub fn count(&self, needle: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(needle)).count()
    }

    /// Lines of the log.
    #[must_use]
    pub fn lines(&self, matches: impl Fn(&str) -> bool) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| matches(line)).cloned().collect()
    }

    /// The end of the log, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log.lock().unwrap();
        let errors = log.iter().filter(|line| line.contains("ERROR")).take(5);
        let end = &log[log.len().saturating_sub(20)..];
        errors.chain(end).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Waits until setu has ended by itself, and returns as [`Self::stop`] does.
    pub fn ended(mut self) -> (ExitStatus, BTreeMap<String, u64>) {
        self.outcome()
    }

    /// Sends SIGTERM, and returns how setu ended and how many connections ended for each reason.
    pub fn stop(mut self) -> (ExitStatus, BTreeMap<String, u64>) {
        self.signal("TERM");
        self.outcome()
    }

    fn outcome(&mut self) -> (ExitStatus, BTreeMap<String, u64>) {
        let status = self.wait();
        let deadline = Instant::now() + PATIENCE;
        while self.count("stopped") == 0 && status.success() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let log = self.log.lock().unwrap();
        let reasons = log.iter().filter_map(|line| {
            let (reason, count) = line.split_once("closed connections reason=")?.1.split_once(" count=")?;
            Some((reason.to_owned(), count.trim().parse().ok()?))
        });
        (status, reasons.collect())
    }

    /// Kills setu as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end, not for ever.
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "setu does not stop\n{}", self.tail());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for(&mut self, patience: Duration, what: &str, found: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + patience;
        while !self.log.lock().unwrap().iter().any(|line| found(line)) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "setu is not {what}: {ended:?}\n{}",
                self.tail()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A number of /proc/PID/status, `VmRSS` in KiB, say.
    #[must_use]
    pub fn status(&self, key: &str) -> u64 {
        number(&fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap(), key)
    }

    /// Context switches of all its threads.
    #[must_use]
    pub fn context_switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let texts = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        texts
            .map(|text| {
                number(&text, "voluntary_ctxt_switches") + number(&text, "nonvoluntary_ctxt_switches")
            })
            .sum()
    }

    /// The number that its next descriptor will have.
    #[must_use]
    pub fn next_descriptor(&self) -> usize {
        let folder = PathBuf::from(format!("/proc/{}/fd", self.pid()));
        (0..).find(|number| folder.join(number.to_string()).symlink_metadata().is_err()).unwrap()
    }

    /// Its ends of pipes.
    #[must_use]
    pub fn pipes(&self) -> usize {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        // One may be closed meanwhile.
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
    }

    /// Processor time that it has used, in ticks: hundredths of a second.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name may hold spaces. After it, utime and stime are the 12th and the 13th (proc(5)).
        let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
        fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// Its open descriptors, once there are no more: workers take their reserves when they accept, which may be after setu
    /// is ready.
    #[must_use]
    pub fn descriptors_at_rest(&self) -> usize {
        let mut before = 0;
        loop {
            let now = self.descriptors();
            if now == before {
                return now;
            }
            before = now;
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Its open descriptors.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Setu {
    fn drop(&mut self) {
        // Where flows are on the wire its keeper would outlive it, and the test.
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        // Errors mean that they have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in children.split_whitespace() {
            let _ = Command::new("kill").args(["-s", "KILL", child]).stderr(Stdio::null()).status();
        }
    }
}

fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect("no such key");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
