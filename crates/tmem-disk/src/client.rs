//! The other side: asking a server for its figures, by an option that only tmem has.

use std::io::{self, Read, Write};

use crate::address::Address;
use crate::error::Error;
use crate::figures::Figures;
use crate::negotiate::PATIENCE;
use crate::protocol::{greeting, option, option_reply};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u32 = 4 << 20;

/// Asks the server at an address for its figures.
///
/// # Errors
/// When there is none, or another one than of tmem.
pub fn ask(address: &Address) -> Result<Figures, Error> {
    let answer = figures(address).map_err(|e| Error::new(format!("no answer from {address}: {e}")))?;
    let Some(json) = answer else {
        return Err(Error::new(format!("the server at {address} is no tmem disk: it has no figures")));
    };
    serde_json::from_slice(&json).map_err(|_| Error::new(format!("the answer of {address} is not understood")))
}

/// What the server says; `None` if it does not know what is meant.
fn figures(address: &Address) -> io::Result<Option<Vec<u8>>> {
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
    let head = [&flags.to_be_bytes()[..], b"IHAVEOPT", &option::FIGURES.to_be_bytes(), &[0; 4]].concat();
    stream.write_all(&head)?;
    let mut head = [0; option_reply::HEAD_BYTES];
    stream.read_exact(&mut head)?;
    match option_reply::decode(&head) {
        Some((option_reply::FIGURES, bytes)) if bytes <= ANSWER_BYTES_MAX => {
            let mut json = vec![0; bytes as usize];
            stream.read_exact(&mut json)?;
            Ok(Some(json))
        }
        _ => Ok(None),
    }
}
