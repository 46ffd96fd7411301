//! Whatever a client of `tmem disk` says: decoding it ends and never panics, what is accepted lies in the disk, and a session of it ends
//! in bounded memory.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tmem_disk::testing::{Target, commands, decode, session};

static TARGET: LazyLock<Target> = LazyLock::new(Target::default);

fuzz_target!(|input: &[u8]| {
    decode(input);
    session(&TARGET, input);
    commands(&TARGET, input);
});
