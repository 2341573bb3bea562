//! The answer of a chat server to a client's hello, told from all else that may answer in its place.
//!
//! A frame: its length in 3 bytes, the highest first, and a protobuf message, whose field 3 is the server's hello of
//! Noise_XX_25519_AESGCM. That has the server's ephemeral key (field 1), its static key (2) and its certificates (3), the
//! latter two encrypted and each with a tag of 16 bytes. A server says nothing more until the client has gone on.

/// A real frame has some hundred bytes; more than this is none.
const LONGEST: usize = 16 << 10;
/// Of the frame's length.
const HEADER: usize = 3;
const KEY: usize = 32;
const TAG: usize = 16;

/// What bytes are that came after a client's hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// More must come.
    Incomplete,
    /// The hello of a chat server.
    ServerHello,
    /// Something else.
    Foreign,
}

/// Says what all bytes that came are.
pub(super) fn parse(received: &[u8]) -> Answer {
    // Bytes of the length that are not there yet make it no smaller.
    let known = received.iter().take(HEADER);
    let len =
        (0..HEADER).zip(known).fold(0, |len, (at, byte)| len | usize::from(*byte) << (8 * (HEADER - 1 - at)));
    if len > LONGEST {
        return Answer::Foreign;
    }
    let Some((_, payload)) = received.split_at_checked(HEADER) else { return Answer::Incomplete };
    match payload.len() {
        there if there < len => Answer::Incomplete,
        there if there == len && is_server_hello(payload) => Answer::ServerHello,
        _ => Answer::Foreign,
    }
}

fn is_server_hello(message: &[u8]) -> bool {
    let parts = field(message, 3).map(|hello| [1, 2, 3].map(|number| field(hello, number)));
    matches!(parts, Some([Some(ephemeral), Some(encrypted_static), Some(certificates)])
        if ephemeral.len() == KEY && encrypted_static.len() == KEY + TAG && certificates.len() > TAG)
}

/// A field of bytes in a protobuf message. `None` where it is not there, or the message is none.
fn field(message: &[u8], wanted: u64) -> Option<&[u8]> {
    let mut rest = message;
    let mut found = None;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        // The kinds of protobuf's wire format; groups are not in use any more.
        let value = match tag & 7 {
            0 => varint(&mut rest).map(|_| None),
            1 => take(&mut rest, 8).map(|_| None),
            2 => {
                let len = usize::try_from(varint(&mut rest)?).ok()?;
                take(&mut rest, len).map(Some)
            }
            5 => take(&mut rest, 4).map(|_| None),
            _ => None,
        }?;
        if tag >> 3 == wanted {
            found = value;
        }
    }
    found
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (first, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use setu_tests::chat::server_hello;

    use super::*;

    #[test]
    fn every_prefix_of_an_answer_is_incomplete_and_more_than_it_is_foreign() {
        let answer = server_hello();
        for len in 0..answer.len() {
            assert_eq!(parse(&answer[..len]), Answer::Incomplete, "{len}");
        }
        assert_eq!(parse(&answer), Answer::ServerHello);
        assert_eq!(parse(&[&answer[..], b"x"].concat()), Answer::Foreign);
    }

    /// Every prefix that is long enough to be told, and so the first piece that is read.
    #[test]
    fn what_others_answer_is_foreign_from_the_first_bytes_on() {
        let echo = b"WA\x06\x03\x00\x00\x24\x12\x22\x0a\x20";
        let others: [&[u8]; 6] = [
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
            b"<html>",
            b"SSH-2.0-OpenSSH_9.2p1",
            // A TLS alert: handshake_failure.
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"220 mail.example ESMTP\r\n",
            echo,
        ];
        for other in others {
            for len in 1..=other.len() {
                assert_eq!(parse(&other[..len]), Answer::Foreign, "{other:?} {len}");
            }
        }
    }

    #[test]
    fn a_client_s_hello_and_a_hello_that_lacks_something_are_foreign() {
        let frame = |message: &[u8]| [&[0, 0, message.len() as u8], message].concat();
        let bytes = |number: u8, value: &[u8]| [&[number << 3 | 2, value.len() as u8], value].concat();
        let hello = |ephemeral, encrypted, certificates| {
            let parts = [(1, ephemeral), (2, encrypted), (3, certificates)];
            parts.map(|(number, len)| bytes(number, &vec![7; len])).concat()
        };
        let whole = hello(32, 48, 17);
        assert_eq!(parse(&frame(&bytes(3, &whole))), Answer::ServerHello);
        // What a later version adds is passed over, whatever its kind.
        let added =
            [&whole[..], b"\x20\x96\x01", b"\x29\x00\x00\x00\x00\x00\x00\x00\x00", b"\x35\x00\x00\x00\x00"];
        assert_eq!(parse(&frame(&bytes(3, &added.concat()))), Answer::ServerHello);
        for message in [
            bytes(2, &whole),
            bytes(2, &bytes(1, &[7; 32])),
            bytes(3, &hello(31, 48, 17)),
            bytes(3, &hello(32, 32, 17)),
            bytes(3, &hello(32, 48, 16)),
            bytes(3, &whole[..34]),
            bytes(3, &whole[..whole.len() - 1]),
            vec![0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            Vec::new(),
        ] {
            assert_eq!(parse(&frame(&message)), Answer::Foreign, "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_never_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_ne!(parse(&bytes), Answer::ServerHello);
        }

        #[test]
        fn a_frame_of_random_bytes_is_never_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let len = bytes.len() as u32;
            prop_assert_eq!(parse(&[&len.to_be_bytes()[1..], &bytes].concat()), Answer::Foreign);
        }
    }
}
