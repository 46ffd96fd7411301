//! Seeing a supervisor from outside: `tmem top` and `--metrics`, by whom it may be seen, and that nothing is left of it.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::disk::{Disk, Nbd};
use common::{Guard, Linking, can_run, has, program, run_tmem, say, skip, tmem, tmem_command, wait_until};
use serde_json::Value;

impl Guard {
    /// Noise of three times its budget, read and written for a long time.
    fn noise(flags: &[&str]) -> Guard {
        let path = program("noise", Linking::Dynamic);
        let words = [&["run", "--ram", "32M"], flags, &["--", path.to_str().unwrap(), "96", "1000"]].concat();
        Guard(tmem_command(&words).stdout(Stdio::null()).spawn().unwrap())
    }

    /// What `tmem top` shows of it, if it does.
    fn figures(&self) -> Option<Value> {
        let supervisors = top()["supervisors"].take();
        supervisors.as_array().unwrap().iter().find(|figures| figures["pid"] == self.pid()).cloned()
    }

    /// The same of one that runs: on a machine with much to do it may be too late with an answer.
    fn seen(&self) -> Value {
        self.seen_when(|_| true)
    }

    /// The same once something was evicted.
    fn busy(&self) -> Value {
        self.seen_when(|figures| figures["pages_evicted"].as_u64() > Some(0))
    }

    fn seen_when(&self, is_right: impl Fn(&Value) -> bool) -> Value {
        let mut figures = None;
        let found = wait_until(Duration::from_secs(20), || {
            figures = self.figures().filter(&is_right);
            figures.is_some()
        });
        assert!(found, "it is not seen, or nothing is evicted");
        figures.unwrap()
    }
}

fn top() -> Value {
    let (status, out, err) = run_tmem(&["top", "--once", "--json"]);
    assert_eq!((status, err.as_str()), (0, ""));
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

fn number(figures: &Value, path: &str) -> f64 {
    let value = path.split('.').fold(figures, |value, name| &value[name]);
    value.as_f64().unwrap_or_else(|| panic!("no {path} in {figures}"))
}

/// The names of sockets of this supervisor.
fn names_of(pid: u32) -> usize {
    let names = fs::read_to_string("/proc/self/net/unix").unwrap();
    names.lines().filter(|line| line.ends_with(&format!("@tmem/supervisor/{pid}"))).count()
}

fn name_of(pid: u32) -> SocketAddr {
    SocketAddr::from_abstract_name(format!("tmem/supervisor/{pid}")).unwrap()
}

fn connect_to(pid: u32) -> UnixStream {
    UnixStream::connect_addr(&name_of(pid)).unwrap()
}

#[test]
fn a_run_is_seen_while_it_lasts() {
    let name = "a_run_is_seen_while_it_lasts";
    if !can_run(name) {
        return;
    }
    let mut run = Guard::noise(&[]);
    let before = run.busy();
    thread::sleep(Duration::from_millis(500));
    let after = run.seen();
    say(&format!("{name}: {} evicted, {} faults a second", after["pages_evicted"], after["rates"]["faults"]));
    for path in ["pages_evicted", "pages_returned", "fault_ns.count", "wall_seconds", "watch_answers"] {
        assert!(number(&after, path) > number(&before, path), "{path} does not grow: {before} {after}");
    }
    for path in
        ["rates.seconds", "rates.faults", "rates.pages_evicted", "resident_bytes", "stored_bytes", "fault_ns.p99"]
    {
        assert!(number(&after, path) > 0.0, "{path} in {after}");
    }
    assert_eq!(number(&after, "ram_limit_bytes"), f64::from(32 << 20));
    assert!((after["command"] == "noise") && after["exit_status"].is_null(), "{after}");
    let process = &after["processes"][0];
    assert!(process["name"] == "noise" && process["pid"] == after["program"] && process["managed"] == true, "{after}");
    let (status, table, _) = run_tmem(&["top", "--once"]);
    assert!(status == 0 && table.contains(&format!("{} ", run.pid())) && table.contains("noise"), "{table}");
    run.signal(libc::SIGTERM);
    assert!(run.wait(Duration::from_secs(10)).is_some());
    assert_eq!(names_of(run.pid()), 0);
    assert!(run.figures().is_none());
}

#[test]
fn an_attachment_is_seen() {
    if !can_run("an_attachment_is_seen") {
        return;
    }
    let path = program("noise", Linking::Dynamic);
    let noise = Guard(Command::new(path).args(["96", "1000"]).stdout(Stdio::null()).spawn().unwrap());
    let pid = noise.pid().to_string();
    let mut attachment =
        Guard(tmem_command(&["attach", "--ram", "32M", "--metrics", "127.0.0.1:0", &pid]).spawn().unwrap());
    let figures = attachment.busy();
    assert!(figures["program"] == noise.pid() && figures["processes"][0]["pid"] == noise.pid(), "{figures}");
    assert_well_formed(&scrape(figures["metrics"].as_str().unwrap()));
    attachment.signal(libc::SIGINT);
    assert!(attachment.wait(Duration::from_secs(30)).is_some_and(|status| status.success()));
    assert_eq!(names_of(attachment.pid()), 0);
}

#[test]
fn two_are_seen_side_by_side_and_a_stopped_one_is_told() {
    if !can_run("two_are_seen_side_by_side_and_a_stopped_one_is_told") {
        return;
    }
    let runs = [Guard::noise(&[]), Guard::noise(&["--spill", "off"])];
    runs.iter().for_each(|run| drop(run.busy()));
    let shows = |seen: &Value, list: &str, run: &Guard| {
        seen[list].as_array().unwrap().iter().any(|figures| figures["pid"] == run.pid())
    };
    let both = |seen: &Value| runs.iter().all(|run| shows(seen, "supervisors", run));
    assert!(wait_until(Duration::from_secs(20), || both(&top())));
    runs[0].signal(libc::SIGSTOP);
    let began = Instant::now();
    let (status, said, _) = run_tmem(&["top", "--once"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let line = said.lines().find(|line| line.starts_with(&runs[0].pid().to_string()));
    assert!(status == 0 && line.is_some_and(|line| line.ends_with("it does not answer")), "{said}");
    let told_apart = |seen: &Value| shows(seen, "silent", &runs[0]) && shows(seen, "supervisors", &runs[1]);
    assert!(wait_until(Duration::from_secs(20), || told_apart(&top())));
    runs[0].signal(libc::SIGCONT);
    runs[0].seen();
}

/// Connects by the name and tells who answered what; only Python's standard library is needed.
const STRANGER: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect('\\0tmem/supervisor/' + sys.argv[1])
try:
    s.send(b'tmem 1 figures\\n')
except BrokenPipeError:
    pass
print(s.recv(1000))
";

/// Over a control socket as over HTTP: one line comes back, whatever was asked.
#[test]
fn nonsense_is_refused() {
    if !can_run("nonsense_is_refused") {
        return;
    }
    let run = Guard::noise(&[]);
    run.busy();
    for (asked, answer) in [
        (&b"tmem 2 figures\n"[..], "this tmem understands"),
        (&[0xff; 100_000], "this tmem understands"),
        (b"tmem 1 figures\n", "\"ram_limit_bytes\":33554432"),
    ] {
        let mut stream = connect_to(run.pid());
        // Not all of it may be taken.
        let _ = stream.write_all(asked);
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        assert!(said.contains(answer) && said.ends_with('\n') && said.lines().count() == 1, "{said}");
    }
    // Half a request, and no end of it.
    let mut half = connect_to(run.pid());
    half.write_all(b"tmem 1 fig").unwrap();
    half.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    run.seen();
    assert_eq!(half.read(&mut [0]).unwrap(), 0);
    assert!(number(&run.seen(), "refused.watch_malformed") >= 3.0);
}

/// Another user's supervisor, as far as can be seen: to run a real one that user would need privileges.
const ANOTHER: &str = "
import os, socket
s = socket.socket(socket.AF_UNIX)
s.bind('\\0tmem/supervisor/%d' % os.getpid())
s.listen()
while True:
    c = s.accept()[0]
    c.recv(100)
    c.sendall(b'{\"version\":1,\"command\":\"another\\u001b[2J\"}\\n')
    c.close()
";

#[test]
fn root_sees_all_users() {
    let name = "root_sees_all_users";
    let python = "/usr/bin/python3";
    // SAFETY: takes no arguments and cannot fail.
    if unsafe { libc::getuid() } != 0 || !fs::exists(python).unwrap_or(false) {
        return skip(name, "only root can become another user, and /usr/bin/python3 is needed for that");
    }
    let mut another = Command::new(python);
    let another = Guard(another.args(["-c", ANOTHER]).uid(65534).gid(65534).current_dir("/").spawn().unwrap());
    assert_eq!(another.seen()["command"], "another?[2J");
}

#[test]
fn another_user_sees_nothing() {
    let name = "another_user_sees_nothing";
    // SAFETY: takes no arguments and cannot fail.
    if unsafe { libc::getuid() } != 0 {
        return skip(name, "only root can become another user");
    }
    if !can_run(name) || !has(name, "python3") {
        return;
    }
    let run = Guard::noise(&[]);
    run.busy();
    let copy = std::env::temp_dir().join(format!("tmem-top-test-{}", std::process::id()));
    fs::copy(tmem(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |command: &mut Command| command.uid(65534).gid(65534).current_dir("/").output().unwrap();
    let json = as_nobody(Command::new(&copy).args(["top", "--once", "--json"]));
    let table = as_nobody(Command::new(&copy).args(["top", "--once"]));
    fs::remove_file(&copy).unwrap();
    let seen: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(seen["supervisors"] == serde_json::json!([]) && seen["others"].as_u64() > Some(0), "{seen}");
    let said = String::from_utf8_lossy(&table.stderr);
    assert!(table.status.success() && table.stdout.is_empty() && said.contains(" user"), "{said}");
    assert!(said.contains("tmem run --ram 1G -- PROGRAM"), "{said}");
    // Not by asking directly either. By its path, because the first of that name may be a shell script of root's.
    let python = "/usr/bin/python3";
    if !fs::exists(python).unwrap_or(false) {
        return skip(name, "no /usr/bin/python3 for another user to ask with");
    }
    let refused = || number(&run.seen(), "refused.watch_stranger");
    let before = refused();
    let asked = as_nobody(Command::new(python).args(["-c", STRANGER, &run.pid().to_string()]));
    let (out, err) = (String::from_utf8_lossy(&asked.stdout), String::from_utf8_lossy(&asked.stderr));
    assert!(out.contains("it belongs to another user") && !out.contains("version"), "{out}{err}");
    assert!(refused() > before);
}

#[test]
fn who_only_claims_to_be_a_supervisor_does_no_harm() {
    let bind = |pid| UnixListener::bind_addr(&name_of(pid)).unwrap();
    // One with a number that is not its own, and one that talks without end.
    let (_other, endless) = (bind(u32::MAX >> 1), bind(std::process::id()));
    // Other tests of this process look around, too.
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let talker = thread::spawn(move || {
        for stream in endless.incoming() {
            let mut stream = stream.unwrap();
            if is_over.load(Relaxed) {
                return;
            }
            while stream.write_all(&[b"{\"version\":1,\"command\":\"\x1b[2J", &[b'x'; 4096][..]].concat()).is_ok() {}
        }
    });
    let seen = top();
    over.store(true, Relaxed);
    drop(connect_to(std::process::id()));
    talker.join().unwrap();
    let silent = seen["silent"].as_array().unwrap();
    let ours: Vec<_> = silent.iter().filter(|seen| seen["pid"] == std::process::id()).collect();
    assert_eq!(ours.len(), 1, "{seen}");
    assert_eq!(ours[0]["why"], "its answer is not understood");
    assert!(!silent.iter().any(|seen| seen["pid"] == u32::MAX >> 1), "{seen}");
}

#[test]
fn a_killed_supervisor_leaves_nothing_behind() {
    if !can_run("a_killed_supervisor_leaves_nothing_behind") {
        return;
    }
    let mut run = Guard::noise(&["--metrics", "127.0.0.1:0"]);
    let address = run.busy()["metrics"].as_str().unwrap().to_owned();
    run.signal(libc::SIGKILL);
    assert!(run.wait(Duration::from_secs(5)).is_some());
    // The guard has the same descriptors, until it has killed what is left.
    assert!(wait_until(Duration::from_secs(5), || names_of(run.pid()) == 0), "{} are left", names_of(run.pid()));
    assert!(run.figures().is_none());
    // The next can have the same address at once.
    let (status, out, err) = run_tmem(&["run", "--ram", "64M", "--metrics", &address, "--", "echo", "fine"]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "fine\n", ""));
}

/// Sends bytes to a server and gives all that comes back.
fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn scrape(address: &str) -> String {
    let answer = exchange(address, b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    body.to_owned()
}

/// What the text format demands: for each metric HELP, TYPE and then its samples, once; names and numbers in order.
fn assert_well_formed(text: &str) {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    let mut seen = HashSet::new();
    let mut series = HashSet::new();
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let (name, meaning) = help.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(help);
        assert!(is_name(name) && !meaning.is_empty() && seen.insert(name.to_owned()), "{help}");
        let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' '));
        assert_eq!(kind, Some(if name.ends_with("_total") { "counter" } else { "gauge" }), "{name}");
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (left, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            assert!(left == name || (left.starts_with(&format!("{name}{{")) && left.ends_with("\"}")), "{line}");
            assert!(series.insert(left.to_owned()), "{line} twice");
        }
    }
    assert!(text.ends_with('\n') && seen.len() > 25, "{text}");
}

/// Has Prometheus' own library for Python read it, where that is installed.
fn assert_read_by_prometheus(name: &str, text: &str) {
    let script = "import sys\ntry: from prometheus_client.parser import text_string_to_metric_families as parse\n\
                  except ImportError: sys.exit(77)\nprint(sum(len(f.samples) for f in parse(sys.stdin.read())))";
    for python in ["python3", "/usr/bin/python3"] {
        let mut command = Command::new(python);
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else { continue };
        // One without the library does not read it.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(77) {
            continue;
        }
        assert!(output.status.success(), "prometheus_client refuses\n{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), samples.to_string());
        return;
    }
    skip(name, "python3-prometheus-client is not installed: the text was checked by this test's own rules only");
}

#[test]
fn metrics_are_scraped_while_it_runs() {
    let name = "metrics_are_scraped_while_it_runs";
    if !can_run(name) {
        return;
    }
    let run = Guard::noise(&["--metrics", "127.0.0.1:0"]);
    let figures = run.busy();
    let address = figures["metrics"].as_str().unwrap();
    let text = scrape(address);
    assert_well_formed(&text);
    assert_read_by_prometheus(name, &text);
    let value = |text: &str, metric: &str| {
        let line = text.lines().find(|line| line.starts_with(metric)).unwrap_or_else(|| panic!("{metric} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    thread::sleep(Duration::from_millis(200));
    let later = scrape(address);
    assert!(value(&later, "tmem_pages_evicted_total ") > value(&text, "tmem_pages_evicted_total "));
    assert_eq!(value(&text, "tmem_ram_limit_bytes "), f64::from(32 << 20));
    let process = format!("tmem_process_stored_bytes{{pid=\"{}\",name=\"noise\"}} ", figures["program"]);
    assert!(value(&text, &process) > 0.0);

    let starts = |bytes: &[u8], status: &str| {
        let answer = exchange(address, bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{:?}: {answer}", String::from_utf8_lossy(bytes));
        answer
    };
    starts(b"GET /other HTTP/1.1\r\n\r\n", "404");
    assert!(starts(b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405").contains("Allow: GET, HEAD\r\n"));
    starts(b"\x16\x03\x01\x00\xa5\x01\x00\x00", "400");
    starts(&[b"GET /metrics HTTP/1.1\r\na: ", &[b'b'; 9000][..]].concat(), "431");
    assert!(starts(b"HEAD /metrics HTTP/1.1\r\n\r\n", "200").ends_with("\r\n\r\n"));
    assert!(number(&run.seen(), "refused.watch_malformed") >= 4.0);
}

/// Who says nothing, or half of it, is neither waited for nor remembered.
#[test]
fn idle_visitors_do_not_keep_others_out() {
    if !can_run("idle_visitors_do_not_keep_others_out") {
        return;
    }
    let run = Guard::noise(&["--metrics", "127.0.0.1:0"]);
    let address = run.busy()["metrics"].as_str().unwrap().to_owned();
    let mut idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    idle.iter_mut().step_by(2).for_each(|stream| drop(stream.write_all(b"GET /met")));
    let began = Instant::now();
    assert_well_formed(&scrape(&address));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    // All of them are let go of within two seconds.
    for stream in &mut idle {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.read(&mut [0]);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let figures = run.seen();
    assert!(number(&figures, "refused.watch_busy") + number(&figures, "refused.watch_malformed") >= 40.0, "{figures}");
}

/// `tmem disk` is seen by the same means.
#[test]
fn disks_are_seen_and_scraped() {
    let name = "disks_are_seen_and_scraped";
    let words = ["--size", "1G", "--name", "a", "--export", "b=8M", "--ram", "32M", "--metrics", "127.0.0.1:0"];
    let disk = Disk::start(&words);
    let ours = || {
        let seen = top();
        let ours = seen["disks"].as_array().unwrap().iter().find(|figures| figures["pid"] == disk.pid());
        ours.cloned().unwrap_or_else(|| panic!("{seen}"))
    };
    let mut client = Nbd::open(&disk);
    assert_eq!((client.write(0, &[7; 10_000]), client.write(1 << 20, &[8; 4096])), (0, 0));
    let figures = ours();
    assert_eq!((&figures["exports"][0]["writes"], &figures["exports"][1]["writes"]), (&2.into(), &0.into()));
    assert_eq!(figures["exports"][0]["stored_bytes"], 4 * 4096);
    assert!(number(&figures, "rates.seconds") > 0.0 && figures["address"].as_str().unwrap().starts_with("unix:"));
    let (status, table, _) = run_tmem(&["top", "--once"]);
    assert!(status == 0 && table.contains(&format!("{} ", disk.pid())) && table.contains("  b "), "{table}");

    let text = scrape(figures["metrics"].as_str().unwrap());
    assert_well_formed(&text);
    assert_read_by_prometheus(name, &text);
    for line in [
        "tmem_disk_ram_bytes 33554432\n",
        "tmem_disk_export_writes_total{name=\"a\"} 2\n",
        "tmem_disk_export_writes_total{name=\"b\"} 0\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    // All figures are the same, wherever they are read.
    let (stats, figures) = (disk.stats(), ours());
    for name in stats.as_object().unwrap().keys() {
        assert!(figures.get(name).is_some(), "{name}");
    }
    drop(client);
    let pid = disk.pid();
    disk.stop();
    assert!(!top()["disks"].as_array().unwrap().iter().any(|figures| figures["pid"] == pid));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (status, _, err) =
        run_tmem(&["disk", "--size", "1G", "--ram", "32M", "--listen", "127.0.0.1:0", "--metrics", &taken]);
    assert!(status == 125 && err.contains("in use"), "{err}");
}

#[test]
fn an_address_that_cannot_be_had_is_refused_before_anything_runs() {
    if !can_run("an_address_that_cannot_be_had_is_refused_before_anything_runs") {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let listener = std::net::TcpListener::bind(&taken);
    for (address, says) in
        [(taken.as_str(), "in use"), ("192.0.2.1:9464", "no such address"), ("9464", "127.0.0.1:9464")]
    {
        let (status, out, err) = run_tmem(&["run", "--ram", "64M", "--metrics", address, "--", "echo", "it ran"]);
        assert_eq!((status, out.as_str()), (125, ""), "{address}: {err}");
        assert!(err.starts_with("tmem: ") && err.trim_end().lines().count() == 1 && err.contains(says), "{err}");
    }
    drop(listener);
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let (status, out, err) = run_tmem(&["top"]);
    assert_eq!((status, out.as_str()), (125, ""));
    assert!(err.contains("--once") && err.trim_end().lines().count() == 1, "{err}");
}

/// Runs `tmem top` on a terminal of its own, lets `then` end it, and gives all that it wrote; the terminal must be as before.
fn on_a_terminal(name: &str, envs: &[(&str, &str)], then: impl FnOnce(&mut fs::File, &Guard)) -> Option<String> {
    let (mut main_fd, mut sub_fd) = (0, 0);
    let none = std::ptr::null_mut::<u8>();
    let size = libc::winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both descriptors are written on success; `size` is only read, and the rest may be null.
    if unsafe { libc::openpty(&raw mut main_fd, &raw mut sub_fd, none.cast(), none.cast(), &raw const size) } != 0 {
        skip(name, "no pseudo-terminal to be had");
        return None;
    }
    // SAFETY: both were just opened and belong to nobody else.
    let (main, sub) = unsafe { (OwnedFd::from_raw_fd(main_fd), OwnedFd::from_raw_fd(sub_fd)) };
    let modes = || {
        // SAFETY: an all-zero termios is valid and the call fills it.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and `modes` a live local.
        assert_eq!(unsafe { libc::tcgetattr(sub_fd, &raw mut modes) }, 0);
        (modes.c_iflag, modes.c_oflag, modes.c_lflag)
    };
    let before = modes();
    let mut command = tmem_command(&["top", "--interval", "0.1"]);
    command.stdin(sub.try_clone().unwrap()).stdout(sub.try_clone().unwrap()).stderr(sub.try_clone().unwrap());
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(envs.iter().copied());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut child = Guard(command.spawn().unwrap());
    let mut screen = fs::File::from(main.try_clone().unwrap());
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        let mut some = [0; 4096];
        // The end of a terminal is an error.
        while let Ok(n @ 1..) = screen.read(&mut some) {
            all.extend_from_slice(&some[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    thread::sleep(Duration::from_millis(1200));
    assert_ne!(modes(), before, "it does not use the terminal");
    then(&mut fs::File::from(main), &child);
    assert!(child.wait(Duration::from_secs(5)).is_some_and(|status| status.success()), "it does not end");
    assert_eq!(modes(), before);
    drop((command, sub));
    Some(reader.join().unwrap())
}

#[test]
fn the_terminal_is_as_it_was() {
    let name = "the_terminal_is_as_it_was";
    for key in ["q", "\x1b", "\x03"] {
        let Some(text) = on_a_terminal(name, &[], |keys, _| keys.write_all(key.as_bytes()).unwrap()) else { return };
        // The other screen, and at the end the first one with its cursor.
        assert!(text.contains("\x1b[?1049h") && text.contains("\x1b[?1049l"), "{key:?}: {text:?}");
        assert!(text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "{key:?}: {text:?}");
    }
    let text = on_a_terminal(name, &[], |_, top| top.signal(libc::SIGTERM)).unwrap();
    assert!(text.contains("\x1b[?1049l"), "{text:?}");
}

#[test]
fn no_color_is_honoured() {
    let name = "no_color_is_honoured";
    if !can_run(name) {
        return;
    }
    let run = Guard::noise(&[]);
    run.busy();
    let quit = |keys: &mut fs::File, _: &Guard| keys.write_all(b"q").unwrap();
    let Some(colours) = on_a_terminal(name, &[], quit) else { return };
    let plain = on_a_terminal(name, &[("NO_COLOR", "1")], quit).unwrap();
    // Green is colour 2, red colour 1, set by "38;5;".
    let has_colour = |text: &str| text.contains("38;5;") || text.contains("\x1b[32m") || text.contains("\x1b[31m");
    assert!(colours.contains("noise") && has_colour(&colours), "{colours:?}");
    assert!(plain.contains("noise") && !has_colour(&plain), "{plain:?}");
}
