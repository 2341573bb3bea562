//! The program itself, run by the kernel over single packets (`BPF_PROG_TEST_RUN`). Needs the privilege to load it.
//!
//! What a packet costs is printed by
//! `cargo test --release -p proxy-userspace --lib wire::exercise::cost -- --ignored --nocapture`.

use std::{thread, time::Duration};

use proxy_common::wire::{
    checksum,
    layout::{
        CLEAR_ECN, IPV4, IPV6, Names, ODD_OPTIONS, OWN_ACKNOWLEDGED, RST_SEEN, TIMESTAMP_SEEN, sender_mark,
    },
};

use super::Program;
use crate::sys::{Constants, Seen};

/// Verdicts: `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
const PASS: i32 = -1;
const DROP: i32 = 2;
const SENT: i32 = 7;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// NOP NOP TS and NOP NOP SACK.
const STAMPS: u32 = 0x0101_080a;
const BLOCK: u32 = 0x0101_050a;

/// Two addresses and two ports, source first, as numbers.
type Ends = ([[u32; 4]; 2], [u16; 2]);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    ends: Ends,
    hops: u8,
    ecn: u8,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: Vec<u32>,
    payload: Vec<u8>,
}

fn afresh(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u64 = words.map(u64::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn is_v6((addresses, _): &Ends) -> bool {
    addresses[0][1..] != [0; 3]
}

impl Packet {
    fn new(ends: Ends) -> Self {
        Self {
            ends,
            hops: 64,
            ecn: 0,
            sequence: 5000,
            acknowledgement: 9000,
            flags: ACK,
            window: 100,
            options: vec![],
            payload: b"media".to_vec(),
        }
    }

    /// As a frame, with checksums computed afresh.
    fn frame(&self) -> Vec<u8> {
        let (addresses, ports) = self.ends;
        let header = 20 + self.options.len() * 4;
        let len = header + self.payload.len();
        let control = (header as u32 / 4) << 28 | u32::from(self.flags) << 16 | u32::from(self.window);
        let fixed = [
            u32::from(ports[0]) << 16 | u32::from(ports[1]),
            self.sequence,
            self.acknowledgement,
            control,
            0,
        ];
        let mut tcp = [words(&fixed), words(&self.options), self.payload.clone()].concat();
        let pseudo = [words(addresses.as_flattened()), words(&[len as u32, 6])].concat();
        let sum = afresh(&[pseudo, tcp.clone()].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let (ip, protocol) = if is_v6(&self.ends) {
            let first = 0x6000_0000 | u32::from(self.ecn) << 20;
            let second = (len as u32) << 16 | 6 << 8 | u32::from(self.hops);
            ([words(&[first, second]), words(addresses.as_flattened())].concat(), 0x86dd_u16)
        } else {
            let first = 0x4500_0000 | u32::from(self.ecn) << 16 | (20 + len) as u32;
            let third = u32::from(self.hops) << 24 | 6 << 16;
            let mut ip = words(&[first, 0x1234_4000, third, addresses[0][0], addresses[1][0]]);
            let sum = afresh(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            (ip, 0x0800)
        };
        [[2_u8; 12].to_vec(), protocol.to_be_bytes().to_vec(), ip, tcp].concat()
    }
}

const V4: [Ends; 2] = [
    ([[0x0a00_0001, 0, 0, 0], [0x0a00_0002, 0, 0, 0]], [40_000, 443]),
    ([[0x0a00_0102, 0, 0, 0], [0x0a00_0103, 0, 0, 0]], [10_000, 5222]),
];
const V6: [Ends; 2] = [
    ([[0x2001_0db8, 0, 0, 1], [0x2001_0db8, 0, 0, 2]], [40_000, 443]),
    ([[0x2001_0db8, 1, 0, 2], [0x2001_0db8, 1, 0, 3]], [10_000, 5222]),
];

fn names(ends: &Ends) -> Names {
    let ([source, destination], ports) = *ends;
    Names {
        source: source.map(u32::to_be),
        destination: destination.map(u32::to_be),
        source_port: ports[0].to_be(),
        destination_port: ports[1].to_be(),
        family: if is_v6(ends) { IPV6 } else { IPV4 },
    }
}

/// A flow from `ends[0]`, which leaves as `ends[1]`, in the place of this index: X sent up to 5000, and has up to 9000 of setu.
fn install(program: &mut Program, index: u32, ends: &[Ends; 2]) {
    let ([source, destination], ports) = ends[1];
    let answer = ([destination, source], [ports[1], ports[0]]);
    program.insert(&names(&ends[0]), index * 2).unwrap();
    if names(&answer) != names(&ends[0]) {
        program.insert(&names(&answer), index * 2 + 1).unwrap();
    }
    program.conns.conn(index).install([0; 7]);
}

fn constants(ends: &[Ends; 2]) -> Constants {
    let (from, to) = (names(&ends[0]), names(&ends[1]));
    Constants {
        source: to.source,
        destination: to.destination,
        source_port: to.source_port,
        destination_port: to.destination_port,
        out_device: 1,
        add_sequence: 1_000_000,
        add_acknowledgement: 2_000_000,
        add_timestamp: 3_000_000,
        add_echo: 4_000_000,
        own_acknowledged: 9000,
        own_received: 5000,
        address_difference: checksum::of_addresses(
            [from.source, from.destination],
            [to.source, to.destination],
        ),
        window_shift_in: 3,
        window_shift_out: 1,
        options: CLEAR_ECN,
    }
}

/// Y's direction: what it sent goes to X's 9000, as X's 5000 is its 1,005,000.
fn other() -> Constants {
    Constants {
        own_acknowledged: 1_005_000,
        own_received: 2_009_000,
        add_sequence: 2_000_000_u32.wrapping_neg(),
        add_acknowledgement: 1_000_000_u32.wrapping_neg(),
        ..Constants::default()
    }
}

fn arm(program: &Program, index: u32, ends: &[Ends; 2], flags: [u32; 2]) {
    let conn = program.conns.conn(index);
    let start = |end, acknowledged, flags| Seen { end, acknowledged, flags, ..Seen::default() };
    conn.prepare(0, &constants(ends), start(5000, 9000, flags[0]));
    conn.prepare(1, &other(), start(2_009_000, 1_005_000, flags[1]));
    assert!(conn.activate(conn.gate()));
}

fn program() -> Program {
    Program::load(16, 10_000..=10_007, None).unwrap()
}

const BOTH: [u32; 2] = [OWN_ACKNOWLEDGED; 2];

#[test]
fn a_packet_of_one_connection_becomes_one_of_the_other() {
    let mut program = program();
    for (index, ends) in [V4, V6].iter().enumerate() {
        install(&mut program, index as u32, ends);
        arm(&program, index as u32, ends, BOTH);
        let stamps = vec![STAMPS, 77, 88];
        let blocks = vec![BLOCK, 9100, 9200];
        let both = [stamps.clone(), blocks.clone()].concat();
        for options in [vec![], stamps, blocks, both, vec![STAMPS, 77, 0]] {
            for len in [0, 5, 1300] {
                let payload = vec![0x5a; len];
                let packet = Packet { options: options.clone(), payload, ecn: 3, ..Packet::new(ends[0]) };
                let mut expected = Packet {
                    ends: ends[1],
                    hops: 63,
                    ecn: 0,
                    sequence: 1_005_000,
                    window: 400,
                    ..packet.clone()
                };
                expected.acknowledgement = 2_009_000;
                for (word, expected) in options.iter().zip(&mut expected.options) {
                    *expected += match word {
                        77 => 3_000_000,
                        88 => 4_000_000,
                        9100 | 9200 => 2_000_000,
                        _ => 0,
                    };
                }
                let (verdict, became, _) = program.run(&packet.frame(), 1);
                assert_eq!(verdict, SENT, "{packet:?}");
                assert_eq!(became, expected.frame(), "{packet:?}");
            }
        }
        assert_eq!(program.conns.conn(index as u32).seen(0).bytes, 5 * 1305);
    }
}

#[test]
fn what_is_not_a_flows_passes_as_it_is() {
    let mut program = program();
    install(&mut program, 0, &V4);
    arm(&program, 0, &V4, BOTH);
    let frame = Packet::new(V4[0]).frame();
    let changed = |at: usize, to: u8| {
        let mut frame = frame.clone();
        frame[at] = to;
        frame
    };
    // Another port; UDP; options of IP; a first and a later fragment; a TCP header that is too short, and one that is longer
    // than the packet; a packet that is cut.
    for frame in [
        changed(35, 1),
        changed(23, 17),
        changed(14, 0x46),
        changed(20, 0x20),
        changed(21, 1),
        changed(46, 0x40),
        changed(46, 0xf0),
        frame[..40].to_vec(),
        Packet::new(V6[0]).frame(),
    ] {
        let (verdict, became, _) = program.run(&frame, 1);
        assert_eq!((verdict, became), (PASS, frame));
    }
    assert_eq!(program.run(&Packet { hops: 1, ..Packet::new(V4[0]) }.frame(), 1).0, DROP);
}

#[test]
fn own_bytes_are_the_sockets() {
    let mut program = program();
    install(&mut program, 0, &V4);
    arm(&program, 0, &V4, [0, 0]);
    // X lacks own bytes: its acknowledgement is for the socket, in whose window it must be.
    let lacking = Packet { acknowledgement: 8990, sequence: 5100, payload: vec![], ..Packet::new(V4[0]) };
    let (verdict, became, _) = program.run(&lacking.frame(), 1);
    assert_eq!((verdict, became), (PASS, Packet { sequence: 5000, ..lacking }.frame()));
    // With data it goes on as if nothing were lacking, with less room.
    let data = Packet { acknowledgement: 8990, ..Packet::new(V4[0]) };
    let (verdict, became, _) = program.run(&data.frame(), 1);
    let expected = Packet {
        ends: V4[1],
        hops: 63,
        sequence: 1_005_000,
        acknowledgement: 2_009_000,
        window: 395,
        ..data
    };
    assert_eq!((verdict, became), (SENT, expected.frame()));
    assert_eq!(program.conns.conn(0).seen(0).flags & OWN_ACKNOWLEDGED, 0);
    // What setu took already is of no use to Y, which lacks own bytes.
    assert_eq!(program.run(&Packet { sequence: 4995, ..Packet::new(V4[0]) }.frame(), 1).0, DROP);
    // It has all: once both have, the keeper hears of it, once.
    assert_eq!(program.next_event(), None);
    let whole = Packet { payload: vec![], ..Packet::new(V4[0]) };
    assert_eq!(program.run(&whole.frame(), 1).0, SENT);
    assert_eq!(program.next_event(), None);
    let ([source, destination], ports) = V4[1];
    let answer = Packet {
        sequence: 2_009_000,
        acknowledgement: 1_005_000,
        payload: vec![],
        ..Packet::new(([destination, source], [ports[1], ports[0]]))
    };
    assert_eq!(program.run(&answer.frame(), 1).0, SENT);
    assert_eq!((program.next_event(), program.next_event()), (Some(0), None));
}

#[test]
fn before_a_flow_is_armed_its_packets_are_counted() {
    let mut program = program();
    install(&mut program, 0, &V4);
    let packet = Packet { options: vec![STAMPS, 77, 88], ..Packet::new(V4[0]) };
    let conn_gate = |program: &Program| program.conns.conn(0).gate();
    let (verdict, became, _) = program.run(&packet.frame(), 1);
    assert_eq!((verdict, became), (PASS, packet.frame()));
    let seen = program.conns.conn(0).seen(0);
    assert_eq!((conn_gate(&program), seen.passed_end, seen.timestamp), (1, 5005, 77));
    assert_eq!(seen.flags, TIMESTAMP_SEEN);
    let odd = Packet { options: vec![0x080a_0000, 0, 0x0000_0101], ..Packet::new(V4[0]) };
    program.run(&odd.frame(), 1);
    assert_eq!(program.conns.conn(0).seen(0).flags & ODD_OPTIONS, ODD_OPTIONS);
    assert_eq!(conn_gate(&program), 2);
    // What a failed attempt believed of own bytes is not what the next one does.
    arm_in_vain(&program);
    arm(&program, 0, &V4, [0, 0]);
    assert_eq!(program.conns.conn(0).seen(0).flags & OWN_ACKNOWLEDGED, 0);
}

/// An attempt that fails, for a packet was passed meanwhile.
fn arm_in_vain(program: &Program) {
    let conn = program.conns.conn(0);
    conn.prepare(0, &constants(&V4), Seen { flags: OWN_ACKNOWLEDGED, ..Seen::default() });
    let gate = conn.gate();
    program.run(&Packet::new(V4[0]).frame(), 1);
    assert!(!conn.activate(gate));
}

#[test]
fn names_are_used_again_only_by_what_is_newer() {
    let mut program = program();
    install(&mut program, 0, &V4);
    arm(&program, 0, &V4, BOTH);
    let syn = |sequence| Packet { sequence, flags: SYN, payload: vec![], ..Packet::new(V4[0]) };
    let send = |packet: &Packet| assert_eq!(program.run(&packet.frame(), 1).0, SENT);
    let fin = Packet { flags: FIN | ACK, payload: vec![], ..Packet::new(V4[0]) };
    send(&fin);
    let ([source, destination], ports) = V4[1];
    send(&Packet {
        sequence: 2_009_000,
        acknowledgement: 1_005_001,
        flags: FIN | ACK,
        payload: vec![],
        ..Packet::new(([destination, source], [ports[1], ports[0]]))
    });
    // The second FIN is not acknowledged yet: it may be forged, and the connection live.
    send(&syn(6000));
    send(&Packet { sequence: 5001, acknowledgement: 9001, flags: ACK, ..fin.clone() });
    assert_eq!(program.run(&syn(4000).frame(), 1).0, DROP);
    // One that is guessed is not in the way of what has ended.
    send(&Packet { sequence: 7000, ..fin });
    assert_eq!(program.run(&syn(8000).frame(), 1).0, PASS);
    // From then on it is none of the program's.
    assert_eq!(program.run(&Packet::new(V4[0]).frame(), 1).0, PASS);
}

#[test]
fn a_reset_that_is_answered_is_none() {
    let mut program = program();
    install(&mut program, 0, &V4);
    arm(&program, 0, &V4, BOTH);
    let send = |packet: &Packet| assert_eq!(program.run(&packet.frame(), 1).0, SENT);
    let is_reset = || program.conns.conn(0).seen(0).flags & RST_SEEN != 0;
    let reset = Packet { flags: RST, payload: vec![], ..Packet::new(V4[0]) };
    let ([source, destination], ports) = V4[1];
    let answer = Packet {
        sequence: 2_009_000,
        acknowledgement: 1_005_000,
        payload: vec![],
        ..Packet::new(([destination, source], [ports[1], ports[0]]))
    };
    send(&reset);
    send(&reset);
    assert!(is_reset());
    // The other side may say so for ever.
    send(&answer);
    let elsewhere = Packet { sequence: 5000 + (1 << 28), ..Packet::new(V4[0]) };
    send(&elsewhere);
    assert!(is_reset(), "neither is this side's");
    let heard = program.conns.conn(0).seen(0).last;
    thread::sleep(Duration::from_millis(10));
    send(&reset);
    assert_eq!(program.conns.conn(0).seen(0).last, heard, "the same once more");
    send(&Packet::new(V4[0]));
    assert!(!is_reset(), "this side goes on");
    assert_ne!(program.conns.conn(0).seen(0).last, heard);
}

#[test]
fn what_upstreams_take_is_noted() {
    let program = program();
    for ends in [V4[1], V6[1]] {
        let ([source, destination], ports) = ends;
        let from = ([destination, source], [ports[1], ports[0]]);
        let mark = sender_mark(destination.map(u32::to_be), ports[1].to_be());
        for (options, size) in [(vec![0x0204_03e8, 0x0402_080a, 7, 8], 1000), (vec![], 536)] {
            let packet = Packet { flags: SYN | ACK, options, payload: vec![], ..Packet::new(from) };
            assert_eq!(program.run(&packet.frame(), 1).0, PASS);
            assert_eq!(program.noted(10_000, mark), Some(size));
        }
    }
}

#[test]
#[ignore = "a measurement: it prints what a packet costs"]
fn cost() {
    let mut program = program();
    // Flows whose packets keep their names, so that the packet that a run leaves is the next one's.
    let same = [V4, V6].map(|ends| [ends[0], ends[0]]);
    for (index, ends) in same.iter().enumerate() {
        install(&mut program, index as u32, ends);
        arm(&program, index as u32, ends, BOTH);
        let stream = Packet { hops: 255, options: vec![STAMPS, 77, 88], ..Packet::new(ends[0]) };
        // It loses a hop each time.
        const REPEAT: u32 = 250;
        let took: Duration = (0..4000).map(|_| program.run(&stream.frame(), REPEAT).2).sum();
        let foreign = Packet { ends: (ends[0].0, [1, 2]), ..stream };
        let passed = program.run(&foreign.frame(), 1_000_000).2;
        let family = if is_v6(&ends[0]) { "IPv6" } else { "IPv4" };
        println!("{family}: translated {} ns, not a flow's {} ns", took.as_nanos() / 4000, passed.as_nanos());
    }
}
