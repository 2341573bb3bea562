//! The server name in a ClientHello.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| setu_fuzz::client_hello(bytes));
