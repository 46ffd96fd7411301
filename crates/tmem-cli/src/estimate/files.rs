//! Files as a source of pages.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tmem::{PAGE_SIZE, Page};

use super::source::{Block, Source, add_run};

/// Files of whole pages, one behind the other. The high half of a page's number says in which file it is.
pub struct Files {
    files: Vec<(PathBuf, File)>,
    blocks: Vec<Block>,
}

const FILE_SHIFT: u32 = 32;

impl Files {
    /// Opens the files.
    ///
    /// # Errors
    /// When one is missing, no file, empty, or not made of whole pages.
    pub fn open(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let (mut files, mut blocks) = (Vec::new(), Vec::new());
        for (number, path) in (0_u64..).zip(paths) {
            let (file, pages) = open_pages(path)?;
            let first = number << FILE_SHIFT;
            add_run(&mut blocks, first, first + pages);
            files.push((path.clone(), file));
        }
        Ok(Self { files, blocks })
    }
}

fn open_pages(path: &Path) -> anyhow::Result<(File, u64)> {
    let name = path.display();
    // Looked at before it is opened: to open a pipe would wait for a writer.
    let found = fs::metadata(path).with_context(|| format!("cannot read {name}"))?;
    ensure!(!found.is_dir(), "{name} is a directory: name the files in it, for example {name}/*");
    ensure!(found.is_file(), "{name} is not a regular file: copy what it gives into a file first");
    let (bytes, page) = (found.len(), PAGE_SIZE as u64);
    ensure!(bytes > 0, "{name} is empty: give a file of whole pages of {page} bytes");
    if bytes % page != 0 {
        bail!(
            "{name} has {bytes} bytes, which is no multiple of {page}: give whole pages; \
             `truncate -s %{page} COPY` fills up the last page of a copy with zeros"
        );
    }
    ensure!(bytes / page <= 1 << FILE_SHIFT, "{name} is larger than 16 TiB: split it");
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    Ok((file, bytes / page))
}

impl Source for Files {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn read_run(&self, first: u64, out: &mut [Page]) -> anyhow::Result<Option<usize>> {
        let (path, file) = &self.files[(first >> FILE_SHIFT) as usize];
        let offset = (first & ((1 << FILE_SHIFT) - 1)) * PAGE_SIZE as u64;
        let read = file.read_exact_at(out.as_flattened_mut(), offset);
        read.with_context(|| format!("cannot read {}: was it changed meanwhile?", path.display()))?;
        Ok(Some(out.len()))
    }

    fn title(&self) -> String {
        match self.files.as_slice() {
            [(path, _)] => format!("File {}", path.display()),
            files => format!("{} files", files.len()),
        }
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn json(&self) -> Value {
        let paths: Vec<_> = self.files.iter().map(|(path, _)| path.to_string_lossy()).collect();
        json!({ "kind": "files", "files": paths })
    }
}
