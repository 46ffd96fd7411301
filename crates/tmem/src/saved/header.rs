//! The header of a saved store: what it is, how much is in it, and which key it takes.

use ring::aead::{AES_256_GCM, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use xxhash_rust::xxh3::xxh3_128;

use super::record::{RECORD_BYTES_MAX, read_u32, read_u64};
use crate::error::{Error, ErrorKind};
use crate::page::PAGE_SIZE;
use crate::tier::{Place, Seal};

pub(super) const HEADER_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"tmemsave";
const VERSION: u32 = 1;
const ENCRYPTED: u32 = 1;
/// Where the parts of a header lie.
const COUNTS_AT: usize = 24;
pub(super) const COUNTS_BYTES: usize = 32;
const SALT_AT: usize = COUNTS_AT + COUNTS_BYTES;
const SALT_BYTES: usize = 32;
const SEAL_AT: usize = 96;
const CHECK_AT: usize = 112;
/// What a key is for, so that the same key of a user can be for other things, too.
const KEY_INFO: &[u8] = b"tmem saved store, version 1";

/// A block holds one longest record at least.
pub(super) const BLOCK_BYTES_MIN: usize = RECORD_BYTES_MAX;
pub(super) const BLOCK_BYTES_MAX: usize = 288 << 10;

/// How many records of which kind a file has. All but pools and shared zpages can be more than memory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) pools: u32,
    /// Zpages that several words name.
    pub(crate) shared: u32,
    pub(crate) pages: u64,
    /// All zpages; a same-filled page counts as one of eight bytes.
    pub(crate) zpages: u64,
    pub(crate) payload_bytes: u64,
}

impl Counts {
    pub(super) fn to_bytes(self) -> [u8; COUNTS_BYTES] {
        let mut bytes = [0; COUNTS_BYTES];
        bytes[..4].copy_from_slice(&self.pools.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.shared.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.pages.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.zpages.to_le_bytes());
        bytes[24..].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            pools: read_u32(bytes, 0),
            shared: read_u32(bytes, 4),
            pages: read_u64(bytes, 8),
            zpages: read_u64(bytes, 16),
            payload_bytes: read_u64(bytes, 24),
        }
    }
}

/// The header, read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(super) encrypted: bool,
    pub(super) block_bytes_max: usize,
    pub(crate) counts: Counts,
    /// Random: no two files have the same one.
    salt: [u8; SALT_BYTES],
}

impl Header {
    /// A header for a new file.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub(crate) fn new(counts: Counts, block_bytes_max: usize, encrypted: bool) -> Result<Self, Error> {
        let mut salt = [0; SALT_BYTES];
        let filled = SystemRandom::new().fill(&mut salt);
        let what = "random numbers for a saved store";
        filled.map_err(|_| ErrorKind::System { what, source: std::io::ErrorKind::Other.into() })?;
        Ok(Self { encrypted, block_bytes_max, counts, salt })
    }

    /// A header that says of a plain file what is wanted.
    pub(super) fn repaired(bytes: &[u8; HEADER_BYTES]) -> Self {
        let salt = *bytes[SALT_AT..].first_chunk().expect("the length is fixed");
        Self { encrypted: false, block_bytes_max: BLOCK_BYTES_MAX, counts: Counts::default(), salt }
    }

    /// What is sealed.
    fn fields(&self) -> [u8; SEAL_AT] {
        let mut bytes = [0; SEAL_AT];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(if self.encrypted { ENCRYPTED } else { 0 }).to_le_bytes());
        bytes[16..20].copy_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.block_bytes_max as u32).to_le_bytes());
        bytes[COUNTS_AT..SALT_AT].copy_from_slice(&self.counts.to_bytes());
        bytes[SALT_AT..SALT_AT + SALT_BYTES].copy_from_slice(&self.salt);
        bytes
    }

    /// The place of a block, for its seal, by its number from 1 on; 0 is the header.
    pub(super) fn place(&self, number: u64) -> Place {
        Place { fill: read_u64(&self.salt, 0).wrapping_add(number), units: 0 }
    }

    /// How this file is sealed. Each file has a key of its own, made from the user's key and the header: no nonce is used
    /// twice with it, and a header that was changed opens nothing.
    pub(super) fn seal(&self, key: Option<&[u8; 32]>) -> Seal {
        let Some(key) = key else {
            return Seal::plain();
        };
        let secret = Salt::new(HKDF_SHA256, &self.fields()).extract(key);
        let made = secret.expand(&[KEY_INFO], &AES_256_GCM).map(UnboundKey::from);
        Seal::with_key(made.expect("the key is as long as the cipher wants it"))
    }

    fn tag(&self, seal: &Seal) -> [u8; 16] {
        seal.close(self.place(0), &MAGIC, &mut self.fields())
    }

    pub(super) fn to_bytes(self, seal: &Seal) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..SEAL_AT].copy_from_slice(&self.fields());
        bytes[SEAL_AT..CHECK_AT].copy_from_slice(&self.tag(seal));
        let check = xxh3_128(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads the header and says how the file is sealed. `bytes` are what the file begins with, fewer than
    /// [`HEADER_BYTES`] if it has no more.
    ///
    /// # Errors
    /// When it is none, or none that can be opened with this key.
    pub(super) fn open(bytes: &[u8], key: Option<&[u8; 32]>) -> Result<(Self, Seal), Error> {
        let damaged = |at, what| Error::from(ErrorKind::SavedDamaged { at, what });
        if bytes[..bytes.len().min(MAGIC.len())] != MAGIC[..bytes.len().min(MAGIC.len())] {
            return Err(ErrorKind::SavedForeign.into());
        }
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(ErrorKind::SavedTorn { at: bytes.len() as u64 }.into());
        };
        if bytes[CHECK_AT..] != xxh3_128(&bytes[..CHECK_AT]).to_le_bytes() {
            return Err(damaged(0, "the checksum of its header is wrong"));
        }
        // Magic, version and check are where they are in all versions.
        let version = read_u32(bytes, 8);
        if version != VERSION {
            return Err(ErrorKind::SavedVersion { version, known: VERSION }.into());
        }
        let page_bytes = read_u32(bytes, 16);
        if page_bytes != PAGE_SIZE as u32 {
            return Err(ErrorKind::SavedPageSize { page_bytes }.into());
        }
        let (flags, block_bytes_max) = (read_u32(bytes, 12), read_u32(bytes, 20) as usize);
        if flags & !ENCRYPTED != 0 {
            return Err(damaged(12, "it has unknown flags"));
        }
        if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes_max) {
            return Err(damaged(20, "its blocks have an impossible size"));
        }
        let encrypted = flags & ENCRYPTED != 0;
        if encrypted != key.is_some() {
            let what = if encrypted { "it is encrypted, and no key was given" } else { "it is not encrypted" };
            return Err(ErrorKind::SavedKey { what }.into());
        }
        let salt = *bytes[SALT_AT..].first_chunk().expect("the length is fixed");
        let header = Self { encrypted, block_bytes_max, counts: Counts::from_bytes(&bytes[COUNTS_AT..]), salt };
        let seal = header.seal(key);
        if bytes[..CHECK_AT] != header.to_bytes(&seal)[..CHECK_AT] {
            return Err(match encrypted {
                true => ErrorKind::SavedKey { what: "the key is another one" }.into(),
                false => damaged(SEAL_AT as u64, "the seal of its header is broken"),
            });
        }
        Ok((header, seal))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn bytes_with(change: impl FnOnce(&mut [u8])) -> [u8; HEADER_BYTES] {
        let header = Header::new(Counts { pages: 5, ..Counts::default() }, BLOCK_BYTES_MAX, false).unwrap();
        let mut bytes = header.to_bytes(&Seal::plain());
        change(&mut bytes);
        let check = xxh3_128(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    #[test]
    fn headers_of_others_are_told_apart_from_damaged_ones() {
        let Ok((header, _)) = Header::open(&bytes_with(|_| ()), None) else { panic!("it is a header") };
        assert_eq!((header.counts.pages, header.block_bytes_max), (5, BLOCK_BYTES_MAX));
        let error = |change: fn(&mut [u8])| Header::open(&bytes_with(change), None).err().expect("it is refused");
        let version = error(|bytes| bytes[8] = 2);
        assert!(matches!(version.kind(), ErrorKind::SavedVersion { version: 2, known: 1 }), "{version}");
        let page_size = error(|bytes| bytes[17] = 0x40);
        assert!(matches!(page_size.kind(), ErrorKind::SavedPageSize { page_bytes: 0x4000 }), "{page_size}");
        let key = error(|bytes| bytes[12] = 1);
        assert!(matches!(key.kind(), ErrorKind::SavedKey { .. }), "{key}");
        for (at, change) in [
            (12, (|bytes: &mut [u8]| bytes[13] = 1) as fn(&mut [u8])),
            (20, |bytes| bytes[20..24].fill(0xff)),
            (20, |bytes| bytes[20..24].fill(0)),
            (96, |bytes| bytes[30] ^= 1),
            (96, |bytes| bytes[90] = 1),
        ] {
            let error = error(change);
            assert!(matches!(error.kind(), ErrorKind::SavedDamaged { at: found, .. } if *found == at), "{at}: {error}");
        }
    }
}
