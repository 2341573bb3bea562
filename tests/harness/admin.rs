//! What the admin endpoint answers.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use crate::peers::connect;

/// An answer of the admin endpoint.
#[derive(Debug)]
pub struct Answer {
    /// Its code.
    pub status: u16,
    /// The headers, in lower case.
    pub head: String,
    /// What follows them, as text; bytes that are none are replaced.
    pub body: String,
}

/// Sends a request as it is, and reads what comes of it.
#[must_use]
pub fn ask(at: SocketAddr, request: &str) -> Answer {
    let mut stream = connect(at);
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.into() }
}

/// Asks for a document.
#[must_use]
pub fn get(at: SocketAddr, path: &str) -> Answer {
    ask(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
}
