//! The other side: asking a server for its figures, by an option that only tmem has, and emptying a disk of it.

use std::io::{self, Read, Write};
use std::path::Path;

use rustls::ClientConnection;
use tmem_net::{Address, Stream};

use crate::error::Error;
use crate::figures::Figures;
use crate::negotiate::PATIENCE;
use crate::protocol::{greeting, option, option_reply};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u32 = 4 << 20;
/// Trimmed at a time: no answer takes long.
const TRIM_BYTES: u64 = 1 << 30;

const TRIM: u16 = 4;
const DISCONNECT: u16 = 2;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// A session, encrypted or not.
trait Session: Read + Write {}

impl<T: Read + Write> Session for T {}

/// Why a server is of no use.
enum Useless {
    Broken(io::Error),
    /// It is no tmem disk.
    Foreign,
    TlsWanted,
    NoTls,
}

impl From<io::Error> for Useless {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Useless {
    fn at(self, address: &Address) -> Error {
        Error::new(match self {
            Self::Broken(error) => format!("no answer from {address}: {error}"),
            Self::Foreign => format!("the server at {address} is no tmem disk: it has no figures"),
            Self::TlsWanted => format!(
                "the server at {address} wants TLS: give --tls-certificates DIR, with ca-cert.pem, client-cert.pem and client-key.pem in it"
            ),
            Self::NoTls => format!("the server at {address} has no TLS: leave out --tls-certificates"),
        })
    }
}

/// Asks the server at an address for its figures; with TLS, if there is a folder with `ca-cert.pem`, `client-cert.pem` and
/// `client-key.pem`.
///
/// # Errors
/// When there is none, or another one than of tmem, or it wants TLS, or another certificate.
pub fn ask(address: &Address, tls_certificates: Option<&Path>) -> Result<Figures, Error> {
    let json = visit(address, tls_certificates, |stream| {
        say(stream, option::FIGURES, &[])?;
        match heard(stream)? {
            (option_reply::FIGURES, json) => Ok(json),
            (option_reply::ERR_TLS_REQD, _) => Err(Useless::TlsWanted),
            _ => Err(Useless::Foreign),
        }
    })?;
    serde_json::from_slice(&json).map_err(|_| Error::new(format!("the answer of {address} is not understood")))
}

/// Drops all that is stored on a disk: the one of this name, or the first for an empty one. Says how many bytes of blocks that were.
/// Others who are connected, to whichever disk of the server, are a reason not to, unless `force` is set.
///
/// # Errors
/// As [`ask`]; when there is no such disk, when clients cannot write to it, and when others are connected.
pub fn reset(address: &Address, tls_certificates: Option<&Path>, name: &str, force: bool) -> Result<u64, Error> {
    let figures = ask(address, tls_certificates)?;
    let mut disks = figures.exports.iter();
    let disk = if name.is_empty() { disks.next() } else { disks.find(|disk| disk.name == name) };
    let Some(disk) = disk else {
        return Err(Error::new(format!("there is no disk '{name}' at {address}: tmem disk stats names all")));
    };
    if disk.read_only {
        return Err(Error::new("the disk is read-only: its server alone could empty it"));
    }
    if let Some(backing) = &disk.backing {
        return Err(Error::new(format!("the disk is a cache of {backing}: to empty it would empty that")));
    }
    let others = figures.connections.saturating_sub(1);
    if others > 0 && !force {
        let what = "disconnect them (umount, swapoff), or give --force";
        return Err(Error::new(format!("{others} clients are connected to {address}: {what}")));
    }
    visit(address, tls_certificates, |stream| {
        let name = disk.name.as_bytes();
        say(stream, option::GO, &[&(name.len() as u32).to_be_bytes()[..], name, &[0; 2]].concat())?;
        loop {
            match heard(stream)?.0 {
                option_reply::ACK => break,
                option_reply::INFO => {}
                _ => return Err(Useless::Foreign),
            }
        }
        for offset in (0..disk.size_bytes).step_by(TRIM_BYTES as usize) {
            request(stream, TRIM, offset, (disk.size_bytes - offset).min(TRIM_BYTES) as u32)?;
            let mut reply = [0; 16];
            stream.read_exact(&mut reply)?;
            if reply[..8] != [SIMPLE_REPLY_MAGIC.to_be_bytes(), [0; 4]].concat() {
                return Err(io::Error::other("it does not trim").into());
            }
        }
        Ok(request(stream, DISCONNECT, 0, 0)?)
    })?;
    Ok(disk.stored_bytes)
}

/// Connects and greets, encrypts if there are certificates, and says what `talk` says.
fn visit<T>(
    address: &Address,
    tls_certificates: Option<&Path>,
    talk: impl FnOnce(&mut dyn Session) -> Result<T, Useless>,
) -> Result<T, Error> {
    let session = tls_certificates.map(|folder| tmem_net::tls::client(folder, address)).transpose()?;
    let greeted = || {
        let stream = address.connect()?;
        stream.prepare(true)?;
        stream.set_patience(Some(PATIENCE))?;
        meet(&stream, session, talk)
    };
    greeted().map_err(|useless: Useless| useless.at(address))
}

fn meet<T>(
    mut stream: &Stream,
    session: Option<ClientConnection>,
    talk: impl FnOnce(&mut dyn Session) -> Result<T, Useless>,
) -> Result<T, Useless> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    if hello[..16] != greeting()[..16] {
        return Err(Useless::Foreign);
    }
    stream.write_all(&1_u32.to_be_bytes())?;
    let Some(mut session) = session else { return talk(&mut stream) };
    say(&mut stream, option::STARTTLS, &[])?;
    match heard(&mut stream)? {
        (option_reply::ACK, _) => talk(&mut rustls::Stream::new(&mut session, &mut stream)),
        _ => Err(Useless::NoTls),
    }
}

fn say(stream: &mut dyn Session, code: u32, data: &[u8]) -> io::Result<()> {
    let bytes = (data.len() as u32).to_be_bytes();
    stream.write_all(&[&b"IHAVEOPT"[..], &code.to_be_bytes(), &bytes, data].concat())
}

/// The next answer to an option: its kind and its data.
fn heard(stream: &mut dyn Session) -> Result<(u32, Vec<u8>), Useless> {
    let mut head = [0; option_reply::HEAD_BYTES];
    stream.read_exact(&mut head)?;
    match option_reply::decode(&head) {
        Some((kind, bytes)) if bytes <= ANSWER_BYTES_MAX => {
            let mut data = vec![0; bytes as usize];
            stream.read_exact(&mut data)?;
            Ok((kind, data))
        }
        _ => Err(Useless::Foreign),
    }
}

/// A command without data; its cookie is its offset.
fn request(stream: &mut dyn Session, kind: u16, offset: u64, bytes: u32) -> io::Result<()> {
    let (magic, offset) = (REQUEST_MAGIC.to_be_bytes(), offset.to_be_bytes());
    stream.write_all(&[&magic[..], &[0; 2], &kind.to_be_bytes(), &offset, &offset, &bytes.to_be_bytes()].concat())
}
