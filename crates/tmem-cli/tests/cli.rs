//! The command line as others see it: statuses, signals, streams, and that bad input gets one clear line and harms nobody.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use common::{
    Guard, Job, Linking, MIB, can_run, folder, is_alive, program, run_tmem, skip, tmem, tmem_command, tree_of,
    wait_until,
};

/// The status that says that `tmem` itself could not go on.
const TROUBLE: i32 = 125;

fn first_line(from: ChildStdout) -> (String, BufReader<ChildStdout>) {
    let mut reader = BufReader::new(from);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line.trim().to_owned(), reader)
}

/// One line on standard error that starts with the name of the program; nothing on standard output.
fn assert_refused(words: &[&str], status: i32) -> String {
    let (is, out, err) = run_tmem(words);
    assert_eq!(is, status, "tmem {words:?}: {err}");
    assert_eq!(out, "", "tmem {words:?}");
    assert!(err.starts_with("tmem: ") && err.trim_end().lines().count() == 1, "tmem {words:?} says {err:?}");
    err
}

#[test]
fn a_program_that_does_not_exist_is_127() {
    let said = assert_refused(&["run", "--ram", "64M", "--", "no-such-program-anywhere"], 127);
    assert!(said.contains("no-such-program-anywhere"), "{said}");
    assert_refused(&["run", "--ram", "64M", "--", "/no/such/path"], 127);
}

#[test]
fn a_file_that_cannot_be_executed_is_126() {
    let file = folder("not-executable").join("file");
    fs::write(&file, "hello\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_refused(&["run", "--ram", "64M", "--", file.to_str().unwrap()], 126);
    assert_refused(&["run", "--ram", "64M", "--", "/"], 126);
}

#[test]
fn a_bad_budget_is_125_and_nothing_runs() {
    let witness = folder("bad-budget").join("witness");
    for ram in ["lots", "", "-1", "0", "64X", "1e9", "101%", "4K", "99999999999999T"] {
        assert_refused(&["run", "--ram", ram, "--", "touch", witness.to_str().unwrap()], TROUBLE);
        assert!(!witness.exists(), "--ram {ram} ran the command");
    }
    assert_refused(&["run", "--ram", "64M"], TROUBLE);
    assert_refused(&["run", "--", "true"], TROUBLE);
    assert_refused(
        &["run", "--ram", "64M", "--stats", "/no/such/folder/file", "--", "touch", witness.to_str().unwrap()],
        TROUBLE,
    );
    assert!(!witness.exists());
}

#[test]
fn attach_refuses_what_it_cannot_have() {
    let gone = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id().to_string()
    };
    for pid in [gone.as_str(), "0", "-5", "abc", "4194305", "4294967295"] {
        assert_refused(&["attach", "--ram", "64M", pid], TROUBLE);
    }
    assert_refused(&["detach", &gone], TROUBLE);
    // A kernel thread has no memory of its own.
    if is_alive(2) && fs::read("/proc/2/cmdline").is_ok_and(|line| line.is_empty()) {
        assert_refused(&["attach", "--ram", "64M", "2"], TROUBLE);
    }
    // A zombie has none any more.
    let mut zombie = Guard(Command::new("true").spawn().unwrap());
    let pid = zombie.pid();
    assert!(wait_until(Duration::from_secs(5), || !is_alive(pid)));
    assert_refused(&["attach", "--ram", "64M", &pid.to_string()], TROUBLE);
    assert!(zombie.wait(Duration::from_secs(1)).unwrap().success());
}

#[test]
fn attach_refuses_supervisors_and_what_they_manage() {
    let name = "attach_refuses_supervisors_and_what_they_manage";
    if !can_run(name) {
        return;
    }
    let mut managed = Guard(
        tmem_command(&["run", "--ram", "64M", "--", "sh", "-c", "echo $$; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let (target, _reader) = first_line(managed.0.stdout.take().unwrap());
    let supervisor = managed.pid().to_string();
    assert_refused(&["attach", "--ram", "64M", &supervisor], TROUBLE);
    assert_refused(&["attach", "--ram", "64M", &target], TROUBLE);
    assert!(is_alive(target.parse().unwrap()) && is_alive(managed.pid()));
    // Still in order: the signal gets through, and the status is the command's.
    managed.signal(libc::SIGTERM);
    assert_eq!(managed.wait(Duration::from_secs(5)).unwrap().signal(), Some(libc::SIGTERM));
}

#[test]
fn attach_refuses_somebody_elses_process() {
    let name = "attach_refuses_somebody_elses_process";
    // SAFETY: takes no arguments and cannot fail.
    if unsafe { libc::getuid() } == 0 {
        // A copy where another user may read and execute it.
        let copy = std::env::temp_dir().join(format!("tmem-test-{}", std::process::id()));
        fs::copy(tmem(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let sleeper = Guard(Command::new("sleep").arg("60").spawn().unwrap());
        let output = Command::new(&copy)
            .args(["attach", "--ram", "64M", &sleeper.pid().to_string()])
            .uid(65534)
            .gid(65534)
            .current_dir("/")
            .output()
            .unwrap();
        fs::remove_file(&copy).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(TROUBLE), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(is_alive(sleeper.pid()));
    } else if fs::metadata("/proc/1").is_ok() {
        assert_refused(&["attach", "--ram", "64M", "1"], TROUBLE);
    } else {
        skip(name, "no process of another user here");
    }
}

#[test]
fn attach_refuses_a_32_bit_program() {
    let name = "attach_refuses_a_32_bit_program";
    let folder = folder("ia32");
    let (source, binary) = (folder.join("pause.S"), folder.join("pause"));
    // pause(2) by the 32-bit system call, for ever.
    fs::write(&source, ".globl _start\n_start: movl $29, %eax\n int $0x80\n jmp _start\n").unwrap();
    let made = Command::new("cc").args(["-m32", "-nostdlib", "-static", "-o"]).arg(&binary).arg(&source).output();
    if !made.is_ok_and(|output| output.status.success()) {
        skip(name, "cc -m32 does not work here");
        return;
    }
    let Ok(child) = Command::new(&binary).spawn() else {
        skip(name, "this kernel runs no 32-bit programs");
        return;
    };
    let mut child = Guard(child);
    std::thread::sleep(Duration::from_millis(50));
    if child.0.try_wait().unwrap().is_some() {
        skip(name, "this kernel runs no 32-bit programs");
        return;
    }
    assert_refused(&["attach", "--ram", "64M", &child.pid().to_string()], TROUBLE);
    assert!(is_alive(child.pid()));
}

#[test]
fn exit_statuses_pass_through() {
    if !can_run("exit_statuses_pass_through") {
        return;
    }
    for status in [0, 1, 2, 7, 42, 77, 100, 124, 125, 126, 127, 128, 137, 200, 255] {
        let (is, out, err) = run_tmem(&["run", "--ram", "64M", "--", "sh", "-c", &format!("exit {status}")]);
        assert_eq!((is, out.as_str(), err.as_str()), (status, "", ""));
    }
}

#[test]
fn a_signal_that_kills_the_command_kills_tmem() {
    if !can_run("a_signal_that_kills_the_command_kills_tmem") {
        return;
    }
    for signal in
        [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT, libc::SIGHUP, libc::SIGUSR2, libc::SIGRTMIN() + 3]
    {
        let outcome = Job::native([
            tmem().into_os_string(),
            "run".into(),
            "--ram".into(),
            "64M".into(),
            "--".into(),
            "sh".into(),
            "-c".into(),
            format!("kill -{signal} $$").into(),
        ])
        .timeout(Duration::from_secs(20))
        .run();
        assert_eq!(outcome.status.signal(), Some(signal), "{} {}", outcome.status, outcome.stderr_text());
        assert_eq!(outcome.stderr_text(), "");
    }
}

#[test]
fn signals_sent_to_tmem_reach_the_command() {
    if !can_run("signals_sent_to_tmem_reach_the_command") {
        return;
    }
    for (name, signal) in [
        ("TERM", libc::SIGTERM),
        ("USR1", libc::SIGUSR1),
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("WINCH", libc::SIGWINCH),
    ] {
        let script = format!("trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.02; done");
        let mut child = Guard(
            tmem_command(&["run", "--ram", "64M", "--", "sh", "-c", &script])
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap(),
        );
        let (ready, mut reader) = first_line(child.0.stdout.take().unwrap());
        assert_eq!(ready, "ready");
        child.signal(signal);
        let status =
            child.wait(Duration::from_secs(10)).unwrap_or_else(|| panic!("SIG{name} to tmem did not end the command"));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.trim(), status.code()), (format!("got {name}").as_str(), Some(3)), "SIG{name}");
    }
}

#[test]
fn stop_and_continue() {
    if !can_run("stop_and_continue") {
        return;
    }
    let script = "echo ready; i=0; while [ $i -lt 100 ]; do i=$((i+1)); sleep 0.01; done; echo done";
    let mut child = Guard(
        tmem_command(&["run", "--ram", "64M", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap(),
    );
    let (_, mut reader) = first_line(child.0.stdout.take().unwrap());
    let group = -(child.pid() as i32);
    // What a shell does for Ctrl-Z and fg.
    // SAFETY: the group is that of a child of ours which was not reaped.
    unsafe { libc::kill(group, libc::SIGTSTP) };
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: as above.
    unsafe { libc::kill(group, libc::SIGCONT) };
    let status = child.wait(Duration::from_secs(20)).expect("goes on after SIGCONT");
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), status.code()), ("done\n", Some(0)));
}

#[test]
fn streams_pass_through_byte_by_byte() {
    if !can_run("streams_pass_through_byte_by_byte") {
        return;
    }
    let input: Vec<u8> =
        (0..8_u64 * MIB / 8).flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let managed = Job::native(["sh", "-c", "cat; echo to-stderr >&2"]).under_tmem(64 * MIB).input(&input).run();
    assert!(managed.stdout == input, "cat changed its input");
    assert_eq!(managed.stderr_text(), "to-stderr\n");
}

/// What the command sees of its surroundings is what it would see without `tmem`.
#[test]
fn nothing_is_added_to_the_surroundings() {
    if !can_run("nothing_is_added_to_the_surroundings") {
        return;
    }
    for script in [
        "env | grep -v '^_=' | sort",
        "ls /proc/self/fd",
        "grep -E '^(Sig|Shd|Umask|Seccomp|NoNewPrivs|Cap)' /proc/self/status | grep -v SigQ",
        "ulimit -a",
        "cat /proc/self/oom_score_adj; nice",
        "cat /proc/self/comm; cat /proc/self/cmdline; pwd",
        "sleep 0.1; jobs; wait; echo $0 $#",
    ] {
        let native = Job::native(["sh", "-c", script]).run();
        let managed = Job::native(["sh", "-c", script]).under_tmem(64 * MIB).run();
        assert_eq!(managed.stdout_text(), native.stdout_text(), "{script}");
        assert_eq!(managed.stderr_text(), native.stderr_text(), "{script}");
    }
}

/// Ctrl-C and Ctrl-\ on a terminal reach everybody in the foreground once, not twice through `tmem`.
#[test]
fn the_terminal_is_the_commands() {
    if !can_run("the_terminal_is_the_commands") {
        return;
    }
    let (mut main_fd, mut sub_fd) = (0, 0);
    // SAFETY: both descriptors are written on success; the rest may be null.
    let opened = unsafe {
        libc::openpty(
            &raw mut main_fd,
            &raw mut sub_fd,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if opened != 0 {
        skip("the_terminal_is_the_commands", "no pseudo-terminal to be had");
        return;
    }
    // SAFETY: both were just opened and belong to nobody else.
    let (main, sub) = unsafe { (OwnedFd::from_raw_fd(main_fd), OwnedFd::from_raw_fd(sub_fd)) };
    let script = "trap 'echo int' INT; tty >/dev/null && echo terminal; i=0; while [ $i -lt 60 ]; do i=$((i+1)); sleep 0.02; done; read x; echo read $x; exit 5";
    let mut command = tmem_command(&["run", "--ram", "64M", "--", "sh", "-c", script]);
    command.stdin(sub.try_clone().unwrap()).stdout(sub.try_clone().unwrap()).stderr(sub.try_clone().unwrap());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut child = Guard(command.spawn().unwrap());
    drop((sub, command));
    let mut keyboard = fs::File::from(main.try_clone().unwrap());
    let mut screen = fs::File::from(main);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut some = [0; 256];
        // The end of a terminal is an error.
        while let Ok(n @ 1..) = screen.read(&mut some) {
            all.extend_from_slice(&some[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    std::thread::sleep(Duration::from_millis(600));
    keyboard.write_all(b"\x03").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    keyboard.write_all(b"hello\n").unwrap();
    let status = child.wait(Duration::from_secs(15));
    assert!(keyboard.as_raw_fd() >= 0);
    drop((child, keyboard));
    let screen = reader.join().unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(5), "{screen}");
    assert!(screen.contains("terminal") && screen.contains("read hello"), "{screen}");
    assert_eq!(screen.matches("int\r\n").count(), 1, "{screen}");
}

/// Starts the victim in less than it wants and waits until it is up: the supervisor, the victim, everything in the tree.
fn victim(children: &str) -> (Guard, u32, Vec<u32>) {
    let path = program("victim", Linking::Dynamic);
    let mut supervisor = Guard(
        tmem_command(&["run", "--ram", "96M", "--", path.to_str().unwrap(), "128", children])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let (ready, _) = first_line(supervisor.0.stdout.take().unwrap());
    let target = ready.strip_prefix("ready ").and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{ready}"));
    let tree = tree_of(supervisor.pid());
    (supervisor, target, tree)
}

#[test]
fn killing_tmem_kills_the_targets() {
    if !can_run("killing_tmem_kills_the_targets") {
        return;
    }
    for children in ["0", "2"] {
        let (mut supervisor, _, tree) = victim(children);
        assert!(tree.len() >= 2, "{tree:?}");
        supervisor.signal(libc::SIGKILL);
        assert!(supervisor.wait(Duration::from_secs(2)).is_some());
        let gone = wait_until(Duration::from_secs(1), || !tree.iter().any(|&pid| is_alive(pid)));
        assert!(
            gone,
            "alive after the supervisor was killed: {:?}",
            tree.iter().filter(|&&pid| is_alive(pid)).collect::<Vec<_>>()
        );
    }
}

/// The program starts before the supervisor has its first look at it: killed in between, it left the program alone.
#[test]
fn killing_tmem_at_its_start_kills_the_target() {
    if !can_run("killing_tmem_at_its_start_kills_the_target") {
        return;
    }
    for step in 0..60 {
        // It would end by itself, but not soon enough.
        let mut supervisor =
            Guard(tmem_command(&["run", "--ram", "64M", "--", "sleep", "20"]).stdout(Stdio::piped()).spawn().unwrap());
        let out = supervisor.0.stdout.take().unwrap();
        let moment = Duration::from_micros(step * 100);
        std::thread::sleep(moment);
        supervisor.signal(libc::SIGKILL);
        assert!(supervisor.wait(Duration::from_secs(2)).is_some());
        // Nobody writes to it, so what it reports is that the last who could has ended.
        let mut poll = libc::pollfd { fd: out.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one local entry, as the count says.
        let ended = unsafe { libc::poll(&raw mut poll, 1, 5000) };
        assert_eq!(ended, 1, "the program goes on after the supervisor was killed at {moment:?}");
    }
}

/// Waits until nobody has the other end of a pipe any more, and gives what came before.
fn read_to_the_end(mut out: ChildStdout, limit: Duration) -> Option<String> {
    let (sender, all) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        sender.send(text)
    });
    all.recv_timeout(limit).ok()
}

/// An orphan whose parent ended at once is known to nobody yet. It went on when tmem was killed, and read zeros.
#[test]
fn killing_tmem_kills_orphans_that_nobody_knows() {
    if !can_run("killing_tmem_kills_orphans_that_nobody_knows") {
        return;
    }
    let path = program("orphans", Linking::Dynamic);
    let path = path.to_str().unwrap();
    for round in 0..20 {
        let mut command = tmem_command(&["run", "--ram", "32M", "--", path, "96", "1000000"]);
        let mut supervisor = Guard(command.stdout(Stdio::piped()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(500 + round * 37));
        supervisor.signal(libc::SIGKILL);
        assert!(supervisor.wait(Duration::from_secs(2)).is_some());
        let said = read_to_the_end(supervisor.0.stdout.take().unwrap(), Duration::from_secs(5));
        assert_eq!(said.as_deref(), Some(""), "round {round}: None if somebody lives on");
    }
}

/// The same where they are not even below tmem: orphans of a program that it was attached to.
#[test]
fn killing_an_attached_tmem_kills_orphans() {
    if !can_run("killing_an_attached_tmem_kills_orphans") {
        return;
    }
    let path = program("orphans", Linking::Dynamic);
    for round in 0..5 {
        let mut target = Guard(Command::new(&path).args(["96", "1000000"]).stdout(Stdio::piped()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let pid = target.pid().to_string();
        let mut supervisor = Guard(tmem_command(&["attach", &pid, "--ram", "32M"]).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(700 + round * 97));
        supervisor.signal(libc::SIGKILL);
        assert!(supervisor.wait(Duration::from_secs(2)).is_some());
        let said = read_to_the_end(target.0.stdout.take().unwrap(), Duration::from_secs(5));
        assert_eq!(said.as_deref(), Some(""), "round {round}: None if somebody lives on");
        assert_eq!(target.wait(Duration::from_secs(1)).and_then(|status| status.signal()), Some(libc::SIGKILL));
    }
}

/// Without the guard nobody would hold evicted pages back if tmem ended, so it ends at once, and all with it.
#[test]
fn killing_the_guard_kills_all() {
    if !can_run("killing_the_guard_kills_all") {
        return;
    }
    let (mut supervisor, target, tree) = victim("2");
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let guard = *tree.iter().find(|&&pid| comm(pid) == "tmem-guard\n").expect("a guard");
    // SAFETY: plain system calls; the guard is alive, for its parent waits for it.
    unsafe { libc::kill(guard as i32, libc::SIGTERM) };
    std::thread::sleep(Duration::from_millis(100));
    assert!(is_alive(guard) && is_alive(target), "what may be sent to all that is called tmem is not meant for it");
    // SAFETY: as above.
    unsafe { libc::kill(guard as i32, libc::SIGKILL) };
    assert_eq!(supervisor.wait(Duration::from_secs(5)).and_then(|status| status.signal()), Some(libc::SIGABRT));
    assert!(wait_until(Duration::from_secs(1), || !tree.iter().any(|&pid| is_alive(pid))));
}

#[test]
fn killing_the_target_leaves_nothing() {
    if !can_run("killing_the_target_leaves_nothing") {
        return;
    }
    let (mut supervisor, target, tree) = victim("0");
    // SAFETY: the target is alive: its supervisor waits for it.
    unsafe { libc::kill(target as i32, libc::SIGKILL) };
    let status = supervisor.wait(Duration::from_secs(3)).expect("tmem ends with its command");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert!(wait_until(Duration::from_secs(1), || !tree.iter().any(|&pid| is_alive(pid))));
}

#[test]
fn stats_to_standard_output_come_last() {
    if !can_run("stats_to_standard_output_come_last") {
        return;
    }
    let (status, out, _) = run_tmem(&["run", "--ram", "64M", "--stats", "-", "--", "echo", "hello"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((status, lines.len(), lines[0]), (0, 2, "hello"), "{out}");
    let stats: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(stats["ram_limit_bytes"], 64 * MIB);
    for field in ["ram_peak_bytes", "resident_peak_bytes", "store_peak_bytes", "pages_evicted", "pages_returned"] {
        assert!(stats[field].is_u64(), "{field} in {stats}");
    }
    for percentile in ["p50", "p90", "p99"] {
        assert!(stats["fault_ns"][percentile].is_u64(), "{percentile} in {stats}");
    }
    assert!(stats["wall_seconds"].is_f64() && stats["compression_ratio"].is_number(), "{stats}");
}
