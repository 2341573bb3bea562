//! The machine's state.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Ports below those that the system gives to clients by itself (`net.ipv4.ip_local_port_range`).
const QUIET: std::ops::Range<u16> = 15_000..30_000;

/// Whether this process may use the kernel path. Elsewhere its tests say that they were skipped.
#[must_use]
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// A port that nobody has at any address, of either family, and that no client is given: for binding to all addresses,
/// which any client with the port would be in the way of.
#[must_use]
pub fn quiet_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in QUIET {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset =
            (process::id().wrapping_mul(61) + u32::from(number)) % u32::from(QUIET.end - QUIET.start);
        let port = QUIET.start + offset as u16;
        let is_free = |bound: std::io::Result<TcpListener>| bound.is_ok();
        if is_free(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
            && is_free(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
        {
            return port;
        }
    }
    panic!("no port is free");
}

/// `MemAvailable`, KiB.
#[must_use]
pub fn available_kib() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Raises this process's limit of open files to what is allowed.
#[expect(unsafe_code, reason = "no crate in use wraps these two calls")]
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`, then reads one.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(result, 0);
}
