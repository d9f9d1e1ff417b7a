//! Gives what libFuzzer makes up to [`weft_fuzz::hpack`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::hpack::run(input));
