//! The pages that everything is measured on, and the stores that are measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tmem::testing::BareCodec;
use tmem::{AllocatorKind, CodecKind, Config, Key, PAGE_SIZE, Page, PoolKind, PoolOptions, Store};

use crate::project;

/// All allocators, in the order of the tables.
pub const ALLOCATORS: [(AllocatorKind, &str); 4] = [
    (AllocatorKind::Log, "log"),
    (AllocatorKind::Zsmalloc, "zsmalloc"),
    (AllocatorKind::Xvmalloc, "xvmalloc"),
    (AllocatorKind::Zbud, "zbud"),
];

/// All codecs whose density is measured.
pub const CODECS: [(CodecKind, &str); 3] =
    [(CodecKind::Lz4, "lz4"), (CodecKind::Zstd { level: -1 }, "zstd:-1"), (CodecKind::Zstd { level: 1 }, "zstd:1")];

/// More than any measurement fills when memory is not to matter.
pub const AMPLE_BYTES: u64 = 4 << 30;

/// The pages of one program.
pub struct Sample {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The name of all samples together.
pub const ALL: &str = "together";

impl Sample {
    /// The pages of all samples.
    pub fn all(samples: &[Self]) -> Self {
        Self { name: ALL.to_owned(), bytes: samples.iter().flat_map(|sample| &sample.bytes).copied().collect() }
    }

    pub fn pages(&self) -> &[Page] {
        self.bytes.as_chunks().0
    }
}

/// What is smaller is repeated until it has as many pages: the half-filled frames of a few pages would hide all else.
pub const PAGES_MIN: usize = 4096;

/// Reads page files, or the project's own samples where none are named.
pub fn load(files: &[PathBuf], pages_min: usize) -> anyhow::Result<Vec<Sample>> {
    let built_in = ["gcc", "node", "python", "redis"]
        .map(|name| project::root().join(format!("crates/tmem/benches/data/{name}.pages")));
    let files = if files.is_empty() { &built_in[..] } else { files };
    files.iter().map(|path| load_one(path, pages_min)).collect()
}

fn load_one(path: &Path, pages_min: usize) -> anyhow::Result<Sample> {
    let mut bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    bytes.truncate(bytes.len() / PAGE_SIZE * PAGE_SIZE);
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let sample = Sample { name, bytes: bytes.repeat(pages_min.div_ceil((bytes.len() / PAGE_SIZE).max(1)).max(1)) };
    let usable = sample.pages().iter().any(|page| !is_same_filled(page));
    ensure!(usable, "{} holds no page that is more than one repeated word", path.display());
    Ok(sample)
}

/// Whether a page is one repeated 64-bit word, which takes no frame in the store nor in zram.
pub fn is_same_filled(page: &Page) -> bool {
    page.chunks(8).all(|word| word == &page[..8])
}

/// Pages that take frames, from all samples, with the bytes they take when packed.
pub struct Pages {
    pub pages: Vec<Page>,
    pub packed_bytes: Vec<u32>,
}

impl Pages {
    pub fn of(samples: &[Sample], codec: CodecKind) -> Self {
        let all = samples.iter().flat_map(Sample::pages);
        let pages: Vec<Page> = all.filter(|page| !is_same_filled(page)).copied().collect();
        let mut bare = BareCodec::new(codec);
        let packed_bytes = pages.iter().map(|page| bare.compress(page).len() as u32).collect();
        Self { pages, packed_bytes }
    }
}

/// A store for one thread.
pub fn store(allocator: AllocatorKind, codec: CodecKind, budget_bytes: u64) -> anyhow::Result<Store> {
    Ok(Store::new(Config::new(budget_bytes).allocator(allocator).codec(codec).threads(1))?)
}

/// What a store takes beside frames once it has packed and expanded a page: contexts, empty tables, a pool.
pub fn fixed_bytes(allocator: AllocatorKind, codec: CodecKind, page: &Page) -> anyhow::Result<u64> {
    let store = store(allocator, codec, AMPLE_BYTES)?;
    let key = Key::new(store.create_pool(PoolKind::Persistent, PoolOptions::default())?, 1, 0);
    store.put(key, page)?;
    store.get(key, &mut [0; PAGE_SIZE])?;
    let stats = store.stats();
    Ok(stats.memory_bytes - stats.frame_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_samples_are_whole() {
        let samples = load(&[], 1).unwrap();
        assert_eq!(samples.iter().map(|sample| sample.pages().len()).collect::<Vec<_>>(), [64; 4]);
        assert!(load(&[], 100).unwrap().iter().all(|sample| sample.pages().len() == 128));
        let pages = Pages::of(&samples, CodecKind::Lz4);
        assert_eq!(pages.pages.len(), pages.packed_bytes.len());
        assert!(pages.packed_bytes.iter().all(|bytes| (1..=PAGE_SIZE as u32).contains(bytes)));
    }

    #[test]
    fn a_file_without_pages_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; PAGE_SIZE + 5]).unwrap();
        assert!(load(&[file.path().to_owned()], 1).is_err());
    }
}
