//! What fuzz targets need of the inside.

use std::io::{self, Read, Write};
use std::sync::Arc;

use tmem::{Config, Store};

use crate::connection;
use crate::export::Export;
use crate::negotiate::{Agreed, House, Security, greet, haggle};
use crate::options::{Contents, ExportOptions};
use crate::protocol::{Action, Asked, ClientFlags, OptionHead, Request, Terms};

const SIZE_BYTES: u64 = (1 << 20) + 7;

/// A disk that the sessions of one fuzzer share.
pub struct Target(Vec<Arc<Export>>);

impl Default for Target {
    /// A disk of an odd size, with little room.
    fn default() -> Self {
        let store = Arc::new(Store::new(Config::new(2 << 20)).expect("a store of 2 MiB"));
        let options = ExportOptions {
            name: "disk".to_owned(),
            contents: Contents::Empty { size_bytes: SIZE_BYTES },
            read_only: false,
        };
        Self(vec![Arc::new(Export::new(&store, false, &options, None).expect("one pool"))])
    }
}

impl House for Target {
    fn exports(&self) -> &[Arc<Export>] {
        &self.0
    }

    fn figures(&self) -> Vec<u8> {
        b"{}".to_vec()
    }
}

/// A client that has said all it will, and takes any answer.
struct Said<'a>(&'a [u8], Taken);

/// Where answers go.
struct Taken {
    bytes: usize,
}

impl Read for Said<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len();
        // Enough for anybody: some commands ask for gigabytes.
        if self.bytes > 64 << 20 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole session: handshake and commands.
///
/// # Panics
/// When a client gets a disk without the TLS that is wanted of it.
pub fn session(target: &Target, bytes: &[u8]) {
    let mut said = Said(bytes, Taken { bytes: 0 });
    let agree = |said: &mut Said<'_>, security| greet(said).and_then(|flags| haggle(said, target, flags, security));
    let wanted = agree(&mut Said(bytes, Taken { bytes: 0 }), Security::Wanted);
    assert!(!matches!(wanted, Ok(Agreed::Export(..))));
    if let Ok(Agreed::Export(export, terms)) = agree(&mut said, Security::None) {
        // That it ends is all that is asked.
        let _ = connection::serve(&mut said.0, said.1, &export, terms);
    }
}

/// Commands after a handshake as it should be.
pub fn commands(target: &Target, bytes: &[u8]) {
    let terms = Terms { size_bytes: SIZE_BYTES, structured: true, allocation: true, ..Terms::default() };
    let _ = connection::serve(&mut { bytes }, Taken { bytes: 0 }, &target.0[0], terms);
}

/// Reads bytes as each thing that a client can send.
///
/// # Panics
/// When what was understood does not hold together.
pub fn decode(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk() {
        let _ = ClientFlags::decode(*head);
    }
    if let Some((head, data)) = bytes.split_first_chunk()
        && let Ok(head) = OptionHead::decode(head)
        && let Ok(asked) = Asked::decode(head.code, data)
    {
        match asked {
            Asked::ExportName(name) | Asked::Export { name, .. } => assert!(name.len() <= data.len()),
            Asked::Meta { queries, set, .. } => drop(queries.mean_allocation(set)),
            _ => {}
        }
    }
    if let Some(request) = bytes.first_chunk().and_then(|head| Request::decode(head).ok()) {
        let terms = Terms { size_bytes: SIZE_BYTES, ..Terms::default() };
        if let Ok(action) = request.action(&terms)
            && !matches!(action, Action::Flush | Action::Disconnect)
        {
            assert!(request.offset + u64::from(request.bytes) <= SIZE_BYTES);
        }
    }
}
