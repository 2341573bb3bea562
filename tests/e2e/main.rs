//! End-to-end tests: the real setu between real sockets.
//!
//! What both paths must do alike is in `behaviour`, run once for each path. As root the kernel path must not be
//! skipped; elsewhere a test that needs it says so.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "skips and measured figures are told on the terminal")]

mod admin;
mod behaviour;
mod clients;
mod doctor;
mod faults;
mod front_door;
mod hostile;
mod idle_tls;
mod integrity;
mod kernel;
mod kernel_faults;
mod lifecycle;
mod network;
mod privacy;
mod privilege;
mod probes;
mod reference;
mod start;
mod upstreams;

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
