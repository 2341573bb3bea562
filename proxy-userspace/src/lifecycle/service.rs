//! What systemd is told (sd_notify(3)), and the sockets that it passes (sd_listen_fds(3)). Without systemd: nothing.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddress, UnixDatagram},
        },
    },
    time::Duration,
};

use anyhow::Context as _;
use sd_notify::NotifyState;
use socket2::{SockRef, Socket};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, error, warn};

use crate::{config::Config, front::listener::Bound, relay::sockmap::Handle, serve::worker::Order, sys};

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
        [b'@', name @ ..] => UnixAddress::from_abstract_name(name)?,
        path => UnixAddress::from_pathname(OsStr::from_bytes(path))?,
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

/// Sockets on `[::]` that take IPv4 as well, as a socket unit makes them by default, are for both addresses of a listener:
/// a second socket could not be bound. The IPv4 address gets an entry without any of its own.
///
/// # Errors
/// The two addresses are of two listeners.
pub(super) fn both_families(open: &mut Vec<Bound>, config: &Config) -> anyhow::Result<()> {
    let mut beside = Vec::new();
    for index in 0..open.len() {
        let v6 = open[index].wanted;
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port()));
        if !takes_both(&open[index]) || open.iter().any(|other| other.wanted == v4) {
            continue;
        }
        let of = |address| config.listeners.iter().find(|listener| listener.bind.contains(&address));
        match (of(v4), of(v6)) {
            (Some(one), Some(other)) if one.name == other.name => {
                beside.push(Bound { listener: 0, wanted: v4, address: v4, sockets: Vec::new() });
            }
            (Some(one), Some(other)) => anyhow::bail!(
                "the socket on {v6} takes IPv4 as well, but {v4} is of the listener \"{}\" and {v6} of \"{}\"; in {} set \
                 BindIPv6Only=ipv6-only, and a ListenStream= for each",
                one.name,
                other.name,
                units()
            ),
            (Some(_), None) => {
                warn_of_both(v6, "IPv6", v4);
                (open[index].wanted, open[index].address) = (v4, v4);
            }
            (None, Some(_)) => warn_of_both(v6, "IPv4", v6),
            (None, None) => {}
        }
    }
    open.append(&mut beside);
    Ok(())
}

fn warn_of_both(passed: SocketAddr, family: &str, bind: SocketAddr) {
    warn!(
        %passed, %bind,
        "a socket that was passed to setu takes {family} as well, which is in no listener's bind; in {} set \
         BindIPv6Only=ipv6-only, with the address of bind in ListenStream=",
        units()
    );
}

/// An address that shares a socket with another, of which the one cannot change without the other.
pub(super) fn torn(before: &[Bound], after: &[Bound]) -> Option<SocketAddr> {
    let shared = before.iter().filter(|bound| bound.sockets.is_empty()).map(|bound| bound.address);
    let listener = |address| after.iter().find(|bound| bound.address == address).map(|bound| bound.listener);
    shared.into_iter().find(|v4| {
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, v4.port()));
        listener(*v4) != listener(v6)
    })
}

fn takes_both(bound: &Bound) -> bool {
    let is_wildcard = bound.wanted.is_ipv6() && bound.wanted.ip().is_unspecified();
    // What cannot be asked is as setu makes them.
    let takes_ipv4 = |socket| SockRef::from(socket).only_v6().is_ok_and(|only| !only);
    is_wildcard && bound.sockets.first().is_some_and(takes_ipv4)
}

/// The units that passed sockets, which are what these are called unless `FileDescriptorName=` says otherwise
/// (sd_listen_fds_with_names(3)).
fn units() -> String {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: BTreeSet<_> = names.split(':').filter(|name| name.ends_with(".socket")).collect();
    match names.is_empty() {
        true => "its socket unit".into(),
        false => names.into_iter().collect::<Vec<_>>().join(", "),
    }
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
