//! Disks of `tmem disk` that are more than RAM: caches of files and devices (`--backing`), and disks that are kept in a file while no
//! server runs (`--image`).

mod common;

use std::fs;
use std::process::Command;

use common::disk::{Disk, ENOSPC, Nbd};
use common::{MIB, has, run, run_tmem, say, skip, text};
use tmem::testing::{Random, sample_pages};

const TROUBLE: i32 = 125;

fn sample(mib: usize, seed: u64) -> Vec<u8> {
    sample_pages(mib * 256, seed).flatten().collect()
}

fn cache_figure(disk: &Disk, name: &str) -> u64 {
    disk.stats()["exports"][0][name].as_u64().unwrap()
}

#[test]
fn a_cache_reads_once_writes_through_and_outlives_its_server() {
    let dir = common::folder("disk-backing");
    let file = dir.join("slow");
    let mut shadow = sample(24, 3);
    shadow.extend([7; 1000]);
    fs::write(&file, &shadow).unwrap();
    let disk = Disk::start(&["--backing", text(&file), "--ram", "64M"]);
    let mut client = Nbd::open(&disk);
    for at in (0..shadow.len()).step_by(1 << 20) {
        let bytes = (shadow.len() - at).min(1 << 20);
        assert!(client.read(at as u64, bytes as u32).unwrap() == shadow[at..at + bytes]);
    }
    let misses = cache_figure(&disk, "cache_misses");
    assert_eq!(misses, (24 << 8) + 1);
    let mut random = Random::new(4);
    for _ in 0..3000 {
        let at = random.below(shadow.len() as u64 - 9000) as usize;
        let bytes = random.below(9000) as usize + 1;
        if random.below(3) == 0 {
            let news = &sample(1, random.number())[..bytes];
            assert_eq!(client.write(at as u64, news), 0);
            shadow[at..at + bytes].copy_from_slice(news);
        } else {
            assert!(client.read(at as u64, bytes as u32).unwrap() == shadow[at..at + bytes]);
        }
    }
    // All of it fits: nothing was read again.
    assert_eq!(cache_figure(&disk, "cache_misses"), misses);
    assert!(cache_figure(&disk, "cache_hits") > 3000);
    assert_eq!(client.trim(1 << 20, 1 << 20), 0);
    shadow[1 << 20..2 << 20].fill(0);
    assert_eq!((client.zero(5_000_001, 77_777), client.flush()), (0, 0));
    shadow[5_000_001..5_077_778].fill(0);
    // Killed, not ended.
    drop(disk);
    assert!(fs::read(&file).unwrap() == shadow);
    let disk = Disk::start(&["--backing", text(&file), "--ram", "64M", "--read-only"]);
    let mut client = Nbd::open(&disk);
    assert!(client.read(1_048_000, 10_000).unwrap() == shadow[1_048_000..1_058_000]);
    assert_ne!(client.write(0, &[1; 100]), 0);
    disk.stop();
}

#[test]
fn a_cache_keeps_to_its_ram_and_drops_what_is_not_used() {
    let dir = common::folder("disk-backing-small");
    let file = dir.join("slow");
    let bytes = sample(128, 5);
    fs::write(&file, &bytes).unwrap();
    let disk = Disk::start(&["--backing", text(&file), "--export", "b=32M", "--ram", "24M"]);
    let mut client = Nbd::open(&disk);
    // A part that is used again and again beside a walk over everything.
    let hot = 2 << 20;
    for at in (0..bytes.len()).step_by(256 << 10) {
        for at in [at, (at * 7) % hot / 4096 * 4096] {
            let got = client.read(at as u64, 256 << 10).unwrap();
            assert!(got == bytes[at..at + (256 << 10)]);
        }
    }
    let stats = disk.stats();
    assert!(stats["used_bytes_peak"].as_u64().unwrap() <= 24 * MIB, "{stats}");
    let (hits, misses) = (cache_figure(&disk, "cache_hits"), cache_figure(&disk, "cache_misses"));
    say(&format!("backing: {hits} blocks found, {misses} read, of {}", bytes.len() / 4096));
    assert!(misses >= bytes.len() as u64 / 4096 && hits > 25_000, "{hits} hits, {misses} misses");
    // A disk beside it has the room that copies took.
    let (status, _, err) = run_tmem(&["disk", "reset", &format!("unix:{}", disk.socket().display()), "--force"]);
    assert!(status == TROUBLE && err.contains("a cache of"), "{err}");
    disk.stop();
    assert!(fs::read(&file).unwrap() == bytes);
}

#[test]
fn clients_of_others_work_on_a_cache() {
    const TEST: &str = "clients_of_others_work_on_a_cache";
    if ["nbdcopy", "nbdinfo", "qemu-img", "fio"].iter().any(|tool| !has(TEST, tool)) {
        return;
    }
    let dir = common::folder("disk-backing-clients");
    let (file, image, back) = (dir.join("slow"), dir.join("image"), dir.join("back"));
    fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let mut bytes = sample(16, 6);
    bytes.resize(48 << 20, 0);
    bytes.extend(sample(16, 7));
    fs::write(&image, &bytes).unwrap();
    let disk = Disk::start(&["--backing", text(&file), "--ram", "24M"]);
    run("nbdcopy", &[text(&image), disk.uri()]);
    run("nbdcopy", &[disk.uri(), text(&back)]);
    assert!(fs::read(&back).unwrap() == bytes && fs::read(&file).unwrap() == bytes);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), disk.uri()]);
    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", disk.uri()])).unwrap();
    assert_eq!((&info["exports"][0]["can_fast_zero"], &info["exports"][0]["can_fua"]), (&false.into(), &true.into()));
    let map = run("nbdinfo", &["--map", "--totals", disk.uri()]);
    assert!(map.contains("hole"), "{map}");
    if run("fio", &["--enghelp"]).split_whitespace().any(|engine| engine == "nbd") {
        let uri = format!("--uri={}", disk.uri());
        let words = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=8",
            "--numjobs=2",
            "--size=32M",
            "--offset_increment=32M",
            "--verify=crc32c",
            "--verify_backlog=256",
            "--time_based",
            "--runtime=3",
            "--verify_fatal=1",
        ];
        let out = Command::new("timeout").arg("60").arg("fio").args(words).current_dir(disk.folder()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("err= 0"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    } else {
        skip(TEST, "this fio has no engine for NBD: only the rest was tried");
    }
    let misses = cache_figure(&disk, "cache_misses");
    disk.stop();
    assert!(misses > 0);
}

#[test]
fn disks_are_kept_in_an_image() {
    let dir = common::folder("disk-image");
    let image = dir.join("image");
    let words = ["--size", "1G", "--export", "b=4M", "--ram", "64M", "--image", text(&image)];
    let disk = Disk::start(&words);
    let pages = sample(20, 9);
    let mut client = Nbd::open(&disk);
    assert_eq!((client.write(12_345, &pages), client.write((1 << 30) - 100, &[3; 100])), (0, 0));
    disk.stop();
    let saved = fs::metadata(&image).unwrap().len();
    assert!(saved < pages.len() as u64 / 2, "{saved} bytes for {}", pages.len());

    // As they were, also as larger ones, in less RAM, and beside more disks.
    let words = ["--size", "2G", "--export", "b=4M", "--export", "c=1M", "--ram", "48M", "--image", text(&image)];
    let disk = Disk::start(&words);
    let mut client = Nbd::open(&disk);
    assert!(client.read(12_345, pages.len() as u32).unwrap() == pages);
    assert!(client.read((1 << 30) - 200, 200).unwrap() == [[0; 100], [3; 100]].concat());
    assert_eq!(client.trim(0, 10 << 20), 0);
    // What happens after the last image is lost with a server that is killed; the image is not.
    drop(disk);
    assert_eq!(fs::metadata(&image).unwrap().len(), saved);

    let address = format!("unix:{}", dir.join("socket").display());
    let refused = |words: &[&str], why: &str| {
        let words = [&["disk", "--ram", "48M", "--listen", &address, "--image", text(&image)], words].concat();
        let (status, _, err) = run_tmem(&words);
        assert!(status == TROUBLE && err.contains(why) && err.trim_end().lines().count() == 1, "{words:?}: {err}");
    };
    refused(&["--size", "1G"], "--export 'b'=4194304");
    refused(&["--size", "1G", "--export", "b=1M"], "--export 'b'=4194304");
    refused(&["--export", "b=4M"], "--size 1073741824");
    let mut torn = fs::read(&image).unwrap();
    torn.truncate(torn.len() / 2);
    fs::write(&image, &torn).unwrap();
    refused(&["--size", "1G", "--export", "b=4M"], "--image");
    fs::write(&image, "precious").unwrap();
    refused(&["--size", "1G", "--export", "b=4M"], "--image");
    assert_eq!(fs::read(&image).unwrap(), b"precious", "what is no image is left alone");
    let nowhere = dir.join("no/where");
    let words = ["disk", "--size", "1G", "--ram", "48M", "--listen", &address, "--image", text(&nowhere)];
    let (status, _, err) = run_tmem(&words);
    assert!(status == TROUBLE && err.contains("cannot be written"), "{err}");
}

#[test]
fn a_full_disk_can_be_saved_and_what_was_spilled_comes_with_it() {
    let dir = common::folder("disk-image-full");
    let image = dir.join("image");
    let spill = format!("{}:32M", text(&dir));
    let words = ["--size", "1G", "--ram", "16M", "--spill", &spill, "--image", text(&image)];
    let mut accepted = Vec::new();
    for round in 0..2 {
        let disk = Disk::start(&words);
        let mut client = Nbd::open(&disk);
        for at in &accepted {
            let page = noise(*at);
            assert!(client.read(*at, 4096).unwrap() == page, "round {round}, at {at}");
        }
        let mut at = accepted.last().map_or(0, |at| at + 4096);
        loop {
            let page = noise(at);
            match client.write(at, &page) {
                0 => accepted.push(at),
                errno => break assert_eq!(errno, ENOSPC),
            }
            at += 4096;
        }
        assert!(accepted.len() > 8000, "{} blocks", accepted.len());
        disk.stop();
    }
    let disk = Disk::start(&words);
    let mut client = Nbd::open(&disk);
    for at in &accepted {
        assert!(client.read(*at, 4096).unwrap() == noise(*at), "at {at}");
    }
    say(&format!("image: {} blocks of noise in 16 MiB of RAM and 32 MiB of disk, twice saved", accepted.len()));
    disk.stop();
}

/// A block that does not get smaller.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..512).flat_map(|_| random.number().to_le_bytes()).collect()
}
