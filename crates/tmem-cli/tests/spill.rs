//! `--spill`: memory that does not fit, compressed, goes to disk and comes back right, whatever becomes of the disk.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    Job, Linking, MIB, Outcome, can_run, folder, noise, noise_for, program, run_tmem, say, skip, tmem, tree_of,
    wait_until,
};

/// Rounds of `noise` that take longer than the second for which `tmem` hopes to get below the budget.
const LONG: u32 = 5;
/// The status that says that `tmem` itself could not go on.
const TROUBLE: i32 = 125;

fn spilled(name: &str, job: Job, ram_mib: u64, spill: &str) -> Outcome {
    let outcome = job.under_tmem(ram_mib * MIB).flags(["--spill", spill]).timeout(Duration::from_secs(150)).run();
    let spill = outcome.stats.as_ref().map(|stats| stats["spill"].to_string()).unwrap_or_default();
    say(&format!("{name}: {}; {spill}; says {:?}", outcome.summary(), outcome.stderr_text()));
    outcome
}

fn spill_figure(outcome: &Outcome, name: &str) -> u64 {
    outcome.stats.as_ref().unwrap()["spill"][name].as_u64().unwrap()
}

/// Right output, or an end with a message; never a wrong byte.
fn assert_right_or_killed(outcome: &Outcome, output: &str) -> bool {
    let (out, err) = (outcome.stdout_text(), outcome.stderr_text());
    assert!(!out.contains("MISMATCH") && !out.contains("FAIL"), "{out}{err}");
    let right = outcome.shell_status() == 0 && out.contains(output);
    let killed = outcome.status.signal() == Some(libc::SIGKILL) && err.contains("tmem: ");
    assert!(right || killed, "{}: {out}{err}", outcome.status);
    right
}

#[test]
fn noise_of_four_times_the_budget_finishes_within_it() {
    let name = "noise_of_four_times_the_budget_finishes_within_it";
    if !can_run(name) {
        return;
    }
    for flags in [&["--spill", "auto"][..], &["--spill-plain"][..]] {
        let job = noise(160).under_tmem(40 * MIB).flags(flags).timeout(Duration::from_secs(150));
        let outcome = job.run();
        say(&format!("{name}: {}", outcome.summary()));
        assert_eq!(outcome.stdout_text(), "ok noise 1 rounds\n", "{}", outcome.stderr_text());
        assert_eq!(outcome.figure("on_full_events"), 0, "{}", outcome.stderr_text());
        outcome.assert_budget();
        assert!(spill_figure(&outcome, "zpages_out") > 20_000 && spill_figure(&outcome, "zpages_back") > 10_000);
        assert!(outcome.stderr_text().is_empty(), "{}", outcome.stderr_text());
    }
}

#[test]
fn forked_relatives_share_what_is_on_disk() {
    let name = "forked_relatives_share_what_is_on_disk";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let job = || Job::native([program("fork_tree", Linking::Dynamic).into_os_string(), "48".into(), "1".into()]);
    let native = job().run();
    let outcome = spilled(name, job(), 24, folder.to_str().unwrap());
    outcome.assert_same_as(&native);
    assert!(spill_figure(&outcome, "zpages_out") > 1000 && spill_figure(&outcome, "zpages_back") > 1000);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "something is left");
}

#[test]
fn without_a_file_it_grows_or_is_killed_as_told() {
    let name = "without_a_file_it_grows_or_is_killed_as_told";
    if !can_run(name) {
        return;
    }
    let grown = spilled(name, noise_for(96, LONG), 32, "off");
    assert_eq!(grown.stdout_text(), "ok noise 5 rounds\n");
    assert_eq!((spill_figure(&grown, "written_bytes"), grown.figure("on_full_events")), (0, 1));
    let killed = spilled(name, noise_for(96, LONG).under_tmem(32 * MIB).flags(["--on-full", "kill"]), 32, "off");
    assert_eq!(killed.status.signal(), Some(libc::SIGKILL));
}

#[test]
fn a_full_file_leaves_the_rest_to_on_full() {
    let name = "a_full_file_leaves_the_rest_to_on_full";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let file = folder.join("spill");
    let limit = format!("{}:8M", file.display());
    let outcome = spilled(name, noise_for(96, LONG), 32, &limit);
    assert_eq!(outcome.stdout_text(), "ok noise 5 rounds\n");
    assert!(spill_figure(&outcome, "written_bytes") > 4 * MIB && spill_figure(&outcome, "file_peak_bytes") <= 8 * MIB);
    let said = outcome.stderr_text();
    assert_eq!(said.matches("has reached its 8 MiB").count(), 1, "{said}");
    assert_eq!(outcome.figure("on_full_events"), 1);
    let killed = spilled(name, noise_for(96, LONG).under_tmem(32 * MIB).flags(["--on-full", "kill"]), 32, &limit);
    assert!(!assert_right_or_killed(&killed, "ok noise"));
    assert!(!file.exists(), "the file is left");
}

#[test]
fn a_write_budget_is_kept_and_leaves_the_rest_to_on_full() {
    let name = "a_write_budget_is_kept_and_leaves_the_rest_to_on_full";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let folder = folder.to_str().unwrap();
    let noise = || noise(160).under_tmem(40 * MIB).flags(["--spill-writes", "24M"]);
    let outcome = spilled(name, noise(), 40, folder);
    assert_eq!(outcome.stdout_text(), "ok noise 1 rounds\n");
    // 96 MiB at the start, a MiB in an hour.
    let written = spill_figure(&outcome, "written_bytes");
    assert!((90 * MIB..=97 * MIB).contains(&written), "{written} bytes");
    assert_eq!(spill_figure(&outcome, "writes_per_day"), 24 * MIB);
    assert!(spill_figure(&outcome, "writes_left_bytes") < 2 * MIB && spill_figure(&outcome, "writes_put_off") > 0);
    assert_eq!(spill_figure(&outcome, "write_failures"), 0);
    let said = outcome.stderr_text();
    assert_eq!(said.matches("24 MiB a day, is used up for now").count(), 1, "{said}");
    assert!(!said.contains("has reached") && !said.contains("cannot be written"), "{said}");
    assert_eq!(outcome.figure("on_full_events"), 1);
    let killed = spilled(name, noise().flags(["--on-full", "kill"]), 40, folder);
    assert!(!assert_right_or_killed(&killed, "ok noise"));
}

#[test]
fn a_write_budget_without_a_file_is_refused() {
    let name = "a_write_budget_without_a_file_is_refused";
    if !can_run(name) {
        return;
    }
    let refused = |flags: &[&str], says: &str| {
        let (status, out, err) = run_tmem(&[&["run", "--ram", "64M"], flags, &["--", "echo", "it ran"]].concat());
        assert_eq!((status, out.as_str()), (TROUBLE, ""), "{flags:?}: {err}");
        assert!(err.trim_end().lines().count() == 1 && err.contains(says), "{flags:?} says {err:?}");
    };
    refused(&["--spill", "off", "--spill-writes", "20G"], "leave out one of the two");
    refused(&["--spill-writes", "10%"], "20G");
    refused(&["--spill-writes", "1GB"], "20G");
}

#[test]
fn a_full_disk_loses_nothing() {
    let name = "a_full_disk_loses_nothing";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let (image, mount) = (folder.join("image"), folder.join("mount"));
    fs::create_dir_all(&mount).unwrap();
    fs::File::create(&image).unwrap().set_len(40 * MIB).unwrap();
    let done = |command: &str, args: &[&str]| {
        let status = Command::new(command).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let (image, mount) = (image.to_str().unwrap(), mount.to_str().unwrap());
    if !done("mkfs.ext4", &["-q", "-F", image]) || !done("mount", &["-o", "loop", image, mount]) {
        skip(name, "no loop device can be mounted here");
        return;
    }
    // More than there is.
    let outcome = std::panic::catch_unwind(|| spilled(name, noise(128), 32, &format!("{mount}:1G")));
    assert!(done("umount", &[mount]));
    let outcome = outcome.unwrap();
    assert_eq!(outcome.stdout_text(), "ok noise 1 rounds\n", "{}", outcome.stderr_text());
    assert!(spill_figure(&outcome, "write_failures") > 0 && spill_figure(&outcome, "zpages_out") > 1000);
    assert_eq!(outcome.stderr_text().matches("cannot be written").count(), 1, "{}", outcome.stderr_text());
}

/// `noise` under `tmem run`, filled, and then at rest for two seconds.
fn filled(spill: &str, ram: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let program = program("noise", Linking::Dynamic);
    let mut child = Command::new(tmem())
        .args(["run", "--ram", ram, "--spill", spill, "--"])
        .arg(program)
        .args(["96", "1", "2000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "filled\n");
    (child, out)
}

/// What `spoil` does to the file is found, and nobody sees a wrong byte.
fn assert_found(name: &str, spoil: impl FnOnce(&Path)) {
    if !can_run(name) {
        return;
    }
    let file = folder(name).join("spill");
    let (child, mut out) = filled(file.to_str().unwrap(), "32M");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::metadata(&file).unwrap().len() > 32 * MIB);
    spoil(&file);
    let ended = child.wait_with_output().unwrap();
    let (mut said, mut line) = (String::from_utf8_lossy(&ended.stderr).into_owned(), String::new());
    while out.read_line(&mut line).unwrap() > 0 {}
    assert!(!line.contains("MISMATCH") && !line.contains("ok"), "{line}{said}");
    assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{line}{said}");
    said.truncate(300);
    say(&format!("{name}: {said}"));
    assert!(said.contains("could not be read back") && said.contains("wrong data"), "{said}");
}

#[test]
fn a_file_overwritten_behind_our_back_ends_the_program() {
    assert_found("a_file_overwritten_behind_our_back_ends_the_program", |file| {
        let file = OpenOptions::new().write(true).open(file).unwrap();
        let bytes = file.metadata().unwrap().len();
        for at in (0..bytes).step_by(512) {
            file.write_all_at(&[0xa5; 16], at).unwrap();
        }
    });
}

#[test]
fn a_file_cut_off_behind_our_back_ends_the_program() {
    assert_found("a_file_cut_off_behind_our_back_ends_the_program", |file| {
        OpenOptions::new().write(true).open(file).unwrap().set_len(0).unwrap();
    });
}

#[test]
fn a_killed_supervisor_leaves_no_file() {
    let name = "a_killed_supervisor_leaves_no_file";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let (mut child, _out) = filled(folder.to_str().unwrap(), "32M");
    let tree = tree_of(child.id());
    let deleted = |pid: &u32| has_unnamed(*pid, &folder);
    assert!(tree.iter().any(deleted), "the file is not where it should be");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "something is left");
    assert!(wait_until(Duration::from_secs(10), || !tree.iter().any(deleted)), "somebody still has the file");
}

/// Files without a name in this directory that a process has open.
fn has_unnamed(pid: u32, folder: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to.starts_with(folder))
}

#[test]
fn what_was_spilled_of_a_running_program_comes_home_when_it_is_let_go_of() {
    let name = "what_was_spilled_of_a_running_program_comes_home_when_it_is_let_go_of";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let stats = folder.join("stats.json");
    let mut child = Command::new(program("noise", Linking::Dynamic))
        .args(["96", "2", "1500"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "filled\n");
    let pid = child.id().to_string();
    let mut supervisor = Command::new(tmem())
        .args(["attach", "--ram", "40M", "--spill", folder.to_str().unwrap(), "--stats", stats.to_str().unwrap(), &pid])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let own = supervisor.id();
    assert!(wait_until(Duration::from_secs(10), || has_unnamed(own, &folder)), "nothing was spilled");
    // It goes on reading, and what it reads comes back from disk.
    std::thread::sleep(Duration::from_secs(2));
    let (status, _, err) = run_tmem(&["detach", &pid]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(supervisor.wait().unwrap().success());
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap();
    say(&format!("{name}: {}", figures["spill"]));
    assert!(figures["spill"]["zpages_back"].as_u64().unwrap() > 1000, "{figures}");
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().success()), ("ok noise 2 rounds\n", true));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn without_a_disk_auto_keeps_everything_in_ram() {
    let name = "without_a_disk_auto_keeps_everything_in_ram";
    if !can_run(name) {
        return;
    }
    let hide = "for dir in /var/tmp /tmp \"$TMPDIR\"; do mount -t tmpfs none \"$dir\" || exit 77; done; cd \"$TMPDIR\"; exec \"$@\"";
    let home = folder(name);
    let program = program("noise", Linking::Dynamic);
    let ended = Command::new("unshare")
        .args(["--mount", "sh", "-c", hide, "sh"])
        .arg(tmem())
        .args(["run", "--ram", "40M", "--on-full", "grow", "--progress", "--"])
        .arg(program)
        .arg("64")
        .env("TMPDIR", &home)
        .output();
    let ended = match ended {
        Ok(ended) if ended.status.code() != Some(77) && !ended.stderr.starts_with(b"unshare:") => ended,
        Ok(ended) => return skip(name, &String::from_utf8_lossy(&ended.stderr)),
        Err(error) => return skip(name, &format!("unshare: {error}")),
    };
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out == "ok noise 1 rounds\n", "{out}{err}");
    assert!(err.contains("no disk to spill to"), "{err}");
    fs::remove_dir_all(&home).unwrap();
}

fn refused(spill: &str, says: &str) {
    let (status, out, err) = run_tmem(&["run", "--ram", "64M", "--spill", spill, "--", "echo", "it ran"]);
    assert_eq!((status, out.as_str()), (TROUBLE, ""), "--spill {spill}: {err}");
    assert!(err.starts_with("tmem: ") && err.trim_end().lines().count() == 1, "--spill {spill} says {err:?}");
    assert!(err.contains(says), "--spill {spill} says {err:?}");
}

#[test]
fn what_cannot_be_used_is_refused_before_anything_runs() {
    let name = "what_cannot_be_used_is_refused_before_anything_runs";
    if !can_run(name) {
        return;
    }
    let folder = folder(name);
    let full = folder.join("full");
    fs::write(&full, "mine").unwrap();
    refused(full.to_str().unwrap(), "not empty");
    assert_eq!(fs::read(&full).unwrap(), b"mine");
    refused("/no/such/folder/file", "/no/such/folder");
    refused(&format!("{}/", folder.join("missing").display()), "there is no directory");
    refused("/dev/null", "neither a directory nor a regular file");
    refused(&format!("{}:1M", folder.join("small").display()), "4 MiB");
    refused(&format!("{}:1X", folder.join("small").display()), "not a size");
    refused("", "name a directory");
    refused("/proc", "--spill /proc");
    if Path::new("/dev/shm").is_dir() {
        refused("/dev/shm", "tmpfs");
        refused("/dev/shm/tmem-test", "tmpfs");
    }
    let file = folder.join("unused");
    let (status, out, err) = run_tmem(&["run", "--ram", "64M", "--spill", file.to_str().unwrap(), "echo", "it ran"]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "it ran\n", ""));
    assert!(!file.exists());
    refused_without_command(&file);
}

/// A command that cannot be started leaves no file either.
fn refused_without_command(file: &Path) {
    let (status, ..) = run_tmem(&["run", "--ram", "64M", "--spill", file.to_str().unwrap(), "no-such-program"]);
    assert_eq!(status, 127);
    assert!(!file.exists());
}
