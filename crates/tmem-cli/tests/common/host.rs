//! Other hosts on this machine: network namespaces, each at the end of a cable of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Guard, tmem, wait_until};

/// A host. It is gone with everything that runs on it when it is dropped.
pub struct Host {
    name: String,
    /// Its end of the cable is `eth0`, ours has this name.
    cable: String,
    pub address: String,
}

fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Host {
    /// One of up to 250 hosts of this process.
    ///
    /// # Errors
    /// When the kernel or this user cannot have it: why.
    pub fn new(number: u8) -> Result<Self, String> {
        let process = std::process::id();
        let (name, cable) = (format!("tmem-{process}-{number}"), format!("t{process}-{number}"));
        ip(&format!("netns add {name}"))?;
        // From here on, dropped means removed.
        let host = Self { address: format!("10.213.{number}.2"), name, cable };
        let Self { name, cable, address } = &host;
        ip(&format!("link add {cable} type veth peer name eth0 netns {name}"))?;
        ip(&format!("addr add 10.213.{number}.1/30 dev {cable}"))?;
        ip(&format!("link set {cable} up"))?;
        ip(&format!("-n {name} addr add {address}/30 dev eth0"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        Ok(host)
    }

    /// A command that runs there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    /// Starts `redis-server` there, empty, at its usual port.
    pub fn redis(&self, password: &str) -> Guard {
        let mut command = self.command("redis-server");
        command.args(["--bind", &self.address, "--save", "", "--requirepass", password]);
        let server = Guard(command.stdout(Stdio::null()).spawn().unwrap());
        let listens = || std::net::TcpStream::connect((self.address.as_str(), 6379)).is_ok();
        assert!(wait_until(Duration::from_secs(10), listens), "redis-server does not start");
        server
    }

    /// Starts `tmem serve` there, at the same port.
    pub fn serve(&self, password_file: &str) -> Guard {
        let mut command = self.command(tmem().to_str().unwrap());
        let listen = format!("{}:6379", self.address);
        command.args(["serve", "--ram", "256M", "--listen", &listen, "--password-file", password_file]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        Guard(child)
    }

    /// Takes its cable out, or puts it in again. Nobody is told.
    pub fn cut_off(&self, cut: bool) {
        ip(&format!("-n {} link set eth0 {}", self.name, if cut { "down" } else { "up" })).unwrap();
    }

    /// No more than so many megabits a second go there, and come from there.
    ///
    /// # Errors
    /// When the kernel cannot limit that.
    pub fn narrow(&self, megabits: u32) -> Result<(), String> {
        let rate = format!("rate {megabits}mbit burst 64kb latency 200ms");
        let tc = |command: &mut Command| {
            let output = command.output().map_err(|e| format!("tc: {e}"))?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        };
        let words = |device: &str| format!("qdisc add dev {device} root tbf {rate}");
        tc(Command::new("tc").args(words(&self.cable).split(' ')))?;
        tc(self.command("tc").args(words("eth0").split(' ')))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What runs there holds the namespace; the cable goes at once.
        let _ = ip(&format!("link del {}", self.cable));
        let _ = ip(&format!("netns del {}", self.name));
    }
}
