//! Network namespaces, for tests in which several hosts are meant.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// A network namespace, joined to this one by a veth pair or to others of its kind. Dropping it deletes both.
#[derive(Debug)]
pub struct Netns {
    name: String,
    number: u32,
}

impl Netns {
    /// Makes a namespace with 10.77.N.2, whose other end here is 10.77.N.1.
    #[must_use]
    pub fn new() -> Self {
        let namespace = Self::alone();
        let Self { name, number } = &namespace;
        let (here, there) = (format!("sth{number}"), format!("stt{number}"));
        run(&format!("link add {here} type veth peer name {there} netns {name}"));
        run(&format!("address add 10.77.{number}.1/24 dev {here}"));
        run(&format!("link set {here} up"));
        run(&format!("-n {name} address add 10.77.{number}.2/24 dev {there}"));
        run(&format!("-n {name} link set {there} up"));
        namespace
    }

    /// Makes a namespace that is joined to nothing.
    #[must_use]
    pub fn alone() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        // Of an address it is one byte.
        let number = (serial + process::id() % 40 * 5) % 250;
        let namespace = Self { name: format!("setu-test-{}-{serial}", process::id()), number };
        run(&format!("netns add {}", namespace.name));
        namespace.ip("link set lo up");
        namespace
    }

    /// Joins it to another namespace by a veth pair; each end has a device's name and an address.
    pub fn join(&self, device: &str, address: &str, other: &Self, device_there: &str, address_there: &str) {
        self.ip(&format!("link add {device} type veth peer name {device_there} netns {}", other.name));
        for (namespace, device, address) in [(self, device, address), (other, device_there, address_there)] {
            namespace.ip(&format!("address add {address} dev {device}"));
            namespace.ip(&format!("link set {device} up"));
        }
    }

    /// Its name, as ip(8) knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a device of this namespace into it.
    pub fn take(&self, device: &str) {
        run(&format!("link set {device} netns {}", self.name));
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("10.77.{}.2", self.number)
    }

    /// The address of this side.
    #[must_use]
    pub fn host_address(&self) -> String {
        format!("10.77.{}.1", self.number)
    }

    /// The name of its device.
    #[must_use]
    pub fn device(&self) -> String {
        format!("stt{}", self.number)
    }

    /// Runs `ip` in it.
    pub fn ip(&self, arguments: &str) {
        run(&format!("-n {} {arguments}", self.name));
    }

    /// Sets one of its settings below /proc/sys, which shows those of the namespace of the process that looks.
    pub fn set(&self, key: &str, value: &str) {
        let set = format!("echo '{value}' > /proc/sys/{key}");
        assert!(self.command("sh").args(["-c", &set]).status().unwrap().success(), "{key} = {value}");
    }

    /// Gives rules to nftables in it.
    pub fn nft(&self, rules: &str) {
        let status = self.command("nft").arg(rules).status().unwrap();
        assert!(status.success(), "nft {rules}: {status}; it is needed: cargo xtask setup");
    }

    /// Runs something in it. Sockets stay in the namespace in which they were made, and threads in that of their
    /// parent.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                run()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Takes the calling thread into it, for good.
    pub fn enter(&self) {
        enter(&format!("/run/netns/{}", self.name));
    }

    /// A command that will run in it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The veth pair goes with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Takes the calling thread into the namespace that this file stands for, for good.
#[expect(unsafe_code, reason = "no crate in use wraps setns")]
pub fn enter(path: &str) {
    let file = File::open(path).unwrap();
    // SAFETY: the descriptor is open, and no memory is passed.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn run(arguments: &str) {
    let status =
        Command::new("ip").args(arguments.split(' ')).status().expect("ip is needed: cargo xtask setup");
    assert!(status.success(), "ip {arguments}: {status}");
}
