//! A link on which everything is on its way for a while.
#![expect(unsafe_code, reason = "no crate in use makes TUN devices or waits for two of them")]

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::netns::Netns;

/// Packets that may be on their way in one direction; more are lost.
const QUEUE: usize = 65_536;
/// Packets to take from one device before the other is looked at.
const BATCH: usize = 64;

/// A pair of TUN devices (Documentation/networking/tuntap.rst) in two namespaces, with a thread that carries packets
/// from one to the other. Dropping it takes both away.
#[derive(Debug)]
pub struct Delay {
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Delay {
    /// Joins two namespaces, each of which gets a device with an address; packets take `time`.
    #[must_use]
    pub fn new(ends: [(&Netns, &str); 2], time: Duration) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let devices = ["a", "b"].map(|end| {
            let name = format!("std{}{end}{number}", process::id());
            (tun(&name), name)
        });
        for (index, (namespace, address)) in ends.iter().enumerate() {
            let (name, peer) = (&devices[index].1, ends[1 - index].1);
            namespace.take(name);
            namespace.ip(&format!("address add {address} peer {peer} dev {name}"));
            namespace.ip(&format!("link set {name} up txqueuelen 20000"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let carrier = thread::spawn(move || carry(devices.map(|(file, _)| file), time, &told));
        Self { stop, carrier: Some(carrier) }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Makes a device that carries IP packets as they are.
fn tun(name: &str) -> File {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    // SAFETY: all of it may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    file
}

/// Until told to stop.
fn carry(mut devices: [File; 2], time: Duration, stop: &AtomicBool) {
    let mut queues: [VecDeque<(Instant, Vec<u8>)>; 2] = Default::default();
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let next = queues.iter().filter_map(|queue| queue.front()).map(|(at, _)| *at).min();
        let wait = next.map_or(time, |at| at.saturating_duration_since(Instant::now()));
        wait_for(&devices, wait.min(Duration::from_millis(50)));
        for from in [0, 1] {
            for _ in 0..BATCH {
                let Ok(len) = devices[from].read(&mut buffer) else { break };
                if queues[from].len() < QUEUE {
                    queues[from].push_back((Instant::now() + time, buffer[..len].to_vec()));
                }
            }
            while queues[from].front().is_some_and(|(at, _)| *at <= Instant::now()) {
                let packet = queues[from].pop_front().map(|(_, packet)| packet).unwrap();
                // Where it is not taken, it is lost.
                let _ = devices[1 - from].write(&packet);
            }
        }
    }
}

/// Waits until one can be read, or for so long.
fn wait_for(devices: &[File; 2], time: Duration) {
    let mut polled = devices.each_ref().map(|file| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let time = libc::timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    // SAFETY: the kernel reads and writes two `pollfd`s, and reads one `timespec`.
    unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const time, std::ptr::null()) };
}
