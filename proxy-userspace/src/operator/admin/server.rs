//! The HTTP server: a few read-only documents.
//!
//! It shares a thread with what keeps names and health up to date, so it is kept small: few connections at once, one
//! request each, and not for long.

use std::{io, net, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, REFRESH},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Instance, openmetrics,
    page::{self, Refresh},
};
use crate::{
    config::Config,
    front::listener::{BindError, bind_admin},
};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// A request must be there after this, and the connection over after [`CONNECTION_TIMEOUT`].
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a request's head.
const HEADER_MAX: usize = 16 * 1024;
/// How long accepting pauses when the machine has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// The bound addresses of the admin endpoint.
#[derive(Debug)]
pub(crate) struct Sockets(Vec<net::TcpListener>);

impl Sockets {
    /// Binds what the configuration says; before privileges are dropped. With `beside` a setu that is being replaced may
    /// have it still.
    ///
    /// # Errors
    /// What is in the way.
    pub(crate) fn bind(config: &Config, beside: bool) -> Result<Self, BindError> {
        bind_admin(config, beside).map(Self)
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = net::SocketAddr> {
        self.0.iter().filter_map(|socket| socket.local_addr().ok())
    }

    /// Tells the operator where they are, and what it means when others reach them.
    pub(crate) fn announce(&self) {
        for address in self.addresses() {
            info!(%address, "admin endpoint");
            if !address.ip().is_loopback() {
                warn!(
                    %address,
                    "the admin endpoint can be reached from other machines: whoever reaches it sees how much this proxy \
                     is used; let a firewall guard it, or bind 127.0.0.1"
                );
            }
        }
    }

    /// Serves for ever, and takes the samples of the last hour.
    pub(crate) async fn serve(self, instance: Instance) {
        let instance = Arc::new(instance);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut accepting = JoinSet::new();
        for socket in self.0 {
            accepting.spawn(accept(socket, instance.clone(), room.clone()));
        }
        instance.sample().await;
    }
}

async fn accept(socket: net::TcpListener, instance: Arc<Instance>, room: Arc<Semaphore>) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return warn!(%error, "the admin endpoint is not served"),
    };
    loop {
        // It is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match socket.accept().await {
            Ok((client, _)) => {
                let instance = instance.clone();
                tokio::spawn(async move {
                    if timeout(CONNECTION_TIMEOUT, connection(client, &instance)).await.is_err() {
                        debug!("a connection to the admin endpoint took too long");
                    }
                    drop(permit);
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn connection(client: TcpStream, instance: &Instance) {
    // Whoever reaches a loopback address under another name was sent there by that name's owner (DNS rebinding).
    let local = client.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let answer = |request: Request<Incoming>| {
        let response = if local && !is_local_name(request.headers().get(HOST)) {
            plain(StatusCode::MISDIRECTED_REQUEST, "ask by address, or as localhost\n")
        } else {
            respond(&request, instance)
        };
        std::future::ready(Ok::<_, io::Error>(response))
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service_fn(answer))
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection to the admin endpoint broke");
    }
}

/// Whether the name by which a client asks is one that nobody else can own: an address, or localhost (RFC 6761).
fn is_local_name(host: Option<&HeaderValue>) -> bool {
    // HTTP/1.0 has none, and browsers do not speak it.
    let Some(host) = host else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let inner = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_ip = inner.unwrap_or(name).parse::<net::IpAddr>().is_ok();
    is_ip || name.eq_ignore_ascii_case("localhost")
}

fn respond<B>(request: &Request<B>, instance: &Instance) -> Response<String> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => {
            let refresh =
                if request.uri().query() == Some("refresh=off") { Refresh::Off } else { Refresh::On };
            html(page::page(&instance.status(), refresh), refresh)
        }
        "/metrics" => match openmetrics::encode(instance.status()) {
            Ok(text) => document(StatusCode::OK, openmetrics::CONTENT_TYPE, text),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
        },
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let status = instance.status();
            match (status.ready, status.stopping) {
                (true, _) => plain(StatusCode::OK, "ready\n"),
                (false, true) => plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
                (false, false) => {
                    let text: String =
                        status.problems.iter().flat_map(|problem| [problem.as_str(), "\n"]).collect();
                    plain(StatusCode::SERVICE_UNAVAILABLE, &text)
                }
            }
        }
        "/status.json" => match serde_json::to_string(&instance.status()) {
            Ok(text) => document(StatusCode::OK, "application/json", text + "\n"),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be written\n"),
        },
        path @ ("/share" | "/share.svg") => match instance.share(request.uri().query()) {
            Ok(link) if path == "/share" => html(page::share(&link), Refresh::Off),
            Ok(link) => document(StatusCode::OK, "image/svg+xml", link.svg()),
            Err(error) => plain(StatusCode::NOT_FOUND, &format!("{error}; here: /share?host=HOST\n")),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are: / /metrics /healthz /readyz /status.json /share /share.svg\n",
        ),
    }
}

fn html(text: String, refresh: Refresh) -> Response<String> {
    let mut response = document(StatusCode::OK, "text/html; charset=utf-8", text);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&page::policy()) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    if refresh == Refresh::On {
        headers.insert(REFRESH, HeaderValue::from_static(page::REFRESH_SECONDS));
    }
    response
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    document(status, "text/plain; charset=utf-8", text.into())
}

/// A document that is never kept, never taken for something else, and may load nothing.
fn document(status: StatusCode, kind: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE.as_str(), kind),
        (CACHE_CONTROL.as_str(), "no-store"),
        (CONTENT_SECURITY_POLICY.as_str(), "default-src 'none'; frame-ancestors 'none'"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_own() {
        let local = |host: &str| is_local_name(Some(&HeaderValue::from_str(host).unwrap()));
        for host in ["127.0.0.1:8199", "127.0.0.1", "[::1]:8199", "localhost:8199", "LOCALHOST", "192.0.2.1"]
        {
            assert!(local(host), "{host}");
        }
        for host in
            ["evil.example:8199", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", ":1"]
        {
            assert!(!local(host), "{host}");
        }
        assert!(is_local_name(None));
    }
}
