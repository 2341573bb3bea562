//! What systemd is told (sd_notify(3)), and the sockets that it passes (sd_listen_fds(3)). Without systemd: nothing.

use std::{
    env,
    ffi::OsStr,
    io,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use anyhow::Context as _;
use sd_notify::NotifyState;
use socket2::Socket;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, error};

use crate::{front::listener::Bound, relay::sockmap::Handle, serve::worker::Order, sys};

/// Tells the service manager.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    let told = match env::var_os("NOTIFY_SOCKET") {
        Some(socket) => send(socket.as_bytes(), states),
        None => Ok(()),
    };
    if let Err(error) = told {
        debug!(%error, "the service manager cannot be told");
    }
}

/// The manager's socket is a path, or a name in the abstract namespace behind an `@` (sd_notify(3)). `sd_notify` itself
/// knows only paths.
fn send(socket: &[u8], states: &[NotifyState<'_>]) -> io::Result<()> {
    let address = match socket {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let states: String = states.iter().map(|state| format!("{state}\n")).collect();
    UnixDatagram::unbound()?.send_to_addr(states.as_bytes(), &address)?;
    Ok(())
}

/// setu is ready, at first or again.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    // Its time is what tells systemd that this answers its own signal (Type=notify-reload).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// setu drains. systemd must not lose patience before `timeouts.drain` does: this asks for `more` time.
pub(super) fn stopping(status: &str, more: Duration) {
    let more = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(more)]);
}

/// Sockets that the service manager passed. One on each address, from which one worker accepts for all.
///
/// # Errors
/// What was passed is not what it should be.
pub(super) fn sockets() -> anyhow::Result<Vec<Bound>> {
    let passed = sd_notify::listen_fds().context("LISTEN_FDS")?;
    passed
        .map(|fd| {
            let socket = Socket::from(sys::inherited(fd)?);
            anyhow::ensure!(
                socket.is_listener()?,
                "descriptor {fd} of LISTEN_FDS does not listen; in the socket unit use ListenStream="
            );
            socket.set_nonblocking(true)?;
            let socket = TcpListener::from(socket);
            let address = socket.local_addr().context("a socket of LISTEN_FDS is not TCP")?;
            Ok(Bound { listener: 0, wanted: address, address, sockets: vec![socket] })
        })
        .collect()
}

/// Tells the service manager that setu lives for as long as every thread answers. It restarts a setu that does not.
pub(super) async fn watchdog(workers: Vec<mpsc::WeakUnboundedSender<Order>>, kernel: Option<Handle>) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        let answers = async {
            for worker in &workers {
                let (answer, answered) = oneshot::channel();
                worker.upgrade().ok_or(())?.send(Order::Ping(answer)).map_err(drop)?;
                answered.await.map_err(drop)?;
            }
            match &kernel {
                Some(kernel) => kernel.ping().await.map_err(drop),
                None => Ok(()),
            }
        };
        match timeout(patience / 2, answers).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            Ok(Err(())) => error!("a thread has ended; the service manager will restart setu"),
            Err(_elapsed) => error!("a thread does not answer; the service manager will restart setu"),
        }
    }
}
