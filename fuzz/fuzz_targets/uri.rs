//! See `fuzz/checks/uri.rs`.
#![no_main]

#[path = "../checks/uri.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
