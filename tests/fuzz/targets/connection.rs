//! Gives what libFuzzer makes up to [`weft_fuzz::connection`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::connection::run(input));
