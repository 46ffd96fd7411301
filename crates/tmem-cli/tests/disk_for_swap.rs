//! `tmem disk --for-swap`: what the kernel must not have to wait for.

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::disk::{Disk, Nbd};
use common::{folder, has, run_tmem, skip, tmem, wait_until};
use tmem::testing::Random;

/// Of `/proc/PID/stat`: reclaim for this thread's allocations starts no I/O.
const PF_MEMALLOC_NOIO: u64 = 0x0008_0000;

/// Numbers of capabilities.
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;

/// What this test may do.
fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << number != 0
}

fn status_kib(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The kernel's flags of each thread.
fn thread_flags(pid: u32) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let flags = tasks.map(|task| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(6).unwrap().parse().unwrap()
    });
    flags.collect()
}

#[test]
fn it_is_locked_spared_and_gives_back_what_is_trimmed() {
    const TEST: &str = "it_is_locked_spared_and_gives_back_what_is_trimmed";
    if !has_capability(CAP_IPC_LOCK) || !has_capability(CAP_SYS_RESOURCE) {
        return skip(TEST, "it needs CAP_IPC_LOCK and CAP_SYS_RESOURCE");
    }
    let disk = Disk::start(&["--size", "64M", "--ram", "64M", "--for-swap"]);
    let mut client = Nbd::open(&disk);
    let mut random = Random::new(3);
    let noise: Vec<u8> = (0..(1 << 20) / 8).flat_map(|_| random.number().to_le_bytes()).collect();
    let empty = status_kib(disk.pid(), "VmRSS:");
    for at in 0..32 {
        assert_eq!(client.write(at << 20, &noise), 0);
    }
    let full = status_kib(disk.pid(), "VmRSS:");
    assert!(full > empty + (30 << 10), "{empty} KiB, {full} KiB");
    // Its code as well: what is not locked is nothing but what a locked page cannot be.
    assert!(status_kib(disk.pid(), "VmLck:") > full - 1024);
    assert_eq!(fs::read_to_string(format!("/proc/{}/oom_score_adj", disk.pid())).unwrap().trim(), "-1000");
    let flags = thread_flags(disk.pid());
    assert!(flags.len() >= 3 && flags.iter().all(|flags| flags & PF_MEMALLOC_NOIO != 0), "{flags:x?}");
    for at in 0..32 {
        assert_eq!(client.trim(at << 20, 1 << 20), 0);
    }
    let small = || status_kib(disk.pid(), "VmRSS:") < empty + (8 << 10);
    assert!(wait_until(Duration::from_secs(10), small), "locked memory is not given back");
    // Frames that come back are as new.
    assert_eq!(client.write(0, &noise), 0);
    assert!(client.read(0, 1 << 20).unwrap() == noise);
    disk.stop();
}

#[test]
fn without_privileges_it_says_so_and_does_not_start() {
    const TEST: &str = "without_privileges_it_says_so_and_does_not_start";
    let dir = folder("for-swap");
    let listen = format!("unix:{}", dir.join("socket").display());
    // Each of them is looked at, if there are those that are asked for before.
    let cases = [(CAP_SYS_RESOURCE, "-sys_resource", "CAP_SYS_RESOURCE"), (CAP_IPC_LOCK, "-ipc_lock", "CAP_IPC_LOCK")];
    for (lacking, dropped, named) in cases {
        if lacking == CAP_IPC_LOCK && !has_capability(CAP_SYS_RESOURCE) {
            skip(TEST, "without CAP_SYS_RESOURCE nobody comes so far as to lack CAP_IPC_LOCK");
            continue;
        }
        let mut command = Command::new("timeout");
        command.arg("20");
        if has_capability(lacking) {
            if !has(TEST, "setpriv") {
                continue;
            }
            command.args(["setpriv", "--bounding-set", dropped, "--", "prlimit", "--memlock=65536:65536"]);
        }
        command.arg(tmem()).args(["disk", "--size", "1M", "--ram", "16M", "--for-swap", "--listen", &listen]);
        let out = command.output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(125) && err.contains(named) && err.lines().count() == 1, "{named}: {out:?}");
    }
    assert!(!dir.join("socket").exists());
    let words = ["disk", "--size", "1M", "--ram", "16M", "--for-swap", "--spill", "auto", "--listen", &listen];
    let (status, _, err) = run_tmem(&words);
    assert!(status != 0 && err.contains("--spill"), "{err}");
    fs::remove_dir_all(dir).unwrap();
}
