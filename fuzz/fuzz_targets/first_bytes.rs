//! What a client speaks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| setu_fuzz::first_bytes(bytes));
