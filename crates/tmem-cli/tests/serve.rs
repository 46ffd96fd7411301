//! `tmem serve` as clients see it: the same answers as Redis gives, byte for byte; real clients; limits; what harms nobody else.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::pki::Pki;
use common::{Guard, MIB, has, long, run_tmem, say, skip, tmem_command, wait_until};
use tmem::testing::{Random, sample_pages};

const TROUBLE: i32 = 125;

/// A server that runs for a test.
struct Server {
    guard: Guard,
    address: String,
}

impl Server {
    fn start(words: &[&str]) -> Self {
        let words = [&["serve", "--listen", "127.0.0.1:0"], words].concat();
        let mut child = tmem_command(&words).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, address) = line.trim().split_once("://").unwrap_or_else(|| panic!("tmem {words:?}: {line}"));
        Self { guard: Guard(child), address: address.to_owned() }
    }

    /// Redis itself, if it is installed.
    fn redis(test: &str) -> Option<Self> {
        if !has(test, "redis-server") {
            return None;
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let child: Child = command.stdout(Stdio::null()).spawn().unwrap();
        let server = Self { guard: Guard(child), address: format!("127.0.0.1:{port}") };
        assert!(wait_until(Duration::from_secs(10), || TcpStream::connect(&server.address).is_ok()));
        Some(server)
    }

    fn port(&self) -> &str {
        self.address.rsplit_once(':').unwrap().1
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { stream, heard: Vec::new() }
    }

    fn figure(&self, name: &str) -> f64 {
        let info = self.client().text(&[b"INFO"]);
        let line =
            info.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap_or_else(|| panic!("{info}"));
        line.parse().unwrap()
    }

    fn stop(mut self) {
        self.guard.signal(libc::SIGTERM);
        let status = self.guard.wait(Duration::from_secs(10)).expect("HANG: the server does not end");
        assert!(status.success(), "{status}");
    }
}

/// A client that sees every byte.
struct Client {
    stream: TcpStream,
    heard: Vec<u8>,
}

fn encoded(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend(format!("${}\r\n", arg.len()).into_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// How long the answer at the front of bytes is, if it is there as a whole.
fn answer_bytes(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || std::str::from_utf8(&bytes[1..end - 2]).unwrap().parse::<i64>().unwrap();
    let many = |count: i64| (0..count).try_fold(end, |at, _| Some(at + answer_bytes(&bytes[at..])?));
    match bytes[0] {
        b'$' if number() < 0 => Some(end),
        b'$' => Some(end + number() as usize + 2).filter(|all| *all <= bytes.len()),
        b'*' => many(number()),
        b'%' => many(2 * number()),
        b'+' | b'-' | b':' | b'_' | b',' | b'#' => Some(end),
        other => panic!("{:?}: {}", char::from(other), String::from_utf8_lossy(bytes)),
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next answer, as it comes.
    fn answer(&mut self) -> Vec<u8> {
        let mut some = vec![0; 256 << 10];
        loop {
            if !self.heard.is_empty()
                && let Some(bytes) = answer_bytes(&self.heard)
            {
                return self.heard.drain(..bytes).collect();
            }
            let bytes = self.stream.read(&mut some).unwrap();
            assert!(bytes > 0, "the connection ended after {:?}", String::from_utf8_lossy(&self.heard));
            self.heard.extend_from_slice(&some[..bytes]);
        }
    }

    fn ask(&mut self, args: &[&[u8]]) -> Vec<u8> {
        self.send(&encoded(args));
        self.answer()
    }

    fn text(&mut self, args: &[&[u8]]) -> String {
        String::from_utf8_lossy(&self.ask(args)).into_owned()
    }

    /// What a bulk string has in it.
    fn bulk(&mut self, args: &[&[u8]]) -> Option<Vec<u8>> {
        let answer = self.ask(args);
        let head = answer.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        (answer[0] == b'$' && !answer.starts_with(b"$-1")).then(|| answer[head..answer.len() - 2].to_vec())
    }

    fn is_over(&mut self) -> bool {
        !matches!(self.stream.read_to_end(&mut Vec::new()), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// A value of some kind.
fn value(random: &mut Random) -> Vec<u8> {
    match random.below(12) {
        0 => Vec::new(),
        1 | 2 => (random.number() as i64 >> random.below(64)).to_string().into_bytes(),
        3 => format!("{}.{}", random.below(1000), random.below(1000)).into_bytes(),
        4 => sample_pages(3, random.number()).flatten().take(random.below(12_000) as usize).collect(),
        5 => sample_pages(2, random.number()).flatten().take(4000 + random.below(200) as usize).collect(),
        _ => (0..random.below(300)).map(|_| b"{}:,\"abc\r\n\0\xff"[random.below(12) as usize]).collect(),
    }
}

/// A command that has one answer only, whoever is asked.
fn command(random: &mut Random) -> Vec<Vec<u8>> {
    let words = |text: &str| text.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
    let key = |random: &mut Random| format!("key{}", random.below(12)).into_bytes();
    let number = |random: &mut Random| (random.number() as i64 >> random.below(64)).to_string();
    let small = |random: &mut Random| (random.below(40) as i64 - 20).to_string().into_bytes();
    let k = key(random);
    let mut all = match random.below(56) {
        0..6 => vec![b"SET".to_vec(), k, value(random)],
        6..12 => vec![b"GET".to_vec(), k],
        12 => vec![b"SETNX".to_vec(), k, value(random)],
        13 => vec![b"GETSET".to_vec(), k, value(random)],
        14 => vec![b"GETDEL".to_vec(), k],
        15 => vec![b"STRLEN".to_vec(), k],
        16 | 17 => vec![b"APPEND".to_vec(), k, value(random)],
        18 => vec![b"SETRANGE".to_vec(), k, random.below(9000).to_string().into_bytes(), value(random)],
        19 | 20 => vec![b"GETRANGE".to_vec(), k, small(random), small(random)],
        21 => vec![b"SUBSTR".to_vec(), k, number(random).into_bytes(), number(random).into_bytes()],
        22 => vec![b"MGET".to_vec(), k, key(random), key(random)],
        23 => vec![b"MSET".to_vec(), k, value(random), key(random), value(random)],
        24 => vec![b"MSETNX".to_vec(), k, value(random), key(random), value(random)],
        25 => vec![b"DEL".to_vec(), k, key(random)],
        26 => vec![b"UNLINK".to_vec(), k],
        27 => vec![b"EXISTS".to_vec(), k.clone(), key(random), k],
        28 => vec![b"TOUCH".to_vec(), k, key(random)],
        29 => vec![b"TYPE".to_vec(), k],
        30 => vec![b"INCR".to_vec(), k],
        31 => vec![b"DECR".to_vec(), k],
        32 => vec![b"INCRBY".to_vec(), k, number(random).into_bytes()],
        33 => vec![b"DECRBY".to_vec(), k, number(random).into_bytes()],
        34 => vec![b"PERSIST".to_vec(), k],
        35 => vec![b"EXPIRE".to_vec(), k, b"1000".to_vec()],
        36 => {
            let option = ["NX", "XX", "GT", "LT", "nx", "what"][random.below(6) as usize];
            vec![
                b"PEXPIREAT".to_vec(),
                k,
                (4_000_000_000_000 + random.below(9)).to_string().into_bytes(),
                option.into(),
            ]
        }
        37 => vec![b"PEXPIRETIME".to_vec(), k],
        38 => vec![b"EXPIRE".to_vec(), k, b"-1".to_vec()],
        39 => vec![b"EXPIREAT".to_vec(), k, (random.below(1 << 48) as i64 - 1000).to_string().into_bytes()],
        40 => {
            vec![b"SETEX".to_vec(), k, (random.below(3) as i64 * 9999 - 9999).to_string().into_bytes(), value(random)]
        }
        41 => vec![b"PSETEX".to_vec(), k, b"9999999".to_vec(), value(random)],
        42 => vec![b"DBSIZE".to_vec()],
        43 => words(["PING", "PING hello", "ECHO x", "ECHO", "PING a b"][random.below(5) as usize]),
        44 => vec![b"SELECT".to_vec(), (random.below(20) as i64 - 2).to_string().into_bytes()],
        45 => words(
            ["MULTI", "EXEC", "DISCARD", "EXEC", "EXEC", "NONSENSE x y", "GET", "WAIT 0 0"][random.below(8) as usize],
        ),
        46 => words(
            ["HELLO 4", "RESET", "TYPE a b", "CLIENT GETNAME", "CLIENT SETNAME a", "CONFIG GET save"]
                [random.below(6) as usize],
        ),
        47 if random.below(20) == 0 => words(["FLUSHDB", "FLUSHALL async", "FLUSHALL x"][random.below(3) as usize]),
        48 => vec![b"GETEX".to_vec(), k, b"PERSIST".to_vec()],
        49 => {
            vec![b"GETEX".to_vec(), k, b"PXAT".to_vec(), (4_000_000_000_000 + random.below(9)).to_string().into_bytes()]
        }
        _ => {
            let mut all = vec![b"SET".to_vec(), k, value(random)];
            for _ in 0..=random.below(3) {
                let option = ["NX", "XX", "GET", "KEEPTTL", "EX 1000", "PX 0", "EXAT 4000000000", "px x", "what"];
                all.extend(words(option[random.below(9) as usize]));
            }
            all
        }
    };
    // What has subcommands is refused in other words and at other times.
    if random.below(60) == 0 && !all[0].starts_with(b"C") {
        all.pop();
    }
    if random.below(60) == 0 && !all.is_empty() && !all[0].starts_with(b"C") {
        all.push(small(random));
    }
    if all.is_empty() || all == [b"HELLO"] {
        // What it says of itself differs.
        all = vec![b"ping".to_vec()];
    }
    all
}

/// Errors of what has subcommands may say the same in other words, and a time from now on is one of two moments.
fn same_meaning(command: &[Vec<u8>], redis: &[u8], tmem: &[u8]) -> bool {
    let has_subcommands = ["COMMAND", "CLIENT", "CONFIG"].iter().any(|name| command[0] == name.as_bytes());
    let time = |line: &[u8]| {
        let number = std::str::from_utf8(line.strip_prefix(b":")?).ok()?.trim().parse::<i64>().ok()?;
        (number > 1_000_000_000_000).then_some(number)
    };
    let near = |(a, b): (&[u8], &[u8])| a == b || time(a).zip(time(b)).is_some_and(|(a, b)| (a - b).abs() < 10_000);
    let lines = |answer: &[u8]| answer.iter().filter(|byte| **byte == b'\n').count();
    let all_near =
        || lines(redis) == lines(tmem) && redis.split(|b| *b == b'\n').zip(tmem.split(|b| *b == b'\n')).all(near);
    redis == tmem || (has_subcommands && redis.starts_with(b"-ERR") && tmem.starts_with(b"-ERR")) || all_near()
}

#[test]
fn the_same_answers_as_redis() {
    const TEST: &str = "the_same_answers_as_redis";
    let Some(redis) = Server::redis(TEST) else { return };
    let tmem = Server::start(&["--ram", "64M"]);
    let seed = std::env::var("TMEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let rounds = if long() { 400 } else { 20 };
    for round in seed..seed + rounds {
        let mut random = Random::new(round);
        let (mut ours, mut theirs) = (tmem.client(), redis.client());
        if round % 2 == 0 {
            theirs.ask(&[b"HELLO", b"3"]);
            ours.ask(&[b"HELLO", b"3"]);
        }
        // One by one, or many at once.
        let depth = [1, 1, 7, 100][random.below(4) as usize];
        for step in 0..2000 / depth {
            let commands: Vec<Vec<Vec<u8>>> = (0..depth).map(|_| command(&mut random)).collect();
            let bytes: Vec<u8> =
                commands.iter().flat_map(|args| encoded(&args.iter().map(Vec::as_slice).collect::<Vec<_>>())).collect();
            theirs.send(&bytes);
            ours.send(&bytes);
            for args in &commands {
                let (theirs, ours) = (theirs.answer(), ours.answer());
                let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
                let command: Vec<_> = args.iter().map(|arg| shown(&arg[..arg.len().min(60)])).collect();
                assert!(
                    same_meaning(args, &theirs, &ours),
                    "TMEM_SEED={round} step {step}: {command:?}\nRedis: {}\ntmem:  {}",
                    shown(&theirs),
                    shown(&ours)
                );
            }
        }
        // What is there in the end is the same, in every database.
        for (ours, theirs) in [(tmem.client(), redis.client())].iter_mut().flat_map(|pair| [(&mut pair.0, &mut pair.1)])
        {
            for db in 0..16 {
                let db = db.to_string();
                assert_eq!(ours.ask(&[b"SELECT", db.as_bytes()]), theirs.ask(&[b"SELECT", db.as_bytes()]));
                assert_eq!(ours.ask(&[b"DBSIZE"]), theirs.ask(&[b"DBSIZE"]));
                for key in 0..12 {
                    let key = format!("key{key}");
                    assert_eq!(
                        ours.ask(&[b"GET", key.as_bytes()]),
                        theirs.ask(&[b"GET", key.as_bytes()]),
                        "{db} {key}"
                    );
                    assert_eq!(
                        ours.ask(&[b"PEXPIRETIME", key.as_bytes()]) == b":-1\r\n",
                        theirs.ask(&[b"PEXPIRETIME", key.as_bytes()]) == b":-1\r\n"
                    );
                }
            }
        }
        for server in [&tmem, &redis] {
            server.client().ask(&[b"FLUSHALL"]);
        }
    }
    tmem.stop();
}

#[test]
fn what_cannot_be_served_is_one_line_and_125() {
    let dir = common::folder("serve-refused");
    let (empty, nowhere) = (dir.join("empty"), dir.join("nowhere"));
    fs::write(&empty, "\n").unwrap();
    let (empty, nowhere) = (empty.to_str().unwrap(), nowhere.to_str().unwrap());
    for (words, why) in [
        (&["--ram", "1M", "--listen", "127.0.0.1:0"][..], "16M"),
        (&["--ram", "64M"], "--listen"),
        (&["--ram", "64M", "--listen", "0.0.0.0:0"], "--password-file"),
        (&["--ram", "64M", "--listen", "256.1.1.1:1"], "cannot listen"),
        (&["--ram", "64M", "--listen", "127.0.0.1:0", "--password-file", empty], "empty"),
        (&["--ram", "64M", "--listen", "127.0.0.1:0", "--password-file", nowhere], "nowhere"),
    ] {
        let (status, out, err) = run_tmem(&[&["serve"], words].concat());
        assert_eq!((status, out.as_str()), (TROUBLE, ""), "{words:?}: {err}");
        assert!(
            err.starts_with("tmem: ") && err.trim_end().lines().count() == 1 && err.contains(why),
            "{words:?}: {err}"
        );
    }
}

#[test]
fn a_password_is_wanted_and_guessing_is_slow() {
    let dir = common::folder("serve-password");
    let file = dir.join("password");
    fs::write(&file, "secret\r\nnot this\n").unwrap();
    let server = Server::start(&["--ram", "64M", "--password-file", file.to_str().unwrap()]);
    let mut client = server.client();
    for args in
        [&[&b"GET"[..], b"a"][..], &[b"PING"], &[b"INFO"], &[b"CONFIG", b"GET", b"*"], &[b"MULTI"], &[b"FLUSHALL"]]
    {
        assert!(client.text(args).starts_with("-NOAUTH"), "{args:?}");
    }
    assert!(client.text(&[b"HELLO", b"3"]).starts_with("-NOAUTH"));
    let start = Instant::now();
    for (guess, least) in [(&b"a"[..], 0), (b"secret2", 100), (b"secre", 300), (b"", 700)] {
        assert!(client.text(&[b"AUTH", guess]).starts_with("-WRONGPASS"));
        assert!(start.elapsed() >= Duration::from_millis(least), "{:?}", start.elapsed());
    }
    assert_eq!(client.text(&[b"AUTH", b"default", b"secret"]), "+OK\r\n");
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(client.text(&[b"SET", b"a", b"1"]), "+OK\r\n");
    assert!(server.client().text(&[b"HELLO", b"3", b"AUTH", b"default", b"secret", b"SETNAME", b"x"]).starts_with('%'));
    // Who is not known yet takes little memory.
    let mut stranger = server.client();
    stranger.send(b"*2\r\n$3\r\nGET\r\n$100000000\r\n");
    assert!(String::from_utf8_lossy(&stranger.answer()).contains("unauthenticated bulk length"));
    assert!(stranger.is_over());
    let mut client = server.client();
    client.text(&[b"AUTH", b"secret"]);
    assert_eq!(client.text(&[b"CONFIG", b"GET", b"nothing"]), "*0\r\n");
    server.stop();
}

#[test]
fn it_keeps_to_its_ram_and_refuses_or_drops() {
    let noise = |random: &mut Random| (0..600).flat_map(|_| random.number().to_le_bytes()).collect::<Vec<u8>>();
    let server = Server::start(&["--ram", "24M"]);
    let mut client = server.client();
    let mut random = Random::new(1);
    let mut stored = Vec::new();
    for index in 0..20_000_u64 {
        let (key, value) = (format!("k{index}"), if index % 2 == 0 { noise(&mut random) } else { value(&mut random) });
        match &client.text(&[b"SET", key.as_bytes(), &value])[..] {
            "+OK\r\n" => stored.push((key, value)),
            refused => {
                assert!(refused.starts_with("-OOM"), "{refused}");
                break;
            }
        }
    }
    assert!(stored.len() > 3000 && stored.len() < 20_000, "{}", stored.len());
    assert!(server.figure("used_memory") <= 24.0 * MIB as f64);
    for (key, value) in &stored {
        assert!(client.bulk(&[b"GET", key.as_bytes()]).as_ref() == Some(value), "{key}");
    }
    // What is there can be removed, and there is room again.
    for (key, _) in stored.drain(..1000) {
        assert_eq!(client.text(&[b"DEL", key.as_bytes()]), ":1\r\n");
    }
    assert_eq!(client.text(&[b"SET", b"again", &noise(&mut random)]), "+OK\r\n");
    server.stop();

    let server = Server::start(&["--ram", "24M", "--policy", "allkeys-lru", "--codec", "zstd"]);
    let mut client = server.client();
    let (mut gone, mut made) = (0, 0);
    for index in 0..20_000_u64 {
        let value = [&index.to_le_bytes()[..], &noise(&mut random)].concat();
        assert_eq!(client.text(&[b"SET", format!("k{index}").as_bytes(), &value]), "+OK\r\n");
        // What is used all the time is seldom dropped; whoever misses it makes it anew.
        if client.bulk(&[b"GET", b"hot"]).is_none() {
            client.ask(&[b"SET", b"hot", &noise(&mut random)]);
            made += 1;
        }
        // Any other one is whole or gone.
        let other = random.below(index + 1);
        match client.bulk(&[b"GET", format!("k{other}").as_bytes()]) {
            Some(value) => assert_eq!(value[..8], other.to_le_bytes()),
            None => gone += 1,
        }
    }
    let used = server.figure("used_memory");
    assert!(made < 100, "what is used all the time was dropped {made} times");
    assert!(gone > 1000 && used <= 24.0 * MIB as f64, "{gone} gone, {used} used");
    say(&format!(
        "allkeys-lru: 20,000 values of 4.8 KB through 24 MiB, {gone} of 20,000 looked for were gone, a hot one {made} times"
    ));
    let size = |client: &mut Client| client.text(&[b"DBSIZE"])[1..].trim().parse::<u64>().unwrap();
    assert!(wait_until(Duration::from_secs(5), || size(&mut client) < 6000), "keys of what was dropped stay");
    server.stop();
}

#[test]
fn nonsense_and_silence_harm_nobody_else() {
    let server = Server::start(&["--ram", "64M"]);
    let mut witness = server.client();
    let mut undisturbed = || {
        let start = Instant::now();
        assert_eq!(witness.text(&[b"SET", b"w", b"1"]), "+OK\r\n");
        assert!(start.elapsed() < Duration::from_secs(3), "another client waited for {:?}", start.elapsed());
    };
    for nonsense in [
        &b"*1\r\n$-5\r\n"[..],
        b"*9999999\r\n",
        b"*1\r\nx\r\n",
        b"\x16\x03\x01\r\n*1\r\n:1\r\n",
        &[b'x'; 70_000],
        b"*1\r\n$1\r\nabcd",
    ] {
        let mut client = server.client();
        client.send(nonsense);
        let said = String::from_utf8_lossy(&client.answer()).into_owned();
        assert!(said.starts_with("-ERR"), "{said}");
        undisturbed();
    }
    // A value that is announced and does not come takes no memory.
    let before = server.figure("used_memory");
    let mut announced: Vec<Client> = (0..50).map(|_| server.client()).collect();
    announced.iter_mut().for_each(|client| client.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16000000\r\n"));
    assert!(server.figure("used_memory") < before + 1e6);
    let mut large = server.client();
    large.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$536870912\r\n");
    assert!(String::from_utf8_lossy(&large.answer()).contains("too large for --ram"));
    // Clients that never read, of much.
    witness.ask(&[b"SET", b"big", &vec![b'b'; 1 << 20]]);
    let mut deaf: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for client in &mut deaf {
        let asked = encoded(&[b"GET", b"big"]).repeat(2000);
        client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = client.stream.write_all(&asked);
    }
    let start = Instant::now();
    assert_eq!(witness.text(&[b"PING"]), "+PONG\r\n");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // One that asks for all of it at once, and one that saves up commands without end.
    let all = [&[&b"MGET"[..]][..], &[&b"big"[..]; 500]].concat();
    assert!(server.client().text(&all).starts_with("-OOM"));
    let mut saving = server.client();
    assert_eq!(saving.text(&[b"MULTI"]), "+OK\r\n");
    let many = encoded(&[b"SET", b"big", &vec![b'x'; 30_000]]);
    let kept = (0..3000)
        .take_while(|_| saving.stream.write_all(&many).is_ok() && saving.stream.read(&mut [0; 9]).is_ok_and(|n| n > 0))
        .count();
    assert!(kept < 2500, "{kept} commands were kept");
    drop(saving);
    assert!(server.figure("used_memory") < before + 40e6, "{}", server.figure("used_memory"));
    // Many who say nothing.
    let idle: Vec<TcpStream> =
        (0..if long() { 10_000 } else { 500 }).map_while(|_| TcpStream::connect(&server.address).ok()).collect();
    assert!(wait_until(Duration::from_secs(20), || server.figure("connected_clients") >= idle.len() as f64));
    assert_eq!(witness.text(&[b"PING"]), "+PONG\r\n");
    say(&format!("{} idle connections: {} KiB", idle.len(), server.figure("used_memory") / 1024.0));
    drop((announced, deaf, idle));
    assert!(wait_until(Duration::from_secs(20), || server.figure("connected_clients") <= 3.0));
    server.stop();
}

#[test]
fn it_is_seen_and_every_figure_is_documented() {
    let server = Server::start(&["--ram", "64M", "--metrics", "127.0.0.1:0"]);
    server.client().ask(&[b"SET", b"a", b"1"]);
    let (status, out, err) = run_tmem(&["top", "--once", "--json"]);
    assert_eq!((status, err.as_str()), (0, ""));
    let top: serde_json::Value = serde_json::from_str(&out).unwrap();
    let ours = top["caches"].as_array().unwrap().iter().find(|cache| cache["pid"] == server.guard.pid()).unwrap();
    assert_eq!((&ours["keys"], &ours["commands"]), (&1.into(), &1.into()));
    let doc = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/serve.md")).unwrap();
    for name in ours.as_object().unwrap().keys().filter(|name| *name != "rates") {
        assert!(doc.contains(&format!("`{name}`")), "docs/serve.md does not say what {name} is");
    }
    let mut scrape = TcpStream::connect(ours["metrics"].as_str().unwrap()).unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    scrape.read_to_string(&mut text).unwrap();
    assert!(text.contains("\ntmem_serve_keys 1\n") && text.contains("\ntmem_serve_commands_total 1\n"), "{text}");
    // Every command that is told of is documented, too.
    let said = server.client().text(&[b"COMMAND"]);
    let names: Vec<&str> = said.split("*6\r\n$").skip(1).map(|entry| entry.lines().nth(1).unwrap()).collect();
    assert!(names.len() > 50);
    for name in names {
        assert!(doc.contains(&name.to_uppercase()), "docs/serve.md does not have {name}");
    }
    server.stop();
}

/// More answers than are kept for a client, to commands that come all at once.
#[test]
fn all_commands_of_a_long_pipeline_are_answered() {
    let server = Server::start(&["--ram", "64M"]);
    let mut client = server.client();
    let value: Vec<u8> = sample_pages(2, 4).flatten().collect();
    client.ask(&[b"SET", b"v", &value]);
    client.send(&encoded(&[b"GET", b"v"]).repeat(1500));
    for at in 0..1500 {
        let answer = client.answer();
        assert!(answer.len() == value.len() + 9 && answer[7..7 + value.len()] == value, "answer {at}");
    }
    assert_eq!(client.text(&[b"PING"]), "+PONG\r\n");
    server.stop();
}

#[test]
fn many_clients_count_together() {
    let server = Server::start(&["--ram", "64M"]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.client();
                for _ in 0..500 {
                    client.ask(&[b"INCR", b"n"]);
                    // Both or none.
                    for args in
                        [&[&b"MULTI"[..]][..], &[b"INCR", b"a"], &[b"INCR", b"b"], &[b"GET", b"a"], &[b"GET", b"b"]]
                    {
                        client.ask(args);
                    }
                    let both = client.text(&[b"EXEC"]);
                    let lines: Vec<&str> = both.lines().collect();
                    assert!(lines[1] == lines[2] && lines[4] == lines[6], "{both}");
                }
            });
        }
    });
    assert_eq!(server.client().text(&[b"MGET", b"n", b"a", b"b"]), "*3\r\n$4\r\n4000\r\n$4\r\n4000\r\n$4\r\n4000\r\n");
    server.stop();
}

#[test]
fn scan_shows_all_that_is_there_all_the_time() {
    let server = Server::start(&["--ram", "64M"]);
    let mut client = server.client();
    for index in 0..3000 {
        client.ask(&[b"SET", format!("key:{index}").as_bytes(), if index % 50 == 0 { &[b'v'; 5000] } else { b"v" }]);
    }
    let mut random = Random::new(5);
    for count in ["1", "10", "1000"] {
        let (mut cursor, mut seen, mut steps) = ("0".to_owned(), std::collections::HashSet::new(), 0);
        loop {
            let said = client.text(&[b"SCAN", cursor.as_bytes(), b"COUNT", count.as_bytes(), b"MATCH", b"key:*"]);
            let lines: Vec<&str> = said.lines().collect();
            seen.extend(lines[3..].iter().filter(|line| line.starts_with("key:")).map(|line| line.to_string()));
            steps += 1;
            // Others come and go meanwhile.
            let other = format!("other{}", random.below(500));
            if random.below(2) == 0 {
                client.ask(&[b"SET", other.as_bytes(), b"x"]);
            } else {
                client.ask(&[b"DEL", other.as_bytes()]);
            }
            client.ask(&[b"SET", format!("more{}", random.number()).as_bytes(), b"x"]);
            lines[2].clone_into(&mut cursor);
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(seen.len(), 3000, "COUNT {count}: {steps} steps");
    }
    assert!(client.text(&[b"KEYS", b"key:29[0-4]?"]).starts_with("*50\r\n"));
    assert!(client.text(&[b"RANDOMKEY"]).starts_with('$'));
    server.stop();
}

fn run(program: &str, words: &[&str], input: &str) -> String {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {words:?}: {}\n{stdout}{stderr}", out.status);
    stdout.into_owned()
}

#[test]
fn redis_cli_and_its_benchmark_work() {
    const TEST: &str = "redis_cli_and_its_benchmark_work";
    if !has(TEST, "redis-cli") || !has(TEST, "redis-benchmark") {
        return;
    }
    let server = Server::start(&["--ram", "64M"]);
    let cli = |words: &[&str]| run("redis-cli", &[&["-p", server.port()], words].concat(), "");
    assert_eq!(cli(&["set", "greeting", "hello world"]), "OK\n");
    assert_eq!(cli(&["-3", "get", "greeting"]), "hello world\n");
    assert_eq!(cli(&["--scan"]), "greeting\n");
    assert!(cli(&["info", "memory"]).contains("tmem_ratio"));
    assert!(cli(&["--bigkeys"]).contains("Biggest string"));
    let tests = ["-t", "ping,set,get,incr,mset", "-n", "20000", "-q", "-P", "8", "-c", "20", "-r", "1000"];
    let said = run("redis-benchmark", &[&["-p", server.port()], &tests[..]].concat(), "");
    assert!(said.contains("GET") && said.contains("MSET") && !said.to_lowercase().contains("error"), "{said}");
    server.stop();
}

#[test]
fn with_tls_there_is_nothing_without_a_certificate() {
    const TEST: &str = "with_tls_there_is_nothing_without_a_certificate";
    let pki = Pki::new("serve-tls");
    let mut server = Server::start(&["--ram", "64M", "--tls-certificates", &pki.path("server")]);
    // In the clear there is no answer but the end, or an alert.
    let mut plain = TcpStream::connect(&server.address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    plain.write_all(b"PING\r\n").unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.windows(4).any(|word| word == b"PONG") && said.len() < 64, "{said:?}");
    if !has(TEST, "redis-cli") {
        return;
    }
    let cli = |name: &str, words: &[&str], input: &[u8]| {
        let folder = pki.path(name);
        let mut command = Command::new("timeout");
        command.args(["20", "redis-cli", "--no-raw", "-p", server.port(), "--tls", "--cacert"]);
        command.arg(format!("{folder}/ca-cert.pem"));
        if name != "without" {
            command.args([
                "--cert",
                &format!("{folder}/client-cert.pem"),
                "--key",
                &format!("{folder}/client-key.pem"),
            ]);
        }
        let mut child =
            command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Who is sent away does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        let out = child.wait_with_output().unwrap();
        say(&String::from_utf8_lossy(&out.stderr));
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    if !run("redis-cli", &["--help"], "").contains("--tls") {
        return skip(TEST, "this redis-cli has no TLS: only what is in the clear was tried");
    }
    for name in ["without", "stranger"] {
        let (_, said) = cli(name, &["ping"], b"");
        assert!(!said.contains("PONG"), "{name}: {said}");
    }
    assert_eq!(cli("client", &["ping"], b""), (true, "PONG\n".to_owned()));
    // More than a buffer each way, in many commands.
    let value: Vec<u8> = sample_pages(400, 3).flatten().collect();
    let mut bytes = encoded(&[b"SET", b"big", &value]);
    (0..3000).for_each(|n| bytes.extend(encoded(&[b"SET", format!("k{n}").as_bytes(), &value[n..n + 100]])));
    (0..3000).for_each(|n| bytes.extend(encoded(&[b"GET", format!("k{n}").as_bytes()])));
    let (fine, said) = cli("client", &["--pipe"], &bytes);
    assert!(fine && said.contains("errors: 0, replies: 6001"), "{said}");
    assert_eq!(cli("client", &["strlen", "big"], b"").1, format!("(integer) {}\n", value.len()));
    assert!(cli("client", &["get", "big"], b"").1.len() > value.len());
    assert!(cli("client", &["get", "k7"], b"").1.trim().len() > 100);
    server.guard.signal(libc::SIGTERM);
    assert!(server.guard.wait(Duration::from_secs(10)).is_some_and(|status| status.success()));
}

#[test]
fn redis_py_works() {
    const TEST: &str = "redis_py_works";
    let python = "/usr/bin/python3";
    if !fs::exists(python).unwrap_or(false)
        || !Command::new(python).args(["-c", "import redis"]).output().unwrap().status.success()
    {
        return skip(TEST, "python3-redis is not installed");
    }
    let script = r#"
import os, redis
r = redis.Redis(port=int(os.environ["PORT"]))
assert r.ping() and r.set("a", b"\x00\xff" * 3000) and r.get("a") == b"\x00\xff" * 3000
assert r.set("b", 1, ex=100, nx=True) and not r.set("b", 2, nx=True) and 90 < r.ttl("b") <= 100
assert r.incr("b", 5) == 6 and r.mget("a", "none", "b")[1:] == [None, b"6"]
with r.pipeline(transaction=True) as p:
    assert p.set("x", 1).incr("x").get("x").execute() == [True, 2, b"2"]
for i in range(500): r.set(f"k{i}", "v" * i)
assert len(set(r.scan_iter("k*", count=7))) == 500 and r.dbsize() == 503
assert r.getrange("k100", -3, -1) == b"vvv" and r.delete("k1", "k2", "none") == 2
assert r.info("memory")["used_memory"] > 0 and r.config_get("maxmemory")["maxmemory"]
assert [c["name"] for c in r.client_list()] is not None
try: r.execute_command("LPUSH", "l", 1); raise SystemExit("no error")
except redis.ResponseError as e: assert "unknown command" in str(e), e
print("all is well")
"#;
    let server = Server::start(&["--ram", "64M"]);
    let out = Command::new(python).args(["-c", script]).env("PORT", server.port()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "all is well\n", "{}", String::from_utf8_lossy(&out.stderr));
    server.stop();
}

#[test]
fn node_redis_works() {
    const TEST: &str = "node_redis_works";
    let script = r#"
const redis = require("redis");
const client = redis.createClient({ port: +process.env.PORT, socket: { port: +process.env.PORT } });
const done = text => { console.log(text); process.exit(0); };
const promises = typeof client.connect === "function";
const ask = (...args) => promises ? client.sendCommand(args) : new Promise((ok, no) => client.send_command(args[0], args.slice(1), (e, r) => e ? no(e) : ok(r)));
(async () => {
  if (promises) await client.connect();
  if (await ask("SET", "a", "1") !== "OK" || await ask("GET", "a") !== "1") done("wrong value");
  const all = await Promise.all([...Array(500).keys()].map(i => ask("SET", "k" + i, "v" + i)));
  const back = await ask("MGET", ...[...Array(500).keys()].map(i => "k" + i));
  if (!back.every((v, i) => v === "v" + i)) done("wrong values");
  done("all is well");
})().catch(e => done(String(e)));
"#;
    if !has(TEST, "node") {
        return;
    }
    let paths = "/usr/share/nodejs:/usr/lib/nodejs";
    let node = |script: &str, port: &str| {
        Command::new("timeout")
            .args(["60", "node", "-e", script])
            .env("NODE_PATH", paths)
            .env("PORT", port)
            .output()
            .unwrap()
    };
    if !node("require('redis')", "0").status.success() {
        return skip(TEST, "node-redis is not installed");
    }
    let server = Server::start(&["--ram", "64M"]);
    let out = node(script, server.port());
    assert_eq!(String::from_utf8_lossy(&out.stdout), "all is well\n", "{}", String::from_utf8_lossy(&out.stderr));
    server.stop();
}
