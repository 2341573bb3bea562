//! What the admin endpoint answers.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::peers::{PATIENCE, connect};

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

/// Every sample by its name and labels. That the text is what it says is checked on the way.
#[must_use]
pub fn metrics(at: SocketAddr) -> BTreeMap<String, f64> {
    let answer = get(at, "/metrics");
    assert!(answer.head.contains("content-type: application/openmetrics-text"), "{}", answer.head);
    let lines = answer.body.strip_suffix("# EOF\n").expect("it has no end").lines();
    let (mut samples, mut family) = (BTreeMap::new(), String::new());
    for line in lines {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name, text) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            assert!(!text.is_empty(), "{line}");
            match kind {
                "HELP" => family = name.into(),
                "TYPE" => assert!(name == family && ["gauge", "counter"].contains(&text), "{line}"),
                "UNIT" => assert!(name == family && name.ends_with(text), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let plain = name.split('{').next().unwrap();
        assert!(plain == family || plain.strip_suffix("_total") == Some(&family), "{line} under {family}");
        assert_eq!(samples.insert(name.to_owned(), value.parse().unwrap()), None, "{name} twice");
    }
    samples
}

/// Asks until something is so.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if is_so(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never is: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
