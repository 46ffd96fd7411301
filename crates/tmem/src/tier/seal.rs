//! Seals: how a record proves that it is the one that was written to its place, and keeps its contents to itself.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::error::{Error, ErrorKind};
use crate::page::fold;

/// A place that is written once: in the `fill`th filling of any segment, at this offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) fill: u64,
    pub(crate) units: u32,
}

/// How records are sealed.
pub(crate) enum Seal {
    /// A 128-bit XXH3 over place, head and payload: finds accidents, stops nobody.
    Plain,
    /// AES-256-GCM, with the place as its nonce. Boxed, because the key schedule takes half a kilobyte.
    Encrypting(Box<LessSafeKey>),
}

impl Seal {
    pub(crate) fn plain() -> Self {
        Self::Plain
    }

    /// With a random key that exists nowhere else.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub(crate) fn encrypting() -> Result<Self, Error> {
        let mut key = [0; 32];
        let filled = SystemRandom::new().fill(&mut key);
        let what = "random numbers for a key";
        filled.map_err(|_| ErrorKind::System { what, source: std::io::ErrorKind::Other.into() })?;
        Ok(Self::with_key(UnboundKey::new(&AES_256_GCM, &key).expect("the key is as long as the cipher wants it")))
    }

    /// With a key under which no place was sealed before.
    pub(crate) fn with_key(key: UnboundKey) -> Self {
        Self::Encrypting(Box::new(LessSafeKey::new(key)))
    }

    pub(crate) fn encrypts(&self) -> bool {
        matches!(self, Self::Encrypting(_))
    }

    /// Encrypts the payload in place and says how it can be known again.
    pub(crate) fn close(&self, place: Place, head: &[u8; 8], payload: &mut [u8]) -> [u8; 16] {
        match self {
            Self::Plain => plain_check(place, head, payload),
            Self::Encrypting(key) => {
                let tag = key.seal_in_place_separate_tag(nonce(place), Aad::from(head), payload);
                let tag = tag.expect("a record is shorter than what the cipher can take");
                tag.as_ref().try_into().expect("the tag of AES-GCM has 16 bytes")
            }
        }
    }

    /// Decrypts the payload in place. `false` when it is not what was sealed; the payload then holds anything.
    pub(crate) fn open(&self, place: Place, head: &[u8; 8], tag: [u8; 16], payload: &mut [u8]) -> bool {
        match self {
            Self::Plain => plain_check(place, head, payload) == tag,
            Self::Encrypting(key) => {
                let aad = Aad::from(head);
                key.open_in_place_separate_tag(nonce(place), aad, Tag::from(tag), payload, 0..).is_ok()
            }
        }
    }
}

/// No place is ever written twice, so no nonce is used twice with one key.
fn nonce(place: Place) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&place.fill.to_le_bytes());
    nonce[8..].copy_from_slice(&place.units.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn plain_check(place: Place, head: &[u8; 8], payload: &[u8]) -> [u8; 16] {
    let place = fold(place.fill ^ 0x9e37_79b9_7f4a_7c15, u64::from(place.units) ^ 0xbf58_476d_1ce4_e5b9);
    xxh3_128_with_seed(payload, place ^ u64::from_le_bytes(*head)).to_le_bytes()
}
