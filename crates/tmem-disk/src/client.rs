//! The other side: asking a server for its figures, by an option that only tmem has.

use std::io::{self, Read, Write};
use std::path::Path;

use rustls::ClientConnection;

use crate::address::Address;
use crate::error::Error;
use crate::figures::Figures;
use crate::negotiate::PATIENCE;
use crate::protocol::{greeting, option, option_reply};
use crate::tls;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u32 = 4 << 20;

/// What a server says.
enum Answer {
    Json(Vec<u8>),
    /// It does not know what is meant.
    Nothing,
    /// Only with TLS.
    TlsWanted,
    /// There is no TLS.
    NoTls,
}

/// Asks the server at an address for its figures; with TLS, if there is a folder with `ca-cert.pem`, `client-cert.pem` and
/// `client-key.pem`.
///
/// # Errors
/// When there is none, or another one than of tmem, or it wants TLS, or another certificate.
pub fn ask(address: &Address, tls_certificates: Option<&Path>) -> Result<Figures, Error> {
    let session = tls_certificates.map(|folder| tls::client(folder, address)).transpose()?;
    let answer = figures(address, session).map_err(|e| Error::new(format!("no answer from {address}: {e}")))?;
    let json = match answer {
        Answer::Json(json) => json,
        Answer::Nothing => {
            return Err(Error::new(format!("the server at {address} is no tmem disk: it has no figures")));
        }
        Answer::TlsWanted => {
            let what = "--tls-certificates DIR, with ca-cert.pem, client-cert.pem and client-key.pem in it";
            return Err(Error::new(format!("the server at {address} wants TLS: give {what}")));
        }
        Answer::NoTls => {
            return Err(Error::new(format!("the server at {address} has no TLS: leave out --tls-certificates")));
        }
    };
    serde_json::from_slice(&json).map_err(|_| Error::new(format!("the answer of {address} is not understood")))
}

fn figures(address: &Address, session: Option<ClientConnection>) -> io::Result<Answer> {
    let stream = address.connect()?;
    stream.prepare()?;
    stream.set_patience(Some(PATIENCE))?;
    let mut stream = &stream;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    if hello[..16] != greeting()[..16] {
        return Ok(Answer::Nothing);
    }
    stream.write_all(&1_u32.to_be_bytes())?;
    match session {
        None => ask_for_figures(&mut stream),
        Some(mut session) => {
            say(&mut stream, option::STARTTLS)?;
            match heard(&mut stream)? {
                Some((option_reply::ACK, 0)) => ask_for_figures(&mut rustls::Stream::new(&mut session, &mut stream)),
                _ => Ok(Answer::NoTls),
            }
        }
    }
}

fn ask_for_figures(stream: &mut (impl Read + Write)) -> io::Result<Answer> {
    say(stream, option::FIGURES)?;
    match heard(stream)? {
        Some((option_reply::FIGURES, bytes)) if bytes <= ANSWER_BYTES_MAX => {
            let mut json = vec![0; bytes as usize];
            stream.read_exact(&mut json)?;
            Ok(Answer::Json(json))
        }
        Some((option_reply::ERR_TLS_REQD, _)) => Ok(Answer::TlsWanted),
        _ => Ok(Answer::Nothing),
    }
}

/// An option without data.
fn say(stream: &mut impl Write, code: u32) -> io::Result<()> {
    stream.write_all(&[&b"IHAVEOPT"[..], &code.to_be_bytes(), &[0; 4]].concat())
}

/// The kind of the next answer, and the bytes of its data.
fn heard(stream: &mut impl Read) -> io::Result<Option<(u32, u32)>> {
    let mut head = [0; option_reply::HEAD_BYTES];
    stream.read_exact(&mut head)?;
    Ok(option_reply::decode(&head))
}
