//! Disks that outlive their server: a saved store (`docs/format.md`) with a catalogue, which says which pool is which disk.
//!
//! The catalogue is JSON, in the pages of one more pool: `{"tmem_disk":1,"disks":[{"name":"","size_bytes":1073741824,"pool":0}]}`,
//! with spaces at its end. Pools that it does not name (those of caches, and its own) are destroyed when the image was opened.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};
use tmem::{Key, OpenOptions, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Saved, Store};

use crate::error::Error;
use crate::export::Export;
use crate::options::{Contents, ExportOptions};

/// The version of the catalogue.
const VERSION: u32 = 1;
/// More is none of ours.
const CATALOGUE_PAGES_MAX: u32 = 1024;
/// Its object, which no page of a disk can have.
const CATALOGUE: u64 = u64::MAX;

#[derive(Serialize, Deserialize)]
struct Catalogue {
    tmem_disk: u32,
    disks: Vec<SavedDisk>,
}

/// A disk of an image.
#[derive(Serialize, Deserialize)]
pub struct SavedDisk {
    name: String,
    size_bytes: u64,
    pool: u32,
}

/// The disks of an image.
#[derive(Default)]
pub struct SavedDisks(Vec<SavedDisk>);

impl SavedDisks {
    /// The pool of a disk, if there is one of this name.
    pub fn pool(&self, name: &str) -> Option<PoolId> {
        self.0.iter().find(|disk| disk.name == name).map(|disk| PoolId::from_bits(disk.pool))
    }
}

fn refused(path: &Path, why: impl Display) -> Error {
    Error::new(format!("--image {}: {why}", path.display()))
}

/// Whether there is an image yet, where one can be written at the end.
///
/// # Errors
/// When none can.
pub fn is_there(path: &Path) -> Result<bool, Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    access(folder, Access::WRITE_OK).map_err(|e| {
        refused(path, format_args!("it cannot be written there: {}: {}", folder.display(), io::Error::from(e)))
    })?;
    Ok(!matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == ErrorKind::NotFound))
}

/// Opens an image. Every disk in it has to be among those that are asked for, and not have become smaller.
///
/// # Errors
/// When it cannot be opened, is none, or has other disks.
pub fn open(path: &Path, options: OpenOptions, exports: &[ExportOptions]) -> Result<(Store, SavedDisks), Error> {
    let store =
        options.open(path).map_err(|e| refused(path, format_args!("{e}; move it away to begin with empty disks")))?;
    let Some(Catalogue { tmem_disk: VERSION, disks }) = read_catalogue(&store) else {
        return Err(refused(path, "it is a saved store, but none of tmem disk, or of another version"));
    };
    for SavedDisk { name, size_bytes, .. } in &disks {
        let fits = |export: &ExportOptions| matches!(export.contents, Contents::Empty { size_bytes: now } if now >= *size_bytes);
        if !exports.iter().any(|export| export.name == *name && fits(export)) {
            let wanted = if name.is_empty() { "--size ".to_owned() } else { format!("--export '{name}'=") };
            return Err(refused(
                path,
                format_args!("there is a disk in it that is not asked for: {wanted}{size_bytes}"),
            ));
        }
    }
    let named = |pool: PoolId| disks.iter().any(|disk| PoolId::from_bits(disk.pool) == pool);
    for (pool, _) in store.pools().into_iter().filter(|(pool, _)| !named(*pool)) {
        store.destroy_pool(pool);
    }
    Ok((store, SavedDisks(disks)))
}

/// Sees to it that an opened store takes no more than it may.
///
/// # Errors
/// When it cannot.
pub fn fits(path: &Path, store: &Store, bytes_max: u64) -> Result<(), Error> {
    store.trim();
    while store.memory_bytes() > bytes_max {
        let frames = (store.memory_bytes() - bytes_max).div_ceil(PAGE_SIZE as u64);
        if store.reclaim(frames, None).frames == 0 {
            let more = (store.memory_bytes() - bytes_max).div_ceil(1 << 20);
            return Err(refused(
                path,
                format_args!("it takes {more} MiB more than there are: give more --ram, or --spill"),
            ));
        }
    }
    Ok(())
}

/// Saves the disks of a store that nobody uses any more. The old image stands until the new one is whole and safe.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, mut store: Store, disks: Vec<SavedDisk>) -> Result<Saved, Error> {
    let failed =
        |e: tmem::Error| Error::new(format!("the disks are not saved to {}, which is as it was: {e}", path.display()));
    write_catalogue(&store, &Catalogue { tmem_disk: VERSION, disks }).map_err(failed)?;
    store.save(path).map_err(failed)
}

impl SavedDisk {
    /// What the catalogue says of an export, if it is worth saving: of a cache, the backing has all.
    pub fn of(export: &Export) -> Option<Self> {
        let (name, size_bytes) = (export.name.clone(), export.size_bytes);
        export.backing.is_none().then(|| Self { name, size_bytes, pool: export.blocks.pages().pool().to_bits() })
    }
}

fn write_catalogue(store: &Store, catalogue: &Catalogue) -> Result<(), tmem::Error> {
    // Numbers and texts can always be written.
    let mut bytes = serde_json::to_vec(catalogue).unwrap_or_default();
    bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE), b' ');
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
    for (index, page) in (0..).zip(bytes.as_chunks().0) {
        store.put(Key::new(pool, CATALOGUE, index), page)?;
    }
    Ok(())
}

fn read_catalogue(store: &Store) -> Option<Catalogue> {
    store.pools().into_iter().find_map(|(pool, _)| {
        let mut bytes = Vec::new();
        let mut page: Page = [0; PAGE_SIZE];
        for index in 0..CATALOGUE_PAGES_MAX {
            if !store.get(Key::new(pool, CATALOGUE, index), &mut page).ok()? {
                break;
            }
            bytes.extend_from_slice(&page);
        }
        serde_json::from_slice(&bytes).ok()
    })
}
