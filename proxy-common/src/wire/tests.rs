//! Properties of the rewrite, and two ends with setu's two sockets between them.

use proptest::prelude::*;

use super::{
    checksum::{self, Difference},
    options::{Additions, Options, Word},
    segment::{ACK, Clock, FIN, Fate, Known, RST, SYN, Segment, fate, is_new, progress},
    sequence::{after, later},
};

/// A flow that nobody lacks own bytes of.
fn spliced(shift_in: u32, shift_out: u32) -> Known {
    Known {
        own_acknowledged: 0,
        own_received: 0,
        other_end: 0,
        other_acknowledged: 0,
        acknowledged: true,
        other_has: true,
        shift_in,
        shift_out,
    }
}

fn options(words: &[u32]) -> Vec<Word> {
    let mut options = Options::default();
    words.iter().map(|word| options.next(*word)).collect()
}

fn rewrite(words: &[u32], additions: Additions) -> Vec<u32> {
    options(words).into_iter().zip(words).map(|(word, value)| word.rewrite(*value, additions)).collect()
}

/// The layouts of stacks in use, outside of SYNs: timestamps, SACK blocks, both in either order, none.
fn layout() -> impl Strategy<Value = Vec<u32>> {
    let stamps = any::<[u32; 2]>().prop_map(|[value, echo]| vec![0x0101_080a, value, echo]);
    let blocks = |most| {
        prop::collection::vec(any::<[u32; 2]>(), 1..=most).prop_map(|blocks| {
            let mut words = vec![0x0101_0502 + 8 * blocks.len() as u32];
            words.extend(blocks.as_flattened());
            words
        })
    };
    prop_oneof![
        Just(vec![]),
        stamps.clone(),
        blocks(4),
        (stamps.clone(), blocks(3)).prop_map(|(stamps, blocks)| [stamps, blocks].concat()),
        (blocks(3), stamps).prop_map(|(blocks, stamps)| [blocks, stamps].concat()),
    ]
}

/// The internet checksum, computed afresh.
fn afresh(bytes: &[u8]) -> u16 {
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Words as they stand in memory.
fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

proptest! {
    #[test]
    fn what_goes_to_the_other_side_comes_back_as_it_was(
        layout in layout(), timestamp: u32, echo: u32, acknowledgement: u32, sequence: u32,
    ) {
        let there = Additions { timestamp, echo, acknowledgement };
        // The answer's TSval is what the question's TSecr was of, and the other way round; what was sent is acknowledged.
        let back = Additions {
            timestamp: echo.wrapping_neg(), echo: timestamp.wrapping_neg(), acknowledgement: sequence.wrapping_neg(),
        };
        let kinds = options(&layout);
        prop_assert!(!kinds.contains(&Word::Odd));
        for (word, (old, new)) in kinds.iter().zip(layout.iter().zip(rewrite(&layout, there))) {
            match word {
                Word::Value => prop_assert!(new == 0 || Word::Echo.rewrite(new, back) == *old),
                Word::Echo => prop_assert!(*old == 0 && new == 0 || Word::Value.rewrite(new, back) == *old),
                Word::Edge => prop_assert_eq!(new, old.wrapping_add(acknowledgement)),
                _ => prop_assert_eq!(new, *old),
            }
        }
        // Y reports a byte that X sent: in X's numbers it is the one that X sent.
        let sent = sequence ^ 0x5555_5555;
        prop_assert_eq!(Word::Edge.rewrite(sent.wrapping_add(sequence), back), sent);
    }

    #[test]
    fn the_checksum_is_the_one_computed_afresh(
        is_v6: bool, layout in layout(), additions: [u32; 3], addresses: [[[u32; 4]; 2]; 2],
        head: [u32; 4], new_head: [u32; 4], payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let [timestamp, echo, acknowledgement] = additions;
        let after = rewrite(&layout, Additions { timestamp, echo, acknowledgement });
        let cut = |[a, b]: [[u32; 4]; 2]| if is_v6 { [a, b] } else { [[a[0], 0, 0, 0], [b[0], 0, 0, 0]] };
        let (old_addresses, new_addresses) = (cut(addresses[0]), cut(addresses[1]));
        let whole = |addresses: [[u32; 4]; 2], head: [u32; 4], options: &[u32]| {
            let rest = [0x0006_0000 | (20 + options.len() * 4 + payload.len()) as u32];
            let words = [addresses.as_flattened(), &rest, &head, &[0], options].concat();
            [bytes(&words), payload.clone()].concat()
        };
        let old = afresh(&whole(old_addresses, head, &layout));
        let fresh = afresh(&whole(new_addresses, new_head, &after));

        let mut words = Difference::default();
        for (old, new) in head.iter().chain(&layout).zip(new_head.iter().chain(&after)) {
            words.replace(old.to_be(), new.to_be());
        }
        let swap = |of: [[u32; 4]; 2]| of.map(|address| address.map(u32::to_be));
        // As the kernel is given it: the sum of the words, and that of the addresses.
        let mut sum = Difference::default();
        sum.replace(u32::MAX, words.sum());
        sum.replace(u32::MAX, checksum::of_addresses(swap(old_addresses), swap(new_addresses)));
        prop_assert_eq!(u16::from_be(sum.apply(old.to_be())), fresh);
        // And as the program itself does with the header of IPv4.
        let mut of_words = Difference::default();
        for (old, new) in head.iter().zip(&new_head) {
            of_words.replace(old.to_be(), new.to_be());
        }
        prop_assert_eq!(u16::from_be(of_words.apply(afresh(&bytes(&head)).to_be())), afresh(&bytes(&new_head)));
    }

    #[test]
    fn a_window_is_what_was_offered_to_a_unit(window: u16, shift_in in 0..15_u32, shift_out in 0..15_u32) {
        let segment = Segment { sequence: 0, acknowledgement: 0, flags: ACK, window, len: 0 };
        let Fate::Translate { window: told, .. } = fate(&segment, &spliced(shift_in, shift_out)).fate else {
            panic!("not translated")
        };
        let (offered, unit) = (u64::from(window) << shift_in, 1_u64 << shift_out);
        let told_bytes = u64::from(told) << shift_out;
        prop_assert_eq!(told == 0, window == 0);
        prop_assert!(told_bytes <= offered.max(unit));
        prop_assert!(told == u16::MAX || told == 0 || told_bytes + unit > offered);
    }

    #[test]
    fn options_never_panic(words in prop::collection::vec(any::<u32>(), 0..=10)) {
        let kinds = options(&words);
        prop_assert_eq!(kinds.len(), words.len());
    }

    #[test]
    fn both_ends_get_every_byte_whatever_is_lost(
        legs: [[u32; 2]; 2], lacks in [0..100_u32, 0..100_u32], unheard in [0..100_u32, 0..100_u32],
        totals in [0..600_u32, 0..600_u32], steps in prop::collection::vec((0..8_u8, any::<u8>()), 0..300),
    ) {
        let mut world = World::new(legs, lacks, unheard, totals);
        for (what, which) in steps {
            world.step(what, which.into());
        }
        for _ in 0..200 {
            world.round();
        }
        prop_assert_eq!(world.acknowledged, [true; 2]);
        for side in 0..2 {
            let end = &world.ends[side];
            // All that is written to it by setu, and by the other end.
            prop_assert_eq!(end.received, world.own_acknowledged[side].wrapping_add(totals[1 - side]));
            prop_assert_eq!(end.unacknowledged, end.total);
        }
    }
}

/// An end of the flow, in the numbers of its leg.
struct End {
    unacknowledged: u32,
    next: u32,
    /// Where its stream ends.
    total: u32,
    received: u32,
    /// Up to where the peer lets it send, and the largest window that it was offered (SND.WND and MAX.SND.WND).
    edge: u32,
    largest: u32,
}

/// What each end and each socket of setu's offers.
const WINDOW: u16 = 64;
/// Bytes of a segment at most.
const MOST: u32 = 20;

impl End {
    /// The next segment of what is unacknowledged, or of what is new.
    fn segment(&mut self, is_new: bool) -> Segment {
        let sequence = if is_new { self.next } else { self.unacknowledged };
        let room =
            after(later(self.edge, self.next), sequence).min(after(self.total, sequence)).max(0) as u32;
        let len = room.min(MOST);
        self.next = later(self.next, sequence.wrapping_add(len));
        self.carry(sequence, len)
    }

    fn acknowledge(&self) -> Segment {
        self.carry(self.next, 0)
    }

    fn carry(&self, sequence: u32, len: u32) -> Segment {
        Segment { sequence, acknowledgement: self.received, flags: ACK, window: WINDOW, len }
    }

    fn receive(&mut self, segment: &Segment) {
        let old = after(segment.acknowledgement, self.unacknowledged);
        // RFC 5961, section 5.2.
        if after(segment.acknowledgement, self.next) > 0 || old < -(self.largest as i32) {
            return;
        }
        if old >= 0 {
            self.unacknowledged = segment.acknowledgement;
            self.edge = segment.acknowledgement.wrapping_add(segment.window.into());
            self.largest = self.largest.max(segment.window.into());
        }
        if after(segment.sequence, self.received) <= 0 {
            self.received = later(self.received, segment.end());
        }
    }
}

/// Two ends, what is known of the flow, setu's sockets, and the packets that are under way.
struct World {
    ends: [End; 2],
    /// What setu's socket believes to be unacknowledged.
    sockets: [u32; 2],
    own_acknowledged: [u32; 2],
    own_received: [u32; 2],
    acknowledged: [bool; 2],
    /// Of directions, in the numbers of the leg that packets come by.
    seen_end: [u32; 2],
    seen_acknowledged: [u32; 2],
    /// From an end, by its side; and to it.
    from: Vec<(usize, Segment)>,
    to: Vec<(usize, Segment)>,
}

impl World {
    fn new(legs: [[u32; 2]; 2], lacks: [u32; 2], unheard: [u32; 2], totals: [u32; 2]) -> Self {
        let [own_acknowledged, own_received] = [0, 1].map(|field| [legs[0][field], legs[1][field]]);
        let end = |side: usize| End {
            unacknowledged: own_received[side].wrapping_sub(unheard[side]),
            next: own_received[side],
            total: own_received[side].wrapping_add(totals[side]),
            received: own_acknowledged[side].wrapping_sub(lacks[side]),
            edge: own_received[side].wrapping_sub(unheard[side]).wrapping_add(WINDOW.into()),
            largest: 100,
        };
        Self {
            ends: [end(0), end(1)],
            sockets: [0, 1].map(|side| own_acknowledged[side].wrapping_sub(lacks[side])),
            own_acknowledged,
            own_received,
            acknowledged: [0, 1].map(|side| lacks[side] == 0),
            seen_end: own_received,
            seen_acknowledged: own_acknowledged,
            from: vec![],
            to: vec![],
        }
    }

    fn known(&self, x: usize) -> Known {
        let y = 1 - x;
        let add_sequence = self.own_acknowledged[x].wrapping_sub(self.own_received[y]);
        let add_acknowledgement = self.own_received[x].wrapping_sub(self.own_acknowledged[y]);
        Known {
            own_acknowledged: self.own_acknowledged[x],
            own_received: self.own_received[x],
            other_end: self.seen_end[y].wrapping_add(add_sequence),
            other_acknowledged: self.seen_acknowledged[y].wrapping_add(add_acknowledgement),
            acknowledged: self.acknowledged[x],
            other_has: self.acknowledged[y],
            shift_in: 0,
            shift_out: 0,
        }
    }

    /// What the program does with a segment from X.
    fn program(&mut self, x: usize, segment: &Segment) {
        let y = 1 - x;
        let known = self.known(x);
        let outcome = fate(segment, &known);
        self.acknowledged[x] = outcome.acknowledged;
        match outcome.fate {
            Fate::Drop => {}
            Fate::Pass { sequence } => {
                // It ignores what is outside of its window.
                let is_in = after(sequence, self.own_received[x]);
                if (0..=i32::from(WINDOW)).contains(&is_in) {
                    self.sockets[x] = later(self.sockets[x], segment.acknowledgement);
                }
            }
            Fate::Translate { acknowledgement, window } => {
                let progress = progress(segment, &known, self.seen_acknowledged[x], self.seen_end[x]);
                self.seen_acknowledged[x] = progress.acknowledged;
                self.seen_end[x] = progress.end;
                let sequence = segment
                    .sequence
                    .wrapping_add(self.own_acknowledged[y].wrapping_sub(self.own_received[x]));
                let acknowledgement =
                    acknowledgement.wrapping_add(self.own_received[y].wrapping_sub(self.own_acknowledged[x]));
                self.to.push((y, Segment { sequence, acknowledgement, window, ..*segment }));
            }
        }
    }

    /// setu's socket repeats the first segment that it takes for lost, until both sides have all.
    fn repeat(&mut self, side: usize) {
        if self.acknowledged == [true; 2] {
            return;
        }
        let sequence = self.sockets[side];
        let left = after(self.own_acknowledged[side], sequence).max(0) as u32;
        if left != 0 {
            let acknowledgement = self.own_received[side];
            let len = left.min(MOST);
            self.to.push((side, Segment { sequence, acknowledgement, flags: ACK, window: WINDOW, len }));
        }
    }

    fn step(&mut self, what: u8, which: usize) {
        let side = which & 1;
        match what {
            0 => self.from.push((side, self.ends[side].segment(true))),
            1 => self.from.push((side, self.ends[side].segment(false))),
            2 => self.from.push((side, self.ends[side].acknowledge())),
            3 => self.repeat(side),
            // In any order.
            4 | 5 if !self.from.is_empty() => {
                let (side, segment) = self.from.remove(which % self.from.len());
                if which & 0x80 == 0 || what == 4 {
                    self.program(side, &segment);
                }
            }
            6 | 7 if !self.to.is_empty() => {
                let (side, segment) = self.to.remove(which % self.to.len());
                if which & 0x80 == 0 || what == 6 {
                    self.ends[side].receive(&segment);
                }
                // Twice.
                if which & 0x40 != 0 {
                    self.ends[side].receive(&segment);
                }
            }
            _ => {}
        }
    }

    /// Nothing is lost for a while.
    fn round(&mut self) {
        for side in 0..2 {
            let (repeated, next) = (self.ends[side].segment(false), self.ends[side].segment(true));
            self.from.extend([repeated, next, self.ends[side].acknowledge()].map(|segment| (side, segment)));
            self.repeat(side);
        }
        for (side, segment) in std::mem::take(&mut self.from) {
            self.program(side, &segment);
        }
        for (side, segment) in std::mem::take(&mut self.to) {
            self.ends[side].receive(&segment);
        }
    }
}

#[test]
fn no_echo_stays_none() {
    let additions = Additions { echo: 7, ..Additions::default() };
    assert_eq!([0, 1].map(|value| Word::Echo.rewrite(value, additions)), [0, 8]);
}

#[test]
fn data_of_a_side_that_lacks_own_bytes_goes_on_as_if_it_did_not() {
    let known = Known { own_acknowledged: 100, own_received: 50, acknowledged: false, ..spliced(0, 0) };
    let data = |sequence| Segment { sequence, acknowledgement: 90, flags: ACK, window: 64, len: 5 };
    let translated = Fate::Translate { acknowledgement: 100, window: 54 };
    assert_eq!(fate(&data(50), &known).fate, translated);
    // What setu took already is held back only while the other side lacks own bytes.
    assert_eq!(fate(&data(49), &known).fate, translated);
    assert_eq!(fate(&data(49), &Known { other_has: false, ..known }).fate, Fate::Drop);
}

#[test]
fn syns_of_stacks_are_understood() {
    let stamps = |words: &[u32]| options(words).iter().position(|word| *word == Word::Value);
    // Linux; Apple; Windows without timestamps.
    let linux = [0x0204_05b4, 0x0402_080a, 7, 0, 0x0103_0307];
    let apple = [0x0204_05b4, 0x0103_0306, 0x0101_080a, 7, 0, 0x0402_0000];
    let windows = [0x0204_05b4, 0x0103_0308, 0x0101_0402];
    assert_eq!([stamps(&linux), stamps(&apple), stamps(&windows)], [Some(2), Some(3), None]);
    for words in [&linux[..], &apple, &windows] {
        assert_eq!(options(words)[0], Word::SegmentSize(1460));
        assert!(!options(words).contains(&Word::Odd), "{words:x?}");
    }
    // Timestamps at an odd place, and a SACK option of a length that there is not.
    assert_eq!([options(&[0x080a_0000])[0], options(&[0x0101_050b])[0]], [Word::Odd; 2]);
}

#[test]
fn what_cannot_be_the_ends_own_is_not_believed() {
    let known = Known { other_acknowledged: 1000, other_end: 5000, ..spliced(0, 0) };
    let of = |sequence, flags, acknowledgement| {
        progress(&Segment { sequence, acknowledgement, flags, window: 0, len: 0 }, &known, 4000, 1000)
    };
    let last = of(1000, FIN | ACK, 5000);
    assert_eq!((last.finished, last.end, last.acknowledged), (true, 1001, 5000));
    // Beyond what the other end sent; older than what is known.
    assert_eq!([of(1000, ACK, 5001).acknowledged, of(1000, ACK, 3000).acknowledged], [4000; 2]);
    // Far beyond what was seen, and what the other end has already; a gap of what was lost on the way there may be.
    let far = 1000 + (1 << 22);
    let fin = |sequence| of(sequence, FIN | ACK, 5000).finished;
    let end = |sequence| of(sequence, ACK, 5000).end;
    assert!(fin(far) && end(far) == far);
    assert!(!fin(far + 1) && end(far + 1) == 1000);
    assert!(!fin(999) && !fin(1000_u32.wrapping_sub(1 << 29)));
    // Nor what acknowledges what the other end cannot have sent, or nothing at all, or what is long past.
    assert!(!of(1000, FIN | ACK, 5001).finished && !of(1000, FIN, 5000).finished);
    let late = 4000_u32.wrapping_sub(1 << 24);
    assert!(of(1000, FIN | ACK, late).finished && !of(1000, FIN | ACK, late.wrapping_sub(1)).finished);
    // Signs of life are those that could be its own.
    let lives = |sequence, acknowledgement| of(sequence, ACK, acknowledgement).is_believed;
    assert!(lives(1000, 5000) && lives(far, late));
    assert!(!lives(far + 1, 5000) && !lives(1000, 5001) && !of(1000, 0, 0).is_believed);
    // A reset has one of two numbers.
    let reset = |sequence| {
        let segment = Segment { sequence, acknowledgement: 0, flags: RST, window: 0, len: 0 };
        progress(&segment, &known, 4000, 2000).reset
    };
    assert_eq!([999, 1000, 1500, 2000, 2001].map(reset), [false, true, false, true, false]);
    // A SYN of a newcomer, which may be at any place, is not the flow's.
    assert_eq!(of(2000, SYN, 0).end, 1000);
}

#[test]
fn a_syn_is_new_by_its_number_or_its_clock() {
    let clock = |value| Clock { known: true, value };
    let none = Clock::default();
    assert!(is_new(1001, none, 1000, none) && !is_new(1000, none, 1000, none));
    assert!(is_new(5, clock(8), 1000, clock(7)) && !is_new(5, clock(7), 1000, clock(7)));
    assert!(!is_new(5, clock(8), 1000, none) && !is_new(5, none, 1000, clock(7)));
}
