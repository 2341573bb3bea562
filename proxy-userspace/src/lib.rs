//! setu's userspace side: accepts clients, dials WhatsApp for them, and hands each connection to the kernel.
//!
//! In layers, from the ground up. A module imports only from layers listed before its own and from its own folder,
//! where parts form no circle either; `tests/layers.rs` sees to that. `docs/architecture.md` walks a connection's way
//! through them.
//!
//! 1. `sys`: what libc and the kernel's shared memory offer, made safe; there is no other place for that.
//! 2. `log`: lines that nobody can stop setu by; it needs nothing, and all may write.
//! 3. `config`: what the operator said, as validated types, that every other layer may ask.
//! 4. `account`: whose a connection is, how its bytes move, why it ended: written by all, so it knows none of them.
//! 5. `upstream`: names, endpoints, dialing: WhatsApp's side, which needs to know nothing of clients.
//! 6. `front`: listening, limits, the first bytes, TLS and routing: the client's side, up to where it wants to go.
//! 7. `relay`: moves bytes between both sides, one folder for each path, and picks among them.
//! 8. `serve`: the threads and the way of one connection through all of the above.
//! 9. `operator`: what an operator asks and is shown, by commands and by the admin endpoint of what serves.
//! 10. `lifecycle`: start, privileges, reload, hand-over, end: of everything at once, so it knows everything.
//! 11. `cli`: the command line.

pub mod account;
pub mod cli;
pub mod config;
pub mod front;
pub mod lifecycle;
pub mod log;
pub mod operator;
pub mod relay;
pub mod serve;
mod sys;
mod upstream;
