//! The HTTP server: a few read-only documents.
//!
//! It shares a thread with what keeps names and health up to date, so it is kept small: few connections at once, one
//! request each, and not for long.
//!
//! Nobody can keep others from `/healthz` and `/readyz`. Of those who have not asked yet the one that has waited
//! longest makes room for a new one; what is read slowly has [`DOCUMENTS`] places, and those two need none, because
//! their answers are small enough to be sent at once.

use std::{
    collections::VecDeque,
    io, net,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{
        ACCEPT_LANGUAGE, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue,
        REFRESH,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{self, AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Instance, openmetrics,
    page::{self, View},
    share,
    status::State,
};
use crate::{
    config::Config,
    front::listener::{BindError, bind_admin},
    operator::share::{CARD_STYLE, Format, ShareError},
};

/// Connections at once that have not asked yet, and documents that are being sent.
const WAITING: usize = 16;
const DOCUMENTS: usize = 16;
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
        let room = Arc::new(Room::new());
        let mut accepting = JoinSet::new();
        for socket in self.0 {
            accepting.spawn(accept(socket, instance.clone(), room.clone()));
        }
        instance.sample().await;
    }
}

/// Who is in.
struct Room {
    /// Those who have not asked yet, the oldest first.
    waiting: Mutex<VecDeque<(task::Id, AbortHandle)>>,
    documents: Arc<Semaphore>,
}

impl Room {
    fn new() -> Self {
        Self { waiting: Mutex::default(), documents: Arc::new(Semaphore::new(DOCUMENTS)) }
    }

    /// Takes a connection in. Who has waited longest leaves for it.
    fn enter(&self, connection: AbortHandle) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((connection.id(), connection));
        if waiting.len() > WAITING
            && let Some((_, oldest)) = waiting.pop_front()
        {
            oldest.abort();
        }
    }

    /// The connection of this task has asked, or is over.
    fn asked(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|(id, _)| Some(*id) != task::try_id());
    }
}

async fn accept(socket: net::TcpListener, instance: Arc<Instance>, room: Arc<Room>) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return warn!(%error, "the admin endpoint is not served"),
    };
    loop {
        match socket.accept().await {
            Ok((client, _)) => {
                let (instance, inside) = (instance.clone(), room.clone());
                let task = tokio::spawn(async move {
                    if timeout(CONNECTION_TIMEOUT, connection(client, &instance, &inside)).await.is_err() {
                        debug!("a connection to the admin endpoint took too long");
                    }
                    inside.asked();
                });
                room.enter(task.abort_handle());
                // Whoever asks at once is heard before the next comes.
                task::yield_now().await;
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn connection(client: TcpStream, instance: &Instance, room: &Room) {
    // To the end of the connection, when the document is sent.
    let place = Mutex::new(None::<OwnedSemaphorePermit>);
    let answer = |request: Request<Incoming>| {
        room.asked();
        let response = if !is_own_name(request.headers().get(HOST), &instance.hosts()) {
            let remedy = "ask by address, or as localhost, or name this host in admin.hosts\n";
            plain(StatusCode::MISDIRECTED_REQUEST, remedy)
        } else if matches!(request.uri().path(), "/healthz" | "/readyz") {
            respond(&request, instance)
        } else if let Ok(permit) = room.documents.clone().try_acquire_owned() {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
            respond(&request, instance)
        } else {
            plain(StatusCode::SERVICE_UNAVAILABLE, "too many read slowly, ask again\n")
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

/// Whether the name by which a client asks is one of these, or one that nobody else can own: an address, or localhost
/// (RFC 6761). Whoever asks by another was sent here by that name's owner (DNS rebinding), whatever address this is.
fn is_own_name(host: Option<&HeaderValue>, hosts: &[String]) -> bool {
    // HTTP/1.0 has none, and browsers do not speak it.
    let Some(host) = host else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let inner = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_ip = inner.unwrap_or(name).parse::<net::IpAddr>().is_ok();
    let name = name.strip_suffix('.').unwrap_or(name);
    is_ip
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|host| name.eq_ignore_ascii_case(host))
}

fn respond<B>(request: &Request<B>, instance: &Instance) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => {
            let view = View::of(request.uri().query());
            match page::page(&instance.status(), view, accepted(request)) {
                Ok(text) => html(StatusCode::OK, page::STYLE, text, view.refreshes),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            }
        }
        "/metrics" => match openmetrics::encode(instance.status()) {
            Ok(text) => document(StatusCode::OK, openmetrics::CONTENT_TYPE, text),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
        },
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let status = instance.status();
            let code = if status.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let text = match status.state() {
                State::Working => "ready".into(),
                State::Degraded => format!("ready, degraded: {}", status.degraded.join("\n")),
                State::Starting => format!("starting: {}", status.problems.join("\n")),
                State::NotWorking => status.problems.join("\n"),
                State::Stopping => "stopping".into(),
            };
            plain(code, &(text + "\n"))
        }
        "/status.json" => match serde_json::to_string(&instance.status()) {
            Ok(text) => document(StatusCode::OK, "application/json", text + "\n"),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be written\n"),
        },
        "/share" => {
            let (status, text) = match share::page(instance, &asked(request)) {
                Ok(text) => (StatusCode::OK, text),
                Err(text) => (StatusCode::BAD_REQUEST, text),
            };
            html(status, page::STYLE, text, false)
        }
        "/share/card" => match share::card(instance, &asked(request)) {
            Ok(text) => html(StatusCode::OK, CARD_STYLE, text, false),
            Err(error) => no_link(&error),
        },
        path => match Format::ALL.into_iter().find(|format| path == share::file(*format)) {
            Some(format) => match share::code(instance, &asked(request), format) {
                Ok(bytes) => document(StatusCode::OK, format.content_type(), bytes),
                Err(error) => no_link(&error),
            },
            None => plain(
                StatusCode::NOT_FOUND,
                "there are: / /metrics /healthz /readyz /status.json /share /share/card /share.svg /share.png /share.pdf\n",
            ),
        },
    }
}

/// What a request has to say of a link.
fn asked<B>(request: &Request<B>) -> share::Asked {
    share::Asked::new(request.uri().query().unwrap_or_default(), accepted(request))
}

/// The languages that a browser takes.
fn accepted<B>(request: &Request<B>) -> &str {
    let languages = request.headers().get(ACCEPT_LANGUAGE).and_then(|languages| languages.to_str().ok());
    languages.unwrap_or_default()
}

fn no_link(error: &ShareError) -> Response<Full<Bytes>> {
    plain(StatusCode::BAD_REQUEST, &format!("{error}; /share has a form for it\n"))
}

/// With its only style.
fn html(status: StatusCode, style: &str, text: String, refreshes: bool) -> Response<Full<Bytes>> {
    let mut response = document(status, "text/html; charset=utf-8", text);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&page::policy(style)) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    if refreshes {
        headers.insert(REFRESH, HeaderValue::from_static(page::REFRESH_SECONDS));
    }
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    document(status, "text/plain; charset=utf-8", text.to_owned())
}

/// A document that is never kept, never taken for something else, and may load nothing.
fn document(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
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
        let hosts = ["setu.example".to_owned()];
        let local = |host: &str| is_own_name(Some(&HeaderValue::from_str(host).unwrap()), &hosts);
        for host in [
            "127.0.0.1:8199",
            "127.0.0.1",
            "[::1]:8199",
            "localhost:8199",
            "LOCALHOST",
            "192.0.2.1",
            "Setu.Example.:443",
        ] {
            assert!(local(host), "{host}");
        }
        for host in [
            "evil.example:8199",
            "sub.setu.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "[::1",
            ":1",
        ] {
            assert!(!local(host), "{host}");
        }
        assert!(is_own_name(None, &hosts));
    }
}
