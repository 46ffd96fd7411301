//! Whatever bytes a zpage holds: expanding it ends, writes one page or fails, and never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some((encoding, payload)) = input.split_first() {
        tmem::testing::expand_any(*encoding, payload);
    }
});
