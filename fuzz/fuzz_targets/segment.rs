//! Whatever stands in a spill file: reading a segment of it ends, and never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    tmem::testing::read_segment_any(&mut input.to_vec());
});
