//! `tmem disk` as others see it: what is written is read, a full disk says so and loses nothing, and what is no NBD, or comes from a
//! client that dies or does not listen, harms nobody else.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::disk::{
    Disk, EINVAL, ENOSPC, FIRST, Nbd, OPT_GO, OPT_STRUCTURED_REPLY, READ, WRITE, connect, option, option_reply,
    read_exact, request,
};
use common::{MIB, long, run_tmem, say};
use tmem::testing::{Random, sample_page};

const TROUBLE: i32 = 125;
const PAGE: usize = 4096;

fn noise(random: &mut Random) -> Vec<u8> {
    (0..PAGE / 8).flat_map(|_| random.number().to_le_bytes()).collect()
}

/// Another client, to which nothing may happen.
struct Witness {
    client: Nbd,
    random: Random,
}

impl Witness {
    const OFFSET: u64 = 1 << 20;

    fn new(disk: &Disk) -> Self {
        Self { client: Nbd::open(disk), random: Random::new(9) }
    }

    fn is_undisturbed(&mut self) {
        let page = sample_page(&mut self.random);
        let start = Instant::now();
        assert_eq!(self.client.write(Self::OFFSET + 77, &page), 0);
        assert!(self.client.read(Self::OFFSET + 77, PAGE as u32).unwrap() == page);
        assert!(start.elapsed() < Duration::from_secs(5), "another client waited for {:?}", start.elapsed());
    }
}

#[test]
fn what_cannot_be_served_is_one_line_and_125() {
    let dir = common::folder("disk-refused");
    let file = dir.join("file");
    fs::write(&file, "precious").unwrap();
    let (file, nowhere) = (format!("unix:{}", file.display()), format!("unix:{}/no/where", dir.display()));
    for words in [
        &["--size", "1G", "--ram", "1M", "--listen", "unix:/nowhere/x"][..],
        &["--size", "1G", "--ram", "64M", "--listen", &file],
        &["--size", "1G", "--ram", "64M", "--listen", &nowhere],
        &["--size", "1G", "--ram", "64M", "--listen", "256.1.1.1:1"],
        &["--size", "1G", "--ram", "64M"],
        &["--size", "1G", "--name", "a", "--export", "a=1G", "--ram", "64M", "--listen", "127.0.0.1:0"],
    ] {
        let (status, out, err) = run_tmem(&[&["disk"], words].concat());
        assert_eq!((status, out.as_str()), (TROUBLE, ""), "{words:?}: {err}");
        assert!(err.starts_with("tmem: ") && err.trim_end().lines().count() == 1, "{words:?} says {err:?}");
    }
    let (status, _, err) = run_tmem(&["disk", "stats", &nowhere]);
    assert!(status == TROUBLE && err.contains("no answer"), "{err}");
}

#[test]
fn a_socket_belongs_to_one_server_at_a_time_and_goes_with_it() {
    let disk = Disk::start(&["--size", "1G", "--ram", "32M"]);
    let listen = format!("unix:{}", disk.socket().display());
    let (status, _, err) = run_tmem(&["disk", "--size", "1G", "--ram", "32M", "--listen", &listen]);
    assert!(status == TROUBLE && err.contains("another server"), "{err}");
    Witness::new(&disk).is_undisturbed();
    // A connection that is open does not keep the server from ending.
    let _open = Nbd::open(&disk);
    disk.stop();

    let disk = Disk::start(&["--size", "1G", "--ram", "32M"]);
    let socket = disk.socket();
    fs::remove_file(&socket).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let pid = disk.pid();
    // SAFETY: the server is a child of ours that was not reaped yet.
    unsafe { libc::kill(pid as i32, libc::SIGTERM) };
    assert!(common::wait_until(Duration::from_secs(10), || !common::is_alive(pid)), "HANG");
    assert!(socket.exists(), "the socket of somebody else was removed");
}

#[test]
fn exports_have_names_and_lives_of_their_own() {
    let disk = Disk::start(&["--size", "1G", "--export", "b=2M", "--ram", "32M"]);
    assert!(disk.uris[1].contains("///b?"), "{:?}", disk.uris);
    assert_eq!(Nbd::open(&disk).write(0, &[1; 100]), 0);
    let stats = disk.stats();
    let stored = |at: usize| stats["exports"][at]["stored_bytes"].as_u64().unwrap();
    assert_eq!((stored(0), stored(1)), (4096, 0));
    assert_eq!(stats["exports"][1]["size_bytes"], 2 << 20);
    let (status, out, _) = run_tmem(&["disk", "stats", &format!("unix:{}", disk.socket().display())]);
    assert!(status == 0 && out.contains("disk 'b' of 2.0 MiB"), "{out}");
    disk.stop();
}

#[test]
fn a_disk_is_emptied_unless_somebody_uses_it() {
    let disk = Disk::start(&["--size", "3G", "--name", "a", "--export", "b=2M", "--ram", "32M"]);
    let address = format!("unix:{}", disk.socket().display());
    let stored = |at: usize| disk.stats()["exports"][at]["stored_bytes"].as_u64().unwrap();
    let mut client = Nbd::open(&disk);
    assert_eq!((client.write(0, &[1; 100]), client.write((3 << 30) - 100, &[2; 100]), stored(0)), (0, 0, 8192));
    let (status, out, err) = run_tmem(&["disk", "reset", &address]);
    assert!(status == TROUBLE && out.is_empty() && err.contains("1 clients") && err.contains("--force"), "{err}");
    let (status, _, err) = run_tmem(&["disk", "reset", &address, "--name", "c", "--force"]);
    assert!(status == TROUBLE && err.contains("no disk 'c'"), "{err}");
    assert_eq!(run_tmem(&["disk", "reset", &address, "--name", "b", "--force"]).0, 0);
    assert_eq!(stored(0), 8192);
    let (status, out, err) = run_tmem(&["disk", "reset", &address, "--force"]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "dropped 0.0 MiB of blocks\n", ""));
    assert!(stored(0) == 0 && client.read(0, 100).unwrap() == [0; 100], "it is not empty");
    assert!(client.read((3 << 30) - 100, 100).unwrap() == [0; 100], "its end is not empty");
    drop(client);
    assert!(common::wait_until(Duration::from_secs(5), || disk.figure("connections") == 1));
    assert_eq!(run_tmem(&["disk", "reset", &address]).0, 0);
    disk.stop();

    let disk = Disk::start(&["--size", "1M", "--read-only", "--ram", "32M"]);
    let (status, _, err) = run_tmem(&["disk", "reset", &format!("unix:{}", disk.socket().display())]);
    assert!(status == TROUBLE && err.contains("read-only"), "{err}");
}

#[test]
fn every_figure_is_documented() {
    let doc = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/disk.md")).unwrap();
    let disk = Disk::start(&["--size", "1G", "--ram", "32M"]);
    let stats = disk.stats();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for name in names(&stats).into_iter().chain(names(&stats["exports"][0])) {
        assert!(doc.contains(&format!("`{name}`")), "docs/disk.md does not say what {name} is");
    }
    disk.stop();
}

#[test]
fn nobody_writes_to_a_read_only_disk() {
    let disk = Disk::start(&["--size", "1G", "--ram", "32M", "--read-only"]);
    let mut client = Nbd::open(&disk);
    assert_eq!([client.write(0, &[1; 512]), client.trim(0, 4096), client.zero(0, 4096)], [1, 1, 1], "EPERM");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    disk.stop();
}

#[test]
fn a_full_disk_takes_no_more_connections_than_there_is_ram_for() {
    let disk = Disk::start(&["--size", "1G", "--ram", "24M"]);
    let mut first = Nbd::open(&disk);
    let mut random = Random::new(6);
    let mut stored = 0;
    while first.write(stored * PAGE as u64, &noise(&mut random)) == 0 {
        stored += 1;
    }
    let is_within = || disk.figure("used_bytes") <= 24 * MIB;
    assert!(is_within());
    // There is room for eight from the start, one of which is whoever asks for figures.
    let mut others: Vec<_> = (0..6).map(|_| Nbd::open(&disk)).collect();
    let greeted = || read_exact::<18>(&connect(&disk)).is_ok();
    let taken = (0..100).map(|_| connect(&disk)).take_while(|stream| read_exact::<18>(stream).is_ok());
    let taken: Vec<_> = taken.collect();
    say(&format!("{} connections of a full disk beyond seven", taken.len()));
    assert!(taken.len() < 50 && !greeted(), "{} connections", taken.len());
    // Those that are in are served, and can make room for others.
    assert_eq!(others[5].trim(0, (stored / 2) as u32 * PAGE as u32), 0);
    assert!(common::wait_until(Duration::from_secs(10), greeted), "nobody is let in although there is room");
    assert!(is_within() && disk.figure("connections_refused") > 0);
    let last = (stored - 1) * PAGE as u64;
    assert!(first.read(last, PAGE as u32).unwrap() == others[0].read(last, PAGE as u32).unwrap());
    drop((first, others, taken));
    disk.stop();
}

#[test]
fn a_full_disk_says_so_at_once_and_loses_nothing() {
    let disk = Disk::start(&["--size", "1G", "--ram", "24M"]);
    let mut client = Nbd::open(&disk);
    let mut random = Random::new(5);
    let mut pages = Vec::new();
    let mut slowest = Duration::ZERO;
    let mut refused = 0;
    for at in 0_u64.. {
        let page = noise(&mut random);
        let start = Instant::now();
        match client.write(at * PAGE as u64, &page) {
            0 => pages.push((at, page)),
            ENOSPC => refused += 1,
            errno => panic!("error {errno}"),
        }
        slowest = slowest.max(start.elapsed());
        if refused == 1000 {
            break;
        }
    }
    let check = |client: &mut Nbd, pages: &[(u64, Vec<u8>)]| {
        for (at, page) in pages {
            assert!(client.read(at * PAGE as u64, PAGE as u32).unwrap() == *page, "page {at}");
        }
    };
    check(&mut client, &pages);
    let stored = pages.len() as u64 * PAGE as u64;
    assert!(stored > 16 * MIB, "{stored} bytes of 24 MiB");
    assert!(slowest < Duration::from_secs(1), "an answer took {slowest:?}");
    // Every block that is there can be overwritten, with what is as large.
    let mut overwritten = 0;
    for (at, page) in &mut pages {
        let new = noise(&mut random);
        if client.write(*at * PAGE as u64, &new) == 0 {
            *page = new;
            overwritten += 1;
        }
    }
    assert_eq!(overwritten, pages.len(), "blocks of a full disk that could be overwritten");
    check(&mut client, &pages);
    assert_eq!(client.write(900 << 20, &noise(&mut random)), ENOSPC);
    // What is trimmed makes room for others.
    assert_eq!(client.trim(0, 4 << 20), 0);
    let written = (0..900).filter(|at| client.write((900 << 20) + at * PAGE as u64, &noise(&mut random)) == 0).count();
    assert!(written == 900, "{written} of 900 blocks fit after 1024 were trimmed");
    check(&mut client, &pages[1024..]);
    let used = disk.figure("used_bytes");
    let resident = common::resident_bytes(disk.pid());
    say(&format!("full disk of 24 MiB: {stored} bytes stored, {used} said, {resident} resident, slowest {slowest:?}"));
    assert!(used <= 24 * MIB, "{used}");
    disk.stop();
}

#[test]
fn what_ram_has_no_room_for_goes_to_disk_and_comes_back() {
    let dir = common::folder("disk-spill");
    let file = dir.join("spill");
    let spill = format!("{}:64M", file.display());
    let disk = Disk::start(&["--size", "1G", "--ram", "24M", "--spill", &spill]);
    let mut client = Nbd::open(&disk);
    let mut random = Random::new(6);
    let mut pages = Vec::new();
    while pages.len() < 16_000 {
        let page = noise(&mut random);
        match client.write((pages.len() * PAGE) as u64, &page) {
            0 => pages.push(page),
            errno => {
                assert_eq!(errno, ENOSPC);
                break;
            }
        }
    }
    let stored = (pages.len() * PAGE) as u64;
    assert!(stored > 56 * MIB, "{stored} bytes were taken");
    assert!(disk.figure("spilled_bytes") > 32 * MIB && disk.figure("used_bytes") <= 24 * MIB, "{}", disk.stats());
    assert_eq!(client.write(1 << 29, &[7; 4096]), 0, "what takes no room");
    for (at, page) in pages.iter().enumerate() {
        assert!(client.read((at * PAGE) as u64, PAGE as u32).unwrap() == *page, "page {at}");
    }
    let whole = client.read(0, 16 << 20).unwrap();
    assert!(whole == pages[..4096].concat());
    for (at, page) in pages.iter_mut().enumerate().step_by(7) {
        let new = noise(&mut random);
        if client.write((at * PAGE) as u64, &new) == 0 {
            *page = new;
        }
    }
    for (at, page) in pages.iter().enumerate() {
        assert!(client.read((at * PAGE) as u64, PAGE as u32).unwrap() == *page, "page {at}, overwritten or not");
    }
    assert_eq!(client.trim(0, 1 << 30), 0);
    assert_eq!(disk.figure("stored_bytes"), 0);
    disk.stop();
    assert!(!file.exists(), "the spill file is left behind");
}

#[test]
fn a_disk_below_that_fails_gives_errors_and_never_wrong_bytes() {
    let dir = common::folder("disk-faults");
    let faults = "write=1/7,torn=1/9,delay-read=3ms@1/50,corrupt=1/40,read=1/50";
    let spill = format!("{}:64M", dir.display());
    let disk = Disk::start(&["--size", "1G", "--ram", "16M", "--spill", &spill, "--spill-faults", faults]);
    let mut client = Nbd::open(&disk);
    let mut random = Random::new(6);
    let pages: Vec<_> = (0..6000).map(|_| noise(&mut random)).collect();
    let taken: Vec<_> = (0_u64..).zip(&pages).filter(|(at, page)| client.write(at * PAGE as u64, page) == 0).collect();
    let mut failed = 0;
    for (at, page) in &taken {
        match client.read(at * PAGE as u64, PAGE as u32) {
            Ok(got) => assert!(got == **page, "page {at}"),
            Err(errno) => {
                assert_eq!(errno, 5, "EIO");
                failed += 1;
            }
        }
    }
    say(&format!(
        "{} of 6000 pages taken, {failed} reads failed, {} writes failed",
        taken.len(),
        disk.figure("spill_write_failures")
    ));
    assert!(failed > 0 && failed < taken.len() / 4);
    // What could not be read is there all the same, where only the reading went wrong.
    let again =
        taken.iter().filter(|(at, page)| client.read(at * PAGE as u64, PAGE as u32).is_ok_and(|got| got == **page));
    assert!(again.count() > taken.len() * 9 / 10);
    disk.stop();
}

#[test]
fn what_is_no_handshake_ends_with_an_answer_or_a_hang_up() {
    let disk = Disk::start(&["--size", "64M", "--ram", "32M"]);
    let mut witness = Witness::new(&disk);
    let long_name = [&5000_u32.to_be_bytes()[..], &[b'x'; 5000], &[0; 2]].concat();
    let lies = [&u32::MAX.to_be_bytes()[..], b"x"].concat();
    let hello = |flags: u32, rest: &[u8]| [&flags.to_be_bytes()[..], rest].concat();
    let hang_ups = [
        hello(0xffff_ffff, &[]),
        hello(3, b"GET / HTTP/1.1\r\n\r\n"),
        hello(3, &[0; 64]),
        hello(3, &option(1, b"no-such-export")),
        hello(3, &option(1, b"\xff\xfe")),
        hello(0, &option(OPT_GO, &FIRST)),
        hello(3, &[b"IHAVEOPT", &OPT_GO.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat()),
        // A command where an option belongs.
        hello(3, &request(READ, 0, 1, 0, 4096)),
        hello(3, &option(2, &[])),
    ];
    for bytes in &hang_ups {
        let mut stream = connect(&disk);
        read_exact::<18>(&stream).unwrap();
        // It may have hung up before the last byte.
        let _ = stream.write_all(bytes);
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("HANG after {bytes:?}"),
            _ => witness.is_undisturbed(),
        }
    }
    let mut stream = connect(&disk);
    read_exact::<18>(&stream).unwrap();
    stream.write_all(&hello(3, &[])).unwrap();
    for (bytes, kind) in [
        (option(99, b"what"), 1),
        (option(5, &[]), 1),
        (option(3, b"data where none belong"), 3),
        (option(OPT_GO, &lies), 3),
        (option(OPT_GO, &long_name), 3),
        (option(OPT_GO, b"\0\0\0\x02ab\0\0"), 6),
        (option(10, &[0; 8]), 3),
        (option(OPT_GO, &[7; 100_000]), 9),
    ] {
        stream.write_all(&bytes).unwrap();
        let (got, why) = option_reply(&stream).unwrap();
        assert_eq!(got, 1 << 31 | kind, "{}", String::from_utf8_lossy(&why));
        assert!(!why.is_empty());
    }
    // After all of that it is still good for something.
    stream.write_all(&option(OPT_STRUCTURED_REPLY, &[])).unwrap();
    assert_eq!(option_reply(&stream).unwrap().0, 1);
    assert!(disk.figure("connections_broken") >= hang_ups.len() as u64 - 1, "{}", disk.stats());
    disk.stop();
}

#[test]
fn what_is_no_command_is_refused_or_ends_the_connection() {
    let disk = Disk::start(&["--size", "64M", "--ram", "32M"]);
    let mut witness = Witness::new(&disk);
    let mut client = Nbd::open(&disk);
    for (kind, offset, bytes, errno) in [
        (READ, 64 << 20, 1, EINVAL),
        (READ, u64::MAX, 4096, EINVAL),
        (READ, 0, 0, EINVAL),
        (READ, 0, (32 << 20) + 1, EINVAL),
        (4, 1, 64 << 20, EINVAL),
        (6, 1, 64 << 20, ENOSPC),
        (7, 0, 4096, EINVAL),
        (8, 1 << 30, 0, 95),
        (1000, 0, 0, EINVAL),
    ] {
        client.send(kind, offset, bytes, &[]).unwrap();
        assert_eq!(client.answer().unwrap().0, errno, "command {kind}, {bytes} bytes at {offset}");
    }
    // What follows a write that is refused is not taken for the next command.
    assert_eq!(client.write((64 << 20) - 1, &[1; 5000]), ENOSPC);
    client.send(WRITE, 0, 40 << 20, &vec![0x25; 40 << 20]).unwrap();
    assert_eq!(client.answer().unwrap().0, EINVAL);
    assert_eq!(client.read((64 << 20) - 1, 1), Ok(vec![0]));
    witness.is_undisturbed();

    client.stream.write_all(&[7; 28]).unwrap();
    assert!(client.is_over());
    // A command after the end.
    let mut client = Nbd::open(&disk);
    client.send(2, 0, 0, &[]).unwrap();
    let _ = client.send(READ, 0, 512, &[]);
    assert!(client.is_over());
    // Half a command, half a write, and no more.
    for (bytes, write) in [(10, false), (28, true), (28 + 5000, true)] {
        let mut client = Nbd::open(&disk);
        let whole = [request(if write { WRITE } else { READ }, 0, 1, 4096, 8192), vec![3; 8192]].concat();
        client.stream.write_all(&whole[..bytes]).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.is_over());
        witness.is_undisturbed();
    }
    // Half-closed after whole commands: these are still answered.
    let mut client = Nbd::open(&disk);
    client.send(WRITE, 0, 4, b"last").unwrap();
    client.send(READ, 0, 4, &[]).unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((client.answer().unwrap().0, client.answer().unwrap().0), (0, 0));
    assert_eq!(&read_exact::<4>(&client.stream).unwrap(), b"last");
    disk.stop();
}

#[test]
fn who_never_reads_or_never_speaks_stops_nobody_and_takes_no_memory() {
    let disk = Disk::start(&["--size", "64M", "--ram", "64M"]);
    let mut witness = Witness::new(&disk);
    let mut random = Random::new(1);
    for at in 0..1024 {
        assert_eq!(witness.client.write(at * PAGE as u64, &sample_page(&mut random)), 0);
    }
    let before = common::resident_bytes(disk.pid());
    let silent: Vec<_> = (0..8).map(|_| connect(&disk)).collect();
    let deaf: Vec<_> = (0..8)
        .map(|_| {
            let mut client = Nbd::open(&disk);
            client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            // Gigabytes of answers are asked for, until even asking stalls.
            for _ in 0..10_000 {
                if client.send(READ, 0, 4 << 20, &[]).is_err() {
                    break;
                }
            }
            client
        })
        .collect();
    for _ in 0..100 {
        witness.is_undisturbed();
    }
    let grown = common::resident_bytes(disk.pid()).saturating_sub(before);
    say(&format!("8 clients that never read and 8 that never speak took {} KiB", grown >> 10));
    assert!(grown < 8 * MIB, "{grown} bytes");
    // The end is not held up by them for long.
    let start = Instant::now();
    disk.stop();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    drop((silent, deaf));
}

#[test]
fn a_client_that_dies_in_the_middle_of_anything_leaves_the_server_as_it_was() {
    let disk = Disk::start(&["--size", "64M", "--ram", "32M"]);
    let mut witness = Witness::new(&disk);
    let mut random = Random::new(3);
    let script = {
        let mut script = vec![0, 0, 0, 3];
        script.extend(option(OPT_STRUCTURED_REPLY, &[]));
        script.extend(option(OPT_GO, &FIRST));
        for cookie in 0..40 {
            script.extend(request(WRITE, 0, cookie, 8 << 20, 6000));
            script.extend(vec![cookie as u8; 6000]);
            script.extend(request(READ, 0, cookie, 0, 1 << 20));
        }
        script
    };
    for round in 0..200 {
        let cut = random.below(script.len() as u64) as usize;
        let mut stream = connect(&disk);
        // The server may be faster to answer than we are to go.
        let _ = stream.set_nonblocking(round % 2 == 0);
        let _ = stream.write_all(&script[..cut]);
        drop::<UnixStream>(stream);
        if round % 10 == 0 {
            witness.is_undisturbed();
        }
    }
    witness.is_undisturbed();
    let gone = || disk.figure("connections") == 2;
    assert!(common::wait_until(Duration::from_secs(10), gone), "connections are left: {}", disk.stats());
    assert!(disk.figure("connections_total") >= 200);
    disk.stop();
}

/// Each client has a part of the disk for itself, whose borders lie in the middle of pages that it shares with its neighbours,
/// and compares every byte with what it wrote.
#[test]
fn many_clients_at_once_read_what_they_wrote() {
    const CLIENTS: u64 = 4;
    const PART: usize = 1_000_003;
    let disk = Disk::start(&["--size", "64M", "--ram", "32M"]);
    let stop = AtomicBool::new(false);
    let steps: u64 = thread::scope(|scope| {
        let (disk, stop) = (&disk, &stop);
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| scope.spawn(move || shadowed(disk, client, PART, stop))).collect();
        thread::sleep(Duration::from_secs(if long() { 120 } else { 8 }));
        stop.store(true, Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    say(&format!("{CLIENTS} clients compared {steps} requests byte for byte"));
    assert!(steps > 1000);
    disk.stop();
}

fn shadowed(disk: &Disk, client: u64, part: usize, stop: &AtomicBool) -> u64 {
    let base = client * part as u64;
    let mut nbd = Nbd::open(disk);
    let mut random = Random::new(client + 1);
    let mut shadow = vec![0_u8; part];
    let mut steps = 0;
    while !stop.load(Relaxed) {
        let bytes = if random.below(10) == 0 { random.below(100_000) + 1 } else { random.below(9000) + 1 } as usize;
        // Often at the borders, where the neighbours are.
        let at = match random.below(4) {
            0 => 0,
            1 => part - bytes,
            _ => random.below((part - bytes) as u64) as usize,
        };
        let range = at..at + bytes;
        let offset = base + at as u64;
        match random.below(8) {
            0 => {
                assert_eq!(nbd.zero(offset, bytes as u32), 0);
                shadow[range].fill(0);
            }
            1..=3 => {
                let page = sample_page(&mut random);
                let data: Vec<u8> = page.iter().copied().cycle().take(bytes).collect();
                assert_eq!(nbd.write(offset, &data), 0);
                shadow[range].copy_from_slice(&data);
            }
            _ => assert!(nbd.read(offset, bytes as u32).unwrap() == shadow[range], "client {client}: {bytes} at {at}"),
        }
        steps += 1;
    }
    assert!(nbd.read(base, part as u32).unwrap() == shadow, "client {client}: all of it");
    steps
}
