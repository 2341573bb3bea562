//! Flows on the wire, in memory shared with the program that translates their packets.

use std::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use proxy_common::wire::layout::{ACTIVE, Conn, Direction, Noted, OWN_ACKNOWLEDGED};

use super::Shared;

impl Shared<Conn> {
    /// # Panics
    /// When there is no such element: indices come from the flow table, which is as long.
    pub(crate) fn conn(&self, index: u32) -> ConnRef<'_> {
        ConnRef { at: self.element(index), memory: PhantomData }
    }
}

impl Shared<Noted> {
    /// What was noted of the SYN-ACK that came last for the port of this place.
    ///
    /// # Panics
    /// When there is no such element.
    pub(crate) fn noted(&self, index: u32) -> Noted {
        // SAFETY: within the mapping; any value is valid, and 8 aligned bytes are read whole.
        unsafe { self.element(index).as_ptr().read_volatile() }
    }
}

/// A flow, while the program may work on it.
#[derive(Clone, Copy)]
pub(crate) struct ConnRef<'a> {
    at: NonNull<Conn>,
    memory: PhantomData<&'a Conn>,
}

/// What happens to the packets of one side, as [`Direction`] has it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Constants {
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) out_device: u32,
    pub(crate) add_sequence: u32,
    pub(crate) add_acknowledgement: u32,
    pub(crate) add_timestamp: u32,
    pub(crate) add_echo: u32,
    pub(crate) own_acknowledged: u32,
    pub(crate) own_received: u32,
    pub(crate) address_difference: u32,
    pub(crate) window_shift_in: u8,
    pub(crate) window_shift_out: u8,
    pub(crate) options: u16,
}

/// What the program has seen of one side.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) passed_end: u32,
    pub(crate) timestamp: u32,
    pub(crate) timestamp_at: u32,
    pub(crate) acknowledged: u32,
    pub(crate) end: u32,
    pub(crate) flags: u32,
    pub(crate) last: u32,
    pub(crate) moved: u32,
    pub(crate) finish: u32,
    pub(crate) bytes: u64,
}

impl ConnRef<'_> {
    /// Writes the state of a flow whose names are in no map, so that no program looks at it.
    pub(crate) fn install(self, notes: [u64; 7]) {
        let blank = Conn { notes, ..Conn::default() };
        // SAFETY: within the mapping. Nothing refers to the element, and none that did is still running: its keeper has
        // waited for a grace period since.
        unsafe { self.at.as_ptr().write_volatile(blank) };
    }

    fn gate_cell(&self) -> &AtomicU64 {
        // SAFETY: within the mapping, aligned, and accessed by whole atomic instructions everywhere.
        unsafe { &(*self.at.as_ptr()).gate }
    }

    /// The gate, read before all that follows.
    pub(crate) fn gate(self) -> u64 {
        self.gate_cell().load(Ordering::SeqCst)
    }

    /// Lets the program translate, unless a packet was passed since the gate was read.
    pub(crate) fn activate(self, gate: u64) -> bool {
        self.gate_cell().compare_exchange(gate, gate | ACTIVE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Of the keeper's notes.
    pub(crate) fn note(self, index: usize) -> u64 {
        // SAFETY: within the mapping, as the index is checked here; only the keeper writes it.
        unsafe { (&raw const (*self.at.as_ptr()).notes[index]).read_volatile() }
    }

    /// Changes one of the keeper's notes.
    pub(crate) fn set_note(self, index: usize, note: u64) {
        // SAFETY: as in `note`; the program does not look at it.
        unsafe { (&raw mut (*self.at.as_ptr()).notes[index]).write_volatile(note) };
    }

    fn direction(&self, side: usize) -> *mut Direction {
        // SAFETY: within the mapping, as the index is checked here.
        unsafe { &raw mut (*self.at.as_ptr()).directions[side] }
    }

    /// Writes what happens to the packets of a side of a flow that is not active, and where its stream is.
    pub(crate) fn prepare(self, side: usize, constants: &Constants, start: Seen) {
        let at = self.direction(side);
        macro_rules! write {
            ($($field:ident),*) => { $((&raw mut (*at).$field).write_volatile(constants.$field);)* };
        }
        // SAFETY: within the mapping. The program reads none of these before the flow is active.
        unsafe {
            write!(source, destination, source_port, destination_port, add_sequence, add_acknowledgement);
            write!(add_timestamp, add_echo, own_acknowledged, own_received, address_difference);
            write!(window_shift_in, window_shift_out, options);
        }
        self.out_device(side).store(constants.out_device, Ordering::Release);
        let state = self.state(side);
        state.acknowledged.store(start.acknowledged, Ordering::Release);
        state.end.store(start.end, Ordering::Release);
        state.last.store(start.last, Ordering::Release);
        state.moved.store(start.moved, Ordering::Release);
        // An attempt that failed may have left it, and own bytes been sent since.
        state.flags.fetch_and(!OWN_ACKNOWLEDGED, Ordering::AcqRel);
        state.flags.fetch_or(start.flags, Ordering::AcqRel);
    }

    /// What happens to the packets of a side.
    pub(crate) fn constants(self, side: usize) -> Constants {
        let at = self.direction(side);
        macro_rules! read {
            ($($field:ident),*) => {
                Constants {
                    $($field: (&raw const (*at).$field).read_volatile(),)*
                    out_device: self.out_device(side).load(Ordering::Acquire),
                }
            };
        }
        // SAFETY: within the mapping; only the keeper writes these.
        unsafe {
            read!(
                source,
                destination,
                source_port,
                destination_port,
                add_sequence,
                add_acknowledgement,
                add_timestamp,
                add_echo,
                own_acknowledged,
                own_received,
                address_difference,
                window_shift_in,
                window_shift_out,
                options
            )
        }
    }

    /// The device by which packets of a side leave.
    pub(crate) fn out_device(&self, side: usize) -> &AtomicU32 {
        // SAFETY: within the mapping, aligned, and written by whole stores.
        unsafe { AtomicU32::from_ptr((*self.direction(side)).out_device.as_ptr()) }
    }

    /// What was seen of a side.
    pub(crate) fn seen(self, side: usize) -> Seen {
        let state = self.state(side);
        Seen {
            passed_end: state.passed_end.load(Ordering::Acquire),
            timestamp: state.timestamp.load(Ordering::Acquire),
            timestamp_at: state.timestamp_at.load(Ordering::Acquire),
            acknowledged: state.acknowledged.load(Ordering::Acquire),
            end: state.end.load(Ordering::Acquire),
            flags: state.flags.load(Ordering::Acquire),
            last: state.last.load(Ordering::Acquire),
            moved: state.moved.load(Ordering::Acquire),
            finish: state.finish.load(Ordering::Acquire),
            bytes: state.bytes.load(Ordering::Acquire),
        }
    }

    fn state(&self, side: usize) -> State<'_> {
        let at = self.direction(side);
        // SAFETY: within the mapping; each field is aligned, and accessed by whole atomic instructions here and in the
        // program.
        unsafe {
            State {
                passed_end: AtomicU32::from_ptr((*at).passed_end.as_ptr()),
                timestamp: AtomicU32::from_ptr((*at).timestamp.as_ptr()),
                timestamp_at: AtomicU32::from_ptr((*at).timestamp_at.as_ptr()),
                acknowledged: AtomicU32::from_ptr((*at).acknowledged.as_ptr()),
                end: AtomicU32::from_ptr((*at).end.as_ptr()),
                flags: AtomicU32::from_ptr((*at).flags.as_ptr()),
                last: AtomicU32::from_ptr((*at).last.as_ptr()),
                moved: AtomicU32::from_ptr((*at).moved.as_ptr()),
                finish: AtomicU32::from_ptr((*at).finish.as_ptr()),
                bytes: &(*at).bytes,
            }
        }
    }
}

/// The fields of a direction that the program writes.
struct State<'a> {
    passed_end: &'a AtomicU32,
    timestamp: &'a AtomicU32,
    timestamp_at: &'a AtomicU32,
    acknowledged: &'a AtomicU32,
    end: &'a AtomicU32,
    flags: &'a AtomicU32,
    last: &'a AtomicU32,
    moved: &'a AtomicU32,
    finish: &'a AtomicU32,
    bytes: &'a AtomicU64,
}
