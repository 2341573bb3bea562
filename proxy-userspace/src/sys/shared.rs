//! Memory shared with the eBPF program: memory-mapped array maps.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use proxy_common::{
    credit::Window,
    direction::{Budget, Direction},
};

/// An array map in this process's memory.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the memory belongs to no thread, and every access goes through volatile or atomic operations.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Maps the `len` elements of an array map made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn map(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // The kernel rounds the value size of arrays up to 8 bytes (`array_map_alloc`, kernel/bpf/arraymap.c).
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    pub(super) fn element(&self, index: u32) -> NonNull<T> {
        assert!((index as usize) < self.len, "element {index} of {}", self.len);
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.start.add(index as usize) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and references to it cannot outlive `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}

impl Shared<Direction> {
    /// # Panics
    /// When there is no such element: indices come from the flow table, which is as long.
    pub(crate) fn direction(&self, index: u32) -> DirectionRef<'_> {
        DirectionRef { at: self.element(index), memory: PhantomData }
    }
}

impl Shared<Budget> {
    /// The one element.
    pub(crate) fn budget(&self) -> BudgetRef<'_> {
        BudgetRef { at: self.element(0), memory: PhantomData }
    }
}

/// A direction, while the program may work on it.
#[derive(Clone, Copy)]
pub(crate) struct DirectionRef<'a> {
    at: NonNull<Direction>,
    memory: PhantomData<&'a Direction>,
}

/// Views a field of shared memory as an atomic.
macro_rules! field {
    ($self:ident . $($field:ident).+) => {{
        // SAFETY: the field lies within the mapping, is aligned to 8 bytes, and all access to it is atomic here and
        // by single instructions in the program.
        unsafe { AtomicU64::from_ptr((&raw mut (*$self.at.as_ptr()).$($field).+).cast()) }
    }};
}

impl<'a> DirectionRef<'a> {
    /// Writes the state of a direction that is not in the kernel yet.
    pub(crate) fn initialise(self, destination: u64, base_acked: u64, stream_at: u64) {
        let stream_at = AtomicU64::new(stream_at);
        let blank = Direction { base_acked, destination, stream_at, ..Direction::default() };
        // SAFETY: within the mapping. Its source is not in the sockhash, so that the program does not look at it.
        unsafe { self.at.as_ptr().write_volatile(blank) };
    }

    /// Bytes redirected.
    pub(crate) fn redirected(self) -> u64 {
        field!(self.window.redirected).load(Ordering::Acquire)
    }

    /// Segments redirected, wrapping.
    pub(crate) fn segments(self) -> u32 {
        self.window().segments
    }

    /// Makes the program tell when so many bytes were redirected.
    pub(crate) fn tell_at(self, redirected: u64) {
        field!(self.stream_at).store(redirected, Ordering::Release);
    }

    /// Bytes left to userspace.
    pub(crate) fn passed(self) -> u64 {
        field!(self.passed).load(Ordering::Acquire)
    }

    /// Whether the program met a segment that it could not forward rightly.
    pub(crate) fn is_broken(self) -> bool {
        field!(self.broken).load(Ordering::Acquire) != 0
    }

    /// Makes the program leave to userspace all that arrives from now on.
    pub(crate) fn withdraw(self) {
        field!(self.withdrawing).store(1, Ordering::SeqCst);
    }

    /// Bytes of the budget held.
    pub(crate) fn reserved(self) -> &'a AtomicU64 {
        field!(self.reserved)
    }

    /// The program's account, for [`Window::outstanding`]: a copy, torn when the program runs meanwhile.
    pub(crate) fn window(self) -> Window {
        // SAFETY: within the mapping; plain numbers, any of which is valid.
        unsafe { (&raw const (*self.at.as_ptr()).window).read_volatile() }
    }

    /// Makes the program look at the destination again before it redirects more.
    pub(crate) fn revoke_credit(self) {
        field!(self.window.credit).store(0, Ordering::Release);
    }
}

/// The budget of all directions.
#[derive(Clone, Copy)]
pub(crate) struct BudgetRef<'a> {
    at: NonNull<Budget>,
    memory: PhantomData<&'a Budget>,
}

impl<'a> BudgetRef<'a> {
    /// The bound, bytes.
    pub(crate) fn total(self) -> &'a AtomicU64 {
        field!(self.total)
    }

    /// The bound for one direction, bytes.
    pub(crate) fn direction(self) -> &'a AtomicU64 {
        field!(self.direction)
    }

    /// Bytes held.
    pub(crate) fn reserved(self) -> &'a AtomicU64 {
        field!(self.reserved)
    }
}
