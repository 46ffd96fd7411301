//! `tmem disk` as a service: sockets that are passed, and what the manager is told.

mod common;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Guard, folder, has, run_tmem, tmem, wait_until};

/// A server of which standard input is the socket that listens, moved to where the service manager would have put it.
fn start(socket: OwnedFd, words: &[&str], envs: &[(&str, &Path)]) -> Guard {
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" disk --size 1M --ram 16M \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(tmem()).args(words).envs(envs.iter().copied());
    Guard(shell.stdin(Stdio::from(socket)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Whether it is NBD that answers.
fn greets(mut stream: impl Read) -> bool {
    let mut hello = [0; 8];
    stream.read_exact(&mut hello).is_ok() && hello == *b"NBDMAGIC"
}

fn stop(mut server: Guard) -> (bool, String) {
    server.signal(libc::SIGTERM);
    let status = server.wait(Duration::from_secs(10)).expect("HANG: the server does not end");
    let (mut out, mut err) = (String::new(), String::new());
    server.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    server.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (status.success(), out + &err)
}

#[test]
fn a_socket_that_is_passed_is_served_and_stays() {
    let dir = folder("service-passed");
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // Waits for the server: what the manager's socket is for.
    let early = UnixStream::connect(&path).unwrap();
    let server = start(listener.into(), &[], &[]);
    assert!(greets(&early));
    drop(early);
    let (success, said) = stop(server);
    assert!(success && said == format!("nbd+unix:///?socket={}\n", path.display()), "{said}");
    assert!(path.exists(), "the socket is the manager's");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = start(listener.into(), &[], &[]);
    assert!(greets(std::net::TcpStream::connect(address).unwrap()));
    assert!(stop(server).0);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_no_socket_that_listens_is_refused() {
    let dir = folder("service-refused");
    let (one, _other) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::bind(dir.join("datagram")).unwrap();
    let file = fs::File::create(dir.join("file")).unwrap();
    for wrong in [one.into(), datagram.into(), OwnedFd::from(file)] {
        let mut server = start(wrong, &[], &[]);
        let status = server.wait(Duration::from_secs(10)).expect("HANG: it serves what is no socket that listens");
        let mut err = String::new();
        server.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(status.code() == Some(125) && err.contains("passed") && err.lines().count() == 1, "{status}: {err}");
    }
    let (status, _, err) = run_tmem(&["disk", "--size", "1M", "--ram", "16M"]);
    assert!(status == 125 && err.contains("--listen"), "{err}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_manager_is_told_when_it_is_ready_and_when_it_stops() {
    let dir = folder("service-notify");
    let path = dir.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let hear = || {
        let mut said = [0; 500];
        let bytes = manager.recv(&mut said).expect("nothing is said");
        String::from_utf8_lossy(&said[..bytes]).into_owned()
    };
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = start(listener.into(), &[], &[("NOTIFY_SOCKET", &path)]);
    let ready = hear();
    assert_eq!(ready, format!("READY=1\nSTATUS=A disk at unix:{}", socket.display()));
    assert!(stop(server).0);
    assert_eq!(hear(), "STOPPING=1");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn systemd_starts_it_when_a_client_comes() {
    const TEST: &str = "systemd_starts_it_when_a_client_comes";
    if !has(TEST, "systemd-socket-activate") || !has(TEST, "nbdinfo") {
        return;
    }
    let dir = folder("service-systemd");
    let socket = dir.join("socket");
    let mut activate = Command::new("systemd-socket-activate");
    activate.arg(format!("--listen={}", socket.display())).arg(tmem());
    activate.args(["disk", "--size", "5M", "--ram", "16M"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Guard(activate.spawn().unwrap());
    assert!(wait_until(Duration::from_secs(10), || socket.exists()));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let out = Command::new("timeout").args(["20", "nbdinfo", "--size", &uri]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "5242880\n", "{out:?}");
    server.signal(libc::SIGTERM);
    assert!(server.wait(Duration::from_secs(10)).expect("HANG: the server does not end").success());
    fs::remove_dir_all(dir).unwrap();
}
