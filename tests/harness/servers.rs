//! Real programs before and behind setu: HAProxy and nginx as servers, and whatever runs to its end.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

/// Seconds after which a program that should have ended is stopped.
const PATIENCE: &str = "60";

/// A program that serves on sockets which it inherits: nobody can take their ports before it does, and clients that come
/// before it is ready wait. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    addresses: Vec<SocketAddr>,
    folder: TempDir,
}

impl Server {
    /// HAProxy. The configuration is made from `bind` lines' addresses, one for each socket.
    #[must_use]
    pub fn haproxy<const SOCKETS: usize>(config: impl FnOnce([String; SOCKETS]) -> String) -> Self {
        let listeners = [(); SOCKETS].map(|()| listen());
        let text = config(listeners.each_ref().map(|listener| format!("fd@{}", listener.as_raw_fd())));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&file);
        Self::start(command, &listeners, folder)
    }

    /// nginx. `servers` is what stands in its `http` block, made from addresses to listen on.
    #[must_use]
    pub fn nginx<const SOCKETS: usize>(servers: impl FnOnce([SocketAddr; SOCKETS]) -> String) -> Self {
        let listeners = [(); SOCKETS].map(|()| listen());
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "daemon off; user root; pid {0}/pid; error_log {0}/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; client_max_body_size 64m; client_body_temp_path {0}/body;\n\
             proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
             root {0};\n{1}\n}}\n",
            folder.path().display(),
            servers(listeners.each_ref().map(|listener| listener.local_addr().unwrap()))
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        // So nginx hands its sockets to its successor when it is upgraded (src/core/nginx.c, ngx_add_inherited_sockets).
        let inherited: String =
            listeners.iter().map(|listener| format!("{};", listener.as_raw_fd())).collect();
        command.env("NGINX", inherited).arg("-c").arg(&file).arg("-e").arg(folder.path().join("error.log"));
        Self::start(command, &listeners, folder)
    }

    fn start(mut command: Command, listeners: &[TcpListener], folder: TempDir) -> Self {
        inherit(&mut command, listeners);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("a program is missing: cargo xtask setup");
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        Self { child, addresses, folder }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self, socket: usize) -> SocketAddr {
        self.addresses[socket]
    }

    /// Its folder, which is the root of nginx's files.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // TERM, so that nginx's master stops its worker. Errors mean that it has ended already.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Leaves these sockets open in the child, and in no other.
#[expect(unsafe_code, reason = "the standard library has no other way to let a child inherit a socket")]
fn inherit(command: &mut Command, listeners: &[TcpListener]) {
    let descriptors: Vec<_> = listeners.iter().map(TcpListener::as_raw_fd).collect();
    let keep = move || {
        for descriptor in &descriptors {
            // SAFETY: the call takes numbers only, and is one that may be made between fork and exec.
            if unsafe { libc::fcntl(*descriptor, libc::F_SETFD, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `keep` allocates nothing and takes no lock.
    unsafe { command.pre_exec(keep) };
}

/// A program's output, as text.
#[derive(Debug)]
pub struct Ended {
    /// Whether it ended well.
    pub success: bool,
    /// Its exit code, if no signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub output: String,
    /// What it wrote to standard error.
    pub errors: String,
}

/// Starts a program, with its children, that is stopped when it takes too long. What comes of it, [`finish`] tells.
#[must_use]
pub fn start(program: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", PATIENCE, program]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end of what [`start`] started. Its input stays open: some programs leave when theirs ends.
#[must_use]
pub fn finish(mut child: Child) -> Ended {
    let input = child.stdin.take();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    drop(input);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { success: status.success(), code: status.code(), output: text(stdout), errors: text(stderr) }
}

/// Runs a program to its end.
#[must_use]
pub fn run(program: &str, arguments: &[&str]) -> Ended {
    finish(start(program, arguments))
}

/// Has Chromium show a page, and returns the document as it then is. It knows no host but `host`, which is at `at`, and
/// takes any certificate.
#[must_use]
pub fn browse(url: &str, host: &str, at: SocketAddr) -> Ended {
    let profile = tempfile::tempdir().unwrap();
    run(
        "chromium",
        &[
            "--headless",
            // Nothing but this machine's own pages is shown, and root has no sandbox.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--ignore-certificate-errors",
            &format!("--user-data-dir={}", profile.path().display()),
            &format!("--host-resolver-rules=MAP {host} {at}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
            "--dump-dom",
            url,
        ],
    )
}
