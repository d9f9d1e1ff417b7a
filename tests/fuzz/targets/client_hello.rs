//! Gives what libFuzzer makes up to [`weft_fuzz::client_hello`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::client_hello::run(input));
