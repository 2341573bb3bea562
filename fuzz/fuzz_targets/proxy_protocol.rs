//! PROXY protocol headers, read and written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| setu_fuzz::proxy_protocol(bytes));
