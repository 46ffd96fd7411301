//! `tmem disk` under clients that others wrote: libnbd, QEMU, fio. A client that is not installed is named, and its test skipped.

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::disk::{Disk, Nbd};
use common::{Guard, MIB, has, long, run, say, skip, text, wait_until};
use tmem::testing::{Random, sample_pages};

/// A file of so many MiB like memory of programs, with a hole in its middle and an odd end.
fn image(folder: &Path, mib: u64) -> PathBuf {
    let path = folder.join("image");
    let half: Vec<u8> = sample_pages((mib * 64) as usize, 4).flatten().collect();
    let mut bytes = half.clone();
    bytes.resize((mib * MIB) as usize - half.len() - 512, 0);
    bytes.extend(half);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn libnbd_hands_over_a_socket() {
    if !has("libnbd_hands_over_a_socket", "nbdinfo") {
        return;
    }
    let tmem = common::tmem();
    let server = ["[", text(&tmem), "disk", "--size", "123M", "--ram", "32M", "]"];
    assert_eq!(run("nbdinfo", &[&["--size", "--"], &server[..]].concat()), "128974848\n");
}

#[test]
fn systemd_hands_over_a_socket_and_is_told() {
    let name = "systemd_hands_over_a_socket_and_is_told";
    if !has(name, "systemd-socket-activate") || !has(name, "nbdinfo") {
        return;
    }
    // The path of a socket must be short.
    let folder = std::env::temp_dir().join(format!("tmem-activated-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (socket, told) = (folder.join("socket"), folder.join("notify"));
    let manager = UnixDatagram::bind(&told).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hears = || {
        let mut bytes = [0; 1000];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let activator = Command::new("systemd-socket-activate")
        .arg(format!("--listen={}", text(&socket)))
        .arg(format!("--setenv=NOTIFY_SOCKET={}", text(&told)))
        .arg(common::tmem())
        .args(["disk", "--size", "1G", "--ram", "32M"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Guard(activator);
    assert!(wait_until(Duration::from_secs(10), || socket.exists()));
    let uri = format!("nbd+unix:///?socket={}", text(&socket));
    assert_eq!(run("nbdinfo", &["--size", &uri]), "1073741824\n");
    assert!(hears().starts_with("READY=1\nSTATUS="));
    server.signal(libc::SIGTERM);
    assert!(server.wait(Duration::from_secs(10)).expect("HANG: the server does not end").success());
    assert_eq!(hears(), "STOPPING=1");
    assert!(socket.exists(), "the socket is the manager's");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn nbdinfo_sees_what_was_promised() {
    if !has("nbdinfo_sees_what_was_promised", "nbdinfo") {
        return;
    }
    let disk = Disk::start(&["--size", "1G", "--name", "first", "--export", "b=7M", "--ram", "32M"]);
    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", disk.uri()])).unwrap();
    let export = &info["exports"][0];
    assert_eq!((&info["protocol"], &info["structured"]), (&"newstyle-fixed".into(), &true.into()));
    assert_eq!((&export["export-size"], &export["contexts"][0]), (&(1_u64 << 30).into(), &"base:allocation".into()));
    for can in ["multi_conn", "trim", "zero", "fast_zero", "flush", "fua", "cache", "df"] {
        assert_eq!(export[&format!("can_{can}")], true, "{can}: {export}");
    }
    for (size, bytes) in [("minimum", 1), ("preferred", 4096), ("maximum", 32 << 20)] {
        assert_eq!(export[&format!("block_size_{size}")], bytes, "{export}");
    }
    let list = run("nbdinfo", &["--list", disk.uri()]);
    assert!(list.contains("export=\"first\"") && list.contains("export=\"b\""), "{list}");
    assert_eq!(run("nbdinfo", &["--size", &disk.uris[1]]).trim(), (7 << 20).to_string());
    Nbd::open(&disk).write(1 << 20, &[1; 4096]);
    let map = run("nbdinfo", &["--map", "--json", disk.uri()]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let extents: Vec<_> = map.as_array().unwrap().iter().map(|e| (e["length"].as_u64(), e["type"].as_u64())).collect();
    let hole = (1 << 30) - (1 << 20) - 4096;
    assert_eq!(extents, [(Some(1 << 20), Some(3)), (Some(4096), Some(0)), (Some(hole), Some(3))]);
    disk.stop();
}

/// libnbd's shell: asynchronous commands, several connections, contexts, what must fail.
#[test]
fn scripts_of_nbdsh_work() {
    const TEST: &str = "scripts_of_nbdsh_work";
    if !has(TEST, "nbdsh") {
        return;
    }
    // Debian's Python has the module; another one that comes first in $PATH has not.
    let nbdsh = || {
        let mut command = Command::new("timeout");
        command.args(["60", "nbdsh", "-n"]).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        command
    };
    if !nbdsh().arg("--version").output().unwrap().status.success() {
        return skip(TEST, "nbdsh does not find its module (python3-libnbd)");
    }
    let disk = Disk::start(&["--size", "64M", "--ram", "32M"]);
    let script = include_str!("disk_shell.py");
    let out = nbdsh().args(["-c", script]).env("DISK", disk.uri()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "all is well\n", "{}", String::from_utf8_lossy(&out.stderr));
    disk.stop();
}

#[test]
fn nbdcopy_there_and_back_is_the_same() {
    if !has("nbdcopy_there_and_back_is_the_same", "nbdcopy") {
        return;
    }
    let disk = Disk::start(&["--size", "128M", "--ram", "64M"]);
    let (image, back) = (image(disk.folder(), 64), disk.folder().join("back"));
    run("nbdcopy", &[text(&image), disk.uri()]);
    run("nbdcopy", &[disk.uri(), text(&back)]);
    let (was, is) = (fs::read(&image).unwrap(), fs::read(&back).unwrap());
    assert!(is.len() == 128 << 20 && is[..was.len()] == was && is[was.len()..].iter().all(|byte| *byte == 0));
    // The hole is none of the memory.
    let stored = disk.figure("stored_bytes");
    assert!(stored <= 33 * MIB, "{stored}");
    run("nbdcopy", &["--synchronous", disk.uri(), text(&back)]);
    assert!(fs::read(&back).unwrap() == is);
    let other = Disk::start(&["--size", "128M", "--ram", "64M"]);
    run("nbdcopy", &[disk.uri(), other.uri()]);
    run("nbdcopy", &[other.uri(), text(&back)]);
    assert!(fs::read(&back).unwrap() == is);
    other.stop();
    disk.stop();
}

#[test]
fn qemu_img_converts_compares_and_measures() {
    if !has("qemu_img_converts_compares_and_measures", "qemu-img") {
        return;
    }
    let disk = Disk::start(&["--size", "64M", "--ram", "64M"]);
    let image = image(disk.folder(), 64);
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&image), disk.uri()]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), disk.uri()]);
    let compressed = disk.folder().join("image.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", disk.uri(), text(&compressed)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&image), text(&compressed)]);
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", disk.uri()]);
    assert!(map.contains("\"zero\": true"), "{map}");
    run("qemu-img", &["bench", "-w", "-f", "raw", "-c", "20000", "-d", "32", "-s", "4096", "-S", "12288", disk.uri()]);
    disk.stop();
}

#[test]
fn qemu_io_reads_its_patterns() {
    if !has("qemu_io_reads_its_patterns", "qemu-io") {
        return;
    }
    let disk = Disk::start(&["--size", "1G", "--ram", "64M"]);
    let mut words = vec!["-f", "raw"];
    for command in [
        "write -P 0x11 0 1M",
        "write -P 0x22 1023 4099",
        "write -f -P 0x33 1000000 48577",
        "read -P 0x11 0 1023",
        "read -P 0x22 1023 4099",
        "read -P 0x11 5122 90000",
        "read -P 0x33 1000000 48577",
        "write -z 512 1024",
        "read -P 0 512 1024",
        "read -P 0x22 1536 100",
        "write -z -n 64k 128k",
        "read -P 0 64k 128k",
        "write -z -u 256k 64k",
        "read -P 0 256k 64k",
        "discard 0 1G",
        "read -P 0 0 32M",
        "aio_write -P 0x44 4k 64k",
        "aio_write -P 0x55 128k 64k",
        "aio_flush",
        "flush",
        "read -P 0x44 4k 64k",
        "read -P 0x55 128k 64k",
    ] {
        words.extend(["-c", command]);
    }
    let said = run("qemu-io", &[&words[..], &[disk.uri()]].concat());
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    assert_eq!(disk.figure("stored_bytes"), 128 << 10);
    disk.stop();
}

#[test]
fn fio_verifies_what_it_wrote() {
    const TEST: &str = "fio_verifies_what_it_wrote";
    if !has(TEST, "fio") {
        return;
    }
    if !run("fio", &["--enghelp"]).split_whitespace().any(|engine| engine == "nbd") {
        return skip(TEST, "this fio has no engine for NBD");
    }
    let disk = Disk::start(&["--size", "256M", "--ram", "128M"]);
    let uri = format!("--uri={}", disk.uri());
    let time = format!("--runtime={}", if long() { 300 } else { 6 });
    let words = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bs=4k",
        "--iodepth=16",
        "--numjobs=4",
        "--size=32M",
        "--offset_increment=32M",
        "--verify=crc32c",
        "--verify_backlog=256",
        "--time_based",
        &time,
        "--buffer_compress_percentage=60",
        "--verify_fatal=1",
        "--group_reporting",
    ];
    // fio lays a folder's worth of state files where it runs.
    let out = Command::new("timeout").arg("400").arg("fio").args(words).current_dir(disk.folder()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("err= 0"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    say(&format!(
        "fio: {} reads and {} writes verified",
        disk.stats()["exports"][0]["reads"],
        disk.stats()["exports"][0]["writes"]
    ));
    disk.stop();
}

/// A mount that goes away with the test.
struct Fuse {
    server: std::process::Child,
    folder: PathBuf,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").arg("-u").arg(&self.folder).status();
        let _ = self.server.wait();
    }
}

#[test]
fn nbdfuse_makes_a_file_with_a_file_system_of_it() {
    const TEST: &str = "nbdfuse_makes_a_file_with_a_file_system_of_it";
    if ["nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "debugfs"].iter().any(|tool| !has(TEST, tool)) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        return skip(TEST, "there is no /dev/fuse");
    }
    let disk = Disk::start(&["--size", "256M", "--ram", "64M"]);
    let folder = disk.folder().join("mount");
    fs::create_dir(&folder).unwrap();
    let server = Command::new("nbdfuse").arg(&folder).arg(disk.uri()).stderr(Stdio::piped()).spawn().unwrap();
    let fuse = Fuse { server, folder };
    let file = fuse.folder.join("nbd");
    if !wait_until(Duration::from_secs(5), || file.exists()) {
        return skip(TEST, "FUSE cannot be mounted here");
    }
    // Tools of ext4 work on the file, so that neither root nor a loop device is needed.
    run("mkfs.ext4", &["-q", "-F", text(&file)]);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
    run("debugfs", &["-w", "-R", &format!("write {} main.rs", sources.display()), text(&file)]);
    let back = disk.folder().join("back");
    run("debugfs", &["-R", &format!("dump main.rs {}", back.display()), text(&file)]);
    assert!(fs::read(back).unwrap() == fs::read(sources).unwrap());
    run("e2fsck", &["-f", "-n", text(&file)]);
    drop(fuse);
    let taken = disk.figure("used_bytes");
    assert!(taken < 24 * MIB, "{taken} bytes for an empty file system");
    disk.stop();
}

#[test]
fn clients_over_tcp_are_served_the_same() {
    if !has("clients_over_tcp_are_served_the_same", "nbdcopy") {
        return;
    }
    let disk = Disk::start_at("127.0.0.1:0", &["--size", "32M", "--ram", "64M"]);
    assert!(disk.uri().starts_with("nbd://127.0.0.1:"), "{}", disk.uri());
    let (image, back) = (disk.folder().join("image"), disk.folder().join("back"));
    let mut random = Random::new(8);
    fs::write(&image, (0..32 << 20).map(|_| random.below(20) as u8).collect::<Vec<_>>()).unwrap();
    run("nbdcopy", &[text(&image), disk.uri()]);
    run("nbdcopy", &[disk.uri(), text(&back)]);
    assert!(fs::read(&image).unwrap() == fs::read(&back).unwrap());
    disk.stop();
}
