//! Whatever arrives at a supervisor's sockets or comes back to `tmem top`: reading it ends, and never panics; what was understood
//! is harmless for a terminal, stays the same when it is written and read again, and makes well-formed metrics.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    tmem_run::testing::watch_any(input);
    tmem_run::testing::watch_damaged(input);
});
