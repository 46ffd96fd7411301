//! Everything that differs between processor architectures: registers and system calls of a stopped thread, and
//! the machine code of the agent. A new architecture adds one file with the same items.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("tmem-run supports x86_64 only so far; add crates/tmem-run/src/arch/<architecture>.rs");
