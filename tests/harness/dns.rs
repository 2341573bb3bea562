//! A DNS server that says what the test wants it to say.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How often it is looked whether it is time to stop.
const PAUSE: Duration = Duration::from_millis(50);

/// What the server says of a name.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It has these addresses for so many seconds; for a family of which there is none it exists without records.
    Addresses(Vec<IpAddr>, u32),
    /// As [`Self::Addresses`], but for a family of which there is none nothing is said at all.
    Half(Vec<IpAddr>, u32),
    /// As [`Self::Addresses`]; those of IPv4 come late by so much.
    LateFour(Vec<IpAddr>, u32, Duration),
    /// It does not exist.
    NoSuchName,
    /// The server cannot say (SERVFAIL).
    Fails,
    /// This code, and no records (RFC 1035, section 4.1.1).
    Code(u8),
    /// Nothing at all.
    Silence,
}

impl Answer {
    /// Addresses, as text.
    #[must_use]
    pub fn addresses(addresses: &[&str], ttl: u32) -> Self {
        Self::Addresses(addresses.iter().map(|ip| ip.parse().unwrap()).collect(), ttl)
    }
}

/// A running server. What it was not told of does not exist. Dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    queries: AtomicUsize,
    stop: AtomicBool,
}

impl DnsServer {
    /// Starts on a free port of 127.0.0.1.
    #[must_use]
    pub fn new() -> Self {
        Self::on("127.0.0.1")
    }

    /// Starts on a free port of another address.
    #[must_use]
    pub fn on(ip: &str) -> Self {
        Self::at(SocketAddr::new(ip.parse().unwrap(), 0))
    }

    /// Starts there.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(PAUSE)).unwrap();
        let address = socket.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let thread = thread::spawn({
            let shared = shared.clone();
            move || serve(&socket, &shared)
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// As [`Self::new`], by TCP; by UDP it is silent.
    #[must_use]
    pub fn tcp_alone() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let silent = UdpSocket::bind(address).unwrap();
        let shared = Arc::<Shared>::default();
        let thread = thread::spawn({
            let shared = shared.clone();
            move || {
                let _silent = silent;
                thread::scope(|scope| {
                    while !shared.stop.load(Ordering::Relaxed) {
                        match listener.accept() {
                            Ok((stream, _)) => drop(scope.spawn(|| serve_stream(stream, &shared))),
                            Err(_) => thread::sleep(PAUSE),
                        }
                    }
                });
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it says this of the name, given in lower case.
    pub fn set(&self, name: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().insert(name.into(), answer);
    }

    /// How many queries came, for all names and both families.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.shared.queries.load(Ordering::Relaxed)
    }
}

impl Default for DnsServer {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 1500];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some((reply, late)) = shared.reply(&buffer[..len]) else { continue };
        if late.is_zero() {
            let _ = socket.send_to(&reply, from);
        } else {
            let socket = socket.try_clone().unwrap();
            thread::spawn(move || {
                thread::sleep(late);
                let _ = socket.send_to(&reply, from);
            });
        }
    }
}

/// Answers the queries of one connection (RFC 1035, section 4.2.2), one after the other.
fn serve_stream(mut stream: TcpStream, shared: &Shared) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PAUSE)).unwrap();
    let mut received = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let mut buffer = [0; 1500];
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
        while let Some((len, rest)) = received.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len));
            let Some(query) = rest.get(..len) else { break };
            if let Some((reply, _)) = shared.reply(query) {
                let len = (reply.len() as u16).to_be_bytes();
                if stream.write_all(&[&len, &reply[..]].concat()).is_err() {
                    return;
                }
            }
            received.drain(..2 + len);
        }
    }
}

impl Shared {
    /// The answer to a query, and how late it comes.
    fn reply(&self, query: &[u8]) -> Option<(Vec<u8>, Duration)> {
        let (name, kind, end) = question(query)?;
        self.queries.fetch_add(1, Ordering::Relaxed);
        let answer = self.answers.lock().unwrap().get(&name).cloned().unwrap_or(Answer::NoSuchName);
        let late = match answer {
            Answer::LateFour(_, _, late) if kind == A => late,
            _ => Duration::ZERO,
        };
        Some((reply(&query[..end], kind, &answer)?, late))
    }
}

/// Types of records.
const A: u16 = 1;
const AAAA: u16 = 28;

/// The name and type of a query's question, and where it ends (RFC 1035, section 4.1).
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let len = usize::from(*query.get(at)?);
        let label = query.get(at + 1..at + 1 + len)?;
        at += 1 + len;
        if len == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((name, kind, at + 4))
}

/// `query` ends with its question.
fn reply(query: &[u8], kind: u16, answer: &Answer) -> Option<Vec<u8>> {
    let (code, addresses, ttl): (u8, &[IpAddr], u32) = match answer {
        Answer::Addresses(addresses, ttl)
        | Answer::Half(addresses, ttl)
        | Answer::LateFour(addresses, ttl, _) => (0, addresses, *ttl),
        Answer::NoSuchName => (3, &[], 0),
        Answer::Fails => (2, &[], 0),
        Answer::Code(code) => (*code, &[], 0),
        Answer::Silence => return None,
    };
    let fitting: Vec<_> = addresses.iter().filter(|ip| kind == if ip.is_ipv4() { A } else { AAAA }).collect();
    if fitting.is_empty() && matches!(answer, Answer::Half(..)) {
        return None;
    }
    let mut reply = query.to_vec();
    // A response, recursion desired and available; one question, the answers, nothing more.
    reply[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, fitting.len() as u8, 0, 0, 0, 0]);
    for ip in fitting {
        // The name is the question's, at offset 12.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1]);
        reply.extend(ttl.to_be_bytes());
        let data = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
    }
    Some(reply)
}
