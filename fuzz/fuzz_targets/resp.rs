//! Whatever a client of `tmem serve` says: decoding it ends and never panics, takes no memory for what is only announced, and finds the
//! same commands however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| tmem_serve::testing::decode_any(input));
