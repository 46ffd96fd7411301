//! `cargo xtask soak disk`: clients that die at any moment, and a file system in which others' sources are built.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;
use tmem::testing::{Random, sample_pages};

use crate::interrupt;
use crate::project;

/// How long to soak a disk.
#[derive(Args)]
pub struct DiskArgs {
    /// Clients of a disk that are killed in the middle of what they do.
    #[arg(long, default_value_t = 200)]
    disk_kills: u32,
}

/// What ends with this.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.spawn().map(Self).with_context(|| format!("cannot run {command:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Disk {
    /// Ends first, so that the folder is no longer used.
    _server: Running,
    tmem: PathBuf,
    socket: PathBuf,
    uri: String,
}

impl Disk {
    fn start(folder: &Path, words: &[&str]) -> anyhow::Result<Self> {
        let (tmem, socket) = (project::build_tmem()?, folder.join("socket"));
        let mut command = Command::new(&tmem);
        command.arg("disk").args(words).arg("--listen").arg(format!("unix:{}", socket.display()));
        let mut server = Running::start(command.stdout(Stdio::piped()))?;
        let mut uri = String::new();
        let out = server.0.stdout.take().context("a pipe that was asked for")?;
        BufReader::new(out).read_line(&mut uri)?;
        ensure!(!uri.is_empty(), "tmem disk {words:?} does not start");
        Ok(Self { _server: server, tmem, socket, uri: uri.trim().to_owned() })
    }

    fn stats(&self) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.tmem);
        let at = format!("unix:{}", self.socket.display());
        let out = command.args(["disk", "stats", "--json", &at]).output().context("cannot run tmem")?;
        ensure!(out.status.success(), "the server does not answer: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    }
}

/// Both parts.
///
/// # Errors
///
/// When the server was harmed, or what was read is not what was written.
pub fn disk(args: &DiskArgs) -> anyhow::Result<()> {
    if !project::installed("nbdcopy") {
        println!("\nSKIPPED: disk: there is no nbdcopy (Debian: libnbd-bin)");
        return Ok(());
    }
    killed_clients(args.disk_kills)?;
    match no_file_system() {
        Some(why) => println!("SKIPPED: a file system on a disk: {why}"),
        None => file_system()?,
    }
    Ok(())
}

/// Half of them write, half of them read; then a disk is there as if nothing had been.
fn killed_clients(count: u32) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image");
    let bytes: Vec<u8> = sample_pages(32 << 8, 1).flatten().collect();
    fs::write(&image, &bytes)?;
    let disk = Disk::start(folder.path(), &["--size", "32M", "--ram", "64M"])?;
    run(Command::new("nbdcopy").arg(&image).arg(&disk.uri))?;
    let used_before = disk.stats()?["used_bytes"].as_u64();
    let mut random = Random::new(u64::from(std::process::id()));
    let mut in_the_middle = 0;
    for round in 0..count {
        interrupt::check()?;
        let mut client = Command::new("nbdcopy");
        match round % 2 {
            0 => client.arg(&image).arg(&disk.uri),
            _ => client.arg(&disk.uri).arg("null:"),
        };
        let mut client = Running::start(client.stderr(Stdio::null()))?;
        thread::sleep(Duration::from_micros(random.below(150_000)));
        in_the_middle += u32::from(client.0.try_wait()?.is_none());
    }
    let start = Instant::now();
    // Whoever asks is one of them.
    while disk.stats()?["connections"] != 1 {
        ensure!(start.elapsed() < Duration::from_secs(10), "connections of dead clients stay: {}", disk.stats()?);
        thread::sleep(Duration::from_millis(20));
    }
    let back = folder.path().join("back");
    run(Command::new("nbdcopy").arg(&disk.uri).arg(&back))?;
    ensure!(fs::read(&back)? == bytes, "a disk of which clients died holds something else");
    let stats = disk.stats()?;
    println!(
        "{count} clients killed, {in_the_middle} of them before they had ended: {} connections, {} taken for broken; used {} bytes, before {}",
        stats["connections_total"],
        stats["connections_broken"],
        stats["used_bytes"],
        used_before.unwrap_or(0),
    );
    ensure!(in_the_middle > count / 4, "most clients had ended by themselves: that shows nothing");
    Ok(())
}

fn no_file_system() -> Option<String> {
    if !project::is_root() {
        return Some("it needs root".to_owned());
    }
    let missing = ["nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "cc", "tar", "diff"];
    let missing: Vec<_> = missing.into_iter().filter(|program| !project::installed(program)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

/// What is mounted and attached, undone in the opposite order.
struct Undo(Vec<Command>);

impl Drop for Undo {
    fn drop(&mut self) {
        for command in self.0.iter_mut().rev() {
            if let Err(error) = run(command) {
                eprintln!("xtask: cannot put the machine back as it was: {error:#}");
            }
        }
    }
}

/// The C sources of zstd, unpacked and built on a disk, trimmed in part, unmounted, checked and compared.
fn file_system() -> anyhow::Result<()> {
    let sources = c_sources()?;
    let folder = tempfile::tempdir()?;
    let (fuse, mount) = (folder.path().join("fuse"), folder.path().join("mount"));
    fs::create_dir(&fuse)?;
    fs::create_dir(&mount)?;
    let disk = Disk::start(folder.path(), &["--size", "4G", "--ram", "256M"])?;
    let _nbdfuse = Running::start(Command::new("nbdfuse").arg(&fuse).arg(&disk.uri))?;
    let file = fuse.join("nbd");
    let start = Instant::now();
    while !file.exists() {
        ensure!(start.elapsed() < Duration::from_secs(10), "nbdfuse does not mount");
        thread::sleep(Duration::from_millis(20));
    }
    let mut undo = Undo(vec![words("fusermount3", &["-u"], &[&fuse])]);
    run(&mut words("mkfs.ext4", &["-q"], &[&file]))?;
    let out = words("losetup", &["--find", "--show"], &[&file]).output().context("losetup")?;
    ensure!(out.status.success(), "no loop device: {}", String::from_utf8_lossy(&out.stderr));
    let device = PathBuf::from(String::from_utf8(out.stdout)?.trim());
    undo.0.push(words("losetup", &["--detach"], &[&device]));
    run(&mut words("mount", &["-o", "discard"], &[&device, &mount]))?;
    undo.0.push(words("umount", &[], &[&mount]));
    let tree = mount.join("tree");
    run(&mut words("cp", &["-r"], &[&sources, &tree]))?;
    run(&mut words("cp", &["-r"], &[&sources, &mount.join("gone")]))?;
    run(&mut words("rm", &["-r"], &[&mount.join("gone")]))?;
    let build =
        "cd \"$1\" && cc -O1 -DZSTD_DISABLE_ASM -c common/*.c compress/*.c decompress/*.c && sha256sum *.o > sums";
    run(Command::new("sh").args(["-c", build, "sh"]).arg(tree.join("lib")))?;
    // From now on nothing comes from the page cache.
    run(&mut words("umount", &[], &[&mount]))?;
    run(&mut words("e2fsck", &["-f", "-n"], &[&device]))?;
    run(&mut words("mount", &[], &[&device, &mount]))?;
    run(Command::new("sh").args(["-c", "cd \"$1\" && sha256sum --check --quiet sums", "sh"]).arg(tree.join("lib")))?;
    run(&mut words("diff", &["-r", "--exclude=*.o", "--exclude=sums"], &[&sources, &tree]))?;
    let stats = disk.stats()?;
    let export = &stats["exports"][0];
    println!(
        "a file system in which zstd was built is clean: {} reads, {} writes, {} trims; {} bytes stored in {}",
        export["reads"], export["writes"], export["trims"], export["stored_bytes"], export["packed_bytes"],
    );
    drop(undo);
    Ok(())
}

fn words(program: &str, words: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(program);
    command.args(words).args(paths);
    command
}

/// Where cargo has unpacked the sources of zstd.
fn c_sources() -> anyhow::Result<PathBuf> {
    let out = project::cargo(&["metadata", "--format-version", "1"]).output().context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&out.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let zstd = packages.iter().find(|package| package["name"] == "zstd-sys").context("there is no zstd-sys")?;
    let manifest = Path::new(zstd["manifest_path"].as_str().context("zstd-sys is nowhere")?);
    Ok(manifest.with_file_name("zstd"))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status.with_context(|| format!("cannot run {command:?}"))? {
        status if status.success() => Ok(()),
        status => bail!("{command:?}: {status}"),
    }
}
