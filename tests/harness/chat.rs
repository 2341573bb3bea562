//! The chat protocol as far as a server's first answer, for those that play WhatsApp's.

use std::{
    io::{self, BufRead, BufReader, Read as _, Write as _},
    thread,
};

use crate::peers::{Random, Upstream};

/// What a web client says first, before its frame: `WA`, version 6, dictionary 3.
const HEADER: [u8; 4] = *b"WA\x06\x03";

/// The frame with a server's hello: its ephemeral key, its static key and its certificates, as long as real ones and as
/// random as what is encrypted.
#[must_use]
pub fn server_hello() -> Vec<u8> {
    let mut random = Random::new(0x5e_44e2);
    let mut field = |number: u8, len: usize| {
        // Lengths as protobuf has them: 7 bits in each byte, the lowest first.
        let len_bytes =
            if len < 128 { vec![len as u8] } else { vec![len as u8 & 0x7f | 0x80, (len >> 7) as u8] };
        let value = (0..len).map(|_| random.number() as u8);
        [number << 3 | 2].into_iter().chain(len_bytes).chain(value).collect::<Vec<_>>()
    };
    let hello = [field(1, 32), field(2, 48), field(3, 250)].concat();
    let mut message = vec![3 << 3 | 2, hello.len() as u8 & 0x7f | 0x80, (hello.len() >> 7) as u8];
    message.extend(hello);
    let len = (message.len() as u32).to_be_bytes();
    [&len[1..], &message].concat()
}

/// Whether a client begins as one that waits for a server's hello.
#[must_use]
pub fn is_web_client(opening: &[u8]) -> bool {
    opening.starts_with(&HEADER)
}

/// Reads a web client's hello, and a line of PROXY protocol v1 before it.
///
/// # Errors
/// It is none, or the connection ended.
pub fn read_hello(from: &mut impl BufRead) -> io::Result<()> {
    if from.fill_buf()?.starts_with(b"P") {
        from.read_until(b'\n', &mut Vec::new())?;
    }
    let mut opening = [0; HEADER.len() + 3];
    from.read_exact(&mut opening)?;
    let [.., high, middle, low] = opening;
    if !is_web_client(&opening) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let len = u64::from(u32::from_be_bytes([0, high, middle, low]));
    io::copy(&mut from.take(len), &mut io::sink()).map(drop)
}

impl Upstream {
    /// Answers every web client as a chat server does, until the process ends; others are closed.
    pub fn chat_server(self) {
        thread::spawn(move || {
            loop {
                let stream = self.wait();
                thread::spawn(move || {
                    // An error means that it is no client, or has gone.
                    if read_hello(&mut BufReader::new(&stream)).is_ok() {
                        let _ = (&stream).write_all(&server_hello());
                        let _ = io::copy(&mut &stream, &mut io::sink());
                    }
                });
            }
        });
    }
}
