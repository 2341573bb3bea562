//! What the keeper notes of a flow in the map itself, so that who comes after it finds it there.

use std::time::Duration;

use crate::{relay::wire::message::Limits, sys::ConnRef};

/// Where in the table a flow is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No flow.
    Free,
    /// Watched, and not active yet.
    Offered,
    /// Active; setu's sockets still answer for their own bytes.
    Hand,
    /// Active, and no socket is left.
    Spliced,
    /// Over since this tick, and translated on for what comes late.
    Over(u32),
}

const OWNER: usize = 0;
const IDLE_HALF: usize = 1;
const VANISHED_LISTENER: usize = 2;
const OWES: usize = 3;
const STATE: usize = 4;
const GENERATION: usize = 5;
const TOLD: usize = 6;

const KIB: u64 = 1024;

/// Two halves of a note.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(note: u64) -> [u32; 2] {
    [note as u32, (note >> 32) as u32]
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Whose a flow is: a worker's, by its name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) worker: u32,
    pub(super) id: u32,
}

/// Notes for a flow that is installed.
pub(super) fn new(owner: Owner, family: u32, listener: u16, limits: Limits, generation: u32) -> [u64; 7] {
    let mut notes = [0; 7];
    notes[OWNER] = pair(owner.id, owner.worker);
    notes[IDLE_HALF] = pair(millis(limits.idle), millis(limits.half_close));
    notes[VANISHED_LISTENER] = pair(millis(limits.vanished), u32::from(listener) | family << 16);
    notes[STATE] = code(State::Offered);
    notes[GENERATION] = generation.into();
    notes
}

fn code(state: State) -> u64 {
    match state {
        State::Free => 0,
        State::Offered => 1,
        State::Hand => 2,
        State::Spliced => 3,
        State::Over(since) => pair(4, since),
    }
}

pub(crate) fn state(conn: ConnRef<'_>) -> State {
    let [code, since] = halves(conn.note(STATE));
    match code {
        1 => State::Offered,
        2 => State::Hand,
        3 => State::Spliced,
        4 => State::Over(since),
        _ => State::Free,
    }
}

pub(super) fn set_state(conn: ConnRef<'_>, state: State) {
    conn.set_note(STATE, code(state));
}

pub(super) fn owner(conn: ConnRef<'_>) -> Owner {
    let [id, worker] = halves(conn.note(OWNER));
    Owner { worker, id }
}

pub(super) fn set_owner(conn: ConnRef<'_>, owner: Owner) {
    conn.set_note(OWNER, pair(owner.id, owner.worker));
}

pub(super) fn limits(conn: ConnRef<'_>) -> Limits {
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let [idle, half_close] = halves(conn.note(IDLE_HALF)).map(millis);
    let [vanished, _] = halves(conn.note(VANISHED_LISTENER));
    Limits { idle, half_close, vanished: millis(vanished) }
}

pub(super) fn listener(conn: ConnRef<'_>) -> u16 {
    halves(conn.note(VANISHED_LISTENER))[1] as u16
}

/// The family of its packets, as in the map's keys.
pub(super) fn family(conn: ConnRef<'_>) -> u32 {
    halves(conn.note(VANISHED_LISTENER))[1] >> 16
}

pub(super) fn owes_since(conn: ConnRef<'_>) -> [u32; 2] {
    halves(conn.note(OWES))
}

pub(super) fn set_owes_since(conn: ConnRef<'_>, since: [u32; 2]) {
    conn.set_note(OWES, pair(since[0], since[1]));
}

/// The state of the routes by which the flow's devices were chosen.
pub(super) fn generation(conn: ConnRef<'_>) -> u32 {
    conn.note(GENERATION) as u32
}

pub(super) fn set_generation(conn: ConnRef<'_>, generation: u32) {
    conn.set_note(GENERATION, generation.into());
}

/// What the flow has moved since its owner was told last, if that is so much in one direction at least. Whole KiB are told.
pub(super) fn news(conn: ConnRef<'_>, bytes: [u64; 2], least: u64) -> Option<[u64; 2]> {
    let told = halves(conn.note(TOLD));
    let now = bytes.map(|bytes| (bytes / KIB) as u32);
    let news = [now[0].wrapping_sub(told[0]), now[1].wrapping_sub(told[1])].map(|kib| u64::from(kib) * KIB);
    if news[0] < least && news[1] < least {
        return None;
    }
    conn.set_note(TOLD, pair(now[0], now[1]));
    Some(news)
}

/// What the flow has moved in all since its owner was told last, at its end.
pub(super) fn last_news(conn: ConnRef<'_>, bytes: [u64; 2]) -> [u64; 2] {
    let whole = news(conn, bytes, 0).unwrap_or_default();
    [whole[0] + bytes[0] % KIB, whole[1] + bytes[1] % KIB]
}
