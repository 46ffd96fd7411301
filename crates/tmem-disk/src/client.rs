//! The other side: asking a server for its figures, by an option that only tmem has.

use std::io::{self, Read, Write};
use std::path::Path;

use crate::address::Address;
use crate::error::Error;
use crate::figures::Figures;
use crate::negotiate::PATIENCE;
use crate::protocol::{greeting, option, option_reply};
use crate::stream::{StartTls, Stream};
use crate::tls::{self, Tls};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u32 = 4 << 20;

/// Asks the server at an address for its figures; with TLS, if there is a directory with `ca-cert.pem`, `client-cert.pem` and
/// `client-key.pem`.
///
/// # Errors
/// When there is none, or another one than of tmem, or it wants TLS or has none.
pub fn ask(address: &Address, tls_certificates: Option<&Path>) -> Result<Figures, Error> {
    let tls = tls_certificates.map(|dir| tls::connect(dir, address.host())).transpose()?;
    let answer = figures(address, tls).map_err(|e| Error::new(format!("no answer from {address}: {e}")))?;
    let Some(json) = answer else {
        return Err(Error::new(format!("the server at {address} is no tmem disk: it has no figures")));
    };
    serde_json::from_slice(&json).map_err(|_| Error::new(format!("the answer of {address} is not understood")))
}

/// What the server says; `None` if it does not know what is meant.
fn figures(address: &Address, tls: Option<Tls>) -> io::Result<Option<Vec<u8>>> {
    let stream = address.connect()?;
    stream.prepare()?;
    stream.set_patience(Some(PATIENCE))?;
    let mut stream = &stream;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    if hello[..16] != greeting()[..16] {
        return Ok(None);
    }
    let flags = 1_u32;
    stream.write_all(&flags.to_be_bytes())?;
    if let Some(tls) = tls {
        match asked(stream, option::STARTTLS)? {
            Some((option_reply::ACK, 0)) => stream.start_tls(tls)?,
            _ => return Err(io::Error::other("it has no TLS: leave out --tls-certificates")),
        }
    }
    match asked(stream, option::FIGURES)? {
        Some((option_reply::FIGURES, bytes)) if bytes <= ANSWER_BYTES_MAX => {
            let mut json = vec![0; bytes as usize];
            stream.read_exact(&mut json)?;
            Ok(Some(json))
        }
        Some((option_reply::ERR_TLS_REQD, _)) => {
            Err(io::Error::other("it wants TLS: give a directory of certificates with --tls-certificates"))
        }
        _ => Ok(None),
    }
}

/// The kind of the answer to an option without data, and its length.
fn asked(mut stream: &Stream, option: u32) -> io::Result<Option<(u32, u32)>> {
    stream.write_all(&[&b"IHAVEOPT"[..], &option.to_be_bytes(), &[0; 4]].concat())?;
    let mut head = [0; option_reply::HEAD_BYTES];
    stream.read_exact(&mut head)?;
    Ok(option_reply::decode(&head))
}
