//! The torture programs of `tests/programs`, each in less RAM than it works on: same output, same status, nothing hangs,
//! something was really evicted, the budget was kept.

mod common;

use std::time::Duration;

use common::{Job, Linking, MIB, Outcome, can_run, long, program, say};

/// What one program is run with.
struct Case {
    name: &'static str,
    /// Working set in MiB and rounds.
    args: [u32; 2],
    ram_mib: u64,
    linking: Linking,
}

impl Case {
    fn run(&self) {
        self.outcome();
    }

    fn outcome(&self) -> Option<Outcome> {
        if !can_run(self.name) {
            return None;
        }
        let rounds = self.args[1] * if long() { 10 } else { 1 };
        let command = [
            program(self.name, self.linking).into_os_string(),
            self.args[0].to_string().into(),
            rounds.to_string().into(),
        ];
        let native = Job::native(command.clone()).run();
        if native.shell_status() == 77 {
            common::skip(self.name, native.stdout_text().trim());
            return None;
        }
        assert!(native.stdout_text().contains("ok "), "{}: {}", native.name, native.stdout_text());
        let limit = Duration::from_secs(if long() { 900 } else { 90 });
        let managed = Job::native(command).under_tmem(self.ram_mib * MIB).timeout(limit).run();
        managed.assert_same_as(&native);
        say(&format!("{}: native {}; tmem {}", self.name, native.summary(), managed.summary()));
        managed.assert_evicted();
        managed.assert_budget();
        Some(managed)
    }
}

#[test]
fn a_cycle_over_twice_the_budget_compresses_each_page_about_once() {
    let (mib, rounds) = (128, 10);
    let case = Case { name: "cycle", args: [mib, rounds], ram_mib: u64::from(mib / 2), linking: Linking::Dynamic };
    let Some(managed) = case.outcome() else { return };
    let pages = u64::from(mib) * MIB / 4096;
    let compressed = managed.figure("pages_evicted") - managed.figure("swapcache_hits");
    say(&format!("cycle: {} evictions of {pages} pages, {compressed} compressed", managed.figure("pages_evicted")));
    // One in a hundred changes in each round.
    assert!(compressed < pages * 3 / 2, "{compressed} of {pages} pages compressed");
}

#[test]
fn what_is_cold_for_long_is_packed_again() {
    let case = Case { name: "cold", args: [96, 1], ram_mib: 56, linking: Linking::Dynamic };
    let Some(managed) = case.outcome() else { return };
    let packed = managed.figure("pages_recompressed");
    say(&format!("cold: {packed} pages packed again"));
    assert!(packed > 1000, "{packed} pages packed again");
}

macro_rules! torture {
    ($($name:ident($mib:literal, $rounds:literal) in $ram:literal;)*) => {
        $(
            #[test]
            fn $name() {
                Case { name: stringify!($name), args: [$mib, $rounds], ram_mib: $ram, linking: Linking::Dynamic }.run();
            }
        )*
    };
}

torture! {
    advice(128, 6) in 72;
    arena_race(128, 4) in 72;
    brk(128, 6) in 72;
    daemon(128, 4) in 72;
    exec(64, 2) in 72;
    exec_chain(64, 3) in 72;
    exit_storm(128, 6) in 72;
    fork_threads(96, 6) in 64;
    fork_tree(96, 1) in 72;
    hotcold(128, 4) in 72;
    hugepage(128, 4) in 72;
    io(128, 4) in 72;
    lock(128, 4) in 72;
    malloc_churn(128, 20) in 72;
    map_fixed(128, 6) in 72;
    memset_storm(1024, 1) in 128;
    mremap(128, 6) in 72;
    own_uffd(128, 4) in 96;
    passes(128, 6) in 72;
    process_churn(128, 60) in 80;
    protect(128, 6) in 72;
    sandbox(128, 4) in 72;
    seqscan(128, 6) in 72;
    shared(128, 4) in 96;
    signals(128, 10) in 72;
    sparse(128, 3) in 72;
    stacks(128, 3) in 72;
    thread_churn(128, 2) in 72;
    unmap_hole(128, 6) in 72;
    uring(128, 4) in 72;
    vm_readv(128, 4) in 72;
    zero_drop(96, 10) in 72;
}

/// The measure of all the others: what a child of vfork borrows is not counted twice.
#[test]
fn borrowed_memory_counts_once() {
    let mib = 96;
    let command = [program("borrow", Linking::Dynamic).into_os_string(), mib.to_string().into(), "1".into()];
    let native = Job::native(command).run();
    assert!(native.stdout_text().contains("ok "), "{}: {}", native.name, native.stdout_text());
    let seen = native.peak_bytes / MIB;
    assert!((mib..mib + 16).contains(&seen), "{seen} MiB seen of {mib}");
}

#[test]
fn a_static_binary() {
    Case { name: "hotcold", args: [160, 4], ram_mib: 80, linking: Linking::Static }.run();
}

/// A known limit, kept here so that it is not forgotten: a registered mapping and its unregistered neighbour cannot be moved by one
/// `mremap` (EFAULT), although natively they would be one mapping.
#[test]
#[ignore = "the kernel keeps a registered mapping and its new neighbour apart"]
fn mremap_over_two_neighbours() {
    Case { name: "mremap_join", args: [96, 2], ram_mib: 72, linking: Linking::Dynamic }.run();
}

/// The storm that nobody may outrun: compressible data at the full speed of memset, many times the budget.
#[test]
fn memset_storm_of_four_gib() {
    let name = "memset_storm_of_four_gib";
    if !can_run(name) {
        return;
    }
    let size = if long() { "4096" } else { "2048" };
    let job = || Job::native([program("memset_storm", Linking::Dynamic).into_os_string(), size.into(), "1".into()]);
    let managed = job().under_tmem(256 * MIB).timeout(Duration::from_secs(180)).run();
    assert_eq!(managed.stdout_text(), format!("ok memset_storm {size} MiB\n"), "{}", managed.stderr_text());
    say(&format!("{name}: tmem {}", managed.summary()));
    managed.assert_evicted();
    assert_eq!(managed.figure("on_full_events"), 0, "this data can always shrink");
    managed.assert_budget();
}

/// Pages that are the zero page become memory without a fault that we see, all at once, unless they are taken out first.
#[test]
fn what_was_the_zero_page_keeps_to_the_budget() {
    let name = "what_was_the_zero_page_keeps_to_the_budget";
    if !can_run(name) {
        return;
    }
    let job = || Job::native([program("zero_first", Linking::Dynamic).into_os_string(), "192".into(), "60".into()]);
    let native = job().run();
    let managed = job().under_tmem(72 * MIB).timeout(Duration::from_secs(90)).run();
    managed.assert_same_as(&native);
    say(&format!("{name}: tmem {}", managed.summary()));
    let pages = 192 * MIB / 4096;
    assert!(managed.figure("pages_evicted") > pages / 2, "it stayed in memory");
    assert_eq!(managed.figure("on_full_events"), 0, "this data can always shrink");
    managed.assert_budget();
}
