//! `tmem serve` in a container: a control group with a limit, which is less than `--ram`.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Guard, MIB, say, skip, tmem};
use tmem::testing::Random;

/// A group that is removed when it is dropped.
struct Group(PathBuf);

impl Group {
    fn with_limit(bytes: u64) -> Result<Self, String> {
        let name = format!("tmem-test-{}", std::process::id());
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (root, file) = if v1.is_dir() { (v1, "memory.limit_in_bytes") } else { (v2, "memory.max") };
        if root == v2 {
            // It may be there already, and if it cannot be, the limit cannot be set.
            let _ = fs::write(v2.join("cgroup.subtree_control"), "+memory");
        }
        let group = Self(root.join(name));
        let why = |e: std::io::Error| format!("{}: {e}", group.0.display());
        fs::create_dir(&group.0).map_err(why)?;
        fs::write(group.0.join(file), bytes.to_string()).map_err(why)?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            // Whoever was in it has to be reaped first.
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// It is not killed: what the container has no room for is refused, or dropped, and what is small is still answered.
#[test]
fn a_container_is_not_lent_beyond_its_limit() {
    const TEST: &str = "a_container_is_not_lent_beyond_its_limit";
    const LIMIT: u64 = 96 * MIB;
    for policy in ["noeviction", "allkeys-lru"] {
        let group = match Group::with_limit(LIMIT) {
            Ok(group) => group,
            Err(why) => return skip(TEST, &format!("no control group can be made here: {why}")),
        };
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.0.join("cgroup.procs")).arg(tmem());
        command.args(["serve", "--ram", "1G", "--policy", policy, "--listen", "127.0.0.1:0"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut server = Guard(child);
        let address = line.trim().strip_prefix("redis://").unwrap_or_else(|| panic!("{line}"));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut ask = |asked: &[u8]| {
            stream.write_all(asked).unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                said.push(byte[0]);
            }
            String::from_utf8(said).unwrap()
        };
        // Noise, 160 MiB of it.
        let mut random = Random::new(1);
        let (mut taken, mut refused) = (0_u64, 0_u64);
        for number in 0..2560 {
            let mut asked = format!("*3\r\n$3\r\nSET\r\n$8\r\n{number:08}\r\n$65536\r\n").into_bytes();
            asked.extend((0..8192).flat_map(|_| random.number().to_le_bytes()));
            asked.extend(b"\r\n");
            match ask(&asked).as_str() {
                "+OK\r\n" => taken += 1,
                said => {
                    assert!(said.starts_with("-OOM"), "{said}");
                    refused += 1;
                }
            }
        }
        say(&format!("{TEST}: {policy}: {taken} of 2560 values taken, {refused} refused"));
        assert!(server.0.try_wait().unwrap().is_none(), "it was killed");
        assert_eq!(ask(b"*1\r\n$4\r\nPING\r\n"), "+PONG\r\n");
        match policy {
            "noeviction" => assert!((800..1400).contains(&taken), "{taken} taken"),
            _ => assert!(taken > 2300, "{refused} refused"),
        }
        server.signal(libc::SIGTERM);
        assert!(server.wait(Duration::from_secs(10)).is_some_and(|status| status.success()));
    }
}
