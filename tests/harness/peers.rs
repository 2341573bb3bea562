//! Clients and upstreams that know which byte comes next.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

/// Every wait of a peer ends after this: long, for machines that are emulated.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pseudo-random numbers, so that both ends know the bytes without storing them (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}

/// Bytes of a stream, which repeat after a prime number of them.
#[derive(Debug, Clone)]
pub struct Stream {
    block: Vec<u8>,
    at: usize,
}

impl Stream {
    /// The same seed gives the same bytes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self { block: (0..1_048_583).map(|_| random.number() as u8).collect(), at: 0 }
    }

    /// The next bytes, at most `len`.
    fn next(&self, len: usize) -> &[u8] {
        let start = self.at % self.block.len();
        &self.block[start..self.block.len().min(start + len)]
    }

    fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            let len = expected.len();
            assert!(expected == &bytes[..len], "wrong bytes after {} right ones", self.at);
            self.at += len;
            bytes = &bytes[len..];
        }
    }
}

/// How a peer reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Bytes at once, at most.
    pub chunk: u64,
    /// One in so many chunks is followed by a pause; 0 for none.
    pub pause_each: u64,
    /// The pause.
    pub pause: Duration,
}

impl Manner {
    /// As fast as it goes.
    pub const FAST: Self = Self { chunk: 256 * 1024, pause_each: 0, pause: Duration::ZERO };
    /// Chunks from one byte up, with pauses.
    pub const UNEVEN: Self = Self { chunk: 40_000, pause_each: 25, pause: Duration::from_millis(2) };
    /// Always behind.
    pub const SLOW: Self = Self { chunk: 20_000, pause_each: 1, pause: Duration::from_micros(500) };

    fn rest(self, random: &mut Random) {
        if self.pause_each > 0 && random.below(self.pause_each) == 0 {
            thread::sleep(self.pause);
        }
    }
}

/// Writes `len` bytes of the stream.
pub fn send(mut to: &TcpStream, seed: u64, len: usize, manner: Manner) {
    let (mut stream, mut random) = (Stream::new(seed), Random::new(seed ^ 1));
    while stream.at < len {
        let chunk = (1 + random.below(manner.chunk)) as usize;
        let bytes = stream.next(chunk.min(len - stream.at));
        let count = uninterrupted(|| to.write(bytes)).expect("writing failed");
        stream.at += count;
        manner.rest(&mut random);
    }
}

/// Writes chunks of so many bytes, all 7, until nothing is taken for 300 ms; returns how much was taken.
#[must_use]
pub fn fill(mut to: &TcpStream, chunk: usize) -> usize {
    let block = vec![7; chunk];
    to.set_nonblocking(true).unwrap();
    let (mut total, mut blocked) = (0, Instant::now());
    while blocked.elapsed() < Duration::from_millis(300) {
        match to.write(&block) {
            Ok(count) => {
                total += count;
                blocked = Instant::now();
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    to.set_nonblocking(false).unwrap();
    total
}

/// Reads to the end and checks every byte; returns how many there were.
pub fn receive(mut from: &TcpStream, seed: u64, manner: Manner) -> usize {
    let (mut stream, mut random) = (Stream::new(seed), Random::new(seed ^ 2));
    let mut buffer = vec![0; manner.chunk as usize];
    loop {
        let chunk = (1 + random.below(manner.chunk)) as usize;
        match uninterrupted(|| from.read(&mut buffer[..chunk])).expect("reading failed") {
            0 => return stream.at,
            count => stream.check(&buffer[..count]),
        }
        manner.rest(&mut random);
    }
}

/// Reads `len` bytes and checks each.
pub fn receive_some(mut from: &TcpStream, seed: u64, len: usize) {
    let mut stream = Stream::new(seed);
    let mut buffer = vec![0; 256 * 1024];
    while stream.at < len {
        let wanted = buffer.len().min(len - stream.at);
        let count = uninterrupted(|| from.read(&mut buffer[..wanted])).expect("reading failed");
        assert!(count > 0, "an end after {} of {len} bytes", stream.at);
        stream.check(&buffer[..count]);
    }
}

/// Sends FIN.
pub fn finish(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("shutdown failed");
}

/// Closes by RST.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What comes next: the end, a reset, or bytes.
pub fn end_of(mut stream: &TcpStream) -> io::Result<usize> {
    uninterrupted(|| stream.read(&mut [0; 4096]))
}

/// Repeats what a signal interrupted. Calls with a timeout are even when nobody sent one: when the whole machine was
/// stopped and goes on (signal(7), "Interruption of system calls and library functions by stop signals").
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// What a client says when there is nothing to say: setu dials nothing for one that is silent.
const OPENING: &[u8] = b"\n";

/// Connects as a client that speaks first.
#[must_use]
pub fn call(to: SocketAddr) -> TcpStream {
    let mut client = connect(to);
    // Whoever is not let in finds out by reading.
    let _ = client.write_all(OPENING);
    client
}

/// An upstream that the test plays.
#[derive(Debug)]
pub struct Upstream(TcpListener);

impl Upstream {
    /// Listens on loopback.
    #[must_use]
    pub fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Listens elsewhere.
    #[must_use]
    pub fn on(address: &str) -> Self {
        Self(TcpListener::bind(address).unwrap())
    }

    /// For the configuration.
    #[must_use]
    pub fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// The next connection, for which it waits as long as the test goes.
    #[must_use]
    pub fn wait(&self) -> TcpStream {
        uninterrupted(|| self.0.accept()).unwrap().0
    }

    /// The next connection.
    #[must_use]
    pub fn accept(&self) -> TcpStream {
        // Linux applies it to accept(2), too (socket(7)).
        SockRef::from(&self.0).set_read_timeout(Some(PATIENCE)).unwrap();
        patient(self.0.accept().expect("nobody connects").0)
    }

    /// The next connection, if one comes within so long.
    #[must_use]
    pub fn comes_within(&self, time: Duration) -> Option<TcpStream> {
        SockRef::from(&self.0).set_read_timeout(Some(time)).unwrap();
        match uninterrupted(|| self.0.accept()) {
            Ok((stream, _)) => Some(patient(stream)),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                None
            }
        }
    }

    /// The connection of the next client that did [`call`], whose opening is read. Checks, which say nothing, are passed
    /// over.
    #[must_use]
    pub fn answer(&self) -> TcpStream {
        loop {
            let mut server = self.accept();
            let mut opening = [0; OPENING.len()];
            match server.read_exact(&mut opening) {
                Ok(()) => {
                    assert_eq!(opening, OPENING);
                    return server;
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "no opening"),
            }
        }
    }

    /// Accepts and ends whatever comes while something is done: setu asks servers again that did not answer, and a connection
    /// that nobody accepts stays half closed for a minute.
    pub fn turn_away<T>(&self, work: impl FnOnce() -> T) -> T {
        let (goes_on, is_over) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                self.0.set_nonblocking(true).unwrap();
                while is_over.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Timeout) {
                    drop(self.0.accept());
                }
                self.0.set_nonblocking(false).unwrap();
            });
            // It ends with this, by a panic too.
            let _goes_on = goes_on;
            work()
        })
    }

    /// Connects a client through a proxy: both ends.
    #[must_use]
    pub fn connect(&self, proxy: SocketAddr) -> (TcpStream, TcpStream) {
        let client = call(proxy);
        (client, self.answer())
    }

    /// Answers every connection with what it sends, until the process ends.
    pub fn echo(self) {
        thread::spawn(move || {
            while let Ok((mut stream, _)) = self.0.accept() {
                thread::spawn(move || {
                    let mut writer = stream.try_clone().unwrap();
                    let _ = stream.set_nodelay(true);
                    let _ = io::copy(&mut stream, &mut writer);
                    let _ = writer.shutdown(Shutdown::Write);
                });
            }
        });
    }
}

impl From<TcpListener> for Upstream {
    fn from(listener: TcpListener) -> Self {
        Self(listener)
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new()
    }
}

/// A server that answers no connection attempt: its queue is full, so the kernel drops what comes.
#[derive(Debug)]
pub struct Silent {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl Silent {
    /// Listens on an address, whose port may be 0.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let wanted: SocketAddr = address.parse().unwrap();
        let socket = || Socket::new(Domain::for_address(wanted), Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&wanted.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let fill = |_| {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            // Those beyond the queue wait for ever, as everyone will.
            let _ = client.connect(&address);
            client
        };
        let queued = (0..4).map(fill).collect();
        Self { address: address.as_socket().unwrap(), _listener: listener, _queued: queued }
    }

    /// Where it is silent.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Connects as a client.
#[must_use]
pub fn connect(to: SocketAddr) -> TcpStream {
    patient(TcpStream::connect_timeout(&to, PATIENCE).unwrap())
}

/// Connects as a client that has this address.
///
/// # Errors
/// It is turned away at once.
pub fn connect_from(ip: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a message one way and waits until it is there.
pub fn exchange(mut from: &TcpStream, mut to: &TcpStream, message: &[u8]) {
    from.write_all(message).unwrap();
    let mut buffer = vec![0; message.len()];
    to.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, message);
}
