//! What is measured: setu in each of its paths, and what people use instead.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use setu_tests::{Path, Setu, config};
use tempfile::TempDir;

/// In the order of the report.
pub(crate) const NAMES: [&str; 5] =
    ["direct", "haproxy-reference", "nginx", "setu-sockmap", "setu-userspace"];

/// A running forwarder to one upstream. Dropping it stops it.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    running: Running,
}

enum Running {
    Nothing,
    Setu(Setu),
    Other { child: Child, _folder: TempDir },
}

impl Peer {
    /// Starts one of [`NAMES`] before an upstream on loopback.
    pub(crate) fn start(name: &'static str, upstream: SocketAddr) -> Result<Self> {
        let setu = |path| {
            let setu = Setu::start(&config(path, &upstream.to_string(), ""));
            Ok(Self { name, address: setu.address("chat"), running: Running::Setu(setu) })
        };
        match name {
            "direct" => Ok(Self { name, address: upstream, running: Running::Nothing }),
            "setu-sockmap" => setu(Path::Sockmap),
            "setu-userspace" => setu(Path::Userspace),
            "haproxy-reference" => {
                Self::other(name, |port| haproxy(port, upstream), "haproxy", &["-db", "-f"])
            }
            _ => Self::other(name, |port| nginx(port, upstream), "nginx", &["-c"]),
        }
    }

    fn other(
        name: &'static str,
        config: impl Fn(u16) -> String,
        program: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config");
        fs::write(&file, config(port).replace("FOLDER", &folder.path().display().to_string()))?;
        let mut command = Command::new(program);
        command.args(arguments).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{program} is needed: cargo xtask setup"))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut peer = Self { name, address, running: Running::Other { child, _folder: folder } };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            let ended = match &mut peer.running {
                Running::Other { child, .. } => child.try_wait()?.is_some(),
                _ => false,
            };
            ensure!(!ended && Instant::now() < deadline, "{program} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }

    /// Its process, for CPU time; children count with it.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Nothing => None,
            Running::Setu(setu) => Some(setu.pid()),
            Running::Other { child, .. } => Some(child.id()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Running::Other { child, .. } = &mut self.running {
            // TERM, so that nginx's master stops its workers. Errors mean that it has ended already.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

/// The reference's settings: small buffers, its timeouts, no splice. Its maxconn wants more descriptors than a
/// machine may allow, and nothing here comes near it.
fn haproxy(port: u16, upstream: SocketAddr) -> String {
    format!(
        "global\n  tune.bufsize 4096\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
         timeout client 200s\n  timeout server 200s\n  timeout client-fin 1s\n  timeout server-fin 1s\n\
         frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  server s {upstream}\n"
    )
}

fn nginx(port: u16, upstream: SocketAddr) -> String {
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes auto;\ndaemon off;\n\
         pid FOLDER/pid;\nerror_log FOLDER/log;\nevents {{ worker_connections 4096; }}\n\
         stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass {upstream}; tcp_nodelay on; }} }}\n"
    )
}
