//! End-to-end tests: the real setu between real sockets. Each folder holds one kind of promise; this is their index.
//!
//! - `integrity`: what arrives is what was sent, in order, and ends as it was ended
//!   - `behaviour`: order, half-close, reset and timeouts are the same on every path
//!   - `shortage`: streams stay whole where the machine or the network is short of something
//! - `compatibility`: nobody has to change anything for setu
//!   - `clients`: programs that were not written for setu work before and behind it
//!   - `reference`: clients and upstreams see what they see of the reference
//! - `front_door`: clients are led where they want to go, and nobody else anywhere
//!   - `one_port`: one port takes chat, media and visitors of the operator's web server
//!   - `dial`: an upstream is dialed when the client has spoken, and spared those that leave
//!   - `destinations`: no name leads into private networks, or back to setu
//!   - `certificate`: it is kept, shown, and renewed while setu runs
//!   - `prober`: who probes meets a web server like many others, or nobody
//!   - `probes`: who looks for an open relay, or for what setu is, reaches no upstream
//! - `faults`: what fails is told by its name, leaves nothing behind, and spares others
//!   - `peers`: upstreams that are not there, processes that are killed
//!   - `network`: links that lose, stall or are slow, peers that vanish, descriptors that run out
//!   - `upstreams`: a failed endpoint, address or resolver does not reach who could be served
//!   - `kernel`: maps of the kernel path that are full, reports of it that are lost
//! - `limits`: what anybody can cost is bounded, and little
//!   - `buffers`: what a flow in userspace holds while its reader stalls
//!   - `kernel`: what a flow in the kernel holds, and that it wakes nobody
//!   - `idle_tls`: what an idle client inside TLS holds
//!   - `memory`: a small container is not killed, however many readers stall in it
//!   - `flood`: who says nothing gives up his place, and no source has all of them
//!   - `sources`: thousands behind a carrier's address are served, and a site is not as many as it has networks
//!   - `hostile`: clients that mean harm end by a deadline, and others do not feel them
//! - `wire`: two connections become one, packet by packet
//!   - `flows`: nothing of setu's is between both ends, and its end and its successors are
//!   - `machines`: firewalls, routers that carry short packets alone, bridges, bonds and VLANs are no hindrance
//!   - `operator`: what is on the wire is counted, shown, and can be taken away when setu is gone
//!   - `ports`: upstreams are dialed from ports of its own, and in segments that both ends take
//! - `security`: setu tells nothing of its clients, and could do little to the machine
//!   - `privacy`: no client's address is in anything that setu writes, unless that is configured
//!   - `memory`: nobody who has left is in setu's memory, and no dump of it is written
//!   - `privilege`: no thread keeps a right that it does not need
//! - `lifecycle`: operators can start, change and replace setu, and no client notices
//!   - `start`: wrong usage, wrong configuration, ports in use: what is said, and the exit code
//!   - `changes`: stopping, reloading, a successor, sockets of the service manager
//!   - `moves`: files that move behind the sandbox, and reloads that take a restart
//!   - `sockets`: sockets of the service manager that are not as setu's own
//! - `operator`: operators see what is so
//!   - `admin`: status page, metrics, health
//!   - `check`: `setu check`: what this machine can do
//!   - `configuration`: every command acts on the same one, says which, and whether it is that of the setu that runs
//!   - `init`: a configuration from three answers, or from options
//!   - `doctor`: `setu doctor` and `setu status`: what is wrong
//!   - `notes`: what would only be felt is told: lists that refuse everyone, limits that the machine shrinks
//!   - `readiness`: ready is who can give chat and media, from the start to the end
//!   - `terminal`: `setu status` fits into a terminal, and gives it back
//!   - `reload`: `setu reload`, and what is shown of how a reload ended
//!   - `share`: `setu share` and `/share`: how to set a phone
//!   - `useful`: who is served is counted, and nobody who only tries the ports
//!   - `log`: lines name setu, levels and parts choose what is told, who reads them cannot stop setu
//!
//! What all paths must do alike runs once for each path. As root the kernel path must not be skipped; elsewhere a test
//! that needs it says so. What several files need is in the harness, beside this folder.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "skips and measured figures are told on the terminal")]

mod integrity {
    mod behaviour;
    mod shortage;
}
mod compatibility {
    mod clients;
    mod reference;
}
mod front_door {
    mod certificate;
    mod destinations;
    mod dial;
    mod one_port;
    mod prober;
    mod probes;
}
mod faults {
    mod kernel;
    mod network;
    mod peers;
    mod upstreams;
}
mod limits {
    mod buffers;
    mod flood;
    mod hostile;
    mod idle_tls;
    mod kernel;
    mod memory;
    mod sources;
}
mod wire {
    mod ends;
    mod flows;
    mod machines;
    mod operator;
    mod ports;
    mod upgrades;
}
mod security {
    mod memory;
    mod privacy;
    mod privilege;
}
mod lifecycle {
    mod changes;
    mod moves;
    mod sockets;
    mod start;
}
mod operator {
    mod admin;
    mod check;
    mod configuration;
    mod doctor;
    mod init;
    mod log;
    mod notes;
    mod readiness;
    mod reload;
    mod share;
    mod terminal;
    mod useful;
}

/// Makes a module with a test for each path out of each function that takes a [`setu_tests::Path`].
macro_rules! on_both_paths {
    ($($name:ident)+) => {
        mod sockmap {
            $(#[test] fn $name() {
                if crate::may_use_kernel() {
                    super::$name(setu_tests::Path::Sockmap);
                }
            })+
        }
        mod userspace {
            $(#[test] fn $name() { super::$name(setu_tests::Path::Userspace); })+
        }
    };
}
use on_both_paths;

/// Whether the kernel path can be had; says so when not.
fn may_use_kernel() -> bool {
    let may = setu_tests::machine::is_root();
    if !may {
        println!("skipped: the kernel path needs root, and this is not");
    }
    may
}
