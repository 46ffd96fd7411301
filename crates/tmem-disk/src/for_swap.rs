//! What a server needs on which the kernel swaps: when the kernel is short of memory it writes pages to us, and must not need memory
//! that only comes free once we have taken them.
//!
//! Nothing of us is swapped out or read from a file again (`mlockall`), no allocation of ours waits for swap to be written
//! (`PR_SET_IO_FLUSHER`), and the killer of programs takes another one. What is locked is what has been touched: address space
//! is reserved for more than there is RAM.

use std::fs;
use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::configure_io_flusher_behavior;

use crate::error::Error;

/// Keeps the process from what swapping must not wait for. Threads that start later are as their parent, so this comes first.
///
/// # Errors
/// When the user may not do one of them: swapping without would hang the machine one day.
pub fn prepare() -> Result<(), Error> {
    configure_io_flusher_behavior(true)
        .map_err(|e| refused("to allocate without waiting for swap", "CAP_SYS_RESOURCE", e))?;
    let spared = fs::write("/proc/self/oom_score_adj", "-1000");
    spared.map_err(|e| refused("to be spared when memory runs out", "CAP_SYS_RESOURCE", e))
}

/// Locks what there is and what will be.
///
/// # Errors
/// When the user may not lock so much.
pub fn lock() -> Result<(), Error> {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(all).map_err(|e| refused("to lock its memory", "CAP_IPC_LOCK", e))
}

fn refused(what: &str, capability: &str, why: impl Into<io::Error>) -> Error {
    let why = why.into();
    Error::new(format!("--for-swap needs {what}: {why}: run it as root or with {capability}, or swap elsewhere"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::{Duration, Instant};
    use tmem::testing::Random;
    use tmem::{Config, Key, PAGE_SIZE, PoolKind, PoolOptions, Store};

    fn status_kib(name: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Locked memory once could not be given back, and frames that were counted as given back stayed, with what had been in them.
    #[test]
    fn a_store_in_locked_memory_takes_what_it_holds_and_no_more() {
        let store = Store::new(Config::new(64 << 20)).unwrap();
        if let Err(e) = lock() {
            eprintln!("SKIPPED a_store_in_locked_memory_takes_what_it_holds_and_no_more: {e}");
            return;
        }
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        let mut random = Random::new(3);
        let empty = status_kib("VmRSS:");
        let mut page = [0; PAGE_SIZE];
        for index in 0..8192 {
            page.fill_with(|| random.number() as u8);
            store.put(Key::new(pool, 0, index), &page).unwrap();
        }
        let full = status_kib("VmRSS:");
        assert!(full > empty + (30 << 10) && status_kib("VmLck:") > full, "{empty} KiB, {full} KiB");
        store.flush_range(pool, 0.into(), 0..8192);
        let start = Instant::now();
        while status_kib("VmRSS:") > empty + (8 << 10) {
            assert!(start.elapsed() < Duration::from_secs(10), "locked memory is not given back");
            store.trim();
            thread::sleep(Duration::from_millis(10));
        }
        store.put(Key::new(pool, 0, 1), &page).unwrap();
        let mut back = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 1), &mut back).unwrap() && back == page);
    }
}
