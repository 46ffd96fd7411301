//! A `tmem disk` that runs for a test, and a client that says over its socket whatever a test wants.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;

use super::{Guard, run_tmem, tmem_command};

/// A server with a socket in a folder of its own.
pub struct Disk {
    server: Guard,
    folder: PathBuf,
    /// What it printed: the addresses of its disks.
    pub uris: Vec<String>,
}

impl Disk {
    /// Starts `tmem disk` with these words and a socket.
    pub fn start(words: &[&str]) -> Self {
        Self::start_at("unix:", words)
    }

    /// Starts `tmem disk` with these words at an address; `unix:` alone is a socket in the folder.
    pub fn start_at(listen: &str, words: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // The path of a socket must be short.
        let name = format!("tmem-disk-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let listen = match listen {
            "unix:" => format!("unix:{}", folder.join("socket").display()),
            address => address.to_owned(),
        };
        let words = [&["disk", "--listen", &listen], words].concat();
        let mut child = tmem_command(&words).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let server = Guard(child);
        let disks = words.iter().filter(|word| matches!(**word, "--size" | "--backing" | "--export")).count();
        let uris: Vec<String> = out.lines().take(disks).map(Result::unwrap).collect();
        assert_eq!(uris.len(), disks, "tmem {words:?} did not start");
        Self { server, folder, uris }
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The address of the first disk.
    pub fn uri(&self) -> &str {
        &self.uris[0]
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// What it says about itself.
    pub fn stats(&self) -> Value {
        let (status, out, err) = run_tmem(&["disk", "stats", &format!("unix:{}", self.socket().display()), "--json"]);
        assert_eq!(status, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// A figure of it.
    pub fn figure(&self, name: &str) -> u64 {
        self.stats()[name].as_u64().unwrap()
    }

    /// Ends it as a user does; it must leave nothing.
    pub fn stop(mut self) {
        self.server.signal(libc::SIGTERM);
        let status = self.server.wait(Duration::from_secs(10)).expect("HANG: the server does not end");
        assert!(status.success(), "{status}");
        assert!(!self.socket().exists(), "the socket is left behind");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.server.signal(libc::SIGKILL);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;

pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;

/// A connection on which nothing has been said.
pub fn connect(disk: &Disk) -> UnixStream {
    let stream = UnixStream::connect(disk.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// An option with its data.
pub fn option(code: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &code.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// The data that choose the first disk.
pub const FIRST: [u8; 6] = [0; 6];

/// A command without what follows a write.
pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, bytes: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &bytes.to_be_bytes(),
    ]
    .concat()
}

pub fn read_exact<const N: usize>(mut stream: &UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

/// An answer to an option: its kind and its data.
pub fn option_reply(mut stream: &UnixStream) -> io::Result<(u32, Vec<u8>)> {
    let head: [u8; 20] = read_exact(stream)?;
    assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    let mut data = vec![0; word(16) as usize];
    stream.read_exact(&mut data)?;
    Ok((word(12), data))
}

/// A client with simple replies and one command at a time.
pub struct Nbd {
    pub stream: UnixStream,
    cookie: u64,
}

impl Nbd {
    pub fn open(disk: &Disk) -> Self {
        let mut stream = connect(disk);
        read_exact::<18>(&stream).unwrap();
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        stream.write_all(&option(OPT_GO, &FIRST)).unwrap();
        loop {
            match option_reply(&stream).unwrap() {
                (1, _) => return Self { stream, cookie: 0 },
                (3, _) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends a command and what follows it.
    pub fn send(&mut self, kind: u16, offset: u64, bytes: u32, data: &[u8]) -> io::Result<u64> {
        self.cookie += 1;
        self.stream.write_all(&[&request(kind, 0, self.cookie, offset, bytes)[..], data].concat())?;
        Ok(self.cookie)
    }

    /// The error of the next answer, and its cookie.
    pub fn answer(&mut self) -> io::Result<(u32, u64)> {
        let head: [u8; 16] = read_exact(&self.stream)?;
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let errno = u32::from_be_bytes(head[4..8].try_into().unwrap());
        Ok((errno, u64::from_be_bytes(head[8..].try_into().unwrap())))
    }

    fn ask(&mut self, kind: u16, offset: u64, bytes: u32, data: &[u8]) -> u32 {
        let cookie = self.send(kind, offset, bytes, data).unwrap();
        let (errno, answered) = self.answer().unwrap();
        assert_eq!(answered, cookie);
        errno
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(WRITE, offset, data.len() as u32, data)
    }

    pub fn trim(&mut self, offset: u64, bytes: u32) -> u32 {
        self.ask(TRIM, offset, bytes, &[])
    }

    pub fn zero(&mut self, offset: u64, bytes: u32) -> u32 {
        self.ask(WRITE_ZEROES, offset, bytes, &[])
    }

    pub fn flush(&mut self) -> u32 {
        self.ask(FLUSH, 0, 0, &[])
    }

    pub fn read(&mut self, offset: u64, bytes: u32) -> Result<Vec<u8>, u32> {
        match self.ask(READ, offset, bytes, &[]) {
            0 => {
                let mut data = vec![0; bytes as usize];
                self.stream.read_exact(&mut data).unwrap();
                Ok(data)
            }
            errno => Err(errno),
        }
    }

    /// True if the server has ended the connection.
    pub fn is_over(&mut self) -> bool {
        let mut rest = Vec::new();
        // Ended with something unread of ours, which resets the connection, is ended as well.
        !matches!(self.stream.read_to_end(&mut rest), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}
