//! See `blockcow_frontends::nbd::server::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockcow_frontends::nbd::server::fuzzing::fuzz_requests(data));
