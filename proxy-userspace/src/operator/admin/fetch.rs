//! Asks a running setu for its [`Status`].

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::Status;

/// For the whole exchange.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a status: thousands of listeners and endpoints fit.
const STATUS_MAX: usize = 16 << 20;

/// Why there is no status.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The address cannot be understood.
    #[error("{0}: not an address of an admin endpoint; write host:port or http://host:port")]
    Address(String),
    /// Nobody is there.
    #[error("{address}: {error}; is setu running, and does admin.bind have this address?")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// The system's words.
        error: io::Error,
    },
    /// What is there does not speak HTTP, or not in time.
    #[error("{address}: no answer: {problem}")]
    Broken {
        /// Who was asked.
        address: String,
        /// What went wrong.
        problem: String,
    },
    /// What is there is not setu.
    #[error("{address}: the answer is not a status of setu: {problem}")]
    Foreign {
        /// Who was asked.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The status of the setu whose admin endpoint is at `host:port` or `http://host:port`.
///
/// # Errors
/// Why there is none.
pub async fn fetch(at: &str) -> Result<Status, FetchError> {
    let address = authority(at).ok_or_else(|| FetchError::Address(at.into()))?;
    let broken = |problem: String| FetchError::Broken { address: address.clone(), problem };
    let exchange = timeout(PATIENCE, get(&address)).await;
    let (status, body) = exchange.map_err(|_elapsed| broken(format!("nothing within {PATIENCE:?}")))??;
    let foreign = |problem: String| FetchError::Foreign { address: address.clone(), problem };
    if status != StatusCode::OK {
        return Err(foreign(status.to_string()));
    }
    serde_json::from_slice(&body).map_err(|error| foreign(error.to_string()))
}

/// An address to which a connection from this machine can be made.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match bound {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    if bound.ip().is_unspecified() { (ip, bound.port()).into() } else { bound }
}

fn authority(at: &str) -> Option<String> {
    let rest = at.strip_prefix("http://").unwrap_or(at).trim_end_matches('/');
    let uri: Uri = format!("http://{rest}/").parse().ok()?;
    let authority = uri.authority()?;
    (uri.path() == "/" && !authority.as_str().contains('@')).then_some(())?;
    Some(format!("{}:{}", authority.host(), authority.port_u16()?))
}

async fn get(address: &str) -> Result<(StatusCode, Bytes), FetchError> {
    let broken = |error: &dyn std::fmt::Display| FetchError::Broken {
        address: address.into(),
        problem: error.to_string(),
    };
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| FetchError::Unreachable { address: address.into(), error })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let request = Request::get("/status.json").header(HOST, address).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| broken(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), STATUS_MAX).collect().await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    };
    tokio::pin!(answer, connection);
    // The connection must be driven for the answer to come; it may end before the answer was looked at.
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(|error| broken(&error))?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_urls() {
        for (at, expected) in [
            ("127.0.0.1:8199", "127.0.0.1:8199"),
            ("http://127.0.0.1:8199/", "127.0.0.1:8199"),
            ("[::1]:8199", "[::1]:8199"),
            ("http://proxy.example:80", "proxy.example:80"),
        ] {
            assert_eq!(authority(at).as_deref(), Some(expected), "{at}");
        }
        for at in
            ["", "127.0.0.1", "https://127.0.0.1:8199", "a b:1", "u@127.0.0.1:1", "127.0.0.1:1/x", "x:0x"]
        {
            assert_eq!(authority(at), None, "{at}");
        }
    }

    #[test]
    fn unspecified_addresses_are_reached_by_loopback() {
        for (bound, reached) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("192.0.2.1:3", "192.0.2.1:3")]
        {
            assert_eq!(reachable(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
